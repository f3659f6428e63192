"""`python -m training evaluate`: benchmark tables with confidence intervals.

Every question goes through the engine as a user's would; the numbers fold over its events.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Final

import numpy as np
import torch

from engine.engine import Engine
from engine.geometry import Box, PatientSide
from engine.request import (
    Budgets,
    DisplayImage,
    Interventions,
    LatentIntervention,
    Method,
    Request,
    Tracing,
)
from engine.trace import EvidenceMap, Failed, OutOfDistribution, RunStarted, Trace
from engine.trace_io import write_trace
from training.out_of_distribution import area_under_curve
from training.phantoms import to_view8
from training.questions import (
    FAMILIES_OF,
    Question,
    balanced_questions,
    lung_question,
)
from training.real_images import load_radiographs

# Two-sided 95% of the normal distribution.
Z: Final = 1.959964
MAX_NEW_TOKENS: Final = 160
# What a file of each modality says of itself: modality, and the patient's side at its left edge.
_SHOWN: Final[dict[str, tuple[str, PatientSide]]] = {
    "chest": ("DX", "right"),
    "head_ct": ("CT", "right"),
    "breast_ultrasound": ("US", ""),
}

# Families that anyone answers who has read the question: no image is needed for them.
TEXT_ONLY_FAMILIES: Final = (
    *("modality", "body_part", "lung", "lung_name"),
    *("head_modality", "head_region", "hemisphere", "breast_modality", "breast_region"),
)
# Families whose target is a part of the body; that of all others is a finding.
ANATOMY_FAMILIES: Final = (
    *("lung", "lung_name", "heart_size", "hemisphere", "slice_level", "midline_shift"),
    *("shift_side", "image_format", "breast_composition"),
)
# Families that ask for a zoom to a named part: without one nothing was found.
_NAMED: Final = ("lung", "hemisphere")


class EvaluationError(ValueError):
    """An evaluation that cannot be run; the message is one sentence."""


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927); (0, 1) without any cases."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    middle = share + Z * Z / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    scale = 1 + Z * Z / count
    return (middle - spread) / scale, (middle + spread) / scale


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one question came to.

    Attributes:
        overlap: intersection over union of the first zoom box with the nearest target; 0 for a
            question that needs a zoom and got none (a fine one, or one that asks for a lung);
            None where that says nothing.
        pointed: whether the reasoning's attention peaks in a target; None without targets.
        latent_attended, latent_alike: whether the latent steps' attention, and their similarity
            to the visual tokens, averaged over the steps, peak in a target; None without
            targets or latent steps.
    """

    family: str
    kind: str
    right: bool
    valid: bool
    overlap: float | None
    pointed: bool | None
    latent_attended: bool | None
    latent_alike: bool | None
    zooms: int
    seconds: float


def outcome_of(question: Question, trace: Trace, seconds: float) -> Outcome:
    """Folds a trace into an outcome.

    Raises:
        EvaluationError: when the run failed.
    """
    for event in trace:
        if isinstance(event, Failed):
            raise EvaluationError(f"A run failed ({event.code}): {event.message}")
    answered = trace.answered
    targets = [Box(*box) for box in question.target_boxes]
    return Outcome(
        family=question.family,
        kind=question.kind,
        right=answered is not None and question.is_answered_by(answered),
        valid=answered is not None and answered.valid,
        overlap=_overlap(question, trace, targets),
        pointed=_pointed(_reasoning_maps(trace), targets),
        latent_attended=_pointed(
            [m for step in trace.latents for m in step.attention if m.image == 0], targets
        ),
        latent_alike=_pointed([step.similarity for step in trace.latents], targets),
        zooms=len(trace.regrounds),
        seconds=seconds,
    )


def _overlap(question: Question, trace: Trace, targets: Sequence[Box]) -> float | None:
    started = trace.started
    if not targets or started is None or started.request.method not in ("zoom", "auto"):
        return None
    if not trace.regrounds:
        return 0.0 if question.kind == "fine" or question.family in _NAMED else None
    box = Box(*trace.regrounds[0].box)
    return max(box.intersection_over_union(target) for target in targets)


def _reasoning_maps(trace: Trace) -> list[EvidenceMap]:
    return [
        evidence
        for token in trace.tokens
        if token.segment == "reasoning"
        for evidence in token.attention
        if evidence.image == 0
    ]


def _pointed(maps: Sequence[EvidenceMap], targets: Sequence[Box]) -> bool | None:
    """Pointing game (Zhang et al., arXiv 1608.00507): does the peak lie in a target?"""
    if not maps or not targets:
        return None
    mean = sum(evidence.to_array() for evidence in maps)
    return _peak_in(mean, maps[0], targets)


