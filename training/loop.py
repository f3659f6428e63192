"""The step loop that all training stages share: schedule, checkpoints, resume, metrics.

Everything random in a step is drawn from `(seed, step)`, so a resumed run draws what the
uninterrupted one would have drawn. What was logged after the last checkpoint is dropped on
resuming and logged again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from training.checkpoints import DIVERGED_FOLDER
from training.metrics import Metrics, readable_seconds, tensorboard_writer
from training.muon import MUON_FACTOR, Muon, Paired, inner_matrices
from training.processes import OneProcess, Processes
from training.stopping import DivergedError

Report = Callable[[str], None]
"""Takes one line of progress."""

PartLoss = tuple[torch.Tensor, dict[str, float]]
"""The loss of a part of a step, and numbers to log; those of all parts add up to the step's."""

MOST_GRADIENT_NORM: Final = 1.0
ADAMW_BETAS: Final = (0.9, 0.98)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsConfig:
    """Optimiser and schedule of one stage.

    Attributes:
        steps: optimiser steps in all.
        learning_rate: peak, reached after `warmup` steps and decayed by a cosine to a tenth.
        weight_decay: decoupled, on matrices only.
        save_every: steps between checkpoints.
        log_every: steps between lines of progress and metrics, which are means over them.
        divergence: the run stops when a logged loss exceeds the first one by this factor; 0
            leaves it to run (losses near zero, or that are meant to grow).
        tensorboard: whether the metrics are written for TensorBoard, too.
        optimizer: `adamw`, or `muon` for the matrices inside the network and AdamW for words,
            biases and scales (`training.muon`).
    """

    steps: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 0.05
    save_every: int = 200
    log_every: int = 50
    divergence: float = 0.0
    tensorboard: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative, not {self.warmup}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}.")
        if self.divergence and not self.divergence > 1:
            raise ValueError(f"divergence must be 0 or above 1, not {self.divergence}.")


def learning_rate_at(step: int, config: StepsConfig) -> float:
    """Linear warm-up, then a cosine from the peak to a tenth of it."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, share))))


def optimizer_for(
    modules: Mapping[str, nn.Module],
    config: StepsConfig,
    readings: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """AdamW, or Muon and AdamW, with weight decay on matrices and none on vectors.

    Args:
        modules: what is trained, by name.
        config: the optimiser, peak learning rate and weight decay.
        readings: modules that read a network's output, and factors of their learning rate. AdamW
            trains them, as it does words, whatever trains the matrices inside.

    Raises:
        ValueError: nothing is trained.
    """
    orthogonal: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    for name, module in modules.items():
        factor = (readings or {}).get(name, 1.0)
        parameters = [p for p in module.parameters() if p.requires_grad]
        orthogonalises = config.optimizer == "muon" and name not in (readings or {})
        inner = inner_matrices(module) if orthogonalises else []
        taken = {id(p) for p in inner}
        for into, chosen, decay, own in (
            (orthogonal, inner, config.weight_decay, MUON_FACTOR),
            (
                groups,
                [p for p in parameters if p.ndim > 1 and id(p) not in taken],
                config.weight_decay,
                1.0,
            ),
            (groups, [p for p in parameters if p.ndim <= 1], 0.0, 1.0),
        ):
            if chosen:
                into.append({"params": chosen, "weight_decay": decay, "factor": factor * own})
    if not orthogonal:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=ADAMW_BETAS)
    muon = Muon(orthogonal, lr=config.learning_rate)
    if not groups:
        return muon
    return Paired(muon, torch.optim.AdamW(groups, lr=config.learning_rate, betas=ADAMW_BETAS))


def prefixed(report: Report, name: str) -> Report:
    """A report whose lines begin with the name of a part."""

    def said(line: str) -> None:
        report(f"{name}: {line}")

    return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is trained, how, and where it is kept.

    Attributes:
        folder: of the state, the metrics and the curves.
        modules: what is trained and saved, by name.
        config: steps and schedule.
        parts_at: the parts of a step, called one after the other: given the network as the
            processes wrap it and the step; everything random from the step.
        network: holds all modules, and is what the parts call; needed by several processes.
        evaluate: numbers to log, called every `evaluate_every` steps and after the last.
        evaluate_every: 0: only after the last step.
        readings: as in `optimizer_for`.
        after_step: called when the optimiser has moved the weights.
        rate_key: what the learning rate is called in the configuration of the run.
    """

    folder: Path
    modules: Mapping[str, nn.Module]
    config: StepsConfig
    parts_at: Callable[[Any, int], Sequence[Callable[[], PartLoss]]]
    network: nn.Module | None = None
    evaluate: Callable[[int], dict[str, float]] | None = None
    evaluate_every: int = 0
    readings: Mapping[str, float] | None = None
    after_step: Callable[[], None] | None = None
    rate_key: str = "the learning_rate of this stage"


