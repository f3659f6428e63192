"""The step loop: schedule, resume, divergence."""

import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.factories import Curves
from training import loop
from training.loop import (
    Stage,
    StepsConfig,
    learning_rate_at,
    optimizer_for,
    run_stage,
    run_steps,
    whole_steps,
)
from training.stopping import DivergedError


def steps(count: int, **changes: float) -> StepsConfig:
    return StepsConfig(
        steps=count, learning_rate=0.01, warmup=3, save_every=2, log_every=2, **changes
    )


def train(
    folder: Path,
    count: int,
    stop_at: int | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    asked: list[int] | None = None,
) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 1)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if asked is not None:
            asked.append(step)
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
        evaluate=evaluate,
        evaluate_every=2,
    )
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 10)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 10, stop_at=7)
    resumed = train(tmp_path / "cut", 10)
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize("killed_at", [4, 6])
def test_scores_that_a_kill_has_cost_are_made_up_for(tmp_path: Path, killed_at: int) -> None:
    """Between a checkpoint and its scores, that of the last step included."""
    asked: list[int] = []

    def evaluate(done: int) -> dict[str, float]:
        if done == killed_at and asked.count(done) == 0:
            asked.append(done)
            raise KeyboardInterrupt
        asked.append(done)
        return {"score": float(done)}

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 6, evaluate=evaluate)
    train(tmp_path, 6, evaluate=evaluate)
    train(tmp_path, 6, evaluate=evaluate)

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "score" in line] == [2, 4, 6]
    # Nothing is scored twice once it is there.
    assert asked.count(6) == 1 + (killed_at == 6)


def test_half_a_save_is_not_what_a_run_goes_on_from(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 8, stop_at=5)
    (tmp_path / "cut" / "state.pt.partial").write_bytes(b"half a checkpoint")
    asked: list[int] = []
    assert torch.equal(train(tmp_path / "cut", 8, asked=asked), whole)
    assert asked == [4, 5, 6, 7]


def test_metrics_are_one_json_object_a_line(tmp_path: Path) -> None:
    train(tmp_path, 4)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


@pytest.mark.parametrize("wanted", [True, False])
def test_curves_are_the_metrics_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """Of the steps and of the evaluations, of a run that goes on as well."""
    opened: list[Curves] = []
    asked: list[tuple[Path, int]] = []

    def writer(folder: Path, start: int) -> Curves:
        opened.append(Curves())
        asked.append((folder, start))
        return opened[-1]

    monkeypatch.setattr(loop, "tensorboard_writer", writer)
    model = torch.nn.Linear(1, 1)
    for count in (4, 6):
        run_steps(
            folder=tmp_path,
            modules={"model": model},
            config=steps(count, tensorboard=wanted),
            loss_at=lambda step: (model.weight.pow(2).sum(), {"tokens": 1.0, "one": float(step)}),
            report=lambda _: None,
            evaluate=lambda done: {"score": done / 10},
            evaluate_every=2,
        )

    if not wanted:
        assert not opened
        return
    assert asked == [(tmp_path, 0), (tmp_path, 4)]
    assert all(curves.closed for curves in opened)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 4, 4, 6, 6]
    assert [point for curves in opened for point in curves.points] == [
        (name, number, line["step"])
        for line in lines
        for name, number in line.items()
        if name != "step"
    ]


def no_number_at(
    folder: Path, step_of_nan: int, *, where: str = "loss", rate: float = 0.01
) -> torch.Tensor:
    """A run whose loss at one step is no number unless the step before it was a small one."""
    model = torch.nn.Linear(1, 1, bias=False)
    seen: list[float] = []

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        loss = model.weight.sum()
        seen.append(float(loss.detach()))
        if step != step_of_nan or (len(seen) > 1 and abs(seen[-1] - seen[-2]) < 0.005):
            return loss, {}
        # The root has a finite value and no finite slope at zero.
        return (loss * math.nan if where == "loss" else (loss * 0.0).sqrt()), {}

    config = StepsConfig(
        steps=9, learning_rate=rate, warmup=1, weight_decay=0.0, save_every=2, log_every=2
    )
    run_steps(
        folder=folder,
        modules={"model": model},
        config=config,
        loss_at=loss_at,
        report=[].append,
    )
    return model.weight.detach()


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(("step", "kept"), [(3, 2), (4, 2), (5, 4)])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_before_that_step(
    tmp_path: Path, where: str, step: int, kept: int
) -> None:
    """The state of the very step would come to the same end: the one before it is gone back to."""
    with pytest.raises(DivergedError) as caught:
        no_number_at(tmp_path, step, where=where)
    message = str(caught.value)
    assert message.startswith(f"The loss is not a number at step {step}: training stopped and left")
    assert message.endswith(f"start the same command again to go on from step {kept}.")
    assert message.count(".") - str(tmp_path).count(".") == 1
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == kept
    last = torch.load(tmp_path / "diverged" / "state.pt", weights_only=True)
    assert last["step"] == step
    assert torch.isfinite(last["model"]["weight"]).all()


@pytest.mark.parametrize("step", [3, 4])
def test_a_run_that_diverged_goes_on_with_a_lower_learning_rate(tmp_path: Path, step: int) -> None:
    for _ in range(2):
        with pytest.raises(DivergedError, match="go on from step 2"):
            no_number_at(tmp_path, step)
    no_number_at(tmp_path, step, rate=0.001)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 9


def test_without_an_earlier_state_the_run_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="begin anew, as nothing earlier is kept"):
        no_number_at(tmp_path, 1)
    assert not (tmp_path / "state.pt").exists()
    assert torch.load(tmp_path / "diverged" / "state.pt", weights_only=True)["step"] == 1


