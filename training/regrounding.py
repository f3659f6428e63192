"""Entropy-guided visual regrounding (EVR): when a rollout branches before it zooms.

MedVR (arXiv 2604.08203) compares the entropy of the tokens that write the coordinates of a zoom
with the entropy of the opening tokens of the same trajectory; where the model is less sure of
where to look, it looks at several places. The forks themselves are in `engine.forking` and
`training.trajectories`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# Of every number of a rule.
MOST: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRule:
    """When a fork is made.

    Attributes:
        base: probability at equal entropies, in [0, 1].
        gamma: what one nat above the baseline adds; 0 ignores entropy.
        least_rise: no fork unless the entropy rises by more than this, nats; minus infinity:
            any rise, or fall, will do.
        opening: tokens that the baseline is the mean of.
    """

    base: float = 0.2
    gamma: float = 0.5
    least_rise: float = 0.0
    opening: int = 20

    def __post_init__(self) -> None:
        if not 0.0 <= self.base <= 1.0:
            raise ValueError(f"base must lie in 0 to 1, not {self.base}.")
        if not 0.0 <= self.gamma <= MOST:
            raise ValueError(f"gamma must be a number of 0 to {MOST:g}, not {self.gamma}.")
        if not (-MOST <= self.least_rise <= MOST or self.least_rise == -math.inf):
            raise ValueError(
                f"least_rise must be a number of {-MOST:g} to {MOST:g} or minus infinity, "
                f"not {self.least_rise}."
            )
        if not 1 <= self.opening <= MOST:
            raise ValueError(f"opening must be a number of 1 to {MOST:g}, not {self.opening}.")

    @classmethod
    def presets(cls) -> Mapping[str, BranchRule]:
        """Rules that a configuration may name instead of writing them out."""
        return PRESETS


PRESETS: Final[Mapping[str, BranchRule]] = {
    "medvr": BranchRule(),
    # P = P_base + gamma * dH as it is printed, also where the entropy falls.
    "literal": BranchRule(least_rise=-math.inf),
    # ARPO: half of the forks ignore the entropy.
    "arpo": BranchRule(base=0.5, gamma=0.2, least_rise=-math.inf),
}


def mean_entropy(entropies: Sequence[float], most: int | None = None) -> float:
    """Mean of the first `most` entropies, nats.

    Raises:
        ValueError: there are none.
    """
    chosen = entropies[:most]
    if not chosen:
        raise ValueError("There is no token to take the entropy of.")
    return math.fsum(chosen) / len(chosen)


def branch_probability(baseline: float, tool: float, rule: BranchRule) -> float:
    """`clip(base + gamma * (tool - baseline), 0, 1)`, and 0 below the least rise.

    >>> branch_probability(0.25, 1.25, BranchRule())
    0.7
    """
    rise = tool - baseline
    if not rise > rule.least_rise:
        return 0.0
    return min(1.0, max(0.0, rule.base + rule.gamma * rise))
