"""How far an image lies from what a checkpoint was trained on.

The detector is a Gaussian over statistics of the merged visual tokens of the whole view; the
score is the Mahalanobis distance (Lee et al. 2018, "A Simple Unified Framework for Detecting
Out-of-Distribution Samples", equation 2, with one class). It is fitted by the training and
shipped beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine.trace import OutOfDistribution

DETECTOR_FILE: Final = "ood.safetensors"


class DetectorError(ValueError):
    """An `ood.safetensors` that cannot be used; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """A fitted detector.

    Attributes:
        mean: float32 `(F,)` of the statistics over training images.
        precision: float32 `(F, F)`, their inverse covariance.
        threshold: distance above which an image is flagged.
    """

    mean: torch.Tensor
    precision: torch.Tensor
    threshold: float

    def judge(self, tokens: torch.Tensor) -> OutOfDistribution | None:
        """Scores merged visual tokens `(N, D)` of the view; None if D is another model's."""
        statistics = vision_statistics(tokens)
        if statistics.shape != self.mean.shape:
            return None
        score = mahalanobis(statistics, self.mean, self.precision)
        return OutOfDistribution(
            score=score, threshold=self.threshold, flagged=score > self.threshold
        )


def vision_statistics(tokens: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over the visual tokens: `(N, D)` to float32 `(2 D,)`.

    The deviation is the population's (divided by N), so that one token is no error.
    """
    values = tokens.detach().to("cpu", torch.float32)
    return torch.cat([values.mean(0), values.std(0, correction=0)])


def mahalanobis(statistics: torch.Tensor, mean: torch.Tensor, precision: torch.Tensor) -> float:
    """`sqrt((f - mean)^T precision (f - mean))`, computed in float64."""
    offset = (statistics - mean).to(torch.float64)
    squared = offset @ precision.to(torch.float64) @ offset
    return float(squared.clamp_min(0.0).sqrt())


def read_detector(folder: Path) -> Detector | None:
    """The detector of a checkpoint folder, or None when it has none.

    Raises:
        DetectorError: when the file is there and cannot be used.
    """
    path = folder / DETECTOR_FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DetectorError(f"{DETECTOR_FILE} cannot be read.") from error
    missing = {"mean", "precision", "threshold"} - set(tensors)
    if missing:
        raise DetectorError(f"{DETECTOR_FILE} lacks {sorted(missing)[0]}.")
    mean, precision = tensors["mean"].float(), tensors["precision"].float()
    if mean.ndim != 1 or precision.shape != (len(mean), len(mean)):
        raise DetectorError(f"{DETECTOR_FILE} has a mean and a precision that do not fit.")
    return Detector(mean=mean, precision=precision, threshold=float(tensors["threshold"].item()))
