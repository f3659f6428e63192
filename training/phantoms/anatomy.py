"""Random chest anatomy as smooth outlines in a patient frame, and its masks.

The patient frame has its origin on the midline at the level of the lung apices. ``a`` runs to the
image's right (the patient's left) in units of the inner half-width of the chest; ``b`` runs
down in units of the lung height. An affine map takes it to pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms.truth import LEFT, RIGHT, Box

Points = NDArray[np.float64]
Image = NDArray[np.float32]
Generator = np.random.Generator

GRID_STEP: Final = 4
"""Native pixels per cell of the coarse grid on which soft structures are drawn."""

# (|a|, b) of one lung, clockwise from the apex; the costophrenic angle is doubled to keep it sharp
_LUNG: Final = np.array(
    [
        (0.46, 0.00),
        (0.70, 0.08),
        (0.86, 0.27),
        (0.95, 0.52),
        (1.00, 0.78),
        (0.99, 0.975),
        (0.985, 0.985),
        (0.82, 0.90),
        (0.58, 0.85),
        (0.36, 0.875),
        (0.19, 0.945),
        (0.17, 0.72),
        (0.18, 0.46),
        (0.15, 0.28),
        (0.22, 0.09),
    ]
)
_DOME: Final = slice(7, 10)


@dataclass(frozen=True)
class Frame:
    """Affine map from the patient frame to native pixels.

    Attributes:
        matrix: (2, 2); ``px = matrix @ (a, b) + origin``.
        origin: (2,) pixel position (x, y) of the patient frame's origin.
        shape: (rows, columns) of the image.
    """

    matrix: Points
    origin: Points
    shape: tuple[int, int]

    def to_px(self, points: Points) -> Points:
        """Map (..., 2) patient coordinates to continuous pixel coordinates (x, y)."""
        return points @ self.matrix.T + self.origin

    def to_patient(self, xy: Points) -> Points:
        """Map (..., 2) continuous pixel coordinates to patient coordinates."""
        return (xy - self.origin) @ np.linalg.inv(self.matrix).T

    def coarse_patient_grid(self) -> tuple[Image, Image]:
        """Patient coordinates (a, b) of the coarse cells' centres, each (h, w)."""
        h, w = coarse_shape(self.shape)
        ys, xs = np.mgrid[0:h, 0:w].astype(np.float64) * GRID_STEP + GRID_STEP / 2
        grid = self.to_patient(np.stack([xs, ys], axis=-1))
        return grid[..., 0].astype(np.float32), grid[..., 1].astype(np.float32)


@dataclass(frozen=True)
class Anatomy:
    """Outlines of one patient, (n, 2) each in patient coordinates, and coarse masks.

    Attributes:
        frame: map to pixels.
        lungs: outline of each lung by side, before the heart is laid over it.
        heart: outline of the heart.
        mediastinum: outline of the mediastinum with the great vessels.
        torso: outline of the body, open parts lie outside of the image.
        carina: (2,) position of the bifurcation.
        ctr: cardiothoracic ratio.
        masks: float32 (h, w) coverage in [0, 1] on the coarse grid: ``right``, ``left`` (air),
            ``heart``, ``mediastinum``, ``torso``.
    """

    frame: Frame
    lungs: dict[str, Points]
    heart: Points
    mediastinum: Points
    torso: Points
    carina: Points
    ctr: float
    masks: dict[str, Image]


def coarse_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Shape of the coarse grid of an image."""
    return shape[0] // GRID_STEP, shape[1] // GRID_STEP


def sample_anatomy(rng: Generator, shape: tuple[int, int], ctr: float) -> Anatomy:
    """Draw a patient whose heart has the given cardiothoracic ratio."""
    frame = _sample_frame(rng, shape)
    lungs = {RIGHT: _sample_lung(rng, RIGHT), LEFT: _sample_lung(rng, LEFT)}
    inner = float(lungs[LEFT][:, 0].max() - lungs[RIGHT][:, 0].min())
    heart = _sample_heart(rng, ctr * inner)
    mediastinum = _sample_mediastinum(rng)
    torso = _sample_torso(rng)
    carina = np.array([rng.uniform(-0.02, 0.02), rng.uniform(0.31, 0.37)])
    masks = {
        "heart": fill(frame, heart),
        "mediastinum": fill(frame, mediastinum),
        "torso": fill(frame, torso),
    }
    cover = np.maximum(masks["heart"], masks["mediastinum"])
    for side in (RIGHT, LEFT):
        masks[side] = fill(frame, lungs[side]) * (1 - cover)
    return Anatomy(frame, lungs, heart, mediastinum, torso, carina, ctr, masks)


def smooth_curve(points: Points, *, closed: bool, per_segment: int = 10) -> Points:
    """Centripetal-free Catmull-Rom curve through the points, (n, 2)."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
    p0, p1, p2, p3 = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None, None]
    curve = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    flat: Points = curve.transpose(1, 0, 2).reshape(-1, 2)
    return flat if closed else np.concatenate([flat, points[-1:]])


