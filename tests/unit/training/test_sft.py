"""A fine-tuning run before its first step: records of a step, what is drawn, who takes which."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.conftest import picture
from training.accelerated import parts_of_each
from training.config import load_config
from training.materials import Materials
from training.phantoms.truth import seed_for
from training.questions import case_for
from training.rehearsal import evaluation_steps
from training.sft import FinetuneConfig, draws
from training.world import Case

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"


def shipped(*overrides: str, name: str = "sft-zoom.yaml") -> FinetuneConfig:
    return load_config(FinetuneConfig, CONFIGS / name, list(overrides))


def case(split: str) -> Case:
    """A phantom with its truth and a view of noise."""
    ordered = case_for("nodule_margin", "smooth", seed_for(split, 5, 77))
    return Case(ordered.truth(), picture(1, 84, 56), {}, ordered.question)


def test_records_of_letters_are_records_of_a_step() -> None:
    assert shipped().step_records == 24
    assert shipped("mix.letters=0").step_records == 16


def test_evaluations_hold_as_many_records_as_were_asked_for(tokenizer) -> None:
    config = shipped("mix.real=0", "mix.letters=3")
    materials = Materials([case("train")], [case("validation")], [], [])
    draw, unseen = draws(config, tokenizer, materials)
    assert len(draw.records(4, np.random.default_rng(0))) == 7
    assert len(unseen.records(4, np.random.default_rng(0))) == 4


def test_an_evaluation_costs_its_records_in_steps_with_their_letters() -> None:
    config = shipped("language.steps=1000")
    assert evaluation_steps(config) == 0.0
    evaluated = replace(config.tuning, evaluate_every=300, evaluate_records=20)
    assert evaluation_steps(replace(config, tuning=evaluated)) == pytest.approx(4 * 20 / 24)


@pytest.mark.parametrize(("letters", "own"), [(0, 1), (8, None), (16, 2)])
def test_parts_that_cannot_be_shared_are_refused_with_what_to_change(
    letters: int, own: int | None
) -> None:
    """As the documentation says of `sft-zoom.yaml` and two processes."""
    config = shipped(f"mix.letters={letters}")
    parts = -(-config.step_records // config.tuning.micro_batch)
    if own is not None:
        assert parts_of_each(parts, 2) == own
        return
    with pytest.raises(ValueError, match=r"3 parts.*language\.batch, mix\.letters or tuning"):
        parts_of_each(parts, 2)
