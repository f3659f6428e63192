"""Benchmark questions through the engine, with interventions on latent steps."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.engine import Engine
from engine.loading import LoadedModel
from engine.request import DisplayImage
from engine.tiny import tiny_model
from engine.trace import Finished, Trace
from engine.trace_io import read_trace
from tests.integration.conftest import picture
from tests.integration.test_loading import save
from training import ablation, evaluate
from training.ablation import AskedConfig
from training.cli import main
from training.evaluate import (
    ASKED_BUDGETS,
    AskConfig,
    asked_how,
    asked_in_turn,
    donors_of,
    placed_crops,
)
from training.outcomes import EvaluationError, Outcome, outcome_of
from training.phantoms import to_view8
from training.prompts import PromptConfig, PromptPool, phantom_image
from training.questions import Question, balanced_questions

QUESTION = Question(
    family="nodule_side",
    kind="coarse",
    text="Which side?",
    options=("left", "right"),
    answer="right",
    target_boxes=((0.0, 0.0, 1.0, 1.0),),
    reasoning="",
    reasoning_before_zoom="",
    reasoning_after_zoom="",
)
THREE_STEPS = dataclasses.replace(ASKED_BUDGETS, latent_steps=3)
ASKED = [(DisplayImage(pixels=picture(seed)), QUESTION) for seed in range(3)]


@pytest.fixture
def asked_of_commands(monkeypatch: pytest.MonkeyPatch) -> list[AskConfig]:
    """How each command line wanted questions to be asked; nothing is run."""
    found: list[AskConfig] = []

    def run_benchmark(options: argparse.Namespace, report: object) -> str:
        found.append(asked_how(options))
        return ""

    monkeypatch.setattr(evaluate, "run_benchmark", run_benchmark)
    return found


def runs(loaded: LoadedModel, **changes: object) -> list[Trace]:
    config = AskConfig(method="latent", budgets=THREE_STEPS, **changes)  # type: ignore[arg-type]
    return [trace for _, trace in asked_in_turn(Engine(loaded), ASKED, config)]


def vectors(trace: Trace) -> list[bytes]:
    return [step.vector for step in trace.latents]


def test_shuffled_latents_are_those_of_another_question(loaded: LoadedModel) -> None:
    plain, shuffled = runs(loaded), runs(loaded, latents="shuffle")
    assert len({tuple(vectors(trace)) for trace in plain}) == 3
    donors = donors_of([question for _, question in ASKED], 0)
    for number, trace in enumerate(shuffled):
        assert vectors(trace) == vectors(plain[donors[number]])
        assert donors[number] != number


def test_a_donor_tells_nothing_of_the_answer() -> None:
    """Questions stand in turns of families, whose answers turn together."""
    names = [f"family-{number}" for number in range(20)]
    asked = [
        dataclasses.replace(QUESTION, family=name, answer=("yes", "no")[turn % 2])
        for turn in range(10)
        for name in names
    ]
    alone = dataclasses.replace(QUESTION, family="alone")
    donors = donors_of([*asked, alone], 3)
    assert sorted(donors[:-1]) == list(range(200))
    assert donors[-1] != 200
    assert all(donors[n] != n and asked[donors[n]].family == asked[n].family for n in range(200))
    # Of nine others in a family four have the same answer.
    same = sum(asked[donors[n]].answer == asked[n].answer for n in range(200))
    assert abs(same / 200 - 4 / 9) < 0.1
    assert donors != donors_of([*asked, alone], 4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--limit", "4", "--families", "effusion_side", "nodule_zone"], ""),
        (["--limit", "3", "--families", "effusion_side", "nodule_zone"], "1 of 3 questions were"),
    ],
)
def test_latents_of_other_kinds_of_questions_are_told(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A family's only question has no donor of its own kind."""
    how = ["--method", "latent", "--latent-steps", "1", "--intervention", "shuffle", "--json"]
    arguments = ["--checkpoint", "assets/checkpoints/medlvr-sft", *how, *asked]
    assert main(["evaluate", *arguments]) == 0
    captured = capsys.readouterr()
    assert said in captured.err
    assert bool(said) == ("took latents of another kind" in captured.err)
    assert json.loads(captured.out)["shuffled"].get("of_another_family", 0) == bool(said)


