"""A canvas for thin structures, at half the native resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms.anatomy import Frame, Image, Points, fixed_point

FINE_STEP: Final = 2
"""Native pixels per cell of the canvas."""


@dataclass(frozen=True)
class Canvas:
    """An 8-bit drawing surface in a patient's frame.

    Attributes:
        frame: map from patient coordinates to pixels.
        cells: uint8 (rows / FINE_STEP, columns / FINE_STEP).
    """

    frame: Frame
    cells: NDArray[np.uint8]

    @classmethod
    def empty(cls, frame: Frame) -> Canvas:
        """A black canvas over the whole image."""
        rows, cols = frame.shape
        return cls(frame, np.zeros((rows // FINE_STEP, cols // FINE_STEP), np.uint8))

    @property
    def half_width(self) -> float:
        """Inner half-width of the chest in cells."""
        return float(np.linalg.norm(self.frame.matrix[:, 0])) / FINE_STEP

    @property
    def lung_height(self) -> float:
        """Height of the lungs in cells."""
        return float(np.linalg.norm(self.frame.matrix[:, 1])) / FINE_STEP

    def stroke(self, points: Points, width: float, value: int = 255) -> None:
        """Draw a path given in patient coordinates, (n, 2), with a width in cells."""
        self.stroke_px(self.frame.to_px(points), width, value)

    def stroke_px(self, path: Points, width: float, value: int = 255) -> None:
        """Draw a path given in native pixels, (n, 2), with a width in cells."""
        cells = fixed_point(path, FINE_STEP)
        cv2.polylines(self.cells, [cells], False, value, max(1, round(width)), cv2.LINE_AA, 4)

    def ink(self, blur: float = 0.0) -> Image:
        """What was drawn, float32 in [0, 1], blurred by a Gaussian of that many cells."""
        drawn = np.multiply(self.cells, np.float32(1 / 255), dtype=np.float32)
        return smooth(drawn, blur) if blur else drawn


def smooth(image: Image, sigma: float) -> Image:
    """Gaussian blur; ``sigma`` in cells."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.float32)


def resize(image: Image, shape: tuple[int, ...], method: int = cv2.INTER_LINEAR) -> Image:
    """Image at another (rows, columns)."""
    resized = cv2.resize(image, (shape[1], shape[0]), interpolation=method)
    return np.asarray(resized, dtype=np.float32)


def falloff(distance: NDArray[np.floating], width: float) -> Image:
    """Soft edge: 1 where the distance is well below 0, 0 where it is well above."""
    edge = 1 / (1 + np.exp(np.clip(distance / width, -50, 50)))
    return np.asarray(edge, dtype=np.float32)
