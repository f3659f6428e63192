"""The performance ratios of this machine, and the byte counts of real GPUs.

Every side of a ratio runs in every round, in an order that turns from round to round, and the
ratio is that of the fastest runs: on a shared machine medians wander, minima hold. All sides
must write the same greedy tokens, or there is no ratio. Everything runs on one thread and is timed
by the processor time of the process, which on an idle machine is wall-clock time and on a busy
one does not count the time that others took. Times are of a request whose image has
been resized: vision tower, prompt and decoding, with every event built, without belief probes
(they answer another question and cost forwards of their own).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from engine.attention import traced_layers
from engine.decode import Decoder, DecodeState
from engine.engine import Engine
from engine.geometry import FULL_IMAGE
from engine.loading import LoadedModel, load_checkpoint
from engine.manifest import Manifest
from engine.positions import PositionCursor
from engine.processor import crop_pixels, expanded_ids
from engine.prompt import request_prompt, tool_response_text
from engine.request import Budgets, DisplayImage, Request, TracedLayers, Tracing
from engine.rollout import Rollout, Start
from engine.tiny import BENCH_SHAPE, EMBEDDED_SHAPE, TinyShape, tiny_manifest, tiny_model
from engine.trace import TokenStep

RANDOM_IMAGE_TOKENS: Final = 1024
RANDOM_CROP_TOKENS: Final = 64
RANDOM_TOKENS: Final = 24
EMBEDDED_TOKENS: Final = 48
EMBEDDED_IMAGE_TOKENS: Final = 64
MOST_SEEDS: Final = 20
ALTERNATIVES: Final = 10
BYTE_REPEATS: Final = 3
READ_ROWS, READ_COLUMNS = 16_384, 4096
QUESTION: Final = "Where is the nodule, and what is its margin?"

Ratio = dict[str, Any]
Report = dict[str, Any]


class BenchmarkError(RuntimeError):
    """Two sides did not do the same; there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What is compared in one group."""

    loaded: LoadedModel
    sdpa: Any
    eager: Any
    start: Start
    ids: list[int]
    new_tokens: int


def benchmark(groups: Sequence[str], *, repeats: int, checkpoint: Path) -> Report:
    """Measures the groups `random` and `embedded`.

    Args:
        groups: which of them.
        repeats: interleaved rounds.
        checkpoint: the embedded model; random weights of its size stand in where it is absent.

    Raises:
        BenchmarkError: when two sides write different tokens.
        CheckpointError: when the checkpoint is there and cannot be used.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _benchmark(groups, repeats, checkpoint)
    finally:
        torch.set_num_threads(threads)


def _benchmark(groups: Sequence[str], repeats: int, checkpoint: Path) -> Report:
    report: Report = {}
    for group in groups:
        if group == "random":
            manifest = tiny_manifest(RANDOM_IMAGE_TOKENS, RANDOM_CROP_TOKENS)
            sides = random_sides(BENCH_SHAPE, manifest, RANDOM_TOKENS)
        elif checkpoint.is_dir():
            sides = prepared(load_checkpoint(checkpoint, "cpu"), EMBEDDED_TOKENS)
        else:
            manifest = tiny_manifest(EMBEDDED_IMAGE_TOKENS, EMBEDDED_IMAGE_TOKENS)
            sides = random_sides(EMBEDDED_SHAPE, manifest, EMBEDDED_TOKENS)
        report[group] = measured(sides, repeats)
    return report


def random_sides(shape: TinyShape, manifest: Manifest, new_tokens: int) -> Sides:
    """A random-weight model whose greedy tokens hold none that the engine never draws.

    Raises:
        BenchmarkError: when no seed gives one.
    """
    for seed in range(MOST_SEEDS):
        sides = prepared(tiny_model(shape, seed=seed, manifest=manifest), new_tokens)
        tokens = generated(sides, attentions=False)
        if not set(tokens) & {
            *sides.loaded.vocabulary.suppressed("direct"),
            *sides.loaded.vocabulary.stop_ids,
        }:
            return sides
    raise BenchmarkError("No random model writes plain text only.")


