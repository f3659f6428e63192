"""The field of a probe and the layers of a breast in it.

Layers are drawn in the frame of the beams: ``u`` counts the beams from the image's left in
[0, 1], ``z`` the depth along them in [0, 1]. In a rectangular field that is the image itself; in a
sector the beams fan out from a point above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from training.phantoms.anatomy import Generator, Image, Points, smooth_curve
from training.phantoms.breast_ultrasound.words import COMPOSITIONS, FORMATS
from training.phantoms.canvas import falloff, smooth
from training.phantoms.section import STEP

IMAGE_SIZES: Final = ((896, 896), (952, 896), (896, 952), (1008, 896), (960, 960))

# depth of the lower border of fat and of gland
_BORDERS: Final = {
    COMPOSITIONS[0]: ((0.37, 0.43), (0.60, 0.66)),
    COMPOSITIONS[1]: ((0.11, 0.15), (0.66, 0.72)),
}
SKIN: Final = 0.034


@dataclass(frozen=True)
class Field:
    """What a probe sees.

    Attributes:
        shape: rows and columns of the image.
        u: beam of each cell on the grid of ``STEP``.
        z: depth of each cell.
        seen: coverage of the field.
    """

    shape: tuple[int, int]
    u: Image
    z: Image
    seen: Image

    def bent(self, beams: Image) -> Image:
        """A picture in the frame of the beams as the image shows it."""
        h, w = beams.shape
        map_x, map_y = self.u * np.float32(w) - 0.5, self.z * np.float32(h) - 0.5
        border = cv2.BORDER_REPLICATE
        return np.asarray(
            cv2.remap(beams, map_x, map_y, cv2.INTER_LINEAR, borderMode=border), dtype=np.float32
        )


@dataclass(frozen=True)
class Breast:
    """One breast under a probe.

    Attributes:
        field: of the probe.
        spacing: mm per native pixel.
        format: one of ``FORMATS``.
        composition: one of ``COMPOSITIONS``.
        borders: depth of the lower borders of fat, gland, and muscle at evenly spaced beams,
            each (n,).
    """

    field: Field
    spacing: float
    format: str
    composition: str
    borders: dict[str, Points]

    def below(self, border: str) -> Image:
        """Depth under a border in the frame of the beams, (h, w), negative above it."""
        h, w = self.field.u.shape
        known = self.borders[border]
        line = np.interp(np.linspace(0, 1, w), np.linspace(0, 1, len(known)), known)
        z = (np.arange(h) + 0.5) / h
        return np.asarray(z[:, None] - line[None, :], dtype=np.float32)

    def layer(self, name: str) -> Image:
        """Coverage of a layer in the image: ``fat_layer``, ``glandular_layer`` or ``muscle``."""
        above, low = {
            "fat_layer": (None, "fat"),
            "glandular_layer": ("fat", "gland"),
            "muscle": ("gland", "muscle"),
        }[name]
        cover = falloff(self.below(low), 0.001)
        if above is None:
            cover[: round(SKIN * len(cover))] = 0
        else:
            cover *= falloff(-self.below(above), 0.001)
        return self.field.bent(cover) * self.field.seen


def sample_breast(rng: Generator, image_format: str, composition: str) -> Breast:
    """Draw a breast of a composition in a field of a format."""
    shape = IMAGE_SIZES[int(rng.integers(len(IMAGE_SIZES)))]
    depth_mm = float(rng.uniform(42, 56))
    fat, gland = _BORDERS[composition]
    borders = {
        "fat": rng.uniform(*fat) + _waves(rng, 0.012),
        "gland": rng.uniform(*gland) + _waves(rng, 0.008),
    }
    borders["muscle"] = borders["gland"] + rng.uniform(0.14, 0.18) + _waves(rng, 0.003)
    field = _rectangular(shape) if image_format == FORMATS[0] else _sector(rng, shape)
    return Breast(field, round(depth_mm / shape[0], 4), image_format, composition, borders)


def beam_noise(rng: Generator, shape: tuple[int, ...], across: float, along: float) -> Image:
    """Noise of unit variance with a grain of so many cells across and along the beams."""
    noise = rng.standard_normal(shape, np.float32)
    noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), sigmaX=across, sigmaY=along), np.float32)
    return noise / np.float32(noise.std())


def ligaments(rng: Generator, breast: Breast) -> Image:
    """Bright strands through the fat, in the frame of the beams, (h, w) in [0, 1]."""
    h, w = breast.field.u.shape
    canvas = np.zeros((h, w), np.uint8)
    fat = float(breast.borders["fat"].mean())
    for _ in range(int(rng.integers(9, 15))):
        x, lean = rng.uniform(-0.1, 1.1), rng.normal(0, 0.20)
        u = np.linspace(0, 1, 5)
        points = np.stack([x + lean * u, SKIN + (fat - SKIN) * u], axis=-1)
        points[1:-1] += rng.normal(0, 1, (3, 2)) * (0.03, 0.01)
        path = smooth_curve(points, closed=False) * (w, h)
        width = int(rng.integers(1, 4))
        cells = np.round(path * 16).astype(np.int32)
        cv2.polylines(canvas, [cells], False, int(rng.integers(110, 255)), width, cv2.LINE_AA, 4)
    return smooth(np.multiply(canvas, np.float32(1 / 255), dtype=np.float32), 1.2)


def _waves(rng: Generator, size: float) -> Points:
    u = np.linspace(0, 1, 65)
    line = np.zeros_like(u)
    for waves in (0.5, 1.0, 1.7, 2.9, 4.3):
        line += rng.normal(0, size / waves**0.6) * np.sin(
            2 * np.pi * (waves * u + rng.uniform(0, 1))
        )
    return line


def _cells(shape: tuple[int, int]) -> tuple[Image, Image]:
    """Native pixel coordinates (x, y) of the cells' centres."""
    ys, xs = np.mgrid[0 : shape[0] // STEP, 0 : shape[1] // STEP].astype(np.float32)
    half = np.float32(0.5)
    return np.asarray((xs + half) * STEP, np.float32), np.asarray((ys + half) * STEP, np.float32)


def _rectangular(shape: tuple[int, int]) -> Field:
    x, y = _cells(shape)
    u, z = x / np.float32(shape[1]), y / np.float32(shape[0])
    return Field(shape, u, z, np.ones_like(x))


def _sector(rng: Generator, shape: tuple[int, int]) -> Field:
    """Beams from a curved face whose edges lie at the upper border of the image."""
    rows, cols = shape
    x, y = _cells(shape)
    near = rows * rng.uniform(0.55, 0.80)
    half = float(np.arcsin(0.495 * cols / (near + 0.97 * rows)))
    # the face is lowest in the middle: its edges touch the top of the image
    apex = -near * np.cos(half)
    angle = np.arctan2(x - cols / 2, y - apex)
    radius = np.hypot(x - cols / 2, y - apex)
    reach = rows - apex - near
    u = angle / (2 * half) + 0.5
    z = (radius - near) / reach
    edge = 1.0 / (2 * half * near) * STEP
    seen = falloff(abs(u - 0.5) - 0.5, edge / 3) * falloff(-z, 0.001) * falloff(z - 0.999, 0.001)
    return Field(shape, u.astype(np.float32), z.astype(np.float32), seen)
