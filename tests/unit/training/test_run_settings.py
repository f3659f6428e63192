"""A run folder goes on as the run that it was begun as."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from training.config import ConfigError, load_config
from training.run_settings import claim_run
from training.sft import MAY_CHANGE, FinetuneConfig

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"


@dataclass(frozen=True)
class Steps:
    steps: int = 10
    rate: float = 0.1


@dataclass(frozen=True)
class Run:
    out: Path
    base: str = "a"
    steps: Steps = field(default_factory=Steps)


def test_settings_are_written_and_free_ones_may_change(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    claim_run(run.out, run, ["out", "steps.*"])
    claim_run(run.out, replace(run, steps=Steps(20, 0.05)), ["out", "steps.*"])
    kept = json.loads((run.out / "configuration.json").read_text())
    assert kept == {"out": str(run.out), "base": "a", "steps": {"steps": 20, "rate": 0.05}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"base": "b"}, "base: a, now b"), ({"steps": Steps(rate=0.2)}, "steps.rate: 0.1, now 0.2")],
)
def test_another_run_is_refused_and_nothing_is_written(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    run = Run(tmp_path)
    claim_run(tmp_path, run, [])
    before = (tmp_path / "configuration.json").read_bytes()
    with pytest.raises(ConfigError, match=f"begun with other settings .{said}.: remove it"):
        claim_run(tmp_path, replace(run, **changed), ["steps.steps"])
    assert (tmp_path / "configuration.json").read_bytes() == before


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    claim_run(tmp_path / "run", Run(tmp_path), [], writes=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["medlvr-sft", "sft-zoom", "cold-start"])
def test_a_run_goes_on_under_a_watch_that_it_was_not_begun_with(tmp_path: Path, name: str) -> None:
    """The shipped configurations of stages that begin with a trained checkpoint have one."""
    begun, shipped = (
        load_config(FinetuneConfig, CONFIGS / f"{name}.yaml", [f"out={tmp_path}", *overrides])
        for overrides in (["language.divergence=0"], [])
    )
    assert (begun.language.divergence, shipped.language.divergence) == (0.0, 4.0)
    claim_run(begun.out, begun, MAY_CHANGE)
    claim_run(shipped.out, shipped, MAY_CHANGE)