def _peak_in(
    grid: np.ndarray[Any, np.dtype[np.float32]] | int, shape: EvidenceMap, targets: Sequence[Box]
) -> bool:
    row, column = divmod(int(np.asarray(grid).argmax()), shape.columns)
    x, y = (column + 0.5) / shape.columns, (row + 0.5) / shape.rows
    return any(target.contains(x, y) for target in targets)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The machine-readable table.

    `coarse_from_image` is `coarse` without the families that the question itself answers;
    `mean_iou` is over questions about findings, `anatomy_mean_iou` over lungs and hearts.
    """
    groups: dict[str, list[Outcome]] = {"overall": list(outcomes)}
    for kind in ("coarse", "fine"):
        groups[kind] = [outcome for outcome in outcomes if outcome.kind == kind]
    groups["coarse_from_image"] = [
        outcome for outcome in groups["coarse"] if outcome.family not in TEXT_ONLY_FAMILIES
    ]
    for outcome in outcomes:
        groups.setdefault(outcome.family, []).append(outcome)
    groups = {name: group for name, group in groups.items() if group}
    right = {name: sum(outcome.right for outcome in group) for name, group in groups.items()}
    overlaps = _overlaps(outcomes, of_anatomy=False)
    anatomy = _overlaps(outcomes, of_anatomy=True)
    pointed = [outcome.pointed for outcome in outcomes if outcome.pointed is not None]
    return {
        "accuracy": {name: right[name] / len(group) for name, group in groups.items()},
        "ci95": {
            name: list(wilson_interval(right[name], len(group))) for name, group in groups.items()
        },
        "counts": {name: len(group) for name, group in groups.items()},
        "invalid_rate": _mean(not outcome.valid for outcome in outcomes),
        "mean_iou": _mean(overlaps),
        "mean_iou_count": len(overlaps),
        "mean_iou_ci95": _bootstrap(overlaps),
        "anatomy_mean_iou": _mean(anatomy),
        "anatomy_mean_iou_count": len(anatomy),
        "anatomy_mean_iou_ci95": _bootstrap(anatomy),
        "pointing_game": _mean(pointed),
        "latent_attention_pointing_game": _mean(
            outcome.latent_attended for outcome in outcomes if outcome.latent_attended is not None
        ),
        "latent_similarity_pointing_game": _mean(
            outcome.latent_alike for outcome in outcomes if outcome.latent_alike is not None
        ),
        "zooms_per_question": _mean(outcome.zooms for outcome in outcomes),
        "seconds_per_question": _mean(outcome.seconds for outcome in outcomes),
    }


def _overlaps(outcomes: Sequence[Outcome], *, of_anatomy: bool) -> list[float]:
    return [
        outcome.overlap
        for outcome in outcomes
        if outcome.overlap is not None and (outcome.family in ANATOMY_FAMILIES) is of_anatomy
    ]


def _mean(values: Iterable[float]) -> float | None:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else None


def _bootstrap(values: Sequence[float], rounds: int = 2000) -> list[float] | None:
    """Percentile bootstrap 95% interval of a mean (fixed seed)."""
    if not values:
        return None
    rng = np.random.default_rng(0)
    drawn = np.asarray(values)[rng.integers(0, len(values), (rounds, len(values)))]
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskConfig:
    """How every question of a benchmark is asked, greedily.

    Attributes:
        latents: intervention on the latent steps.
        latent_steps: K.
        bottleneck: whether answers see the image through the latents alone.
    """

    method: Method = "direct"
    seed: int = 0
    latents: LatentIntervention = "none"
    latent_steps: int = 8
    bottleneck: bool = False


def ask(
    engine: Engine,
    image: DisplayImage,
    question: Question,
    config: AskConfig,
    donor: tuple[bytes, ...] = (),
) -> tuple[Trace, float]:
    """One question through the engine, greedily; the trace and the seconds it took.

    `donor` holds the latents of another image's run, for the intervention `shuffle`.
    """
    request = Request(
        image=image,
        question=question.text,
        options=question.options,
        method=config.method,
        seed=config.seed,
        budgets=Budgets(max_new_tokens=MAX_NEW_TOKENS, latent_steps=config.latent_steps),
        bottleneck=config.bottleneck,
        interventions=Interventions(latents=config.latents, latent_donor=donor),
        tracing=Tracing(belief=False),
    )
    began = time.monotonic()
    trace = Trace.from_events(engine.stream(request))
    return trace, time.monotonic() - began


def asked_in_turn(
    engine: Engine, asked: Iterable[tuple[DisplayImage, Question]], config: AskConfig
) -> Iterator[tuple[Outcome, Trace]]:
    """What came of every question, and its run.

    For `shuffle` each question is first run as it is, and then with the latents of the one
    before it (the first: of the last).

    Raises:
        EvaluationError: latents are to be shuffled, and there is only one question; or a run
            failed.
    """
    donors: Iterable[tuple[bytes, ...]] = repeat(())
    if config.latents == "shuffle":
        asked = list(asked)
        if len(asked) < 2:
            raise EvaluationError("Shuffling latents across images needs at least two questions.")
        plain = replace(config, latents="none")
        own = [
            tuple(step.vector for step in ask(engine, image, question, plain)[0].latents)
            for image, question in asked
        ]
        donors = (own[-1], *own[:-1])
    for (image, question), donor in zip(asked, donors, strict=False):
        trace, seconds = ask(engine, image, question, config, donor)
        yield outcome_of(question, trace, seconds), trace


def run_benchmark(options: argparse.Namespace, report: Callable[[str], None]) -> str:
    """Runs the benchmark that the command line names; returns what it prints.

    Raises:
        EvaluationError: bad limit, missing data, or a run that failed.
    """
    if options.limit < 1:
        raise EvaluationError(f"--limit must be at least 1, not {options.limit}.")
    engine = Engine.load(options.checkpoint)
    if options.benchmark == "distribution":
        return _distribution(engine, options, report)
    asked = _phantoms(options) if options.benchmark == "phantoms" else _lungs(options)
    config = AskConfig(
        method=options.method,
        seed=options.seed,
        latents=options.intervention,
        latent_steps=options.latent_steps,
        bottleneck=options.bottleneck,
    )
    if config.latents != "none" and config.method != "latent":
        raise EvaluationError("--intervention changes latent steps: it needs --method latent.")
    outcomes = []
    runs = asked_in_turn(engine, asked, config)
    for number, (outcome, trace) in enumerate(runs, start=1):
        outcomes.append(outcome)
        if options.traces:
            options.traces.mkdir(parents=True, exist_ok=True)
            write_trace(options.traces / f"{number:05d}.radtrace.zip", trace)
        if number % 50 == 0:
            report(f"{number} questions")
    result = summary(outcomes)
    return _printed(result, options)


def asked_families(modality: str) -> tuple[str, ...]:
    """Families to ask in turn.

    Three of 29 about a chest are fine: asked three times as often, they make a quarter of the
    questions, and their accuracy is nearly as sure as that of the others.
    """
    families = FAMILIES_OF[modality]
    fine = [name for name, family in families.items() if family.kind == "fine"]
    return (*families, *fine, *fine)


def _phantoms(options: argparse.Namespace) -> Iterable[tuple[DisplayImage, Question]]:
    families = asked_families(options.modality)
    shown, edge = _SHOWN[options.modality]
    for case in balanced_questions(options.limit, options.seed, options.split, families):
        pixels = to_view8(case.phantom())
        yield DisplayImage(pixels=pixels, modality=shown, left_edge=edge), case.question


def _lungs(options: argparse.Namespace) -> Iterable[tuple[DisplayImage, Question]]:
    if options.data is None or not options.data.is_dir():
        raise EvaluationError("The benchmark 'lungs' needs --data: the folder cxr_lungbox_ccby.")
    rng = np.random.default_rng(options.seed)
    radiographs = load_radiographs(options.data, options.split)
    for radiograph in radiographs[: options.limit]:
        for name, box in radiograph.lungs.items():
            question = lung_question(name.split()[0], box.as_tuple(), rng)
            yield DisplayImage(pixels=radiograph.pixels, modality="CR"), question


def _distribution(
    engine: Engine, options: argparse.Namespace, report: Callable[[str], None]
) -> str:
    """How well the score of the run tells real radiographs from phantoms."""

    def scores(images: Iterable[DisplayImage]) -> torch.Tensor:
        found = []
        for image in images:
            facts = _judged(engine, image)
            if facts is None:
                raise EvaluationError("This checkpoint has no out-of-distribution detector.")
            found.append(facts.score - facts.threshold)
        return torch.tensor(found, dtype=torch.float64)

    inside = scores(image for image, _ in _phantoms(options))
    report(f"{len(inside)} phantoms scored")
    outside = scores(image for image, _ in _lungs(options))
    result = {
        "auroc": area_under_curve(inside, outside),
        "false_alarm_rate": float((inside > 0).double().mean()),
        "false_alarm_ci95": list(wilson_interval(int((inside > 0).sum()), len(inside))),
        "detection_rate": float((outside > 0).double().mean()),
        "counts": {"phantoms": len(inside), "real": len(outside)},
    }
    return json.dumps(result) + "\n" if options.json else _lines(result)


def _judged(engine: Engine, image: DisplayImage) -> OutOfDistribution | None:
    """The score that a run about the image would carry; the run ends there."""
    request = Request(image=image, question="What does the image show?")
    events = engine.stream(request)
    try:
        first = next(events)
    finally:
        events.close()  # type: ignore[attr-defined]
    return first.out_of_distribution if isinstance(first, RunStarted) else None


def _printed(result: dict[str, Any], options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps(result) + "\n"
    lines = [f"{options.benchmark}, {options.method}, seed {options.seed}, {options.split} split"]
    for name, accuracy in result["accuracy"].items():
        low, high = result["ci95"][name]
        lines.append(
            f"{name:24s} {accuracy:6.1%}  [{low:.1%}, {high:.1%}]  n={result['counts'][name]}"
        )
    rest = {
        key: value for key, value in result.items() if key not in ("accuracy", "ci95", "counts")
    }
    return "\n".join(lines) + "\n" + _lines(rest)


def _lines(result: dict[str, Any]) -> str:
    return "".join(f"{key:24s} {_shown(value)}\n" for key, value in result.items())


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return "[" + ", ".join(f"{item:.3f}" for item in value) + "]"
    return "-" if value is None else str(value)
