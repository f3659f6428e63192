"""Fits and scores the detector of images that a checkpoint was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from engine.out_of_distribution import vision_statistics
from training.vision import visual_tokens
from training.world import Case, Picture

# Share of validation phantoms that may be flagged wrongly.
FALSE_ALARMS: Final = 0.02
SHRINKAGE: Final = 0.1
# Pictures that the tower takes in one go.
BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Detector:
    """A fitted detector, as `engine.out_of_distribution` loads it.

    Attributes:
        mean: `(F,)`.
        precision: `(F, F)`.
        threshold: flags above this distance.
    """

    mean: torch.Tensor
    precision: torch.Tensor
    threshold: float

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is written to `ood.safetensors`."""
        return {
            "mean": self.mean.float().contiguous(),
            "precision": self.precision.float().contiguous(),
            "threshold": torch.tensor([self.threshold]),
        }


def statistics_of(
    model: Qwen2_5_VLForConditionalGeneration, pictures: Sequence[Picture]
) -> torch.Tensor:
    """`vision_statistics` of every picture, in fp32 as at inference: `(N, F)`."""
    rows = []
    for first in range(0, len(pictures), BATCH):
        part = pictures[first : first + BATCH]
        images = [torch.from_numpy(picture.pixels.astype(np.float32))[None] for picture in part]
        with torch.no_grad():
            tokens = visual_tokens(model, images)
        cells = [picture.grid.cells for picture in part]
        rows += [vision_statistics(own) for own in torch.split(tokens, cells)]
    return torch.stack(rows)


def fit_detector(
    model: Qwen2_5_VLForConditionalGeneration,
    train: Sequence[Case],
    validation: Sequence[Case],
    most: int = 3000,
) -> Detector:
    """Mean and shrunk precision of training views; the threshold from validation views.

    The covariance is shrunk towards its diagonal, so that the few thousand views determine it.
    """
    known = statistics_of(model, [case.view for case in train[:most]]).double()
    mean = known.mean(dim=0)
    covariance = torch.cov(known.T)
    diagonal = torch.diag(covariance.diagonal().clamp_min(1e-8))
    precision = torch.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal)
    detector = Detector(mean, precision, 0.0)
    scores = distances(detector, statistics_of(model, [case.view for case in validation]))
    return Detector(mean, precision, float(torch.quantile(scores, 1 - FALSE_ALARMS)))


def distances(detector: Detector, statistics: torch.Tensor) -> torch.Tensor:
    """Mahalanobis distances `(N,)` of rows of statistics."""
    offsets = statistics.double() - detector.mean
    return torch.einsum("nf,fg,ng->n", offsets, detector.precision.double(), offsets).sqrt()


def area_under_curve(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """Probability that an outside image scores above an inside one (ties count half)."""
    above = (outside[:, None] > inside[None, :]).double()
    ties = (outside[:, None] == inside[None, :]).double()
    return float((above + 0.5 * ties).mean())
