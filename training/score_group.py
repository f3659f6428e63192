"""`python -m training score-group`: rewards and branch probabilities of a group, from plain JSON.

So that EVR and CCA can be checked by hand. The form is documented in `docs/medvr.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.geometry import Box, BoxError
from training.config import ConfigError, build, section, shown
from training.consensus import Mask
from training.regrounding import BranchRule, branch_probability, mean_entropy
from training.rewards import RewardConfig, TrajectoryOutcome, group_advantages, group_rewards

MOST_TRAJECTORIES = 1024
MOST_BOXES = 256
# Of any number: entropies are a few nats.
MOST = 1e6
# Of the masks of all trajectories together, one byte each, and of the file.
MOST_CELLS = 2**26
MOST_BYTES = 2**25


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectory:
    """A trajectory as read: its outcome and its entropies, nats.

    Attributes:
        outcome: what the reward needs.
        baseline: entropies of its opening tokens, or their mean alone; may be empty when there
            are no `tools`.
        tools: mean entropy of the coordinates of each zoom call.
    """

    outcome: TrajectoryOutcome
    baseline: tuple[float, ...] = ()
    tools: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """The trajectories of one prompt and the settings that they are scored under."""

    trajectories: tuple[ScoredTrajectory, ...]
    reward: RewardConfig = field(default_factory=RewardConfig)
    branching: BranchRule = field(default_factory=BranchRule)


def score_file(path: Path) -> str:
    """Scores a JSON file; the result as indented JSON.

    Raises:
        ConfigError: the file cannot be read, or is not of the documented form.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path.name} holds more than {MOST_BYTES >> 20} MB.")
        raw = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise ConfigError(f"Cannot read {path.name or path}: {error.strerror}.") from error
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not valid JSON.") from error
    return json.dumps(score(read_group(raw)), indent=2) + "\n"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all there once: of two values one would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"The key {shown(twice)} is there twice in one object.")
    return found


def read_group(raw: Any) -> ScoredGroup:  # noqa: ANN401
    """Checks a parsed JSON document and builds the group from it.

    Raises:
        ConfigError: a key or a value is not of the documented form.
    """
    if not isinstance(raw, dict):
        raise ConfigError("The file must hold one object with the key 'trajectories'.")
    known = {"trajectories", "reward", "branching"}
    for key in raw:
        if key not in known:
            raise ConfigError(f"Unknown key {shown(key)}; known are {', '.join(sorted(known))}.")
    listed = raw.get("trajectories")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_TRAJECTORIES:
        raise ConfigError(f"'trajectories' must be a list of 1 to {MOST_TRAJECTORIES} objects.")
    rewards = raw.get("reward", {})
    if not isinstance(rewards, dict):
        raise ConfigError("'reward' must be an object.")
    reward = build(RewardConfig, rewards, "reward.")
    most = MOST_CELLS // reward.consensus.grid**2
    if len(listed) > most:
        raise ConfigError(
            f"Masks of {reward.consensus.grid} x {reward.consensus.grid} leave room for {most} "
            f"trajectories, not {len(listed)}: lower reward.consensus.grid."
        )
    return ScoredGroup(
        trajectories=tuple(
            _trajectory(item, f"trajectories[{i}]") for i, item in enumerate(listed)
        ),
        reward=reward,
        branching=section(BranchRule, raw.get("branching", {}), "branching"),
    )


def _trajectory(raw: Any, where: str) -> ScoredTrajectory:  # noqa: ANN401
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be an object.")
    known = {"correct", "well_formed", "boxes", "baseline_entropy", "tool_entropies"}
    for key in raw:
        if key not in known:
            raise ConfigError(
                f"Unknown key {shown(f'{where}.{key}')}; known are {', '.join(sorted(known))}."
            )
    if not isinstance(raw.get("correct"), bool):
        raise ConfigError(f"'{where}.correct' must be true or false.")
    well_formed = raw.get("well_formed", True)
    if not isinstance(well_formed, bool):
        raise ConfigError(f"'{where}.well_formed' must be true or false.")
    boxes = raw.get("boxes", [])
    if not isinstance(boxes, list) or len(boxes) > MOST_BOXES:
        raise ConfigError(f"'{where}.boxes' must be a list of at most {MOST_BOXES} boxes.")
    tools = raw.get("tool_entropies", [])
    if not isinstance(tools, list):
        raise ConfigError(f"'{where}.tool_entropies' must be a list, one entry a zoom call.")
    if tools and "baseline_entropy" not in raw:
        raise ConfigError(f"'{where}.tool_entropies' need a 'baseline_entropy' beside them.")
    return ScoredTrajectory(
        outcome=TrajectoryOutcome(
            correct=raw["correct"],
            well_formed=well_formed,
            boxes=tuple(_box(box, f"{where}.boxes[{i}]") for i, box in enumerate(boxes)),
        ),
        baseline=(
            _entropies(raw["baseline_entropy"], f"{where}.baseline_entropy")
            if "baseline_entropy" in raw
            else ()
        ),
        tools=tuple(
            mean_entropy(_entropies(entry, f"{where}.tool_entropies[{i}]"))
            for i, entry in enumerate(tools)
        ),
    )


def _box(raw: Any, where: str) -> Box:  # noqa: ANN401
    if not isinstance(raw, list) or len(raw) != 4 or not all(_is_number(v) for v in raw):
        raise ConfigError(f"'{where}' must be a list of four numbers in 0 to 1: x0, y0, x1, y1.")
    try:
        return Box(*(float(value) for value in raw))
    except BoxError as error:
        raise ConfigError(f"'{where}': {error}") from error


def _entropies(raw: Any, where: str) -> tuple[float, ...]:  # noqa: ANN401
    """The entropies of single tokens, or one mean as if it were one token's."""
    values = raw if isinstance(raw, list) else [raw]
    if not values or not all(_is_number(value) and value >= 0 for value in values):
        raise ConfigError(f"'{where}' must be an entropy in nats, or a list of such.")
    return tuple(float(value) for value in values)


def _is_number(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a number that sums and products of such cannot overflow."""
    return type(value) in (int, float) and abs(value) <= MOST


def score(group: ScoredGroup) -> dict[str, Any]:
    """Masks' areas, overlaps, reward parts, advantages and branch probabilities."""
    outcomes = [trajectory.outcome for trajectory in group.trajectories]
    parts, consensus = group_rewards(outcomes, group.reward)
    totals = [part.total for part in parts]
    advantages = group_advantages(totals, group.reward.deviation)
    scored = []
    for index, trajectory in enumerate(group.trajectories):
        mask = consensus.masks[index]
        scored.append(
            {
                "mask_area": None if mask is None else _area(mask),
                "iou": consensus.overlaps[index],
                "reward": {
                    "accuracy": parts[index].accuracy,
                    "format": parts[index].format,
                    "tool": parts[index].tool,
                    "total": parts[index].total,
                },
                "advantage": advantages[index],
                "branch_probabilities": [
                    branch_probability(
                        mean_entropy(trajectory.baseline, group.branching.opening),
                        tool,
                        group.branching,
                    )
                    for tool in trajectory.tools
                ],
            }
        )
    return {
        "voters": consensus.voters,
        "consensus_area": _area(consensus.agreed),
        "trajectories": scored,
    }


def _area(mask: Mask) -> float:
    return int(mask.sum()) / mask.size