def whole_steps(
    loss_at: Callable[[int], PartLoss],
) -> Callable[[Any, int], Sequence[Callable[[], PartLoss]]]:
    """Steps of one part each, as `Stage.parts_at` takes them.

    Args:
        loss_at: the loss of a step and numbers to log; everything random from the step.
    """
    return lambda _, step: (lambda: loss_at(step),)


def run_steps(
    *,
    folder: Path,
    modules: Mapping[str, nn.Module],
    config: StepsConfig,
    loss_at: Callable[[int], PartLoss],
    report: Report,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    readings: Mapping[str, float] | None = None,
) -> None:
    """Trains `modules` in this process, every step of one part: `run_stage` in short.

    Args:
        folder: where the checkpoint and `metrics.jsonl` are kept.
        modules: what is trained and saved, by name.
        config: steps and schedule.
        loss_at: the loss of a step and numbers to log; everything random from the step.
        report: takes one line of progress.
        evaluate: numbers to log, called every `evaluate_every` steps and after the last.
        evaluate_every: 0: only after the last step.
        readings: as in `optimizer_for`.

    Raises:
        DivergedError: as `run_stage`.
    """
    stage = Stage(
        folder=folder,
        modules=modules,
        config=config,
        parts_at=whole_steps(loss_at),
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        readings=readings,
    )
    run_stage(stage, report)


def run_stage(stage: Stage, report: Report, processes: Processes | None = None) -> None:
    """Trains from the last checkpoint of the stage, or from the present weights.

    Args:
        stage: what, how and where.
        report: takes one line of progress; of the main process only.
        processes: that train together; this one alone by default.

    Raises:
        DivergedError: the loss is not finite, or has grown (see `StepsConfig`), or a part of a
            step has raised it. The run then goes on from before that step, and what it came to is
            kept for a look (`DIVERGED_FOLDER`).
        ConfigError: TensorBoard is asked for and not installed.
        ValueError: the state in the folder is of another model or optimiser.
    """
    together: Processes = processes or OneProcess()
    stage.folder.mkdir(parents=True, exist_ok=True)
    network, optimizer = together.prepared(
        stage.network, optimizer_for(stage.modules, stage.config, stage.readings)
    )
    start, sums = together.load(stage.folder, stage.modules, optimizer)
    log = _Log(stage, together, report, start, sums)
    done = start
    try:
        if start and not log.is_scored and _due(start, stage.evaluate_every, stage.config.steps):
            # The run was killed between this checkpoint and its scores.
            log.evaluate(start)
        for step in range(start, stage.config.steps):
            done = step
            numbers = _gradients(stage, network, optimizer, together, step)
            if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"])):
                raise DivergedError(f"The loss is not a number at step {step}")
            optimizer.step()
            if stage.after_step is not None:
                stage.after_step()
            done = step + 1
            log.add(done, numbers)
            if _due(step + 1, stage.config.save_every, stage.config.steps):
                together.save(stage.folder, stage.modules, optimizer, step + 1, log.sums)
            if _due(step + 1, stage.evaluate_every, stage.config.steps):
                log.evaluate(step + 1)
    except DivergedError as error:
        look = stage.folder / DIVERGED_FOLDER
        look.mkdir(exist_ok=True)
        together.save(look, stage.modules, optimizer, done, log.sums)
        kept = together.step_back(stage.folder, done)
        raise DivergedError(_stopped(error, kept, look, stage.rate_key)) from error
    finally:
        log.close()


