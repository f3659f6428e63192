"""The step loop: schedule, resume, divergence."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from training.loop import DivergedError, StepsConfig, learning_rate_at, run_steps


def steps(count: int, **changes: float) -> StepsConfig:
    return StepsConfig(
        steps=count, learning_rate=0.01, warmup=3, save_every=2, log_every=2, **changes
    )


def train(folder: Path, count: int, stop_at: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 1)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 5, generator=generator)
        return (model(inputs) - inputs.sum(-1, keepdim=True)).pow(2).mean(), {"one": 1.0}

    run_steps(
        folder=folder,
        modules={"model": model},
        config=steps(count),
        loss_at=loss_at,
        report=[].append,
    )
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 10)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 10, stop_at=7)
    resumed = train(tmp_path / "cut", 10)
    assert torch.equal(whole, resumed)


def test_interrupted_save_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "run", 4)
    (tmp_path / "run" / "state.pt.partial").write_bytes(b"half a checkpoint")
    assert torch.isfinite(train(tmp_path / "run", 6)).all()


def test_metrics_are_one_json_object_a_line(tmp_path: Path) -> None:
    train(tmp_path, 4)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(DivergedError, match="not a number at step 0"):
        run_steps(
            folder=tmp_path,
            modules={"model": model},
            config=steps(4),
            loss_at=lambda _: (model.weight.sum() * math.nan, {}),
            report=[].append,
        )


def test_schedule_rises_then_falls_to_a_tenth() -> None:
    config = steps(103)
    rates = [learning_rate_at(step, config) for step in range(104)]
    assert rates[0] == pytest.approx(0.01 / 3)
    assert max(rates) == pytest.approx(0.01)
    assert rates[103] == pytest.approx(0.001)
    assert all(a >= b for a, b in pairwise(rates[3:]))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        StepsConfig(steps=0, learning_rate=1.0)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        StepsConfig(steps=1, learning_rate=0.0)


def test_rates_scale_the_learning_rate_of_a_module(tmp_path: Path) -> None:
    modules = {name: torch.nn.Linear(2, 2) for name in ("tower", "heads")}
    config = steps(1, weight_decay=0.0)
    before = {name: module.weight.detach().clone() for name, module in modules.items()}

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        del step
        return sum(m.weight.sum() for m in modules.values()), {}

    run_steps(
        folder=tmp_path,
        modules=modules,
        config=config,
        loss_at=loss_at,
        report=lambda _: None,
        rates={"heads": 6.0},
    )
    moved = {name: float((before[name] - m.weight.detach()).mean()) for name, m in modules.items()}
    assert moved["tower"] == pytest.approx(learning_rate_at(0, config), rel=1e-3)
    assert moved["heads"] == pytest.approx(6 * moved["tower"], rel=1e-3)
