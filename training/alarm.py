"""The watch over tool use, whose death is the most common failure of zooming agents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from training.loop import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """When tool use counts as dying.

    Attributes:
        share: of trajectories that zoom, below which a batch is low; 0: never.
        batches: low batches in a row that raise the alarm.
    """

    share: float = 0.05
    batches: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must lie in 0 to 1, not {self.share}.")
        if self.batches < 1:
            raise ValueError(f"batches must be at least 1, not {self.batches}.")


class ToolAlarm(nn.Module):
    """Counts low batches in a buffer, so that a state of the run holds the count.

    Args:
        config: when it rings.
        report: takes the line that it then says.
    """

    low: torch.Tensor

    def __init__(self, config: AlarmConfig, report: Report = lambda _: None) -> None:
        super().__init__()
        self.config = config
        self._report = report
        self.register_buffer("low", torch.zeros((), dtype=torch.int64))

    @property
    def rings(self) -> bool:
        """Whether tool use has been low for long enough."""
        return int(self.low) >= self.config.batches

    def hear(self, tool_rate: float) -> bool:
        """Takes the tool rate of the next batch, says so when it begins to ring; `rings`."""
        rang = self.rings
        if tool_rate >= self.config.share:
            self.low.zero_()
            return False
        self.low += 1
        if self.rings and not rang:
            self._report(
                f"ALARM: tool use is {tool_rate:.1%} of trajectories, and below "
                f"{self.config.share:.0%} for {int(self.low)} rollout batches in a row: the agent "
                "is giving up its tool; raise reward.tool, or go back to an earlier checkpoint."
            )
        return self.rings