def measured(sides: Sides, repeats: int) -> Report:
    """All ratios of one model."""
    runs: dict[str, Callable[[], list[int]]] = {
        "generate": lambda: generated(sides, attentions=False),
        "with_attentions": lambda: generated(sides, attentions=True),
        "all": lambda: traced(sides, "all"),
        "default": lambda: traced(sides, "default"),
        "bare": lambda: bare_loop(sides),
    }
    times = interleaved(runs, repeats)
    crops = interleaved(crop_runs(sides), repeats)
    kept, counted = zip(
        *(bytes_kept(sides) for _ in range(min(repeats, BYTE_REPEATS))), strict=True
    )
    step = decode_bytes(sides)
    seconds = [decode_seconds(sides) for _ in range(repeats)]
    return {
        "trace_all_layers_over_generate": ratio(times["all"], times["generate"]),
        "trace_default_over_generate": ratio(times["default"], times["generate"]),
        "generate_with_attentions_over_trace": ratio(times["with_attentions"], times["all"]),
        "crop_rerun_over_append": ratio(crops["rerun"], crops["append"]),
        "own_loop_over_bare_forward": ratio(times["default"], times["bare"]),
        "bare_forward_over_generate": ratio(times["bare"], times["generate"]),
        "bytes_per_token_and_layer": {"measured": spread(kept), "counted": spread(counted)},
        "decode_step": {
            "bytes": step,
            "gigabytes_per_second": spread([step / 1e9 / one for one in seconds], best=max),
            "gigabytes_per_second_of_plain_reading": spread(
                [read_rate() for _ in range(repeats)], best=max
            ),
        },
        "model": sides.loaded.facts.id,
        "layers": sides.loaded.facts.layers,
        "image_tokens": sides.start.seen.grid.cells,
        "new_tokens": len(runs["generate"]()),
        "seconds_of_generate": round(min(times["generate"]), 6),
        "machine": {
            "threads": 1,
            "clock": "processor time",
            "torch": torch.__version__,
            "device": "cpu",
        },
    }


def prepared(loaded: LoadedModel, new_tokens: int) -> Sides:
    """One request, and transformers' own models over the same weights."""
    side = round((loaded.manifest.view.most) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    request = Request(
        image=DisplayImage(pixels=pixels),
        question=QUESTION,
        budgets=Budgets(max_new_tokens=new_tokens),
        tracing=Tracing(layers="all", alternatives=ALTERNATIVES, belief=False),
    )
    _, start = Engine(loaded).prepare(request)
    text = request_prompt(loaded.manifest, request)
    sdpa = copy.deepcopy(loaded.model)
    sdpa.set_attn_implementation("sdpa")
    eager = copy.deepcopy(loaded.model)
    eager.set_attn_implementation("eager")
    ids = expanded_ids(loaded.tokenizer, text, [start.seen.grid])
    return Sides(loaded, sdpa, eager, start, ids, new_tokens)


@torch.inference_mode()
def generated(sides: Sides, *, attentions: bool) -> list[int]:
    """Transformers' `generate`; with attentions it must be eager and keeps everything."""
    model = sides.eager if attentions else sides.sdpa
    ids = torch.tensor([sides.ids])
    extra = {"output_attentions": True, "output_scores": True} if attentions else {}
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == sides.loaded.vocabulary.image_pad).int(),
        pixel_values=sides.start.seen.pixel_values,
        image_grid_thw=sides.start.seen.grid_thw,
        max_new_tokens=sides.new_tokens,
        do_sample=False,
        eos_token_id=sorted(sides.loaded.vocabulary.stop_ids),
        pad_token_id=sides.loaded.vocabulary.im_end,
        return_dict_in_generate=attentions,
        **extra,
    )
    tokens: list[int] = (out.sequences if attentions else out)[0, ids.shape[1] :].tolist()
    return tokens


def rollout(sides: Sides, request: Request, branches: int = 1) -> Rollout:
    """The engine's loop on a request about the same image, vision tower included."""
    start, decoder = sides.start, Decoder(sides.loaded)
    view = decoder.encode(start.seen)
    text = request_prompt(sides.loaded.manifest, request)
    prompt = decoder.lay_out(text, [(0, view, start.seen.grid)], 0)
    begun = replace(start, request=request, view=view, prompt=prompt)
    return Rollout(decoder, begun, count=branches)


def traced_rollout(sides: Sides, layers: TracedLayers) -> Rollout:
    """The loop on the very same request, with these layers traced."""
    request = sides.start.request
    return rollout(sides, replace(request, tracing=replace(request.tracing, layers=layers)))


def traced(sides: Sides, layers: TracedLayers) -> list[int]:
    """A traced request; returns its tokens."""
    events = traced_rollout(sides, layers).events()
    return [event.token_id for _, event in events if isinstance(event, TokenStep)]


