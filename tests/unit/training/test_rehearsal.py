"""What a rehearsal concludes from three steps; that it runs is tested with the stages."""

import json
from pathlib import Path

import pytest

from training.language import LanguageConfig
from training.latents import LatentConfig
from training.rehearsal import (
    STEPS,
    Estimate,
    every_feeding,
    few,
    missing_phantoms,
    seconds_of_step,
    three_steps,
)
from training.world import WorldConfig, claim_world


def test_the_faster_of_the_later_steps_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rates = [9.0, 0.5, 2.0]
    lines = [json.dumps({"step": n, "steps_per_second": rate}) for n, rate in enumerate(rates)]
    path.write_text("\n".join([*lines, json.dumps({"step": 3, "score": 1.0})]))
    assert seconds_of_step(path) == 0.5
    path.write_text(lines[0])
    assert seconds_of_step(path) == pytest.approx(1 / 9)


def test_only_the_schedule_is_cut() -> None:
    config = LanguageConfig(steps=900, learning_rate=0.1, batch=7, divergence=3.0)
    small = three_steps(config)
    assert (small.steps, small.batch, small.learning_rate) == (3, 7, 0.1)
    assert few(WorldConfig(count=3500, seed=4)) == WorldConfig(count=29, seed=4)
    assert few(WorldConfig(count=5)).count == 5


def test_phantoms_that_are_there_are_not_drawn_again(tmp_path: Path) -> None:
    config = WorldConfig(count=10, seed=2, split="test", shard=4)
    assert missing_phantoms(config, tmp_path) == 10
    claim_world(tmp_path, config)
    (tmp_path / "test-2-000004.npz").touch()
    assert missing_phantoms(config, tmp_path) == 6
    (tmp_path / "test-2-000008.npz").touch()
    assert missing_phantoms(config, tmp_path) == 4


def test_one_sentence_says_what_is_needed() -> None:
    said = Estimate(7500.0, 3 * 2**30, 2**29).sentence()
    assert said == (
        "The rehearsal works: the whole run will take about 2 h 05 min and 3.5 GiB of memory on "
        "this machine."
    )
    assert "unknown memory" in Estimate(1.0, 0, 0).sentence()


def test_a_rehearsal_comes_to_the_relaxation() -> None:
    """Which would take twice the memory near the end of the real run."""
    short = every_feeding(LatentConfig(relaxation=0.15))
    assert short is not None
    assert [short.at(step / STEPS).relaxed for step in range(STEPS)] == [False, False, True]
    plain = LatentConfig()
    assert every_feeding(plain) is plain
    assert every_feeding(None) is None
