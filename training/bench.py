"""What rollouts and updates of reinforcement learning cost against plain transformers, here.

Both sides of a ratio run in every round, in turning order, on one thread, timed by processor time
(see `engine.bench`); a ratio is that of the fastest runs, and says how many times as fast ours
is; that of logits in chunks, how many times as long they take. Models have random weights: what
they write does not matter, that both sides write as much does. What forks save is measured on a
shipped agent (`training.fork_bench`), and a whole step against one of TRL where that is installed
(`training.trl_bench`).
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from engine.bench import BenchmarkError, Ratio, Sides, interleaved, prepared, ratio, rollout
from engine.decode import Decoder, DecodeState
from engine.request import Budgets, Sampling, Tracing
from engine.sequence import FedSequence
from engine.tiny import TinyShape, tiny_manifest, tiny_model
from training.fork_bench import MEMBERS, fork_costs
from training.packing import PackedGroup, packed_group
from training.policy import chunked_log_probs, policy_outputs
from training.policy_updates import UpdateConfig
from training.trl_bench import interleaved_with_trl, policy_step, trl_version

SHAPE: Final = TinyShape(
    hidden=256, layers=8, heads=8, key_value_heads=2, vocabulary=8192, tied=False
)
IMAGE_TOKENS: Final = 576
SETTINGS: Final = ((24, 8), (48, 16))
"""Completion tokens R and branches G."""
CHUNK: Final = UpdateConfig().head_chunk
LOGPROB_GROUPS: Final = 4
"""Groups whose log-probabilities are taken: the tokens of one may be less than a chunk."""
LATENT_STEPS: Final = 8
MOST_SEEDS: Final = 20


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared for one R and G.

    Attributes:
        sides: a request of R tokens, and transformers' own model over the same weights.
        branches: G.
        sequences: what the branches of a rollout were fed.
    """

    sides: Sides
    branches: int
    sequences: tuple[FedSequence, ...]

    @property
    def tokens(self) -> int:
        """Tokens that a group writes in all."""
        return self.sides.new_tokens * self.branches


