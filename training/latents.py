"""How latent segments are trained (MedLVR stage 1): targets, schedules, the evidence bottleneck.

Teacher forcing alone leaves an exposure bias, so the model is fed its own latents with a rising
probability; a relaxation at the end drops the regions and lets the answer's loss shape the
latents (Mirage). In trials such latents were decoration: the answer looked at the image again.
The bottleneck keeps it from doing so, with some probability: what was written after the latents
then sees the question and the latents, not the image nor any text that has read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch

from engine.geometry import Box, PatchGrid
from engine.latent import bottleneck_columns
from training.roi import RoiLoss, RoiTarget, roi_cells

Feeding = Literal["teacher", "own", "relaxed"]

# Of the losses on regions: LVR's of its own, and ours of ours.
_WEIGHTS: Final[Mapping[RoiLoss, float]] = {"cosine": 1.0, "mse": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Settings of latent steps in fine-tuning.

    Attributes:
        steps: K, slots of a segment under `roi_pooled`.
        target: what the slots are to hold.
        loss: of slots against targets.
        weight: of that loss; 0 leaves the regions out; None: 1 of `cosine`, and 0.1 of `mse` (LVR).
        contrast: of the tokens that compete for a latent, beside that loss and under its weight.
        self_fed: probability, at its highest, that a batch is fed the model's own latents.
        bottleneck_first, bottleneck_last: probability at the first and at the last step that a
            record may not look at its image after its latents; 0 switches it off.
        relaxation: share of the steps, at the end, without the loss on the regions and with
            the answer's gradient flowing through the model's own latents.
    """

    steps: int = 8
    target: RoiTarget = "roi_pooled"
    loss: RoiLoss = "cosine"
    weight: float | None = None
    contrast: float = 0.0
    self_fed: float = 0.5
    bottleneck_first: float = 0.0
    bottleneck_last: float = 0.0
    relaxation: float = 0.0

    def __post_init__(self) -> None:
        if self.weight is None:
            # As if it had been given, so that it is written with the settings of a run.
            object.__setattr__(self, "weight", _WEIGHTS[self.loss])
        if not 1 <= self.steps <= 64:
            raise ValueError(f"steps must lie in 1 to 64, not {self.steps}.")
        for name in ("weight", "contrast"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}.")
        for name in ("self_fed", "bottleneck_first", "bottleneck_last", "relaxation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in 0 to 1, not {getattr(self, name)}.")

    @property
    def roi_weight(self) -> float:
        """Weight of the loss on the regions while it is taught."""
        assert self.weight is not None
        return self.weight

    def slots(self, boxes: Sequence[Box], grid: PatchGrid) -> int:
        """How many slots a record with these regions of interest has."""
        return self.steps if self.target == "roi_pooled" else len(roi_cells(boxes, grid))

    def at(self, share: float) -> LatentPhase:
        """The settings when `share` of the training is done, in [0, 1)."""
        supervised = 1.0 - self.relaxation
        relaxed = share >= supervised
        rise = 1.0 if relaxed else share / supervised
        return LatentPhase(
            config=self,
            own=self.self_fed * rise,
            bottleneck=self.bottleneck_first
            + share * (self.bottleneck_last - self.bottleneck_first),
            relaxed=relaxed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPhase:
    """The settings of one step.

    Attributes:
        config: what they come from.
        own: probability of feeding the model its own latents.
        bottleneck: probability of the bottleneck.
        relaxed: whether the relaxation has begun.
    """

    config: LatentConfig
    own: float
    bottleneck: float
    relaxed: bool

    @property
    def roi_weight(self) -> float:
        """Weight of the loss on the regions."""
        return 0.0 if self.relaxed else self.config.roi_weight

    def feeding(self, rng: np.random.Generator) -> Feeding:
        """What goes into the slots of the next batch."""
        if self.relaxed:
            return "relaxed"
        return "own" if rng.random() < self.own else "teacher"


def bottleneck_mask(
    images: torch.Tensor, slots: torch.Tensor, probability: float, rng: np.random.Generator
) -> torch.Tensor | None:
    """Who may attend to whom when some records are bottled; None when none is.

    In a bottled record it is as `engine.latent.bottleneck_columns` says; the question stands
    before the image.

    Args:
        images: bool `(B, T)`, True at image tokens.
        slots: bool `(B, T)`, True at latent slots.
        probability: that a record with slots is bottled.
        rng: draws which.

    Returns:
        Bool `(B, 1, T, T)`, True where a query (second last axis) may attend to a key.
    """
    if probability <= 0.0:
        return None
    bottled = [
        row for row in range(len(slots)) if bool(slots[row].any()) and rng.random() < probability
    ]
    if not bottled:
        return None
    batch, length = slots.shape
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(batch, 1, 1)
    for row in bottled:
        places = torch.nonzero(slots[row]).flatten()
        first = int(torch.nonzero(images[row]).flatten()[0])
        queries, keys = bottleneck_columns(first, int(places[0]), int(places[-1]))
        mask[row, queries, keys] = False
    return mask[:, None]
