"""Forks of a rollout before the coordinates of a zoom call (MedVR's EVR, methods 3.5).

The loop in `engine.rollout` marks the moment before a branch writes coordinates. When the call
is complete, whoever asked for the rollout is told how unsure the branch was and says how many
others are to go on from that moment. They share the cache up to it: nothing is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.branch import Branch
from engine.decode import ForkPoint
from engine.sequence import FedSequence, WrittenToken
from engine.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ZoomUncertainty:
    """How unsure a branch was when it wrote a zoom call; entropies in nats.

    Attributes:
        branch: its number.
        opening: of every token up to the coordinates, from the branch's very first on.
        coordinates: of the tokens that write the coordinates, separators included.
    """

    branch: int
    opening: tuple[float, ...]
    coordinates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Forking:
    """How a rollout may fork.

    Attributes:
        total: branches in all.
        children: called for every complete zoom call while there is room: how many forks.
    """

    total: int
    children: Callable[[ZoomUncertainty], int]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a forked branch comes from.

    Attributes:
        parent: number of the branch that it forked from.
        tokens: how many tokens of the parent it shares.
    """

    parent: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class ForkMark:
    """A branch as it was before it wrote coordinates.

    Attributes:
        branch, sequence: copies.
        point: from whose logits the first coordinate token is drawn.
    """

    branch: Branch
    sequence: FedSequence
    point: ForkPoint


def coordinate_entropies(
    written: Sequence[WrittenToken], vocabulary: Vocabulary
) -> tuple[float, ...]:
    """Entropies of the tokens before the first that closes the list of coordinates."""
    entropies = []
    for token in written:
        if b"]" in vocabulary.bytes_of(token.token_id):
            break
        entropies.append(token.entropy)
    return tuple(entropies)