def benchmark(
    settings: Sequence[tuple[int, int]] = SETTINGS,
    *,
    repeats: int,
    shape: TinyShape = SHAPE,
    image_tokens: int = IMAGE_TOKENS,
    members: int = MEMBERS,
) -> dict[str, Any]:
    """Measures every setting, what forks save, and, where TRL is installed, a step of it.

    Args:
        settings: completion tokens R and branches G of each.
        repeats: interleaved rounds.
        shape: of the random-weight model.
        image_tokens: of the prompt's image.
        members: trajectories of the group with forks.

    Raises:
        BenchmarkError: no random model writes R tokens in every branch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prepared_settings = [
            prepare(shape, image_tokens, tokens, branches) for tokens, branches in settings
        ]
        measured = [measure(setting, repeats) for setting in prepared_settings]
        trl = against_trl(prepared_settings[0], repeats)
    finally:
        torch.set_num_threads(threads)
    return {
        "settings": measured,
        "trl": trl,
        "forks": fork_costs(repeats=repeats, members=members),
        "machine": {
            "threads": 1,
            "clock": "processor time",
            "torch": torch.__version__,
            "device": "cpu",
        },
    }


def prepare(shape: TinyShape, image_tokens: int, tokens: int, branches: int) -> Setting:
    """A random model whose branches all write as many tokens as they may.

    Raises:
        BenchmarkError: when no seed gives one.
    """
    for seed in range(MOST_SEEDS):
        loaded = tiny_model(shape, seed=seed, manifest=tiny_manifest(image_tokens, 4))
        sides = prepared(loaded, tokens)
        sequences = rolled_out(sides, branches)
        if all(len(sequence.written) == tokens for sequence in sequences):
            return Setting(sides, branches, tuple(sequences))
    raise BenchmarkError("No random model writes in all branches to the end.")


def measure(setting: Setting, repeats: int) -> dict[str, Any]:
    """All figures of one setting."""
    sides, branches = setting.sides, setting.branches
    rollouts = interleaved(
        {
            "generate": lambda: [generated(sides, branches)],
            "group": lambda: [sum(len(s.written) for s in rolled_out(sides, branches))],
        },
        repeats,
    )
    group = packed_group(setting.sequences)
    model = checkpointing(sides.loaded.model)
    updates = interleaved(
        {
            "separate": lambda: [updated(model, [packed_group([s]) for s in setting.sequences])],
            "packed": lambda: [updated(model, [group])],
        },
        repeats,
    )
    prefilled = Decoder(sides.loaded).prefill(sides.start.prompt)
    latents = interleaved(
        {
            "one_by_one": lambda: [latent_steps(sides, prefilled, branches, together=False)],
            "batched": lambda: [latent_steps(sides, prefilled, branches, together=True)],
        },
        repeats,
    )
    taken = LOGPROB_GROUPS * setting.tokens
    return {
        "completion_tokens": sides.new_tokens,
        "branches": branches,
        "prompt_tokens": setting.sequences[0].prompt,
        "latent_batch_over_one_by_one": _speed(latents["one_by_one"], latents["batched"]),
        "group_rollout_over_generate": _speed(rollouts["generate"], rollouts["group"]),
        "packed_update_over_separate": _speed(updates["separate"], updates["packed"]),
        "packed_token_ratio": round(group.separate / group.columns, 4),
        "logprob_chunked_over_whole": logprob_time(model, taken, CHUNK, repeats),
        "logprob_peak_bytes": {
            "chunked": logprob_peak_bytes(model, taken, CHUNK),
            "all_at_once": logprob_peak_bytes(model, taken, taken),
            "tokens": taken,
            "chunk": CHUNK,
        },
    }


def against_trl(setting: Setting, repeats: int) -> dict[str, Any] | None:
    """A step of ours against one of TRL; None where TRL is not installed."""
    version = trl_version()
    if version is None:
        return None
    model = checkpointing(setting.sides.loaded.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    step = policy_step(
        lambda: packed_group(rolled_out(setting.sides, setting.branches)),
        lambda packed: policy_outputs(model, packed, chunk=CHUNK).log_probs,
        torch.optim.AdamW(trained, lr=1e-6),
    )
    prompt = setting.sequences[0].prompt
    theirs, ours = interleaved_with_trl(setting.sides, prompt, setting.branches, step, repeats)
    return {
        "version": version,
        "completion_tokens": setting.sides.new_tokens,
        "branches": setting.branches,
        "prompt_tokens": prompt,
        "grpo_step_over_trl": _speed(theirs, ours),
    }


def _speed(slower: list[float], faster: list[float]) -> Ratio:
    """How many times as fast the second is."""
    return {**ratio(slower, faster), "unit": "times as fast"}


def rolled_out(sides: Sides, branches: int) -> list[FedSequence]:
    """A group of sampled branches: one pass over the prompt, image encoded once."""
    request = replace(
        sides.start.request,
        sampling=Sampling(temperature=1.0),
        budgets=Budgets(max_new_tokens=sides.new_tokens),
        tracing=Tracing(layers="none", alternatives=1, belief=False),
    )
    run = rollout(sides, request, branches)
    for _ in run.events():
        pass
    return run.sequences


@torch.inference_mode()
def generated(sides: Sides, branches: int) -> int:
    """Transformers' `generate` with as many sampled sequences; tokens written in all."""
    ids = torch.tensor([sides.ids])
    torch.manual_seed(0)
    out = sides.sdpa.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == sides.loaded.vocabulary.image_pad).int(),
        pixel_values=sides.start.seen.pixel_values,
        image_grid_thw=sides.start.seen.grid_thw,
        min_new_tokens=sides.new_tokens,
        max_new_tokens=sides.new_tokens,
        num_return_sequences=branches,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=sorted(sides.loaded.vocabulary.stop_ids),
        pad_token_id=sides.loaded.vocabulary.im_end,
    )
    return int(out[:, ids.shape[1] :].numel())


def latent_steps(sides: Sides, prefilled: DecodeState, branches: int, *, together: bool) -> int:
    """Latent steps of all branches behind one prefill; how many there were."""
    decoder, fed = Decoder(sides.loaded), 0
    if together:
        states = [decoder.expanded(prefilled, branches)]
    else:
        states = [decoder.branched(prefilled, 0) for _ in range(branches)]
    for state in states:
        for _ in range(LATENT_STEPS):
            decoder.step(state, state.hidden[:, None])
            fed += len(state.next_positions)
    return fed