def test_every_question_has_noise_of_its_own(loaded: LoadedModel) -> None:
    first, *_ = (vectors(trace)[0] for trace in runs(loaded, latents="noise"))
    again, other, _ = (vectors(trace)[0] for trace in runs(loaded, latents="noise"))
    assert first == again
    directions = [np.frombuffer(v, dtype="<f4") for v in (first, other)]
    assert abs(np.corrcoef(*directions)[0, 1]) < 0.6


def test_interventions_reach_the_runs(loaded: LoadedModel) -> None:
    plain, zeroed, skipped = (runs(loaded, latents=kind) for kind in ("none", "zero", "skip"))
    assert [len(trace.latents) for trace in plain] == [3, 3, 3]
    assert [len(trace.latents) for trace in skipped] == [0, 0, 0]
    assert all(vector == bytes(len(vector)) for trace in zeroed for vector in vectors(trace))
    narrow = runs(loaded, bottleneck=True)
    assert all(m.total == 0 for token in narrow[0].tokens[2:] for m in token.attention)


def test_latent_maps_are_scored_against_the_targets(loaded: LoadedModel) -> None:
    config = AskConfig(method="latent", budgets=THREE_STEPS)
    ((outcome, trace),) = asked_in_turn(Engine(loaded), ASKED[:1], config)
    assert len(trace.latents) == 3
    assert outcome.latent_attended is True
    assert outcome.latent_alike is True
    assert outcome.latent_alike_between is True


def test_failed_calls_of_a_run_are_counted(loaded: LoadedModel) -> None:
    ((outcome, trace),) = asked_in_turn(Engine(loaded), ASKED[:1], AskConfig())
    assert outcome.failed_calls == 0
    *events, end = trace
    assert isinstance(end, Finished)
    failed = Trace.from_events([*events, dataclasses.replace(end, failed_calls=2)])
    assert outcome_of(QUESTION, failed, 0.0).failed_calls == 2


def test_a_single_question_cannot_be_shuffled(loaded: LoadedModel) -> None:
    config = AskConfig(method="latent", latents="shuffle")
    with pytest.raises(EvaluationError, match="two questions"):
        list(asked_in_turn(Engine(loaded), ASKED[:1], config))


@pytest.mark.parametrize(
    "about_latents", [["--intervention", "zero"], ["--bottleneck"], ["--latent-steps", "4"]]
)
def test_what_is_about_latents_needs_their_method(
    capsys: pytest.CaptureFixture[str], about_latents: list[str]
) -> None:
    from engine.cli import DEFAULT_CHECKPOINT

    assert main(["evaluate", "--checkpoint", str(DEFAULT_CHECKPOINT), *about_latents]) == 2
    said = f"{about_latents[0]} is about latent steps: it needs --method latent."
    assert said in capsys.readouterr().err


def test_crops_are_put_on_the_target_by_hand() -> None:
    """0.2 by 0.4 about (0.3, 0.4); of twice the sides, what leaves the image is cut off."""
    one = dataclasses.replace(QUESTION, target_boxes=((0.2, 0.2, 0.4, 0.6),))
    first, second = placed_crops(one, AskConfig(placed=1.0))
    assert (first[0], second[0], first[1]) == (1, 2, second[1])
    assert first[1].as_tuple() == pytest.approx((0.2, 0.2, 0.4, 0.6))
    ((number, wide),) = placed_crops(
        one, AskConfig(placed=2.5, budgets=dataclasses.replace(ASKED_BUDGETS, max_crops=1))
    )
    assert number == 1
    assert wide.as_tuple() == pytest.approx((0.05, 0.0, 0.55, 0.9))
    (_, half), _ = placed_crops(one, AskConfig(placed=0.5))
    assert half.as_tuple() == pytest.approx((0.25, 0.3, 0.35, 0.5))
    two = dataclasses.replace(one, target_boxes=(*one.target_boxes, (0.5, 0.5, 0.6, 0.6)))
    assert placed_crops(two, AskConfig(placed=1.0)) == ()
    assert placed_crops(one, AskConfig()) == ()