def fill(frame: Frame, outline: Points, step: int = GRID_STEP) -> Image:
    """Coverage in [0, 1] of a filled outline on the grid with ``step`` native pixels a cell."""
    canvas = np.zeros((frame.shape[0] // step, frame.shape[1] // step), np.uint8)
    cv2.fillPoly(canvas, [fixed_point(frame.to_px(outline), step)], 255, cv2.LINE_AA, 4)
    return np.multiply(canvas, np.float32(1 / 255), dtype=np.float32)


def fixed_point(px: Points, step: int) -> NDArray[np.int32]:
    """Continuous native pixels to OpenCV's fixed-point cell coordinates with 4 fraction bits.

    OpenCV puts integers at cell centres, continuous coordinates at cell corners.
    """
    return np.round((px / step - 0.5) * 16).astype(np.int32)


def mask_box(coverage: Image, threshold: float = 0.5) -> Box:
    """Normalised half-open box of the cells above the threshold.

    Raises:
        ValueError: no cell is above the threshold.
    """
    hit = coverage > threshold
    cols, rows = np.flatnonzero(hit.any(axis=0)), np.flatnonzero(hit.any(axis=1))
    if cols.size == 0:
        raise ValueError("An empty mask has no box.")
    h, w = coverage.shape
    return (
        float(cols[0]) / w,
        float(rows[0]) / h,
        float(cols[-1] + 1) / w,
        float(rows[-1] + 1) / h,
    )


def _sample_frame(rng: Generator, shape: tuple[int, int]) -> Frame:
    rows, cols = shape
    half_width = rng.uniform(0.35, 0.47) * cols
    lung_height = float(np.clip(half_width * rng.uniform(1.35, 2.1), 0.46 * rows, 0.84 * rows))
    angle = np.deg2rad(rng.normal(0, 2.0))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag([half_width, lung_height])
    free = rows - lung_height
    centre = np.array(
        [cols * (0.5 + rng.normal(0, 0.015)), free * rng.uniform(0.3, 0.6) + lung_height / 2]
    )
    return Frame(matrix, centre - matrix @ np.array([0.0, 0.5]), shape)


def _sample_lung(rng: Generator, side: str) -> Points:
    points = _LUNG + rng.normal(0, 0.010, _LUNG.shape)
    points[6] = points[5] + (-0.004, 0.006)
    points[_DOME, 1] += rng.uniform(-0.05, 0.045)
    points[:4, 0] += rng.uniform(-0.04, 0.03)
    if side == LEFT:
        points[5:11, 1] += rng.uniform(0.0, 0.035)
    points[:, 0] *= 1 + rng.normal(0, 0.015)
    curve = smooth_curve(points, closed=True)
    return curve * (1, 1) if side == LEFT else curve * (-1, 1)


def _sample_heart(rng: Generator, width: float) -> Points:
    right = width * rng.uniform(0.29, 0.37)
    left = width - right
    drop = rng.uniform(-0.02, 0.03)
    points = np.array(
        [
            (-0.13, 0.40),
            (-right * 0.80, 0.56),
            (-right, 0.72 + drop),
            (-right * 0.86, 0.88),
            (-right * 0.3, 0.97),
            (left * 0.55, 0.98),
            (left * 0.93, 0.92),
            (left, 0.83 + drop),
            (left * 0.86, 0.70 + drop),
            (left * 0.55, 0.54),
            (0.20, 0.42),
        ]
    )
    points += rng.normal(0, 0.006, points.shape)
    curve = smooth_curve(points, closed=True)
    low, high = curve[:, 0].min(), curve[:, 0].max()
    curve[:, 0] *= width / (high - low)
    return curve


def _sample_mediastinum(rng: Generator) -> Points:
    wide = rng.uniform(0.88, 1.15)
    knob = rng.uniform(0.23, 0.30)
    left = [
        (0.30, -0.35),
        (0.22, -0.05),
        (0.18 * wide, 0.10),
        (0.21 * wide, 0.20),
        (knob, 0.275),
        (0.22 * wide, 0.345),
        (0.23 * wide, 0.42),
        (0.20, 0.60),
        (0.18, 1.1),
    ]
    right = [
        (-0.18, 1.1),
        (-0.18, 0.60),
        (-0.20 * wide, 0.42),
        (-0.17 * wide, 0.28),
        (-0.17 * wide, 0.12),
        (-0.22, -0.05),
        (-0.30, -0.35),
    ]
    points = np.array(left + right)
    return smooth_curve(points + rng.normal(0, 0.006, points.shape), closed=True)


def _sample_torso(rng: Generator) -> Points:
    wall = rng.uniform(1.12, 1.32)
    neck = rng.uniform(0.34, 0.46)
    shoulder = rng.uniform(-0.12, 0.0)
    side = [
        (neck, -0.6),
        (neck, -0.18),
        (neck + 0.22, -0.10 + shoulder / 2),
        (1.15, 0.0 + shoulder),
        (1.55, 0.16 + shoulder),
        (1.62, 0.5),
        (wall + rng.uniform(0.0, 0.2), 0.42),
        (wall, 0.62),
        (wall + 0.02, 1.0),
        (wall + rng.uniform(0.0, 0.08), 1.6),
    ]
    right = np.array(side) * (-1, 1) + rng.normal(0, 0.01, (len(side), 2))
    left = np.array(side) + rng.normal(0, 0.01, (len(side), 2))
    return smooth_curve(np.concatenate([left, right[::-1]]), closed=True)
