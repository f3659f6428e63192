"""What the step loop asks of the processes that train together; here, of one alone.

`training.accelerated` does the same for several processes and devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from accelerate import PartialState
from torch import nn

from training.checkpoints import load_state, save_state, step_back
from training.config import ConfigError

ItemT = TypeVar("ItemT")


def require_one_process() -> None:
    """Refuses to train in several processes what only one can: each would write the same files.

    Raises:
        ConfigError: a launcher has started more than one.
    """
    count = PartialState(cpu=not torch.cuda.is_available()).num_processes
    if count > 1:
        raise ConfigError(
            f"This stage trains in one process, not in {count}: start it without "
            "`accelerate launch`, or with --num_processes 1."
        )


def is_main_process() -> bool:
    """Whether this is the process that speaks for all that a launcher has started."""
    return bool(PartialState(cpu=not torch.cuda.is_available()).is_main_process)


class Processes(Protocol):
    """Processes that train one model together."""

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and reports."""

    def shared(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """This process's share of the parts of a step."""

    def prepared(
        self, network: nn.Module | None, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module | None, torch.optim.Optimizer]:
        """Network and optimiser on the device, in what wraps them."""

    def part(self, network: nn.Module | None) -> contextlib.AbstractContextManager[None]:
        """Stands around forward and backward of one part of a step."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a part; those of a step are the sum over all processes."""

    def clipped(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        """Scales the gradients of a step to a norm of at most `most`; returns their norm."""

    def added(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums of the numbers over all processes."""

    def save(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        step: int,
        window: Mapping[str, float],
    ) -> None:
        """Writes the state of the run; see `training.checkpoints.save_state`."""

    def load(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[int, dict[str, float]]:
        """Reads the state of the run; see `training.checkpoints.load_state`."""

    def step_back(self, folder: Path, step: int) -> int:
        """Leaves the last state of before a step; see `training.checkpoints.step_back`."""


class Unwrapped:
    """Modules that are called as they are, in a process that owns all the parts it is given."""

    def shared(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """All of them."""
        return items

    def prepared(
        self, network: nn.Module | None, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module | None, torch.optim.Optimizer]:
        """As they are."""
        return network, optimizer

    def part(self, network: nn.Module | None) -> contextlib.AbstractContextManager[None]:
        """Nothing to do."""
        del network
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a part, in this process."""
        loss.backward()  # type: ignore[no-untyped-call]


class OneProcess(Unwrapped):
    """A run in this process alone, on the device where its modules lie."""

    is_main = True

    def clipped(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        """Scales the gradients; returns their norm."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, most))

    def added(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers."""
        return dict(numbers)

    def save(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        step: int,
        window: Mapping[str, float],
    ) -> None:
        """Writes the state."""
        save_state(folder, modules, optimizer, step, window)

    def load(
        self, folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> tuple[int, dict[str, float]]:
        """Reads the state."""
        return load_state(folder, modules, optimizer)

    def step_back(self, folder: Path, step: int) -> int:
        """Leaves the last state of before a step."""
        return step_back(folder, step)
