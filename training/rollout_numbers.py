"""What a batch of rollouts says of the policy, before anything is learned from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from engine.geometry import Box
from training.consensus import Mask, mask_overlap
from training.rollout_groups import RewardedGroup
from training.trajectories import Trajectory

# Boxes of siblings that overlap by less are different looks (methods 3.5).
DIFFERENT: Final = 0.9


def rollout_numbers(groups: Sequence[RewardedGroup]) -> dict[str, float]:
    """Numbers to log of a batch of groups; 0 where there is nothing to take a mean of.

    Returns:
        `reward` and its parts, means over trajectories; `accuracy`; `malformed`, `tool_rate`:
        shares of trajectories; `box_area`: mean share of the image of a zoom box;
        `sibling_overlap`: mean IoU of the zoom masks of two trajectories of a group;
        `different_boxes`: mean number of first boxes of a group of which no two overlap by 0.9;
        `target_iou`: of a trajectory's first box with the nearest true one, for questions that
        have one, 0 without a zoom (measured, never rewarded); `forks`: per group; `rise`:
        entropy of coordinates over that of the opening, nats; `entropy`: of the tokens that the
        policy wrote, nats; `skipped`: share of groups whose rewards are all equal;
        `rollout_tokens`: written, those that a fork shares with its parent once;
        `rollout_positions`: sent through the language model.
    """
    trajectories = [t for group in groups for t in group.rollouts.trajectories]
    rewards = [part for group in groups for part in group.rewards]
    boxes = [box for t in trajectories for box in t.outcome.boxes]
    written = [w for t in trajectories for w in t.sequence.written if not w.forced]
    return {
        "reward": _mean(part.total for part in rewards),
        "reward_accuracy": _mean(part.accuracy for part in rewards),
        "reward_format": _mean(part.format for part in rewards),
        "reward_tool": _mean(part.tool for part in rewards),
        "accuracy": _mean(t.outcome.correct for t in trajectories),
        "malformed": _mean(not t.outcome.well_formed for t in trajectories),
        "tool_rate": _mean(bool(t.outcome.boxes) for t in trajectories),
        "box_area": _mean(box.area for box in boxes),
        "sibling_overlap": _mean(
            overlap for group in groups for overlap in _overlaps(group.consensus.masks)
        ),
        "different_boxes": _mean(
            len(_different([t.outcome.boxes for t in group.rollouts.trajectories]))
            for group in groups
        ),
        "target_iou": _mean(iou for group in groups for iou in _target_overlaps(group)),
        "forks": _mean(
            sum(t.origin is not None for t in group.rollouts.trajectories) for group in groups
        ),
        "rise": _mean(rise for group in groups for rise in group.rollouts.rises),
        "entropy": _mean(token.entropy for token in written),
        "skipped": _mean(not group.varies for group in groups),
        "rollout_tokens": float(sum(_own_tokens(t) for t in trajectories)),
        "rollout_positions": float(sum(group.rollouts.forwarded for group in groups)),
    }


def _own_tokens(trajectory: Trajectory) -> int:
    shared = trajectory.origin.tokens if trajectory.origin else 0
    return len(trajectory.sequence.written) - shared


def _mean(values: Iterable[float]) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else 0.0


def _overlaps(masks: Sequence[Mask | None]) -> list[float]:
    """IoU of every pair of trajectories that zoomed."""
    found = [mask for mask in masks if mask is not None]
    return [mask_overlap(one, other) for one, other in itertools.combinations(found, 2)]


def _different(boxes: Sequence[tuple[Box, ...]]) -> list[Box]:
    """First boxes, without those that repeat an earlier one."""
    kept: list[Box] = []
    for first in (own[0] for own in boxes if own):
        if all(first.intersection_over_union(other) < DIFFERENT for other in kept):
            kept.append(first)
    return kept


def _target_overlaps(group: RewardedGroup) -> list[float]:
    targets = [Box(*box) for box in group.question.target_boxes]
    if not targets:
        return []
    return [
        max((t.outcome.boxes[0].intersection_over_union(box) for box in targets), default=0.0)
        if t.outcome.boxes
        else 0.0
        for t in group.rollouts.trajectories
    ]
