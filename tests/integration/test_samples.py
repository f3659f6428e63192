"""The samples that the page begins with show what they are there for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.display import display_image
from engine.engine import Engine
from engine.imaging import open_image
from engine.loading import load_checkpoint
from engine.request import Budgets, Interventions, Method, Request
from engine.trace import Trace
from tests.source_tree import ROOT
from training.samples import write_samples

SAMPLES = ROOT / "assets/samples"
INDEX: list[dict[str, Any]] = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base() -> Engine:
    return Engine(load_checkpoint(ROOT / "assets/checkpoints/base", "cpu"))


def answer(
    engine: Engine, sample: dict[str, Any], method: Method, without: tuple[int, ...] = ()
) -> tuple[str, Trace]:
    request = Request(
        image=display_image(open_image(Path(SAMPLES / sample["file"]))),
        question=sample["question"],
        options=tuple(sample["options"]),
        method=method,
        budgets=Budgets(max_crops=1),
        interventions=Interventions(skip_crops=without),
    )
    trace = Trace.from_events(engine.stream(request))
    assert trace.answered is not None
    return trace.answered.text, trace


def test_the_index_is_what_the_command_writes(tmp_path: Path) -> None:
    assert json.loads(write_samples(tmp_path).read_text(encoding="utf-8")) == INDEX


def test_the_calcification_is_seen_in_the_crop_alone(base: Engine) -> None:
    sample = INDEX[0]
    assert "nodule (left middle zone; spiculated, calcified)" in sample["truth"]
    looked, trace = answer(base, sample, "zoom")

    assert looked == "yes"
    assert len(trace.regrounds) == 1
    assert answer(base, sample, "direct")[0] == "no"
    assert answer(base, sample, "zoom", without=(1,))[0] == "no"


@pytest.mark.parametrize("sample", INDEX[1:], ids=lambda sample: sample["file"])
def test_the_other_samples_are_answered_rightly(base: Engine, sample: dict[str, Any]) -> None:
    given, _ = answer(base, sample, sample["method"])

    assert given in sample["options"]
    assert given in sample["truth"]
