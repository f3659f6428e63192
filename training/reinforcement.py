"""`python -m training medvr` and `python -m training vlpo`: one loop, two objectives.

A batch of prompts is rolled out in groups through the engine's own loop, scored, and learned
from in a few optimiser steps. MedVR rolls out agents that zoom, which fork where they are unsure
(EVR) and are paid for looking where the successful ones agree (CCA); VLPO rolls out latent
segments and learns from them beside the text. Started by `accelerate launch` or `torchrun`, all
processes train together, each with the whole policy (`training.replicas`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from engine.encoded_views import EncodedViews
from engine.engine import Engine
from engine.group import MAX_MEMBERS, GroupError
from engine.group_io import GROUP_SUFFIX, write_group
from engine.loading import load_checkpoint
from engine.manifest import CheckpointError
from engine.sampling import InvalidLogitsError
from engine.trace_io import TraceFileError
from training.adapters import AdapterConfig, add_adapter
from training.alarm import AlarmConfig, ToolAlarm
from training.calibration import coarse_cases, entropy_threshold
from training.checkpoints import kept_state
from training.config import ConfigError
from training.evaluate import AskConfig, greedy_scores
from training.export import ExportConfig, Thresholds, export_adapter, export_checkpoint
from training.kept_weights import weights_keeper
from training.loop import Report, Stage, StepsConfig, prefixed, run_stage
from training.metrics import Metrics, require_tensorboard
from training.out_of_distribution import Detector
from training.own_records import OwnPrompts, OwnPromptsConfig
from training.packing import PackedGroup
from training.pass_rates import PassRateConfig, kept_prompts
from training.policy import PolicyOutputs, policy_outputs
from training.policy_loss import ObjectiveConfig
from training.policy_updates import PolicyUpdates, Reference, UpdateConfig
from training.prompts import Prompt, PromptConfig, PromptPool, numbers_of_batch
from training.real_images import real_picture
from training.replicas import Replicas
from training.rewards import RewardConfig
from training.rollout_groups import (
    PolicyMethod,
    RewardedGroup,
    RolloutConfig,
    drawn_request,
    rewarded,
    rolled_out,
)
from training.run_settings import claim_run
from training.stopping import DivergedError
from training.trajectories import TrajectoryGroup
from training.trees import tree_of
from training.world import Case

# Settings that may change when a run goes on: schedules, bounds, and what is only looked at.
MAY_CHANGE: Final = (
    *("out", "threads", "phantoms", "steps.*", "evaluation*", "export*", "alarm*", "trees_every"),
    "kept_views_mib",
    *("update.most_kl", "update.head_chunk", "update.gradient_checkpointing"),
    "objective.kl_weight",
)
# Streams of draws under the seed of a run.
_BATCHES, _PASS_RATES = 22, 23


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What the policy is scored on while it learns, greedily.

    Attributes:
        prompts: of phantoms that it never learns from; None where records are asked.
        every: optimiser steps between evaluations; 0: only before the first and after the last.
    """

    prompts: PromptConfig | None = None
    every: int = 0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every must not be negative, not {self.every}.")
        if self.prompts is not None and self.prompts.split == "train":
            raise ValueError("evaluation.prompts.split must not be train.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcementConfig:
    """Everything of a run.

    Attributes:
        out: folder of the training state and of the exported checkpoint.
        base: checkpoint to begin with, and reference of the KL: a folder or a hub id.
        phantoms: folder of drawn prompts, which runs may share.
        seed: of everything that is drawn but the phantoms.
        method: `zoom` or `direct` for MedVR and its text-only rival, `latent` for VLPO.
        prompts: what the policy is asked about phantoms; None where records are asked.
        records: of one's own, which take the place of all prompts; their boxes are only measured
            against.
        pass_rate: which prompts are kept.
        lora: an adapter is trained; None: all weights of the language model.
        precision: `bf16` keeps the frozen weights in bfloat16 and the adapter in float32; without
            an adapter there is `fp32` alone.
        rollouts: how it is rolled out.
        reward: what a trajectory earns.
        objective: what is minimised.
        update: how rollouts become optimiser steps.
        steps: optimiser steps and their schedule; whole batches of rollouts.
        alarm: when tool use counts as dying (`zoom`).
        kept_views_mib: of the host's memory, in every process, for visual tokens of the images
            that were asked about last: the tower does not change, so that one which another batch
            or an evaluation asks about again is not encoded again. 1,500 tokens of Qwen2.5-VL-7B
            in bfloat16 take 10. 0: none are kept.
        trees_every: optimiser steps between trees that are saved, of the first prompt of a batch
            (`engine.group_io`); a multiple of `update.steps`; 0: none.
    """

    out: Path
    base: str
    phantoms: Path
    seed: int
    method: PolicyMethod
    rollouts: RolloutConfig
    steps: StepsConfig
    evaluation: EvaluationConfig
    prompts: PromptConfig | None = None
    records: OwnPromptsConfig | None = None
    lora: AdapterConfig | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    pass_rate: PassRateConfig = field(default_factory=PassRateConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    threads: int = 2
    export: ExportConfig = field(default_factory=ExportConfig)
    kept_views_mib: int = 256
    trees_every: int = 0

    def __post_init__(self) -> None:
        if self.kept_views_mib < 0:
            raise ValueError(f"kept_views_mib must not be negative, not {self.kept_views_mib}.")
        if self.trees_every < 0 or self.trees_every % self.update.steps:
            raise ValueError(
                f"trees_every must be a multiple of update.steps, {self.update.steps}, not "
                f"{self.trees_every}: a tree is that of a batch of rollouts."
            )
        if self.trees_every and self.rollouts.group > MAX_MEMBERS:
            raise ValueError(f"trees_every needs a rollouts.group of at most {MAX_MEMBERS}.")
        for name in ("steps", "save_every"):
            if getattr(self.steps, name) % self.update.steps:
                raise ValueError(
                    f"steps.{name} must be a multiple of update.steps, {self.update.steps}, not "
                    f"{getattr(self.steps, name)}: a batch of rollouts is not saved."
                )
        self._check_rollouts()
        self._check_prompts()
        if self.precision == "bf16" and self.lora is None:
            raise ValueError(
                "Weights that are trained stay in float32, where bfloat16 would swallow small "
                "updates: precision bf16 needs lora."
            )
        if self.update.most_kl and not self.objective.kl_weight:
            raise ValueError("update.most_kl needs a reference: give objective.kl_weight.")
        deterministic = self.objective.latents.kind == "deterministic"
        if self.method == "latent" and deterministic and self.update.steps < 2:
            raise ValueError(
                "Latents that are not drawn have no gradient in the first update after a rollout: "
                "update.steps must be at least 2."
            )

    def _check_prompts(self) -> None:
        """Refuses to ask nothing, or two things at once.

        Raises:
            ValueError: with what to change.
        """
        given = (self.prompts is not None, self.evaluation.prompts is not None)
        if self.records is None and not all(given):
            raise ValueError("Give prompts and evaluation.prompts, or records of your own.")
        if self.records is not None and any(given):
            raise ValueError(
                "records take the place of prompts: leave out prompts and evaluation.prompts."
            )
        if self.records is not None and self.export.embedded:
            raise ValueError(
                "Thresholds of an embedded checkpoint are read off phantoms: set export.embedded "
                "to false where records are asked."
            )

    def pools(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        """What the policy learns from, and what it is scored on.

        Raises:
            ConfigError: records cannot be used.
        """
        if self.records is not None:
            own = self.records
            return (
                OwnPrompts(own.train, "train", own.count),
                OwnPrompts(own.validation, "validation", own.count),
            )
        return tuple(  # type: ignore[return-value]
            PromptPool(self.phantoms, prompts)
            for prompts in (self.prompts, self.evaluation.prompts)
            if prompts is not None
        )

    def _check_rollouts(self) -> None:
        """Refuses rollouts that the method does not know.

        Raises:
            ValueError: with what to change.
        """
        if self.rollouts.branching is not None and self.method != "zoom":
            raise ValueError("rollouts.branching forks before zooms: it needs the method zoom.")
        if self.rollouts.bottleneck and self.method != "latent":
            raise ValueError("rollouts.bottleneck needs the method latent.")
        if self.rollouts.bottleneck and not self.rollouts.latent_steps:
            raise ValueError(
                "rollouts.bottleneck lets an answer see its image through latents alone: "
                "rollouts.latent_steps must be at least 1."
            )


def medvr(config: ReinforcementConfig, report: Report) -> Path:
    """Trains an agent that zooms, or its text-only rival; the checkpoint's folder.

    Raises:
        ConfigError: the method is another, the base checkpoint cannot be used, the folder holds
            a run of other settings, or no prompt is left by the pass rates.
        DivergedError: see `training.loop.run_stage`, `UpdateConfig.most_kl` and `gathered`.
    """
    if config.method == "latent":
        raise ConfigError("medvr trains the methods zoom and direct: for latent there is vlpo.")
    return reinforce(config, report)


def vlpo(config: ReinforcementConfig, report: Report) -> Path:
    """Trains latent segments with the answers after them; the checkpoint's folder.

    Raises:
        ConfigError: as `medvr`.
        DivergedError: as `medvr`.
    """
    if config.method != "latent":
        raise ConfigError("vlpo trains the method latent: for zoom and direct there is medvr.")
    return reinforce(config, report)


def reinforce(config: ReinforcementConfig, report: Report) -> Path:
    """Runs the loop from its last checkpoint, or from the base; exports a checkpoint folder."""
    replicas = Replicas()
    require_tensorboard(config.steps.tensorboard)
    claim_run(config.out, config, MAY_CHANGE, writes=replicas.is_main)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    pool, unseen = config.pools()
    policy = opened_policy(
        config.base, config.lora, config.precision, replicas.device, config.kept_views_mib
    )
    engine = policy.engine
    if config.export.embedded and engine.loaded.detector is None:
        # Said before the training, and not after it.
        raise ConfigError(
            "An embedded checkpoint takes over the detector of its base, and this base has none: "
            "set export.embedded to false, or begin with an embedded checkpoint."
        )
    reference = None
    if config.objective.kl_weight:
        reference = reference_of(policy, config.update.head_chunk)
    folder = config.out / "policy"
    said = prefixed(report, "policy")
    if replicas.is_main and replicas.count > 1:
        said(f"{replicas.count} processes train together.")
    # With the base's own weights, before any state is read.
    kept = kept_prompts(
        folder,
        len(pool),
        config.pass_rate,
        lambda number: pass_rate(engine, pool[number], config, number),
        said,
        replicas,
    )
    alarm = None
    if config.method == "zoom":
        # Every process hears the rate of all; one of them says so.
        alarm = ToolAlarm(config.alarm, said if replicas.is_main else lambda _: None)
    updates = PolicyUpdates(
        policy.model,
        reference,
        lambda batch: gathered(engine, pool, kept, config, batch, said, replicas=replicas),
        config.update,
        config.objective,
        bottleneck=config.rollouts.bottleneck,
        alarm=alarm,
        replicas=replicas,
    )

    def evaluate(done: int) -> dict[str, float]:
        del done
        return validation_scores(engine, unseen, config, replicas)

    if kept_state(folder) is None:
        score_the_beginning(folder, evaluate, said, replicas)
    stage = Stage(
        folder=folder,
        modules=policy.trained | ({} if alarm is None else {"alarm": alarm}),
        config=config.steps,
        parts_at=updates.parts_at,
        evaluate=evaluate,
        evaluate_every=config.evaluation.every,
        after_step=weights_keeper(policy.model, policy.engine.loaded.tokenizer),
        rate_key="steps.learning_rate",
    )
    run_stage(stage, said, replicas)
    if replicas.is_main:
        export(config, policy, unseen)
    replicas.close()
    return config.out / "checkpoint"


@dataclass(frozen=True, slots=True)
class Policy:
    """A checkpoint that is being trained.

    Attributes:
        engine: rolls it out.
        adapter: None when all weights of the language model are trained.
    """

    engine: Engine
    adapter: PeftModel | None

    @property
    def model(self) -> Qwen2_5_VLForConditionalGeneration:
        """Called as ever, with its adapter inside where it has one."""
        return self.engine.loaded.model

    @property
    def trained(self) -> dict[str, nn.Module]:
        """What is trained, by its names in a state; a tied head is the embedding again."""
        modules: dict[str, nn.Module] = {"language": self.model.model.language_model}
        if not self.model.config.tie_word_embeddings and self.adapter is None:
            modules["head"] = self.model.lm_head
        return modules


def opened_policy(
    base: str,
    lora: AdapterConfig | None,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: torch.device | None = None,
    kept_views_mib: int = 0,
) -> Policy:
    """Opens a checkpoint; its tower stays as it is.

    Args:
        base: a folder or a hub id.
        lora: an adapter is put in, in float32 whatever the precision.
        precision: of all weights; of the frozen ones where there is an adapter.
        device: CUDA when there is one and none is named.
        kept_views_mib: see `ReinforcementConfig`.

    Raises:
        ConfigError: the checkpoint is missing or cannot be used.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        loaded = load_checkpoint(base, None if device is None else str(device), dtype)
    except CheckpointError as error:
        raise ConfigError(
            f"{error} Run the stage that makes {base} first, or change base."
        ) from error
    loaded.model.requires_grad_(True)
    loaded.model.model.visual.requires_grad_(False)
    adapter = None if lora is None else add_adapter(loaded.model, lora, base)
    views = EncodedViews(kept_views_mib * 2**20) if kept_views_mib else None
    return Policy(Engine(loaded, views), adapter)


def reference_of(policy: Policy, head_chunk: int) -> Reference:
    """What the policy is kept near to: itself as it is now.

    Args:
        policy: as it begins; an adapter begins as the identity.
        head_chunk: tokens whose logits are held at a time.

    Returns:
        The policy with its adapter switched off, or a frozen copy of all weights.
    """
    adapter, model = policy.adapter, policy.model
    if adapter is None:
        frozen = copy.deepcopy(model).requires_grad_(False)
        return lambda packed: policy_outputs(frozen, packed, chunk=head_chunk)

    def without_adapter(packed: PackedGroup) -> PolicyOutputs:
        with adapter.disable_adapter():
            return policy_outputs(model, packed, chunk=head_chunk)

    return without_adapter


def gathered(
    engine: Engine,
    pool: Sequence[Prompt],
    kept: Sequence[int],
    config: ReinforcementConfig,
    batch: int,
    report: Report,
    *,
    replicas: Replicas,
) -> list[RewardedGroup]:
    """Rolls out this process's share of the prompts of a batch and scores them.

    Raises:
        DivergedError: the policy has come to logits that are no numbers.
    """
    numbers = numbers_of_batch(kept, config.rollouts.prompts, batch, config.seed)
    groups = []
    for place, number in replicas.own(list(enumerate(numbers))):
        prompt, draws = pool[number], (config.seed, _BATCHES, batch, place)
        try:
            rollouts = rolled_out(
                engine, prompt, config.method, config.rollouts, config.objective.latents, draws
            )
        except InvalidLogitsError as error:
            raise DivergedError(
                f"The policy's logits are no numbers before step {batch * config.update.steps}"
            ) from error
        if not place and saves_tree(config, batch):
            try:
                save_tree(engine, prompt, config, rollouts, batch, draws)
            except (TraceFileError, GroupError, OSError) as error:
                # Nothing is learned from a tree: what keeps it from being saved ends no run.
                why = error.strerror if isinstance(error, OSError) else str(error)
                report(f"the tree of batch {batch} was not saved: {why}")
        groups.append(rewarded(prompt.question, rollouts, config.reward))
    return groups


def saves_tree(config: ReinforcementConfig, batch: int) -> bool:
    """Whether the tree of a batch is saved."""
    return bool(config.trees_every) and batch * config.update.steps % config.trees_every == 0


def save_tree(
    engine: Engine,
    prompt: Prompt,
    config: ReinforcementConfig,
    rollouts: TrajectoryGroup,
    batch: int,
    draws: Sequence[int],
) -> None:
    """Writes the tree of a prompt, named by the optimiser step that learns from it first.

    Raises:
        GroupError: the rollouts are no tree.
        TraceFileError: they are more than a file may hold.
        OSError: the folder cannot be written.
    """
    request, _ = drawn_request(prompt, config.method, config.rollouts, draws)
    folder = config.out / "policy" / "trees"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{batch * config.update.steps:06d}{GROUP_SUFFIX}"
    write_group(path, tree_of(engine, request, rollouts, prompt.question))


def pass_rate(engine: Engine, prompt: Prompt, config: ReinforcementConfig, number: int) -> float:
    """Share of right answers to a prompt, of trajectories that all begin at it."""
    rollouts = replace(config.rollouts, group=config.pass_rate.rollouts, branching=None)
    draws = (config.seed, _PASS_RATES, number)
    latents = config.objective.latents
    found = rolled_out(engine, prompt, config.method, rollouts, latents, draws).trajectories
    return sum(trajectory.outcome.correct for trajectory in found) / len(found)


def validation_scores(
    engine: Engine, pool: Sequence[Prompt], config: ReinforcementConfig, replicas: Replicas
) -> dict[str, float]:
    """`greedy_scores` of the policy, asked under the budgets that it is rolled out with."""
    how = AskConfig(
        method=config.method,
        budgets=config.rollouts.budgets(),
        bottleneck=config.rollouts.bottleneck,
    )
    return greedy_scores(engine, pool, how, replicas)


def score_the_beginning(
    folder: Path,
    evaluate: Callable[[int], dict[str, float]],
    report: Report,
    replicas: Replicas,
) -> None:
    """Logs the scores of the base as those of step 0; what a stopped run left is dropped."""
    scores = evaluate(0)
    if not replicas.is_main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(folder, start=-1)
    metrics.write({"step": 0, **scores})
    report("before: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))


def export(config: ReinforcementConfig, policy: Policy, unseen: Sequence[Prompt]) -> Path:
    """Writes the checkpoint folder: weights, or the adapter alone.

    The tower has not changed, and with it neither has what the base knows of other images; the
    entropies have, and their threshold is set anew.
    """
    loaded = policy.engine.loaded
    # What is read off validation phantoms is read where their batches lie.
    loaded.model.to("cpu")  # type: ignore[arg-type]
    thresholds = None
    if config.export.embedded:
        detector = loaded.detector
        if detector is None:
            raise ValueError("An embedded checkpoint needs a base with a detector.")
        own = [unseen_case(prompt) for prompt in unseen if prompt.question.kind == "coarse"]
        thresholds = Thresholds(
            Detector(detector.mean, detector.precision, detector.threshold),
            entropy_threshold(loaded.model, loaded.tokenizer, own or coarse_cases()),
        )
    folder = config.out / "checkpoint"
    # Rolled out as its base is spoken to, and to be spoken to in the same way.
    spoken = loaded.manifest
    if policy.adapter is not None:
        return export_adapter(folder, policy.adapter, config.export, thresholds, spoken)
    return export_checkpoint(
        folder, loaded.model, loaded.tokenizer, config.export, thresholds, spoken
    )


def unseen_case(prompt: Prompt) -> Case:
    """A prompt as the stages before know it, of which only view and question are needed."""
    return Case(truth=None, view=real_picture(prompt.pixels, {}), asked=prompt.question)
