"""How much memory fine-tuning or reinforcing Qwen2.5-VL-7B needs on each device, by count.

Computed and not measured. Per device:

- weights: 2 bytes where they are frozen in bfloat16 (4 in float32); 16 where they are trained (a
  float32 weight, its gradient, two moments of AdamW), and 2 more for the bfloat16 copy that
  autocast keeps. Spread over the devices where they are sharded, and then one layer is gathered
  twice as it is kept (the present one and the next), and the bfloat16 copies are those that the
  backward pass needs: of all trained weights, or, where layers are computed again, of one;
- activations: 2 x D bytes a layer and token where layers are computed again, and what one layer
  keeps; without, what every layer keeps; twice that in the relaxation of latent segments, where
  the pass that makes the latents has gradients, too;
- logits: three float32 copies of those held at a time;
- the mask of packed rollouts, one number for every pair of tokens;
- cache, of rollouts: keys and values of a whole group, each trajectory with its prompt;
- a gigabyte for the device's context and fragments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from training.adapters import AdapterConfig
from training.reinforcement import ReinforcementConfig
from training.sft import TuningConfig

# Qwen2.5-VL-7B: its configuration, and parameters counted from it.
HIDDEN: Final = 3584
INTERMEDIATE: Final = 18_944
KEYS: Final = 512
LAYERS: Final = 28
VOCABULARY: Final = 152_064
LAYER_PARAMETERS: Final = 6_526_000_000
EMBEDDING_PARAMETERS: Final = VOCABULARY * HIDDEN
VISION_PARAMETERS: Final = 677_000_000

SHAPES: Final = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, KEYS),
    "v_proj": (HIDDEN, KEYS),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, INTERMEDIATE),
    "up_proj": (HIDDEN, INTERMEDIATE),
    "down_proj": (INTERMEDIATE, HIDDEN),
}
CONTEXT_BYTES: Final = 1_000_000_000
TRAINED_BYTES: Final = 16
# A layer keeps its inputs to norms, projections and activation: about 8 D + 3 I numbers a token.
KEPT_NUMBERS: Final = 8 * HIDDEN + 3 * INTERMEDIATE


@dataclass(frozen=True, slots=True)
class MemoryCount:
    """Bytes of one device, by what they are for.

    Attributes:
        frozen: weights that are not trained.
        trained: weights that are, with gradients, moments and working copies.
        activations: of one part of a step.
        logits: of those held at a time.
        cache: of a group that is rolled out.
        context: of the device's own.
    """

    frozen: int
    trained: int
    activations: int
    logits: int
    cache: int = 0
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        """All together."""
        parts = (self.frozen, self.trained, self.activations, self.logits, self.cache, self.context)
        return sum(parts)


def adapter_parameters(config: AdapterConfig) -> int:
    """Parameters of an adapter: rank x (inputs + outputs) of every matrix that has one."""
    return LAYERS * config.rank * sum(sum(SHAPES[name]) for name in config.targets)


def memory_count(
    tuning: TuningConfig,
    *,
    record_tokens: int,
    devices: int = 1,
    is_sharded: bool = False,
    is_relaxed: bool = False,
) -> MemoryCount:
    """What one device needs.

    Args:
        tuning: as in the configuration of the run.
        record_tokens: longest record, image tokens included.
        devices: that train together.
        is_sharded: whether weights are spread over them (FSDP2, ZeRO-3), or each holds them all.
        is_relaxed: whether the run has latent segments with a relaxation.

    Raises:
        ValueError: a count is below 1.
    """
    if record_tokens < 1 or devices < 1:
        raise ValueError("record_tokens and devices must be at least 1.")
    width = 2 if tuning.precision == "bf16" else 4
    language = LAYER_PARAMETERS + 2 * EMBEDDING_PARAMETERS
    trained = adapter_parameters(tuning.lora) if tuning.lora else language
    frozen = language if tuning.lora else 0
    if tuning.vision == "trained":
        trained += VISION_PARAMETERS
    else:
        frozen += VISION_PARAMETERS
    copies = 2 if tuning.precision == "bf16" else 0
    if is_sharded:
        kept = width if tuning.lora else 4
        gathered = 2 * kept * (LAYER_PARAMETERS // LAYERS + EMBEDDING_PARAMETERS)
        one = LAYER_PARAMETERS // LAYERS + EMBEDDING_PARAMETERS
        cast = copies * (min(trained, one) if tuning.gradient_checkpointing else trained)
        weights = TRAINED_BYTES * trained // devices + gathered + cast
        frozen_bytes = width * frozen // devices
    else:
        # With several devices gradients are exchanged in buckets of their own.
        buckets = 4 if devices > 1 else 0
        weights, frozen_bytes = (TRAINED_BYTES + copies + buckets) * trained, width * frozen
    tokens = tuning.micro_batch * record_tokens
    kept = KEPT_NUMBERS * width * tokens
    again = LAYERS * HIDDEN * width * tokens + kept
    held = min(tuning.head_chunk or tokens, tokens)
    return MemoryCount(
        frozen=frozen_bytes,
        trained=weights,
        activations=(1 + is_relaxed) * (again if tuning.gradient_checkpointing else LAYERS * kept),
        logits=3 * 4 * VOCABULARY * held,
    )


def policy_memory_count(
    config: ReinforcementConfig, *, prompt_tokens: int, devices: int = 1
) -> MemoryCount:
    """What one device needs to roll a policy out and to learn from it.

    Args:
        config: of the run.
        prompt_tokens: longest prompt, image tokens included; a zoom's crop counts as much again.
        devices: that train together, each with all weights.

    Raises:
        ValueError: a count is below 1.
    """
    update, rollouts = config.update, config.rollouts
    branches = min(update.branches or rollouts.group, rollouts.group)
    crops = rollouts.max_crops if config.method == "zoom" else 0
    own = rollouts.max_new_tokens + rollouts.latent_steps + crops * prompt_tokens
    tuning = TuningConfig(
        lora=config.lora,
        precision=config.precision,
        gradient_checkpointing=update.gradient_checkpointing,
        micro_batch=1,
        head_chunk=update.head_chunk,
    )
    packed = prompt_tokens + branches * own
    count = memory_count(tuning, record_tokens=packed, devices=devices)
    width = 2 if config.precision == "bf16" else 4
    held = rollouts.group * (prompt_tokens + own)
    frozen = count.frozen
    if config.lora is None and config.objective.kl_weight:
        # The reference is a copy of all weights; an adapter is switched off instead.
        frozen += width * (LAYER_PARAMETERS + 2 * EMBEDDING_PARAMETERS)
    return replace(
        count,
        frozen=frozen,
        # Who may look at whom, as booleans and in the numbers that attention adds.
        activations=count.activations + (1 + width) * packed**2,
        cache=2 * LAYERS * KEYS * width * held,
    )


def readable(count: MemoryCount) -> str:
    """The count as a table, in GB of 10^9 bytes."""
    parts = ("frozen", "trained", "activations", "logits", "cache", "context", "total")
    lines = [f"  {name:<12} {getattr(count, name) / 1e9:7.2f} GB" for name in parts]
    return "\n".join(["Qwen2.5-VL-7B, each device, computed and not measured", *lines])
