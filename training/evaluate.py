"""`python -m training evaluate`: benchmark tables with confidence intervals.

Every question goes through the engine as a user's would; the numbers fold over its events.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from engine.engine import Engine
from engine.geometry import Box
from engine.request import (
    Budgets,
    DisplayImage,
    Interventions,
    LatentIntervention,
    Method,
    Request,
    Tracing,
)
from engine.trace import OutOfDistribution, RunStarted, Trace
from engine.trace_io import write_trace
from training.accelerated import Accelerated
from training.box_scores import asked_boxes
from training.letter_scores import letter_hits
from training.out_of_distribution import area_under_curve
from training.outcomes import (
    EvaluationError,
    Outcome,
    bootstrap_interval,
    mean_of,
    outcome_of,
    summary,
    wilson_interval,
)
from training.own_records import read_records
from training.phantoms import CHEST, to_view8
from training.prompts import Prompt, phantom_image
from training.questions import (
    FAMILIES_OF,
    Question,
    balanced_questions,
    lung_question,
)
from training.real_images import load_radiographs
from training.token_places import place_errors
from training.world import Case, WorldConfig, balanced_case, build_case

ASKED_BUDGETS: Final = Budgets(max_new_tokens=160, max_crops=2, latent_steps=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskConfig:
    """How every question of a benchmark is asked, greedily.

    Attributes:
        latents: intervention on the latent steps.
        budgets: of a run.
        bottleneck: whether answers see the image through the latents alone.
        placed: zooms of a question about one place are put there, whatever the model asks for:
            factor on the sides of the true box. None: they go where the model sends them.
    """

    method: Method = "direct"
    seed: int = 0
    latents: LatentIntervention = "none"
    budgets: Budgets = ASKED_BUDGETS
    bottleneck: bool = False
    placed: float | None = None


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
        budgets=config.budgets,
        bottleneck=config.bottleneck,
        interventions=Interventions(
            latents=config.latents,
            latent_donor=donor,
            move_crops=placed_crops(question, config),
        ),
        tracing=Tracing(belief=False),
    )
    began = time.monotonic()
    trace = Trace.from_events(engine.stream(request))
    return trace, time.monotonic() - began


def placed_crops(question: Question, config: AskConfig) -> tuple[tuple[int, Box], ...]:
    """Where the crops of a question go that are put on its target; none without one target.

    Args:
        question: knows its targets.
        config: by how much the sides of the target are stretched about its centre; what would
            reach outside of the image is cut off.
    """
    if config.placed is None or len(question.target_boxes) != 1:
        return ()
    # Sides times 2 are half a side more at either end; times a half, a quarter less.
    box = Box(*question.target_boxes[0]).padded((config.placed - 1) / 2)
    return tuple((number, box) for number in range(1, config.budgets.max_crops + 1))


def asked_in_turn(
    engine: Engine, asked: Iterable[tuple[DisplayImage, Question]], config: AskConfig
) -> Iterator[tuple[Outcome, Trace]]:
    """What came of every question, and its run.

    For `shuffle` each question is first run as it is, and then with the latents of another one
    (`donors_of`). For `noise` every question has noise of its own.

    Raises:
        EvaluationError: latents are to be shuffled, and there is only one question; or a run
            failed.
    """
    donors: Sequence[int] = ()
    own: list[tuple[bytes, ...]] = []
    if config.latents == "shuffle":
        asked = list(asked)
        donors = donors_of([question for _, question in asked], config.seed)
        plain = replace(config, latents="none")
        own = [
            tuple(step.vector for step in ask(engine, image, question, plain)[0].latents)
            for image, question in asked
        ]
        questions = [question for _, question in asked]
    for number, (image, question) in enumerate(asked):
        how = replace(config, seed=config.seed + number) if config.latents == "noise" else config
        donor = own[donors[number]] if donors else ()
        trace, seconds = ask(engine, image, question, how, donor)
        outcome = outcome_of(question, trace, seconds)
        outcome = replace(outcome, placed=bool(placed_crops(question, config)))
        if donors:
            giver = questions[donors[number]]
            outcome = replace(
                outcome,
                donor_agrees=giver.answer == question.answer,
                donor_is_kin=giver.family == question.family,
            )
        yield outcome, trace


def greedy_scores(
    engine: Engine, pool: Sequence[Prompt], how: AskConfig, processes: Accelerated
) -> dict[str, float]:
    """Accuracy, overlap of zooms with the true boxes, zooms and seconds a question, all greedy.

    Each process asks its share of the questions, and all know all outcomes.

    Returns:
        Numbers to log, whose names begin with `validation_`.
    """
    prompts = (pool[number] for number in processes.own(range(len(pool))))
    asked = ((prompt.image, prompt.question) for prompt in prompts)
    own = [outcome for outcome, _ in asked_in_turn(engine, asked, how)]
    table = summary(processes.interleaved(own))
    found = {f"accuracy_{kind}": table["accuracy"].get(kind) for kind in ("coarse", "fine")}
    found |= {"accuracy": table["accuracy"]["overall"]}
    found |= {name: table[name] for name in ("mean_iou", "zooms_per_question", "invalid_rate")}
    found |= {"seconds": table["seconds_per_question"]}
    return {f"validation_{name}": value for name, value in found.items() if value is not None}


def donors_of(questions: Sequence[Question], seed: int) -> list[int]:
    """Whose latents each question is given instead of its own.

    Another question of its family, drawn at random and each taken once (Sattolo 1986), so that
    the donor's answer tells nothing but chance about the right one; questions come in an order in
    which their neighbours' answers are alike. A family's only question takes from any other.

    Args:
        questions: in the order in which they are asked.
        seed: of the draw.

    Raises:
        EvaluationError: there is only one question.
    """
    if len(questions) < 2:
        raise EvaluationError("Shuffling latents across images needs at least two questions.")
    rng = np.random.default_rng([seed, 61])
    donors = list(range(len(questions)))
    families: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        families.setdefault(question.family, []).append(number)
    for members in families.values():
        if len(members) == 1:
            others = [number for number in range(len(questions)) if number != members[0]]
            donors[members[0]] = others[int(rng.integers(len(others)))]
        for last in range(len(members) - 1, 0, -1):
            one, other = members[last], members[int(rng.integers(last))]
            donors[one], donors[other] = donors[other], donors[one]
    return donors


def asked_how(options: argparse.Namespace) -> AskConfig:
    """How the command line wants questions to be asked.

    Raises:
        EvaluationError: something about latent steps, or about zooms, is asked of a method without
            them; or the true boxes are to be stretched out of range.
        RequestError: a budget is out of range.
    """
    for option, is_given in _latent_options(options).items():
        if is_given and options.method != "latent":
            raise EvaluationError(f"{option} is about latent steps: it needs --method latent.")
    placed = options.true_boxes
    if placed is not None and options.method not in ("zoom", "auto"):
        raise EvaluationError("--true-boxes is about zooms: it needs --method zoom or auto.")
    if placed is not None and not 0.1 <= placed <= 10.0:
        raise EvaluationError(f"--true-boxes takes a factor from 0.1 to 10, not {placed:g}.")
    if placed is not None and not options.max_crops:
        raise EvaluationError("--true-boxes is about zooms: --max-crops must be at least 1.")
    steps = options.latent_steps
    return AskConfig(
        method=options.method,
        seed=options.seed,
        latents=options.intervention,
        budgets=Budgets(
            max_new_tokens=options.max_new_tokens,
            max_crops=options.max_crops,
            latent_steps=ASKED_BUDGETS.latent_steps if steps is None else steps,
        ),
        bottleneck=options.bottleneck,
        placed=placed,
    )


def run_benchmark(options: argparse.Namespace, report: Callable[[str], None]) -> str:
    """Runs the benchmark that the command line names; returns what it prints.

    Raises:
        EvaluationError: bad limit, missing data, or a run that failed.
    """
    if options.limit < 1:
        raise EvaluationError(f"--limit must be at least 1, not {options.limit}.")
    known = FAMILIES_OF[options.modality]
    if unknown := sorted(set(options.families) - set(known)):
        raise EvaluationError(
            f"There are no questions {unknown[0]!r} about {options.modality} phantoms: choose "
            f"from {', '.join(known)}."
        )
    _check_options(options)
    config = asked_how(options)
    if options.traces:
        options.traces.mkdir(parents=True, exist_ok=True)
    engine = Engine.load(options.checkpoint)
    if options.benchmark in _WITHOUT_RUNS:
        return _WITHOUT_RUNS[options.benchmark](engine, options, report)
    asked = _BENCHMARKS[options.benchmark](options)
    outcomes = []
    runs = asked_in_turn(engine, asked, config)
    for number, (outcome, trace) in enumerate(runs, start=1):
        outcomes.append(outcome)
        if options.traces:
            write_trace(options.traces / f"{number:05d}.radtrace.zip", trace)
        if number % 50 == 0:
            report(f"{number} questions")
    return _printed(_result(outcomes, config, report), options)


def _result(
    outcomes: Sequence[Outcome], config: AskConfig, report: Callable[[str], None]
) -> dict[str, Any]:
    """The table, with what has to be said of how the questions were asked."""
    result = summary(outcomes)
    if config.placed is not None:
        placed = sum(outcome.placed for outcome in outcomes)
        result["true_boxes"] = {"scale": config.placed, "questions": placed}
        # The coordinates that were written are not those of the box.
        result["zoom_entropy"] = None
    strangers = (result["shuffled"] or {}).get("of_another_family", 0)
    if strangers:
        report(
            f"{strangers} of {len(outcomes)} questions were the only one of their family and took "
            "latents of another kind of question, which models mostly ignore: to see what "
            "shuffling costs, ask more (--limit) of fewer kinds (--families)."
        )
    return result


def _check_options(options: argparse.Namespace) -> None:
    """Refuses options that the benchmark would not look at, and missing data.

    Raises:
        EvaluationError: with the option or the data, and the benchmark.
    """
    name = options.benchmark
    given = {
        "--families": bool(options.families),
        "--modality": options.modality != CHEST,
        "--data": options.data is not None,
        "--method": options.method != "direct",
        "--true-boxes": options.true_boxes is not None,
        "--traces": options.traces is not None,
        **_latent_options(options),
    }
    for option in _NOT_OF[name]:
        if given[option]:
            raise EvaluationError(f"{option} has no meaning for --benchmark {name}: leave it out.")
    # Before a model is loaded, which may take minutes.
    if name in ("lungs", "records", "distribution") and options.data is None:
        what = "a JSONL file" if name == "records" else "the folder cxr_lungbox_ccby"
        raise EvaluationError(f"The benchmark {name!r} needs --data: {what}.")
    if options.data is not None and not options.data.exists():
        raise EvaluationError(f"--data is not there: {options.data}.")


def _latent_options(options: argparse.Namespace) -> dict[str, bool]:
    """Options about latent steps, and whether they are given."""
    return {
        "--intervention": options.intervention != "none",
        "--bottleneck": options.bottleneck,
        "--latent-steps": options.latent_steps is not None,
    }


def asked_families(modality: str) -> tuple[str, ...]:
    """Families to ask in turn.

    Three of 29 about a chest are fine: asked three times as often, they make a quarter of the
    questions, and their accuracy is nearly as sure as that of the others.
    """
    families = FAMILIES_OF[modality]
    fine = [name for name, family in families.items() if family.kind == "fine"]
    return (*families, *fine, *fine)


def _phantoms(options: argparse.Namespace) -> Iterable[tuple[DisplayImage, Question]]:
    families = tuple(options.families) or asked_families(options.modality)
    for case in balanced_questions(options.limit, options.seed, options.split, families):
        yield phantom_image(to_view8(case.phantom()), options.modality), case.question


def _lungs(options: argparse.Namespace) -> Iterable[tuple[DisplayImage, Question]]:
    rng = np.random.default_rng(options.seed)
    radiographs = load_radiographs(options.data, options.split)
    if not radiographs:
        raise EvaluationError(
            f"{options.data.name} holds no radiographs with lung boxes: --data takes the folder "
            "cxr_lungbox_ccby."
        )
    lungs = ((radiograph, *lung) for radiograph in radiographs for lung in radiograph.lungs.items())
    for radiograph, name, box in itertools.islice(lungs, options.limit):
        question = lung_question(name.split()[0], box.as_tuple(), rng)
        yield DisplayImage(pixels=radiograph.pixels, modality="CR"), question


def _records(options: argparse.Namespace) -> Iterable[tuple[DisplayImage, Question]]:
    for record in read_records(options.data, options.split)[: options.limit]:
        yield DisplayImage(pixels=record.pixels, modality=record.modality), record.question


_BENCHMARKS: Final = {"phantoms": _phantoms, "lungs": _lungs, "records": _records}
_OF_NO_RUN: Final = (
    *("--data", "--families", "--modality", "--method", "--traces"),
    *("--intervention", "--bottleneck", "--latent-steps", "--true-boxes"),
)
_NOT_OF: Final = {
    "phantoms": ("--data",),
    "lungs": ("--families", "--modality"),
    "records": ("--families", "--modality"),
    "distribution": (
        *("--families", "--modality", "--method", "--traces"),
        *("--intervention", "--bottleneck", "--latent-steps", "--true-boxes"),
    ),
    "places": _OF_NO_RUN,
    "letters": _OF_NO_RUN,
    "boxes": _OF_NO_RUN,
}


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


def _places(engine: Engine, options: argparse.Namespace, report: Callable[[str], None]) -> str:
    """How exactly visual tokens know where they lie; readings are fitted to training phantoms."""
    if options.split == "train":
        raise EvaluationError("Readings are fitted to training phantoms: score them on others.")
    errors = place_errors(
        engine.loaded, _cases(options, "train", report), _cases(options, options.split, report)
    )
    result = {"place_error": errors, "counts": {"fitted": options.limit, "scored": options.limit}}
    if options.json:
        return json.dumps(result) + "\n"
    lines = [f"{options.limit} phantoms of the {options.split} split, pixels of the view"]
    for name, found in errors.items():
        lines.append(
            f"{name:10s} x {found['x']:5.2f}  y {found['y']:5.2f}  "
            f"length {found['length']:6.1f} ± {found['length_spread']:.1%}"
        )
    return "\n".join(lines) + "\n"


def _cases(options: argparse.Namespace, split: str, report: Callable[[str], None]) -> list[Case]:
    """As many phantoms of a split as are asked for, without crops."""
    world = WorldConfig(count=options.limit, seed=options.seed, split=split)
    cases = [build_case(balanced_case(world, number), 0) for number in range(options.limit)]
    report(f"{len(cases)} phantoms of the {split} split drawn")
    return cases


def _boxes(engine: Engine, options: argparse.Namespace, report: Callable[[str], None]) -> str:
    """How well boxes are written, and looked at, that are asked for outside of zooms."""
    try:
        found = asked_boxes(engine.loaded, _cases(options, options.split, report))
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    result: dict[str, Any] = {}
    for group in ("findings", "organs"):
        boxes = [one for one in found if one.finding == (group == "findings")]
        overlaps = [one.overlap for one in boxes]
        result[group] = {
            "mean_iou": mean_of(overlaps),
            "mean_iou_ci95": bootstrap_interval(overlaps),
            "expected_mean_iou": mean_of(one.expected_overlap for one in boxes),
            "attention": mean_of(one.attention for one in boxes),
            "boxes": len(boxes),
        }
    result["mean_iou"] = {
        name: mean_of(one.overlap for one in found if one.name == name)
        for name in sorted({one.name for one in found})
    }
    return json.dumps(result) + "\n" if options.json else _lines(result)


def _letters(engine: Engine, options: argparse.Namespace, report: Callable[[str], None]) -> str:
    """How often the letter is right where the reasoning is given."""
    cases = _cases(options, options.split, report)
    hits = letter_hits(engine.loaded, cases, options.seed)
    right, count = (sum(pair[place] for pair in hits.values()) for place in (0, 1))
    result = {
        "accuracy": right / max(1, count),
        "ci95": list(wilson_interval(right, count)),
        "families": {family: of[0] / of[1] for family, of in sorted(hits.items())},
        "counts": {"letters": count, **{family: of[1] for family, of in sorted(hits.items())}},
    }
    return json.dumps(result) + "\n" if options.json else _lines(result)


# Of the model, and not of runs.
_WITHOUT_RUNS: Final = {
    "distribution": _distribution,
    "places": _places,
    "letters": _letters,
    "boxes": _boxes,
}


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
    if options.benchmark == "phantoms" and not options.families:
        lines += [
            f"No {kind} question is among these: ask more (--limit), or some alone (--families)."
            for kind in sorted({family.kind for family in FAMILIES_OF[options.modality].values()})
            if kind not in result["accuracy"]
        ]
    rest = {
        key: value for key, value in result.items() if key not in ("accuracy", "ci95", "counts")
    }
    return "\n".join(lines) + "\n" + _lines(rest)


def _lines(result: dict[str, Any]) -> str:
    """One line a key; one for each part of a list of parts."""
    lines = []
    for key, value in result.items():
        is_of_parts = isinstance(value, list) and any(isinstance(part, dict) for part in value)
        parts = value if is_of_parts else [value]
        lines += [f"{key:24s} {_shown(part)}\n" for part in parts]
    return "".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return "-" if value is None else str(value)
