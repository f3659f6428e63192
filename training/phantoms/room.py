"""Looking for room: for one finding in a patient, and for a patient in whom all find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from training.phantoms.anatomy import Generator

_PATIENTS: Final = 60
_PlanT = TypeVar("_PlanT")


class NoRoomError(Exception):
    """There is no room for the finding in this patient."""


def first_with_room(
    seed: int,
    stream: tuple[int, ...],
    attempt: Callable[[Generator], _PlanT],
    kinds: Sequence[str],
) -> _PlanT:
    """The first patient of a seed in whom everything finds room.

    Args:
        seed: of the phantom.
        stream: of the modality, so that equal seeds of two modalities have nothing in common;
            that of the chest is empty.
        attempt: plans a patient, or raises `NoRoomError`.
        kinds: of the findings that are asked for.

    Raises:
        ValueError: a negative seed, or no patient has room for the required findings.
    """
    if seed < 0:
        raise ValueError("The seed of a phantom must not be negative.")
    for number in range(_PATIENTS):
        try:
            return attempt(np.random.default_rng((seed, *stream, number)))
        except NoRoomError:
            continue
    raise ValueError(
        f"No patient has room for these findings at once: {', '.join(kinds)}; ask for fewer."
    )


def place_somewhere(place: Callable[[], None], tries: int) -> None:
    """Places a finding at the first of some tries that finds room.

    Raises:
        NoRoomError: none of them does.
    """
    for _ in range(tries - 1):
        try:
            place()
        except NoRoomError:
            continue
        return
    place()
