"""State files of a training run: written whole or not at all, read back to the bit.

A state holds what is trained and the optimiser, nothing that is frozen. It never holds a pickled
object: `torch.load` reads it with `weights_only`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import nn

from training.muon import Paired

STATE_FILE: Final = "state.pt"
# The state before it, for a run that has to go further back than its last one.
FORMER_FILE: Final = "state.former.pt"
# What a run that diverged has come to, to be looked at: it does not go on from there.
DIVERGED_FOLDER: Final = "diverged"
# Keys of a state that are no modules.
RESERVED: Final = ("step", "optimizer", "optimizer_kind", "window")
# Of a group of parameters, what the present configuration says whatever a state holds.
SETTINGS: Final = ("factor", "weight_decay")

State = dict[str, Any]


def write_whole(
    path: Path,
    write: Callable[[BinaryIO], object],
    former: Path | None = None,
    *,
    is_shared: bool = False,
) -> None:
    """Puts a file in place in one step, once all of it is on the disk.

    A process that is killed at any moment leaves the former file or the new one. What is on its
    way lies beside it as `*.partial`, and is overwritten by the next attempt.

    Args:
        path: of the file; its folder exists.
        write: writes the content.
        former: what was there is kept under this name, where a process that is killed in between
            leaves it alone.
        is_shared: other processes may write the same file at the same time: each has a name of
            its own for what is on its way.
    """
    own = f".{os.getpid()}" if is_shared else ""
    partial = path.with_name(f"{path.name}{own}.partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        # Without it a crash of the machine could keep the new name and lose the content.
        os.fsync(file.fileno())
    if former is not None and path.exists():
        os.replace(path, former)
    os.replace(partial, path)


def trained_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a module that are trained, and its buffers, by name."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: t for name, t in module.state_dict().items() if name not in frozen}


def optimizer_kind(optimizer: torch.optim.Optimizer) -> str:
    """The names of the optimisers that step, in whatever wraps them."""
    inner: Any = optimizer
    # Accelerate keeps what it wraps under this name.
    while (wrapped := getattr(inner, "optimizer", None)) is not None:
        inner = wrapped
    parts = inner.parts if isinstance(inner, Paired) else (inner,)
    return " and ".join(type(part).__name__ for part in parts)


def check_kind(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Refuses to go on with another optimiser than the one that a state is of.

    Args:
        state: as read; one of before kinds were kept is taken as it is.
        optimizer: of the present run.
        folder: of the state.

    Raises:
        ValueError: it is another one.
    """
    present = optimizer_kind(optimizer)
    kept = state.get("optimizer_kind", present)
    if kept != present:
        raise ValueError(
            f"The state in {folder} is of a run with {kept}, and this one has {present}: set "
            "optimizer as it was, give the run another folder (out), or remove that one."
        )


@contextlib.contextmanager
def present_settings(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Around the loading of an optimiser: its factors and weight decay stay as configured.

    A state brings its groups' settings along, so that a changed configuration would have changed
    nothing in a run that goes on.
    """
    settings: list[dict[str, Any]] = [
        {name: group[name] for name in SETTINGS if name in group}
        for group in optimizer.param_groups
    ]
    yield
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def save_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: int,
    window: Mapping[str, float],
) -> None:
    """Writes the state of a run after `step` steps; the one before it is kept beside it.

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
    state: State = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "optimizer_kind": optimizer_kind(optimizer),
        "window": dict(window),
    }
    state |= {name: trained_state(module) for name, module in modules.items()}
    write_whole(folder / STATE_FILE, lambda file: torch.save(state, file), folder / FORMER_FILE)


def kept_state(folder: Path) -> Path | None:
    """The state that a run goes on from; None where there is none."""
    # A process that was killed between the two renames of a save has left the former one alone.
    names = (STATE_FILE, FORMER_FILE)
    return next((folder / name for name in names if (folder / name).exists()), None)


def step_back(folder: Path, step: int) -> int:
    """Makes a run go on from before a step that it cannot take.

    From the state of that very step it would do the same again, whatever its learning rate: the
    weights and all that is drawn are the same.

    Args:
        folder: of the run.
        step: the state that is kept has fewer steps.

    Returns:
        Its steps; 0 where none is left.
    """
    newest, former = folder / STATE_FILE, folder / FORMER_FILE
    if newest.exists() and _steps_of(newest) >= step:
        newest.unlink()
    if not newest.exists() and former.exists():
        os.replace(former, newest)
    return _steps_of(newest) if newest.exists() else 0


def _steps_of(path: Path) -> int:
    # Nothing but the number is read from the disk.
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])


def load_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float]]:
    """Puts the last state of a run into its modules and optimiser.

    Returns:
        Steps done, and sums of metrics not logged yet; 0 and nothing where there is no state.

    Raises:
        ValueError: the state is of another model, of another set of trained parameters, or of
            another optimiser.
    """
    path = kept_state(folder)
    if path is None:
        return 0, {}
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    check_kind(state, optimizer, folder)
    try:
        for name, module in modules.items():
            found = module.load_state_dict(state[name], strict=False)
            wanted = trained_state(module).keys()
            if found.unexpected_keys or not wanted.isdisjoint(found.missing_keys):
                raise KeyError(name)
        with present_settings(optimizer):
            optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The state in {folder} is of another model or trains other parameters: give the "
            "run another folder (out), or remove that one."
        ) from error
    return int(state["step"]), dict(state.get("window", {}))
