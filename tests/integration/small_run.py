"""A run of the step loop that takes a second, and kills its own process where it is told to.

`python -m tests.integration.small_run FOLDER MOMENT`, the moment being `step`, `rename` or `none`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from training.loop import StepsConfig, run_steps

STEPS = 12
SAVE_EVERY = 3
FATAL_STEP = 7


def train(folder: Path, during: Callable[[int], None] = lambda _: None) -> torch.Tensor:
    """Twelve steps of a small network from the last checkpoint; its weights at the end.

    Args:
        folder: of the run.
        during: called in the middle of every step, between forward and backward.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Its state has half a megabyte, several times what a pipe holds.
    model = torch.nn.Sequential(torch.nn.Linear(8, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 1))

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs.sum(-1, keepdim=True)).pow(2).mean()
        during(step)
        return loss, {"step_seen": float(step)}

    run_steps(
        folder=folder,
        modules={"model": model},
        config=StepsConfig(
            steps=STEPS, learning_rate=0.01, warmup=2, save_every=SAVE_EVERY, log_every=2
        ),
        loss_at=loss_at,
        report=lambda _: None,
    )
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def die() -> None:
    """Ends this process as `kill -9` does: nothing is cleaned up, no file is closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_the_second_rename(seen: list[str]) -> Callable[[str, tuple[object, ...]], None]:
    """An audit hook that dies when the second checkpoint is written and not yet in place."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).endswith("state.pt"):
            seen.append(event)
            if len(seen) == 2:
                die()

    return hook


def main(folder: Path, moment: str) -> None:
    """Trains in a process that is to be killed."""
    if moment == "rename":
        sys.addaudithook(die_at_the_second_rename([]))
    train(folder, lambda step: die() if moment == "step" and step == FATAL_STEP else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
