"""The step loop that all training stages share: schedule, checkpoints, resume, metrics.

Everything random in a step is drawn from `(seed, step)`, so a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

STATE_FILE: Final = "state.pt"
METRICS_FILE: Final = "metrics.jsonl"

Report = Callable[[str], None]
"""Takes one line of progress."""


class DivergedError(RuntimeError):
    """Training met a loss that is not a number; the last good checkpoint is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsConfig:
    """Optimiser and schedule of one stage.

    Attributes:
        steps: optimiser steps in all.
        learning_rate: peak, reached after `warmup` steps and decayed by a cosine to a tenth.
        weight_decay: of AdamW, on matrices only.
        save_every: steps between checkpoints.
    """

    steps: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 0.05
    save_every: int = 200
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}.")


def learning_rate_at(step: int, config: StepsConfig) -> float:
    """Linear warm-up, then a cosine from the peak to a tenth of it."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, share))))


def optimizer_for(
    modules: Mapping[str, nn.Module],
    config: StepsConfig,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and none on vectors.

    Args:
        modules: what is trained, by name.
        config: peak learning rate and weight decay.
        rates: factors of the learning rate by module name; 1 where none is given.
    """
    groups = []
    for name, module in modules.items():
        factor = (rates or {}).get(name, 1.0)
        parameters = [p for p in module.parameters() if p.requires_grad]
        for chosen, decay in (
            ([p for p in parameters if p.ndim > 1], config.weight_decay),
            ([p for p in parameters if p.ndim <= 1], 0.0),
        ):
            groups.append({"params": chosen, "weight_decay": decay, "factor": factor})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


def prefixed(report: Report, name: str) -> Report:
    """A report whose lines begin with the name of a part."""

    def said(line: str) -> None:
        report(f"{name}: {line}")

    return said


def run_steps(
    *,
    folder: Path,
    modules: Mapping[str, nn.Module],
    config: StepsConfig,
    loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    report: Report,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    rates: Mapping[str, float] | None = None,
) -> None:
    """Trains `modules` from the last checkpoint in `folder`, or from their present weights.

    Args:
        folder: where the checkpoint and `metrics.jsonl` are kept.
        modules: what is trained and saved, by name.
        config: steps and schedule.
        loss_at: the loss of a step and numbers to log; everything random from the step.
        report: takes one line of progress.
        evaluate: numbers to log, called every `evaluate_every` steps and after the last.
        evaluate_every: 0: only after the last step.
        rates: factors of the learning rate by module name.

    Raises:
        DivergedError: the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = optimizer_for(modules, config, rates)
    start = _resume(folder, modules, optimizer)
    began, logged = time.monotonic(), start
    sums: dict[str, float] = {}
    window = 0
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config) * group["factor"]
        loss, numbers = loss_at(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"The loss is not a number at step {step}; the checkpoint of step "
                f"{step - step % config.save_every} is kept. Lower the learning rate."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        done = step + 1
        window += 1
        for name, number in {**numbers, "loss": value, "gradient_norm": float(norm)}.items():
            sums[name] = sums.get(name, 0.0) + number
        if done % config.log_every == 0 or done == config.steps:
            rate = (done - logged) / max(1e-9, time.monotonic() - began)
            began, logged = time.monotonic(), done
            numbers = {name: total / window for name, total in sums.items()}
            sums.clear()
            window = 0
            _log(folder, {"step": done, "steps_per_second": rate, **numbers})
            left = (config.steps - done) / max(rate, 1e-9) / 60
            parts = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            report(f"step {done}/{config.steps}, {rate:.2f} steps/s, {left:.0f} min left: {parts}")
        if done % config.save_every == 0 or done == config.steps:
            _save(folder, modules, optimizer, done)
        last = done == config.steps
        if evaluate and (last or (evaluate_every and done % evaluate_every == 0)):
            scores = evaluate(done)
            _log(folder, {"step": done, **scores})
            report(", ".join(f"{key} {value:.4g}" for key, value in scores.items()))


def _log(folder: Path, record: dict[str, float]) -> None:
    with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _save(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int
) -> None:
    state: dict[str, Any] = {"step": step, "optimizer": optimizer.state_dict()}
    state |= {name: module.state_dict() for name, module in modules.items()}
    partial = folder / (STATE_FILE + ".partial")
    torch.save(state, partial)
    os.replace(partial, folder / STATE_FILE)


def _resume(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> int:
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    for name, module in modules.items():
        module.load_state_dict(state[name])
    return int(state["step"])