@torch.inference_mode()
def bare_loop(sides: Sides) -> list[int]:
    """Nothing but the model: its own forward, explicit positions and argmax."""
    model, stops = sides.sdpa, sides.loaded.vocabulary.stop_ids
    ids = torch.tensor([sides.ids])
    cursor = PositionCursor()
    pad = sides.loaded.vocabulary.image_pad
    positions = cursor.sequence(sides.ids, pad, [sides.start.seen.grid])[:, None]
    out = model(
        input_ids=ids,
        position_ids=positions,
        pixel_values=sides.start.seen.pixel_values,
        image_grid_thw=sides.start.seen.grid_thw,
        use_cache=True,
        logits_to_keep=1,
    )
    tokens = [int(out.logits[0, -1].argmax())]
    while len(tokens) < sides.new_tokens and tokens[-1] not in stops:
        out = model(
            input_ids=torch.tensor([[tokens[-1]]]),
            position_ids=cursor.text(1)[:, None],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        tokens.append(int(out.logits[0, -1].argmax()))
    return tokens


def crop_runs(sides: Sides) -> dict[str, Callable[[], list[int]]]:
    """Appending a crop to a live cache, and running everything again with it."""
    decoder, start, manifest = Decoder(sides.loaded), sides.start, sides.loaded.manifest
    crop = sides.loaded.image_processor(crop_pixels(start.pixels, FULL_IMAGE), manifest.crop)
    grids = [start.seen.grid, crop.grid]
    response = expanded_ids(sides.loaded.tokenizer, tool_response_text(), [crop.grid])
    pad = sides.loaded.vocabulary.image_pad
    whole = [*sides.ids, *response]
    positions = PositionCursor().sequence(whole, pad, grids)[:, None]
    state = decoder.prefill(start.prompt)

    def append() -> list[int]:
        fork: DecodeState = decoder.branched(state, 0)
        layout = decoder.lay_out(
            tool_response_text(), [(1, decoder.encode(crop), crop.grid)], fork.next_positions[0]
        )
        decoder.append(fork, 0, layout)
        return [int(fork.logits[0].argmax())]

    @torch.inference_mode()
    def rerun() -> list[int]:
        # The view's features are reused, in favour of this side.
        features = sides.sdpa.get_image_features(crop.pixel_values, crop.grid_thw, return_dict=True)
        features.pooler_output = (start.view, *features.pooler_output)
        out = sides.sdpa(
            input_ids=torch.tensor([whole]),
            position_ids=positions,
            mm_encoder_outputs={"image": features},
            use_cache=True,
            logits_to_keep=1,
        )
        return [int(out.logits[0, -1].argmax())]

    return {"append": append, "rerun": rerun}


def bytes_kept(sides: Sides) -> tuple[float, float]:
    """Bytes per token and layer that the recorder holds, and as counted: 2 per image token."""
    run = traced_rollout(sides, "all")
    steps = sum(isinstance(event, TokenStep) for _, event in run.events())
    layers = sides.loaded.facts.layers
    kept = sum(recorder.bytes_kept() for recorder in run.recorders)
    return kept / (steps * layers), 2.0 * sides.start.seen.grid.cells


def decode_bytes(sides: Sides) -> int:
    """Bytes that one decode step with default rows must read, by count.

    The weights of the language model's layers and of the head once, the keys and values of
    half of the new tokens and all of the prompt, and the keys of the traced layers once more.
    """
    model: Any = sides.loaded.model
    text = model.config.text_config
    weights = sum(
        parameter.numel() * parameter.element_size()
        for part in (model.model.language_model.layers, model.lm_head)
        for parameter in part.parameters()
    )
    size = model.lm_head.weight.element_size()
    columns = len(sides.ids) + sides.new_tokens // 2
    keys = columns * text.num_key_value_heads * text.hidden_size // text.num_attention_heads * size
    traced_keys = len(traced_layers("default", text.num_hidden_layers)) * keys
    return int(weights + 2 * text.num_hidden_layers * keys + traced_keys)


def decode_seconds(sides: Sides) -> float:
    """Processor time of one decode step in a run with default rows, the first one left out."""
    stamps = [
        time.process_time()
        for _, event in traced_rollout(sides, "default").events()
        if isinstance(event, TokenStep)
    ]
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1)


def read_rate() -> float:
    """Gigabytes per second at which one thread reads memory: a matrix times a vector."""
    matrix = torch.ones(READ_ROWS, READ_COLUMNS)
    vector = torch.ones(READ_COLUMNS)
    torch.mv(matrix, vector)
    begun = time.process_time()
    torch.mv(matrix, vector)
    return matrix.numel() * matrix.element_size() / 1e9 / (time.process_time() - begun)