def _due(done: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and after the last, happens now."""
    return done == steps or bool(every and done % every == 0)


def _stopped(error: DivergedError, kept: int, look: Path, rate_key: str) -> str:
    """One sentence: what has happened, what is kept, what to do."""
    goes_on = f"to go on from step {kept}" if kept else "to begin anew, as nothing earlier is kept"
    return (
        f"{error.reason}: training stopped and left what it had come to in {look}; "
        f"{error.remedy or f'lower {rate_key}'}, and start the same command again {goes_on}."
    )


def _gradients(
    stage: Stage,
    network: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    together: Processes,
    step: int,
) -> dict[str, float]:
    """Computes the gradients of a step, clipped; returns its numbers, the loss among them."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, stage.config) * group["factor"]
    optimizer.zero_grad(set_to_none=True)
    numbers: dict[str, float] = {}
    for part in together.shared(stage.parts_at(network, step)):
        with together.part(network):
            loss, more = part()
            together.backward(loss)
        for name, number in {**more, "loss": float(loss.detach())}.items():
            numbers[name] = numbers.get(name, 0.0) + number
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = together.clipped(trained, MOST_GRADIENT_NORM)
    return {**together.added(numbers), "gradient_norm": norm}


class _Log:
    """Means of the numbers since the last line, the line itself, and the watch over the loss.

    Attributes:
        sums: of the numbers since the last line, and how many `steps` are in them.
        is_scored: whether the step that the run goes on from has its scores.
    """

    def __init__(
        self,
        stage: Stage,
        together: Processes,
        report: Report,
        start: int,
        sums: dict[str, float],
    ) -> None:
        self.sums = sums
        self._logged = start
        self._stage, self._report = stage, report
        self._began = time.monotonic()
        self._metrics: Metrics | None = None
        if together.is_main:
            folder = stage.folder
            writer = tensorboard_writer(folder, start) if stage.config.tensorboard else None
            self._metrics = Metrics(folder, start, writer)
        first = self._metrics.first_loss if self._metrics else None
        # Only the main process has read it; all of them stop together.
        scored = float(self._metrics.is_scored) if self._metrics else 0.0
        shared = together.added({"loss": first or 0.0, "scored": scored})
        self._first, self.is_scored = shared["loss"], bool(shared["scored"])

    def add(self, done: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of a step; writes a line when one is due.

        Raises:
            DivergedError: the loss has grown.
        """
        for name, number in {**numbers, "steps": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + number
        config = self._stage.config
        if not _due(done, config.log_every, config.steps):
            return
        window = self.sums.pop("steps")
        rate = (done - self._logged) / max(1e-9, time.monotonic() - self._began)
        means = {name: total / window for name, total in self.sums.items()}
        self.sums.clear()
        self._began, self._logged = time.monotonic(), done
        if tokens := means.pop("tokens", 0.0):
            means["tokens_per_second"] = tokens * rate
        self._write({"step": done, "steps_per_second": rate, **means})
        left = readable_seconds((config.steps - done) / max(rate, 1e-9))
        self._say(f"step {done}/{config.steps}, {rate:.2f} steps/s, {left} left: {_listed(means)}")
        loss, self._first = means["loss"], self._first or means["loss"]
        if config.divergence and loss > config.divergence * self._first > 0:
            raise DivergedError(
                f"The loss has grown from {self._first:.4g} to {loss:.4g} at step {done}"
            )

    def evaluate(self, done: int) -> None:
        """Writes the numbers of an evaluation, if the stage has one."""
        if self._stage.evaluate is None:
            return
        numbers = self._stage.evaluate(done)
        self._write({"step": done, **numbers})
        self._say(_listed(numbers))

    def close(self) -> None:
        """Ends the files."""
        if self._metrics is not None:
            self._metrics.close()

    def _write(self, record: Mapping[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.write(record)

    def _say(self, line: str) -> None:
        if self._metrics is not None:
            self._report(line)


def _listed(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
