"""The look of a film: tone, contrast, noise, shutters and the side marker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms.anatomy import Generator, Image

BITS: Final = 12
MAX_STORED: Final = 2**BITS - 1


@dataclass(frozen=True)
class Exposure:
    """Look of one film.

    Attributes:
        low: display value of air, in [0, 1].
        high: display value of the densest part.
        bend: strength of the quadratic tone curve, in [-0.5, 0.5].
        noise: standard deviation of the quantum noise at mid-grey, in display units.
        lung: attenuation that the air of a lung takes away.
        bone: strength of the ribs.
        vessels: strength of the vessels.
        collimation: widths of the shutter borders (left, top, right, bottom), fractions.
        marker: whether a side marker is drawn.
    """

    low: float
    high: float
    bend: float
    noise: float
    lung: float
    bone: float
    vessels: float
    collimation: tuple[float, float, float, float]
    marker: bool

    @property
    def contrast(self) -> float:
        """Display units per unit of attenuation, before the tone curve bends it."""
        return self.high - self.low


def sample_exposure(rng: Generator) -> Exposure:
    """Draw the look of a film."""
    borders = np.where(rng.random(4) < 0.18, rng.uniform(0.01, 0.05, 4), 0.0)
    low = rng.uniform(0.02, 0.16)
    return Exposure(
        low=low,
        high=low + rng.uniform(0.45, 0.82),
        bend=rng.uniform(-0.35, 0.45),
        noise=rng.uniform(0.006, 0.012),
        lung=rng.uniform(0.40, 0.54),
        bone=rng.uniform(0.05, 0.11),
        vessels=rng.uniform(0.06, 0.12),
        collimation=(float(borders[0]), float(borders[1]), float(borders[2]), float(borders[3])),
        marker=bool(rng.random() < 0.7),
    )


def apply_tone(image: Image, look: Exposure) -> None:
    """Attenuation to display values, in place: a quadratic curve, then contrast."""
    np.clip(image, 0, 1.05, out=image)
    image += look.bend * image * (1 - image)
    image *= look.contrast
    image += look.low


def add_noise(image: Image, look: Exposure, rng: Generator) -> None:
    """Quantum noise, stronger where fewer quanta arrive (bright parts), in place."""
    noise = rng.standard_normal(image.shape, np.float32)
    noise *= look.noise * (0.6 + 0.8 * image)
    image += noise


def collimate(image: Image, look: Exposure, rng: Generator) -> None:
    """Shutter borders, in place."""
    rows, cols = image.shape
    left, top, right, bottom = look.collimation
    shade = rng.uniform(0.0, 0.03)
    image[:, : int(left * cols)] = shade
    image[: int(top * rows)] = shade
    image[:, cols - int(right * cols) :] = shade
    image[rows - int(bottom * rows) :] = shade


def mark_side(image: Image, rng: Generator) -> None:
    """Letter at the upper corner of the patient's side, in place."""
    rows, cols = image.shape
    letter, span = ("R", (0.04, 0.10)) if rng.random() < 0.5 else ("L", (0.86, 0.92))
    x, y, size = rng.uniform(*span), rng.uniform(0.07, 0.16), rng.uniform(1.1, 2.0)
    stamp = np.zeros(image.shape, np.uint8)
    at = (int(x * cols), int(y * rows))
    cv2.putText(stamp, letter, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 3, cv2.LINE_AA)
    window = (
        slice(max(0, at[1] - 80), at[1] + 10),
        slice(max(0, at[0] - 5), min(cols, at[0] + 60)),
    )
    view = image[window]
    view += stamp[window].astype(np.float32) / 255 * (0.95 - view)


def quantise(image: Image) -> NDArray[np.uint16]:
    """Display values in [0, 1] to stored values; the image is overwritten."""
    np.clip(image, 0, 1, out=image)
    image *= MAX_STORED
    image += 0.5
    return image.astype(np.uint16)