def interleaved(runs: dict[str, Callable[[], list[int]]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run in every round.

    Raises:
        BenchmarkError: when two runs return different tokens.
    """
    results = {name: run() for name, run in runs.items()}  # also warms everything up
    first = next(iter(results.values()))
    for name, tokens in results.items():
        if tokens != first:
            raise BenchmarkError(f"The side {name} wrote other tokens: nothing to compare.")
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            begun = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - begun)
    return times


def ratio(numerator: list[float], denominator: list[float]) -> Ratio:
    """Ratio of the fastest runs; the spread is that of the rounds."""
    rounds = [above / below for above, below in zip(numerator, denominator, strict=True)]
    return {
        "value": round(min(numerator) / min(denominator), 4),
        "spread": [round(min(rounds), 4), round(max(rounds), 4)],
        "repeats": len(rounds),
    }


def spread(values: Sequence[float], best: Callable[[Sequence[float]], float] = min) -> Ratio:
    """The best of some values, and from where to where they reach."""
    return {
        "value": round(best(values), 4),
        "spread": [round(min(values), 4), round(max(values), 4)],
        "repeats": len(values),
    }


# Qwen2.5-VL-7B: what a decode step must read, by count (performance notes, d).
LANGUAGE_PARAMETERS: Final = 6.526e9 + 0.545e9
LAYERS_7B: Final = 28
KEY_VALUE_BYTES_7B: Final = 57_344
CONTEXT_7B: Final = 1500
IMAGE_TOKENS_7B: Final = 1248
GPUS: Final = {
    "H200": 4800,
    "H100 SXM": 3350,
    "A100 80 GB": 2039,
    "A100 40 GB": 1555,
    "RTX 4090": 1008,
    "RTX 3090": 936,
    "L40S": 864,
}


def counted_7b() -> Report:
    """Bytes of one decode step of Qwen2.5-VL-7B in bf16, and the bounds that they set."""
    weights = LANGUAGE_PARAMETERS * 2
    cache = CONTEXT_7B * KEY_VALUE_BYTES_7B
    # A traced layer reads its keys once more: 4 key heads x 128 x 2 bytes per column.
    row_layer = CONTEXT_7B * 4 * 128 * 2
    step = weights + cache
    return {
        "context": CONTEXT_7B,
        "weight_bytes": int(weights),
        "cache_bytes": int(cache),
        "row_bytes_per_traced_layer": row_layer,
        "row_share_default": round(8 * row_layer / step, 5),
        "row_share_all_layers": round(LAYERS_7B * row_layer / step, 5),
        "kept_bytes_per_token_and_layer": IMAGE_TOKENS_7B * 2,
        "bound_tokens_per_second": {
            name: round(rate * 1e9 / step, 1) for name, rate in GPUS.items()
        },
    }


def readable(report: Report) -> str:
    """The report as a table, and behind it the bytes of a large model by count."""
    lines: list[str] = []
    for group in ("random", "embedded"):
        if group not in report:
            continue
        lines.append(f"{group} ({report[group]['image_tokens']} image tokens, CPU)")
        for name, entry in report[group].items():
            if isinstance(entry, dict) and "value" in entry:
                low, high = entry["spread"]
                lines.append(
                    f"  {name:<38} {entry['value']:8.3f}   rounds {low:.3f} to {high:.3f}"
                    f" ({entry['repeats']})"
                )
        kept = report[group]["bytes_per_token_and_layer"]
        lines.append(
            f"  {'bytes per token and layer':<38} {kept['measured']['value']:8.1f}   "
            f"counted {kept['counted']['value']:.1f}"
        )
        step = report[group]["decode_step"]
        achieved = step["gigabytes_per_second"]["value"]
        plain = step["gigabytes_per_second_of_plain_reading"]["value"]
        lines.append(
            f"  {'a decode step reads, by count':<38} {step['bytes'] / 1e6:8.1f} MB "
            f"at {achieved:.1f} GB/s (plain reading of memory: {plain:.1f} GB/s)"
        )
    counted = counted_7b()
    lines.append("Qwen2.5-VL-7B, bf16, by count (not measured)")
    sizes = ("weight_bytes", "cache_bytes", "row_bytes_per_traced_layer")
    lines += [f"  {name:<38} {counted[name]:>16,}" for name in sizes]
    shares = ("row_share_default", "row_share_all_layers")
    lines += [f"  {name:<38} {counted[name]:>16.3%}" for name in shares]
    lines.append("  GPU            bound, tokens/s    at 60 %    at 25 %")
    for name, bound in counted["bound_tokens_per_second"].items():
        lines.append(f"  {name:<14} {bound:15.1f} {bound * 0.6:10.1f} {bound * 0.25:10.1f}")
    return "\n".join(lines)
