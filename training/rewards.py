"""What a trajectory earns, part by part, and its advantage within its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.geometry import Box
from training.consensus import WHOLE_REWARD, Consensus, ConsensusConfig, consensus_of

ToolReward = Literal["none", "unconditional", "gated", "consensus"]
Deviation = Literal["sample", "population"]

# Keeps a group of equal rewards at advantage 0 instead of dividing by 0.
DEVIATION_FLOOR = 1e-6
MOST_WEIGHT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Weights and rules of the reward (MedVR, arXiv 2604.08203, section 3.1).

    Attributes:
        accuracy: of a correct answer.
        format_penalty: taken off a malformed trajectory.
        tool: weight of the tool reward.
        tool_reward: `none`; `unconditional` for any zoom; `gated` for a zoom before a correct
            answer; `consensus` as `gated`, whole or half by where it looked (the four rules of
            the paper's Fig. 3b).
        deviation: divides by N - 1 (`sample`, as verl and TRL) or by N.
        consensus: settings of the consensus.
    """

    accuracy: float = 1.0
    format_penalty: float = 0.2
    tool: float = 1.0
    tool_reward: ToolReward = "consensus"
    deviation: Deviation = "sample"
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)

    def __post_init__(self) -> None:
        for name in ("accuracy", "format_penalty", "tool"):
            value = getattr(self, name)
            if not 0.0 <= value <= MOST_WEIGHT:
                raise ValueError(f"{name} must be a number of 0 to {MOST_WEIGHT:g}, not {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryOutcome:
    """What the reward needs to know of a trajectory.

    Attributes:
        correct: whether the answer was right.
        well_formed: balanced tags, one answer, and nothing but tool calls that could be read.
        boxes: the zooms that were carried out.
    """

    correct: bool
    well_formed: bool
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class RewardParts:
    """One trajectory's reward: `total` is the sum of the others."""

    accuracy: float
    format: float
    tool: float

    @property
    def total(self) -> float:
        """R = R_acc + R_format + R_tool; whether the last is gated is the rule's affair."""
        return self.accuracy + self.format + self.tool


def group_rewards(
    outcomes: Sequence[TrajectoryOutcome], config: RewardConfig
) -> tuple[tuple[RewardParts, ...], Consensus]:
    """Rewards of the trajectories of one prompt, and where the successful ones agreed."""
    consensus = consensus_of(
        [outcome.boxes for outcome in outcomes],
        [outcome.correct for outcome in outcomes],
        config.consensus,
    )
    parts = tuple(
        RewardParts(
            config.accuracy if outcome.correct else 0.0,
            # Not the penalty's negative: that of 0 would be -0.0.
            0.0 - (0.0 if outcome.well_formed else config.format_penalty),
            config.tool * _tool_reward(outcome, agreed, config.tool_reward),
        )
        for outcome, agreed in zip(outcomes, consensus.rewards, strict=True)
    )
    return parts, consensus


def _tool_reward(outcome: TrajectoryOutcome, agreed: float, rule: ToolReward) -> float:
    if rule == "none" or not outcome.boxes:
        return 0.0
    if rule == "unconditional":
        return WHOLE_REWARD
    if not outcome.correct:
        return 0.0
    return WHOLE_REWARD if rule == "gated" else agreed


def group_advantages(rewards: Sequence[float], deviation: Deviation = "sample") -> list[float]:
    """`(R - mean) / (std + 1e-6)` within a group (GRPO, arXiv 2402.03300, section 4.1.2).

    A group of one, like a group of equal rewards, has advantage 0.
    """
    count = len(rewards)
    # Asked exactly: the mean of equal numbers need not be equal to them in floating point.
    if len(set(rewards)) <= 1:
        return [0.0] * count
    mean = math.fsum(rewards) / count
    divisor = count - 1 if deviation == "sample" else count
    spread = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / divisor)
    return [(reward - mean) / (spread + DEVIATION_FLOOR) for reward in rewards]
