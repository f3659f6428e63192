"""What a caller may ask of a phantom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from training.phantoms.truth import FINDING_KINDS, LEVELS, SIDES

SIZES: Final = (
    (896, 896),
    (1024, 896),
    (896, 1024),
    (1008, 952),
    (952, 1008),
    (960, 960),
)


@dataclass(frozen=True)
class FindingRequest:
    """A finding that a phantom must show; ``None`` leaves a property to chance.

    Attributes:
        kind: one of ``FINDING_KINDS``.
        side: ``right`` or ``left``: of the nodule, the consolidation, the effusion, the
            pneumothorax, or the side from which a central line comes.
        level: ``upper``, ``middle`` or ``lower`` third of the lung (nodule, consolidation).
        grade: effusion ``small|moderate|large``; cardiomegaly ``mildly|severely enlarged``.
        margin: nodule ``smooth`` or ``spiculated``.
        calcified: whether the nodule is calcified.
        bronchogram: whether the consolidation shows an air bronchogram.
        tip: level of the tip of an endotracheal tube.
        size: nodule ``small`` or ``large``; the radii differ by a factor of at least 1.5.
    """

    kind: str
    side: str | None = None
    level: str | None = None
    grade: str | None = None
    margin: str | None = None
    calcified: bool | None = None
    bronchogram: bool | None = None
    tip: str | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        """Check the enumerated fields."""
        if self.kind not in FINDING_KINDS:
            raise ValueError(f"Unknown finding {self.kind!r}; use one of {FINDING_KINDS}.")
        if self.side not in (None, *SIDES) or self.level not in (None, *LEVELS):
            raise ValueError(f"Unknown side {self.side!r} or level {self.level!r}.")


@dataclass(frozen=True)
class PhantomConfig:
    """Options of one phantom.

    Attributes:
        require: findings that must be there.
        forbid: kinds that must not be added by chance. A required kind is never added to.
        extras: probabilities of 0, 1, 2, ... further findings, as far as they fit.
        size: (rows, columns), each at least 896; ``None`` draws one of ``SIZES``.
    """

    require: tuple[FindingRequest, ...] = ()
    forbid: tuple[str, ...] = ()
    extras: tuple[float, ...] = (0.2, 0.3, 0.3, 0.2)
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check probabilities, size and kinds."""
        if not self.extras or min(self.extras) < 0 or abs(sum(self.extras) - 1) > 1e-6:
            raise ValueError("The probabilities of further findings must sum to 1.")
        if self.size is not None and min(self.size) < 896:
            raise ValueError("A phantom needs at least 896 rows and 896 columns.")
        unknown = [kind for kind in self.forbid if kind not in FINDING_KINDS]
        if unknown:
            raise ValueError(f"Unknown findings {unknown}; use some of {FINDING_KINDS}.")