def test_a_loss_that_grows_stops_the_run_and_keeps_the_checkpoint_before_it(
    tmp_path: Path,
) -> None:
    weight = torch.nn.Linear(1, 1)
    scale = [1.0, 1.0, 2.9, 2.9, 3.1, 3.1, 1.0, 1.0]

    def run(factor: float, folder: Path) -> None:
        run_steps(
            folder=folder,
            modules={"model": weight},
            config=steps(8, divergence=factor),
            loss_at=lambda step: (weight.weight.sum() * 0.0 + scale[step], {}),
            report=[].append,
        )

    with pytest.raises(DivergedError, match=r"grown from 1 to 3.1 at step 6:.*go on from step 4\."):
        run(3.0, tmp_path / "grown")
    assert torch.load(tmp_path / "grown" / "state.pt", weights_only=True)["step"] == 4
    # The first loss is read back on going on.
    with pytest.raises(DivergedError, match=r"grown from 1 to 3.1 at step 6"):
        run(3.0, tmp_path / "grown")
    run(3.2, tmp_path / "borne")
    run(0.0, tmp_path / "off")


def test_progress_tells_rate_and_time_left_and_tokens_per_second(tmp_path: Path) -> None:
    said: list[str] = []
    model = torch.nn.Linear(1, 1)
    run_steps(
        folder=tmp_path,
        modules={"model": model},
        config=steps(4),
        loss_at=lambda _: (model.weight.sum(), {"tokens": 100.0}),
        report=said.append,
        evaluate=lambda done: {"score": done / 10},
        evaluate_every=3,
    )
    assert re.fullmatch(r"step 2/4, [\d.]+ steps/s, \d+ s left: loss .*", said[0])
    assert said[1] == "score 0.3"
    assert said[-1] == "score 0.4"
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["tokens_per_second"] == pytest.approx(100 * first["steps_per_second"])


def test_parts_of_a_step_add_up(tmp_path: Path) -> None:
    """Two halves of a batch train as the whole batch does, and are logged as it is."""

    def trained(parts: int) -> tuple[torch.Tensor, dict[str, float]]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))

        def part(rows: torch.Tensor) -> Callable[[], tuple[torch.Tensor, dict[str, float]]]:
            return lambda: (model(rows).pow(2).sum() / 4, {"rows": float(len(rows))})

        folder = tmp_path / str(parts)
        stage = Stage(
            folder=folder,
            modules={"model": model},
            config=steps(2),
            parts_at=lambda network, step: [part(rows) for rows in inputs.chunk(parts)],
        )
        run_stage(stage, lambda _: None)
        record = json.loads((folder / "metrics.jsonl").read_text())
        return model.weight.detach(), {k: record[k] for k in ("loss", "rows", "gradient_norm")}

    (whole, numbers), (halves, summed) = trained(1), trained(2)
    torch.testing.assert_close(halves, whole, atol=1e-7, rtol=1e-6)
    assert summed == pytest.approx(numbers)
    assert numbers["rows"] == 4


def test_what_comes_after_a_step_is_in_the_state_and_in_the_next_step(tmp_path: Path) -> None:
    """A weight that is put back never moves, neither in a loss nor in what is kept."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    seen: list[float] = []
    kept = float(model.weight[0, 1].detach())

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(float(model.weight[0, 1].detach()))
        return model(torch.full((2, 3), float(step + 1))).pow(2).mean(), {}

    def put_back() -> None:
        with torch.no_grad():
            model.weight[0, 1] = kept

    stage = Stage(
        folder=tmp_path,
        modules={"model": model},
        config=steps(4),
        parts_at=whole_steps(loss_at),
        after_step=put_back,
    )
    run_stage(stage, lambda _: None)
    assert seen == [kept] * 4
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["model"]["weight"]
    assert float(saved[0, 1]) == kept
    torch.manual_seed(0)
    assert not torch.equal(saved[0, ::2], torch.nn.Linear(3, 1).weight.detach()[0, ::2])


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
    with pytest.raises(ValueError, match="divergence must be 0 or above 1"):
        StepsConfig(steps=1, learning_rate=1.0, divergence=0.5)


def test_readings_have_their_own_learning_rate(tmp_path: Path) -> None:
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
        readings={"heads": 6.0},
    )
    moved = {name: float((before[name] - m.weight.detach()).mean()) for name, m in modules.items()}
    assert moved["tower"] == pytest.approx(learning_rate_at(0, config), rel=1e-3)
    assert moved["heads"] == pytest.approx(6 * moved["tower"], rel=1e-3)


def test_muon_leaves_readings_to_adamw() -> None:
    """Of a gradient of rank one AdamW keeps the signs, and Muon the proportions."""
    modules = {name: torch.nn.Linear(3, 3) for name in ("tower", "heads")}
    before = {name: module.weight.detach().clone() for name, module in modules.items()}
    config = steps(1, optimizer="muon", weight_decay=0.0)
    optimizer = optimizer_for(modules, config, {"heads": 1.0})
    for module in modules.values():
        module.weight.grad = torch.tensor([1.0, 2.0, 3.0]).repeat(3, 1)
        module.bias.grad = torch.zeros(3)
    optimizer.step()
    moved = {name: before[name] - module.weight.detach() for name, module in modules.items()}
    torch.testing.assert_close(moved["heads"], torch.full((3, 3), 0.01))
    torch.testing.assert_close(moved["tower"][:, 2], 3 * moved["tower"][:, 0])
