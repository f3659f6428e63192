"""Benchmark questions through the engine, with interventions on latent steps."""

from __future__ import annotations

import pytest

from engine.engine import Engine
from engine.loading import LoadedModel
from engine.request import DisplayImage
from engine.trace import Trace
from tests.integration.conftest import picture
from training.cli import main
from training.evaluate import AskConfig, asked_in_turn
from training.outcomes import EvaluationError
from training.questions import Question

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
ASKED = [(DisplayImage(pixels=picture(seed)), QUESTION) for seed in range(3)]


def runs(loaded: LoadedModel, **changes: object) -> list[Trace]:
    config = AskConfig(method="latent", latent_steps=3, **changes)  # type: ignore[arg-type]
    return [trace for _, trace in asked_in_turn(Engine(loaded), ASKED, config)]


def vectors(trace: Trace) -> list[bytes]:
    return [step.vector for step in trace.latents]


def test_shuffled_latents_are_those_of_the_question_before(loaded: LoadedModel) -> None:
    plain, shuffled = runs(loaded), runs(loaded, latents="shuffle")
    assert len({tuple(vectors(trace)) for trace in plain}) == 3
    for number, trace in enumerate(shuffled):
        assert vectors(trace) == vectors(plain[number - 1])


def test_interventions_reach_the_runs(loaded: LoadedModel) -> None:
    plain, zeroed, skipped = (runs(loaded, latents=kind) for kind in ("none", "zero", "skip"))
    assert [len(trace.latents) for trace in plain] == [3, 3, 3]
    assert [len(trace.latents) for trace in skipped] == [0, 0, 0]
    assert all(vector == bytes(len(vector)) for trace in zeroed for vector in vectors(trace))
    narrow = runs(loaded, bottleneck=True)
    assert all(m.total == 0 for token in narrow[0].tokens[2:] for m in token.attention)


def test_latent_maps_are_scored_against_the_targets(loaded: LoadedModel) -> None:
    config = AskConfig(method="latent", latent_steps=3)
    ((outcome, trace),) = asked_in_turn(Engine(loaded), ASKED[:1], config)
    assert len(trace.latents) == 3
    assert outcome.latent_attended is True
    assert outcome.latent_alike is True


def test_a_single_question_cannot_be_shuffled(loaded: LoadedModel) -> None:
    config = AskConfig(method="latent", latents="shuffle")
    with pytest.raises(EvaluationError, match="two questions"):
        list(asked_in_turn(Engine(loaded), ASKED[:1], config))


def test_an_intervention_needs_the_latent_method(capsys: pytest.CaptureFixture[str]) -> None:
    from engine.cli import DEFAULT_CHECKPOINT

    arguments = ["evaluate", "--checkpoint", str(DEFAULT_CHECKPOINT), "--intervention", "zero"]
    assert main(arguments) == 2
    assert "--method latent" in capsys.readouterr().err
