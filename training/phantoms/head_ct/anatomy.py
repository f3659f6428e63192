"""A random head in axial section: skull, brain surface, midline, ventricles.

The patient frame has its origin in the middle of the cavity of the skull. ``a`` runs to the
image's right (the patient's left) in units of the inner half-width, ``b`` runs backwards
(down) in units of the inner half-length. Mass effect moves what is drawn along ``a``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from training.phantoms.anatomy import Frame, Generator, Image, Points, smooth_curve
from training.phantoms.head_ct.words import GANGLIA, SEMIOVALE, VENTRICLES
from training.phantoms.section import STEP, filled

SIZES: Final = (896, 960, 1024)
"""Rows and columns: a high-resolution matrix, so that the view loses what a crop shows."""

_OUTLINE_POINTS: Final = 240
_SCALE: Final = {GANGLIA: 1.0, VENTRICLES: 1.0, SEMIOVALE: 0.93}

# (a, b) of the structures of the patient's left half; the right half mirrors them
_FRONTAL_HORN: Final = (
    (0.03, -0.36),
    (0.12, -0.45),
    (0.24, -0.50),
    (0.25, -0.44),
    (0.15, -0.34),
    (0.05, -0.16),
    (0.03, -0.16),
)
_TRIGONE: Final = (
    (0.24, 0.24),
    (0.36, 0.30),
    (0.42, 0.44),
    (0.36, 0.58),
    (0.29, 0.52),
    (0.30, 0.40),
)
_BODY: Final = (
    (0.05, -0.40),
    (0.13, -0.47),
    (0.19, -0.38),
    (0.18, -0.12),
    (0.21, 0.14),
    (0.30, 0.36),
    (0.26, 0.46),
    (0.17, 0.34),
    (0.09, 0.10),
    (0.05, -0.05),
)
_CAUDATE: Final = ((0.20, -0.40), (0.27, -0.38), (0.25, -0.22), (0.16, -0.18), (0.14, -0.26))
_LENTIFORM: Final = ((0.33, -0.28), (0.47, -0.12), (0.46, 0.06), (0.37, 0.16), (0.28, -0.04))
_THALAMUS: Final = ((0.05, -0.02), (0.17, -0.04), (0.27, 0.10), (0.25, 0.22), (0.08, 0.22))


@dataclass(frozen=True)
class Head:
    """One patient at one level.

    Attributes:
        frame: map from the patient frame to pixels.
        spacing: mm per native pixel.
        level: one of ``SLICE_LEVELS``.
        shift_mm: how far the middle of the midline is moved, towards the image's right.
        outline: inner table of the skull, (n, 2) patient coordinates, clockwise from the front.
        skull_mm: thickness of the skull.
        scalp_mm: thickness of the scalp.
        rim_mm: width of the fluid between skull and brain.
        sulcus_mm: width of the sulci.
        wide: width of the ventricles against the mean.
        inside: coverage of the cavity of the skull, on the grid of ``STEP``.
        depth_mm: distance from the inner table, positive inside.
    """

    frame: Frame
    spacing: float
    level: str
    shift_mm: float
    outline: Points
    skull_mm: float
    scalp_mm: float
    rim_mm: float
    sulcus_mm: float
    wide: float
    inside: Image
    depth_mm: Image

    @property
    def half_width_mm(self) -> float:
        """Inner half-width of the skull."""
        return float(np.linalg.norm(self.frame.matrix[:, 0])) * self.spacing

    def moved(self, points: Points) -> Points:
        """Where mass effect takes points, (..., 2): most in the middle, nothing at the skull."""
        a, b = points[..., 0], points[..., 1]
        bow = np.clip(1 - b * b, 0, 1) * np.clip(1 - abs(a), 0, 1)
        out = np.array(points, dtype=np.float64)
        out[..., 0] += self.shift_mm / self.half_width_mm * bow
        return out

    def cells(self, mm: float) -> float:
        """A length in cells of the grid of ``STEP``."""
        return mm / (self.spacing * STEP)

    def fill(self, points: Points) -> Image:
        """Coverage of an outline in patient coordinates after mass effect."""
        return filled(self.frame.to_px(self.moved(points)), self.frame.shape)


def sample_head(rng: Generator, level: str, shift_mm: float) -> Head:
    """Draw a patient at a level, with a midline that is moved so far."""
    size = SIZES[int(rng.integers(len(SIZES)))]
    spacing = round(float(rng.uniform(222, 244)) / size, 4)
    half_width = rng.uniform(62, 69) * _SCALE[level]
    half_length = half_width * rng.uniform(1.18, 1.29)
    angle = np.deg2rad(np.clip(rng.normal(0, 4.0), -9, 9))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag([half_width, half_length]) / spacing
    origin = size / 2 + rng.normal(0, 2.5, 2).clip(-5, 5) / spacing
    frame = Frame(matrix, origin, (size, size))
    outline = _sample_outline(rng)
    inside = filled(frame.to_px(outline), frame.shape)
    return Head(
        frame=frame,
        spacing=spacing,
        level=level,
        shift_mm=shift_mm,
        outline=outline,
        skull_mm=float(rng.uniform(5.0, 7.5)),
        scalp_mm=float(rng.uniform(4.5, 7.0)),
        rim_mm=float(rng.uniform(0.8, 2.4)),
        sulcus_mm=float(rng.uniform(0.9, 2.2)),
        wide=float(rng.uniform(0.8, 1.25)),
        inside=inside,
        depth_mm=_signed_depth(inside) * np.float32(STEP * spacing),
    )


def ventricles(head: Head) -> Image:
    """Coverage of the ventricles, the third among them."""
    total = np.zeros_like(head.inside)
    outlines = {GANGLIA: (_FRONTAL_HORN, _TRIGONE), VENTRICLES: (_BODY,), SEMIOVALE: ()}
    for outline in outlines[head.level]:
        for curve in both_sides(outline, head.wide):
            np.maximum(total, head.fill(curve), out=total)
    if head.level == GANGLIA:
        width = 0.028 * head.wide
        third = np.array([(0, -0.10), (width, 0.06), (width / 2, 0.24), (0, 0.26)])
        third = np.concatenate([third, third[::-1] * (-1, 1)])
        np.maximum(total, head.fill(smooth_curve(third, closed=True)), out=total)
    return total


def deep_grey(head: Head) -> Image:
    """Coverage of caudate heads, lentiform nuclei and thalami."""
    total = np.zeros_like(head.inside)
    if head.level == GANGLIA:
        for outline in (_CAUDATE, _LENTIFORM, _THALAMUS):
            for curve in both_sides(outline):
                np.maximum(total, head.fill(curve), out=total)
    return total


def both_sides(outline: tuple[tuple[float, float], ...], wide: float = 1.0) -> tuple[Points, ...]:
    """A closed curve on the patient's left and its mirror image, (n, 2) each."""
    points = np.array(outline)
    centre = points.mean(axis=0)
    curve = smooth_curve(centre + (points - centre) * (wide, 1), closed=True)
    return curve, curve * (-1, 1)


