"""Consensus-based credit assignment (CCA): where the successful trajectories agree to look.

MedVR (arXiv 2604.08203): the boxes of a trajectory are rasterised into one mask; a strict
majority of the successful trajectories makes the consensus; a successful trajectory whose mask
overlaps it by more than `eta` earns the whole tool reward, any other successful one half of it.
No annotation of a region enters anywhere.

Decided here, where the paper is silent:

- A successful trajectory that used no tool earns no tool reward and, under `tool_users`, has no
  vote; under `all_success` (the literal formula) it votes for nothing.
- One voter is its own consensus; of two, the consensus is what both cover.
- An empty consensus overlaps with nothing (IoU 0).
- A box of more than `largest_box` of the image counts for nothing in the consensus, and its
  trajectory earns half: looking everywhere would otherwise meet any consensus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.geometry import Box

Majority = Literal["tool_users", "all_success"]
Mask = npt.NDArray[np.bool_]

WHOLE_REWARD = 1.0
HALF_REWARD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsensusConfig:
    """Settings of the consensus.

    Attributes:
        eta: IoU with the consensus above which a trajectory earns the whole reward, in [0, 1].
        grid: cells on a side of the masks.
        majority: of whom more than half must cover a cell: the successful trajectories that
            used the tool, or all successful ones.
        largest_box: share of the image above which a box does not count, in (0, 1].
    """

    eta: float = 0.5
    grid: int = 128
    majority: Majority = "tool_users"
    largest_box: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in 0 to 1, not {self.eta}.")
        if not 1 <= self.grid <= 4096:
            raise ValueError(f"grid must lie in 1 to 4096, not {self.grid}.")
        if not 0.0 < self.largest_box <= 1.0:
            raise ValueError(f"largest_box must lie above 0 and up to 1, not {self.largest_box}.")


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """The outcome of one group.

    Attributes:
        masks: union of each trajectory's boxes, bool `(grid, grid)`; None where it has none.
        agreed: the consensus, bool `(grid, grid)`.
        voters: how many trajectories had a vote.
        overlaps: IoU of each successful tool user with the consensus; None for the others.
        rewards: tool reward of each trajectory: 0, 0.5 or 1.
    """

    masks: tuple[Mask | None, ...]
    agreed: Mask
    voters: int
    overlaps: tuple[float | None, ...]
    rewards: tuple[float, ...]


def union_mask(boxes: Sequence[Box], grid: int) -> Mask:
    """The union of boxes as bool `(grid, grid)`: a cell counts when its centre lies inside.

    Boxes are half-open, so that two boxes that share an edge share no cell.
    """
    centres = (np.arange(grid) + 0.5) / grid
    mask = np.zeros((grid, grid), dtype=np.bool_)
    for box in boxes:
        rows = (box.y0 <= centres) & (centres < box.y1)
        columns = (box.x0 <= centres) & (centres < box.x1)
        mask |= rows[:, None] & columns[None, :]
    return mask


def mask_overlap(one: Mask, other: Mask) -> float:
    """Intersection over union of two masks; 0 when both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


def consensus_of(
    boxes: Sequence[Sequence[Box]], successes: Sequence[bool], config: ConsensusConfig
) -> Consensus:
    """Consensus and tool rewards of a group.

    Args:
        boxes: valid zoom boxes of each trajectory.
        successes: whether each answered correctly.
        config: settings.

    Raises:
        ValueError: the two lists differ in length.
    """
    masks = tuple(union_mask(own, config.grid) if own else None for own in boxes)
    counted = [[box for box in own if box.area <= config.largest_box] for own in boxes]
    total = np.zeros((config.grid, config.grid), dtype=np.int64)
    voters = 0
    for own, success in zip(range(len(boxes)), successes, strict=True):
        if success and (boxes[own] or config.majority == "all_success"):
            voters += 1
            total += union_mask(counted[own], config.grid)
    agreed = total * 2 > voters
    overlaps: list[float | None] = []
    rewards: list[float] = []
    for own, success in enumerate(successes):
        mask = masks[own]
        if mask is None or not success:
            overlaps.append(None)
            rewards.append(0.0)
            continue
        overlap = mask_overlap(mask, agreed)
        overlaps.append(overlap)
        met = overlap > config.eta and len(counted[own]) == len(boxes[own])
        rewards.append(WHOLE_REWARD if met else HALF_REWARD)
    return Consensus(masks, agreed, voters, tuple(overlaps), tuple(rewards))