def checkpointing(model: Any) -> Any:  # noqa: ANN401
    """A copy that computes its layers again in the backward pass, as large models must."""
    own = copy.deepcopy(model)
    own.activation_checkpointing_enable({"use_reentrant": False})
    own.model.visual.requires_grad_(False)
    return own.train()


def updated(model: Any, groups: Sequence[PackedGroup]) -> int:  # noqa: ANN401
    """Forward and backward over groups, one after the other; tokens whose gradient was taken."""
    model.zero_grad(set_to_none=True)
    count = 0
    for group in groups:
        log_probs = policy_outputs(model, group, chunk=CHUNK).log_probs
        log_probs.sum().backward()  # type: ignore[no-untyped-call]
        count += len(log_probs)
    return count


def logprob_time(model: Any, tokens: int, chunk: int, repeats: int) -> Ratio:  # noqa: ANN401
    """Time of log-probabilities and their gradients in chunks, over that of all at once.

    Both compute logits again in the backward pass: what differs is how many rows they take at a
    time.
    """
    times = interleaved(
        {
            "chunked": logprob_run(model, tokens, chunk),
            "whole": logprob_run(model, tokens, tokens),
        },
        repeats,
    )
    return {**ratio(times["chunked"], times["whole"]), "unit": "times as long"}


def logprob_peak_bytes(model: Any, tokens: int, chunk: int) -> int:  # noqa: ANN401
    """Most bytes held at a time by log-probabilities of so many tokens and their gradients."""
    return peak_bytes(logprob_run(model, tokens, chunk))


def logprob_run(model: Any, tokens: int, chunk: int) -> Callable[[], list[int]]:  # noqa: ANN401
    """Log-probabilities of so many tokens, and their gradients; gives how many there were."""
    head = model.lm_head.weight.detach().clone().requires_grad_(True)
    hidden = torch.randn(tokens, head.shape[1], requires_grad=True)
    targets = torch.arange(tokens) % head.shape[0]

    def run() -> list[int]:
        head.grad = hidden.grad = None
        log_probs = chunked_log_probs(hidden, head, targets, chunk)
        log_probs.sum().backward()  # type: ignore[no-untyped-call]
        return [len(log_probs)]

    return run


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator has held beyond those it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    held = most = 0
    for _, change in sorted(changes, key=lambda pair: float(pair[0])):
        held += int(change)
        most = max(most, held)
    return most


def readable(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = []
    for setting in report["settings"]:
        lines.append(
            f"{setting['branches']} branches of {setting['completion_tokens']} tokens, "
            f"{setting['prompt_tokens']} prompt tokens (CPU)"
        )
        names = (
            "group_rollout_over_generate",
            "latent_batch_over_one_by_one",
            "packed_update_over_separate",
        )
        lines += [_speed_line(name, setting[name]) for name in names]
        lines.append(f"  {'packed_token_ratio':<30} {setting['packed_token_ratio']:7.2f}")
        chunked = setting["logprob_chunked_over_whole"]
        lines.append(_speed_line("logprob_chunked_over_whole", chunked, "times as long"))
        peak = setting["logprob_peak_bytes"]
        lines.append(
            f"  {'logprob_peak_bytes':<30} {peak['chunked']:,} in chunks of {peak['chunk']}, "
            f"{peak['all_at_once']:,} all at once"
        )
    trl = report["trl"]
    if trl is None:
        lines.append("TRL is not installed: no step of it to compare (pip install trl datasets)")
    else:
        lines.append(f"a step of GRPO against TRL {trl['version']} (CPU)")
        lines.append(_speed_line("grpo_step_over_trl", trl["grpo_step_over_trl"]))
    forks = report["forks"]
    lines.append(f"{forks['members']} trajectories, {forks['forks']} of them forks (CPU)")
    lines += [
        _speed_line(name, forks[name]) for name in ("separate_over_forked", "grouped_over_forked")
    ]
    written = ", ".join(f"{count:,} {name}" for name, count in forks["tokens"].items())
    lines.append(f"  {'tokens':<30} {written}")
    return "\n".join(lines)


def _speed_line(name: str, speed: Ratio, unit: str = "times as fast") -> str:
    low, high = speed["spread"]
    return (
        f"  {name:<30} {speed['value']:7.2f} {unit}   "
        f"rounds {low:.2f} to {high:.2f} ({speed['repeats']})"
    )