def midline(head: Head) -> Points:
    """The midline from front to back, (n, 2) patient coordinates after mass effect."""
    b = np.linspace(-0.99, 0.99, 41)
    return head.moved(np.stack([np.zeros_like(b), b], axis=-1))


def hemisphere(head: Head, sign: int) -> Image:
    """Coverage of the half of the cavity on one side of the midline; 1 is the patient's left."""
    half = head.outline[: _OUTLINE_POINTS // 2 + 1]
    if sign < 0:
        half = np.concatenate([head.outline[_OUTLINE_POINTS // 2 :], head.outline[:1]])[::-1]
    border = np.concatenate([half, midline(head)[::-1]])
    return filled(head.frame.to_px(border), head.frame.shape)


def _sample_outline(rng: Generator) -> Points:
    """Egg with the wide end behind, a little irregular; the first point is in front."""
    t = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    taper = 1 - rng.uniform(0.05, 0.11) * np.cos(t)
    radius = np.ones_like(t)
    for order in (2, 3, 4, 5):
        radius += rng.normal(0, 0.009 / order) * np.cos(order * t)
        radius += rng.normal(0, 0.007 / order) * np.sin(order * t)
    # a flat forehead and temples: between an ellipse and a rounded rectangle
    power = 0.93
    a = np.sign(np.sin(t)) * abs(np.sin(t)) ** power * taper * radius
    b = -np.sign(np.cos(t)) * abs(np.cos(t)) ** power * radius
    return np.stack([a / abs(a).max(), b / abs(b).max()], axis=-1)


def _signed_depth(inside: Image) -> Image:
    """Distance from the border in cells, positive inside."""
    within = (inside > 0.5).astype(np.uint8)
    deep = cv2.distanceTransform(within, cv2.DIST_L2, 5)
    far = cv2.distanceTransform(1 - within, cv2.DIST_L2, 5)
    return np.asarray(deep - far, dtype=np.float32)
