"""State files of a training run: written whole or not at all, read back to the bit.

A state holds what is trained and the optimiser, nothing that is frozen. It never holds a pickled
object: `torch.load` reads it with `weights_only`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import nn

STATE_FILE: Final = "state.pt"
# Keys of a state that are no modules.
RESERVED: Final = ("step", "optimizer", "window")

State = dict[str, Any]


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Puts a file in place in one step, once all of it is on the disk.

    A process that is killed at any moment leaves the former file or the new one. What is on its
    way lies beside it as `*.partial`, and is overwritten by the next attempt.

    Args:
        path: of the file; its folder exists.
        write: writes the content.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        # Without it a crash of the machine could keep the new name and lose the content.
        os.fsync(file.fileno())
    os.replace(partial, path)


def trained_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a module that are trained, and its buffers, by name."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: t for name, t in module.state_dict().items() if name not in frozen}


def save_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: int,
    window: Mapping[str, float],
) -> None:
    """Writes the state of a run after `step` steps.

    Args:
        folder: of the run.
        modules: what is trained, by name.
        optimizer: of their parameters.
        step: steps done.
        window: sums of the metrics that have not been logged yet.

    Raises:
        ValueError: a module has a reserved name.
    """
    if taken := sorted(set(modules) & set(RESERVED)):
        raise ValueError(f"A module cannot be called {taken[0]!r}.")
    state: State = {"step": step, "optimizer": optimizer.state_dict(), "window": dict(window)}
    state |= {name: trained_state(module) for name, module in modules.items()}
    write_whole(folder / STATE_FILE, lambda file: torch.save(state, file))


def load_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float]]:
    """Puts the last state of a run into its modules and optimiser.

    Returns:
        Steps done, and sums of metrics not logged yet; 0 and nothing where there is no state.

    Raises:
        ValueError: the state is of another model or of another set of trained parameters.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return 0, {}
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    try:
        for name, module in modules.items():
            found = module.load_state_dict(state[name], strict=False)
            wanted = trained_state(module).keys()
            if found.unexpected_keys or not wanted.isdisjoint(found.missing_keys):
                raise KeyError(name)
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The state in {folder} is of another model or trains other parameters: give the "
            "run another folder (out), or remove that one."
        ) from error
    return int(state["step"]), dict(state.get("window", {}))
