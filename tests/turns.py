"""Lets test processes run beside each other, and some tests alone."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Holds a file, which is made, against all others who ask for it; `how` as `fcntl.flock`."""
    with path.open("a") as file:
        fcntl.flock(file, how)
        yield


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """A turn to run, of a test `alone` once no other has one.

    Args:
        folder: of the locks, which all processes know.
        alone: whether nobody else may run.
    """
    with contextlib.ExitStack() as held:
        # Who waits to be alone waits here, and keeps those who come later from going first.
        with locked(folder / "next", fcntl.LOCK_EX):
            how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            held.enter_context(locked(folder / "running", how))
        yield