def test_the_command_puts_zooms_on_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two questions one is about one place; the tables say how many were put there."""
    asked = [
        "--checkpoint",
        "assets/checkpoints/cold-start",
        "--split",
        "validation",
        "--seed",
        "3",
    ]
    families = ["--families", "nodule_margin", "modality", "--limit", "2"]
    arguments = ["evaluate", *asked, *families, "--method", "zoom", "--true-boxes", "2"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["true_boxes"] == {"scale": 2.0, "questions": 1}
    assert found["mean_iou"] == pytest.approx(0.25)
    assert [group["count"] for group in found["fine_by_overlap"]] == [0, 0, 1, 0]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "true_boxes               scale 2.000, questions 1" in lines
    assert [line.split(",")[0] for line in lines if line.startswith("fine_by_overlap")] == [
        f"fine_by_overlap          from {least}" for least in ("0.000", "0.100", "0.200", "0.400")
    ]


@pytest.mark.parametrize(
    ("more", "placed"),
    [
        (["--method", "zoom", "--true-boxes"], 1.0),
        (["--true-boxes", "2.5", "--method", "auto"], 2.5),
        (["--method", "zoom", "--true-boxes", "0.1"], 0.1),
        (["--method", "zoom", "--true-boxes", "10"], 10.0),
        (["--method", "zoom"], None),
    ],
)
def test_the_command_line_says_where_zooms_are_put(
    more: list[str], placed: float | None, asked_of_commands: list[AskConfig]
) -> None:
    assert main(["evaluate", "--checkpoint", "any", *more]) == 0
    assert [config.placed for config in asked_of_commands] == [placed]


def test_a_zoom_that_is_put_on_the_target_shows_the_target() -> None:
    """The shipped cold start looks elsewhere by itself; twice the sides are an IoU of a quarter."""
    engine = Engine.load("assets/checkpoints/cold-start")
    case = next(iter(balanced_questions(1, 3, "validation", ("nodule_margin",))))
    asked = [(phantom_image(to_view8(case.phantom()), "chest"), case.question)]

    def overlap(placed: float | None) -> float:
        ((outcome, _),) = asked_in_turn(engine, asked, AskConfig(method="zoom", placed=placed))
        assert outcome.zooms == 1
        assert outcome.overlap is not None
        return outcome.overlap

    assert overlap(None) < 0.2
    assert overlap(1.0) == pytest.approx(1.0)
    assert overlap(2.0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--true-boxes"], "--true-boxes is about zooms: it needs --method zoom or auto."),
        (
            ["--method", "zoom", "--true-boxes", "nan"],
            "--true-boxes takes a factor from 0.1 to 10, not nan.",
        ),
        *(
            (
                ["--method", "zoom", "--true-boxes", factor],
                f"--true-boxes takes a factor from 0.1 to 10, not {factor}.",
            )
            for factor in ("0", "0.09", "10.1", "inf")
        ),
        (
            ["--method", "zoom", "--true-boxes", "--max-crops", "0"],
            "--true-boxes is about zooms: --max-crops must be at least 1.",
        ),
        (
            ["--benchmark", "distribution", "--true-boxes"],
            "--true-boxes has no meaning for --benchmark distribution: leave it out.",
        ),
    ],
)
def test_true_boxes_are_refused_where_they_say_nothing(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--checkpoint", "assets/checkpoints/base", *asked]) == 2
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize(
    ("benchmark", "what"),
    [
        ("lungs", "the folder cxr_lungbox_ccby"),
        ("distribution", "the folder cxr_lungbox_ccby"),
        ("records", "a JSONL file"),
    ],
)
def test_missing_data_are_asked_for_before_a_model_is_loaded(
    benchmark: str,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object) -> Engine:
        raise AssertionError("A model is loaded.")

    monkeypatch.setattr(Engine, "load", load)
    assert main(["evaluate", "--checkpoint", "any", "--benchmark", benchmark]) == 2
    assert capsys.readouterr().err == f"The benchmark '{benchmark}' needs --data: {what}.\n"
    nowhere = ["--data", "nowhere/at/all"]
    assert main(["evaluate", "--checkpoint", "any", "--benchmark", benchmark, *nowhere]) == 2
    assert capsys.readouterr().err == "--data is not there: nowhere/at/all.\n"


@pytest.mark.parametrize("kind", ["zero", "noise", "shuffle", "blind", "skip"])
def test_the_command_line_reaches_how_questions_are_asked(
    kind: str, asked_of_commands: list[AskConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--checkpoint", "any", "--method", "latent", "--intervention", kind]
    more = ["--bottleneck", "--max-new-tokens", "9", "--max-crops", "1", "--seed", "4"]

    assert main([*arguments, "--latent-steps", "5", *more]) == 0
    assert main(arguments) == 0

    budgets = dataclasses.replace(ASKED_BUDGETS, max_new_tokens=9, max_crops=1, latent_steps=5)
    asked = AskConfig(method="latent", seed=4, latents=kind, budgets=budgets, bottleneck=True)  # type: ignore[arg-type]
    assert asked_of_commands == [asked, AskConfig(method="latent", latents=kind)]  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_a_row_of_an_ablation_is_asked_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its intervention, its K and its bottleneck, each of them seen in the runs themselves."""
    save(tiny_model(), tmp_path / "model")
    pool = PromptPool(
        tmp_path, PromptConfig(count=2, seed=3, split="test", families=("nodule_side",))
    )
    traces: list[Trace] = []

    def kept(*arguments: object) -> Iterator[tuple[Outcome, Trace]]:
        for outcome, trace in asked_in_turn(*arguments):  # type: ignore[arg-type]
            traces.append(trace)
            yield outcome, trace

    monkeypatch.setattr(ablation, "asked_in_turn", kept)

    def scored(**how: object) -> list[list[float]]:
        asked = AskedConfig(method="latent", latent_steps=3, **how)  # type: ignore[arg-type]
        found = ablation.score(str(tmp_path / "model"), asked, pool, 0)
        assert len(found["outcomes"]) == 2
        cosines: list[list[float]] = found["latents"]["between_steps"]
        return cosines

    def looks(trace: Trace) -> list[bool]:
        """Whether the tokens behind the latents look at the image."""
        return [any(m.total > 0 for m in token.attention) for token in trace.tokens[2:]]

    assert np.diag(scored()) == pytest.approx([1.0] * 3)
    assert all(all(looks(trace)) and looks(trace) for trace in traces)
    traces.clear()
    assert scored(latents="zero", bottleneck=True) == [[0.0] * 3] * 3
    assert [len(trace.latents) for trace in traces] == [3, 3]
    assert all(vector == bytes(len(vector)) for trace in traces for vector in vectors(trace))
    assert not any(any(looks(trace)) for trace in traces)


def test_the_command_line_changes_the_latents_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny_model(), tmp_path / "model")
    checkpoint = ["evaluate", "--checkpoint", str(tmp_path / "model"), "--method", "latent"]
    few = ["--limit", "2", "--max-new-tokens", "8", "--json"]
    latents = ["--intervention", "zero", "--latent-steps", "3"]

    assert main([*checkpoint, *few, *latents, "--traces", str(tmp_path / "traces")]) == 0

    assert json.loads(capsys.readouterr().out)["counts"]["overall"] == 2
    for path in sorted((tmp_path / "traces").iterdir()):
        zeroed = vectors(read_trace(path))
        assert len(zeroed) == 3
        assert all(vector == bytes(len(vector)) for vector in zeroed)
