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


# Added up over a batch; of everything else the mean is taken.
_TOTALS: Final = ("rollout_tokens", "rollout_positions")

Measured = dict[str, list[float]]
"""The values of a group that the numbers of a batch are means or sums of, by their names."""


def measured(group: RewardedGroup) -> Measured:
    """What a group adds to `rollout_numbers`: plain numbers, which processes can exchange."""
    trajectories = group.rollouts.trajectories
    written = [w for t in trajectories for w in t.sequence.written if not w.forced]
    found: dict[str, Iterable[float]] = {
        "reward": (part.total for part in group.rewards),
        "reward_accuracy": (part.accuracy for part in group.rewards),
        "reward_format": (part.format for part in group.rewards),
        "reward_tool": (part.tool for part in group.rewards),
        "accuracy": (t.outcome.correct for t in trajectories),
        "malformed": (not t.outcome.well_formed for t in trajectories),
        "failed_calls": (t.failed_calls for t in trajectories),
        "made_to_answer": (t.made_to_answer for t in trajectories),
        "tool_rate": (bool(t.outcome.boxes) for t in trajectories),
        "box_area": (box.area for t in trajectories for box in t.outcome.boxes),
        "sibling_overlap": _overlaps(group.consensus.masks),
        "different_boxes": [len(_different([t.outcome.boxes for t in trajectories]))],
        "target_iou": _target_overlaps(group),
        "forks": [sum(t.origin is not None for t in trajectories)],
        "rise": group.rollouts.rises,
        "entropy": (token.entropy for token in written),
        "skipped": [not group.varies],
        "rollout_tokens": (_own_tokens(t) for t in trajectories),
        "rollout_positions": [group.rollouts.forwarded],
    }
    return {name: [float(value) for value in values] for name, values in found.items()}


def rollout_numbers(groups: Sequence[Measured]) -> dict[str, float]:
    """Numbers to log of a batch of groups; 0 where there is nothing to take a mean of.

    Args:
        groups: at least one, as `measured` reads them.

    Returns:
        `reward` and its parts, means over trajectories; `failed_calls`: mean number of zoom calls
        of a trajectory that could not be carried out; `accuracy`; `malformed`,
        `made_to_answer` (`Trajectory`), `tool_rate`: shares of trajectories; `box_area`:
        mean share of the image of a zoom box; `sibling_overlap`: mean IoU of the zoom masks of two
        trajectories of a group;
        `different_boxes`: mean number of first boxes of a group of which no two overlap by 0.9;
        `target_iou`: of a trajectory's first box with the nearest true one, for questions that
        have one, 0 without a zoom (measured, never rewarded); `forks`: per group; `rise`:
        entropy of coordinates over that of the opening, nats; `entropy`: of the tokens that the
        policy wrote, nats; `skipped`: share of groups whose rewards are all equal;
        `rollout_tokens`: written, those that a fork shares with its parent once;
        `rollout_positions`: sent through the language model.
    """
    found = {}
    for name in groups[0]:
        values = [value for group in groups for value in group[name]]
        found[name] = sum(values) if name in _TOTALS else sum(values) / max(1, len(values))
    return found


def _own_tokens(trajectory: Trajectory) -> int:
    shared = trajectory.origin.tokens if trajectory.origin else 0
    return len(trajectory.sequence.written) - shared


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
