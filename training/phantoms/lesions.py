"""Nodules, fine textures, pleural lines, tubes and lines."""

from __future__ import annotations

from typing import Final

import numpy as np

from training.phantoms import detail
from training.phantoms.anatomy import GRID_STEP, Image, Points
from training.phantoms.canvas import FINE_STEP, Canvas, falloff, resize
from training.phantoms.film import Exposure
from training.phantoms.findings import RIM, NoduleShape, PatchShape, Scene, TubeShape

_PAD: Final = 6
_SPICULE_GAIN: Final = 0.25
_SPECK_GAIN: Final = 2.0
_BRONCHUS_GAIN: Final = 0.21


def devices(scene: Scene) -> Image:
    """Tubes and lines on the fine grid."""
    total = Canvas.empty(scene.anatomy.frame).ink()
    for tube in scene.layers.tubes:
        total += _device(scene, tube)
    return total


def pleural_lines(scene: Scene) -> Image:
    """The visible edge of a collapsed lung, on the fine grid."""
    canvas = Canvas.empty(scene.anatomy.frame)
    for line in scene.layers.pleural_lines:
        canvas.stroke_px(line, 2)
    return np.float32(0.20) * canvas.ink()


def add_nodule(image: Image, nodule: NoduleShape, look: Exposure) -> None:
    """Add the body of a nodule to the attenuation, in place."""
    half = _half(nodule)
    inside, patch, offset = _window(image, nodule.centre, half)
    profile = nodule_profile(nodule, half, offset)
    image[inside] += (nodule.contrast * look.lung * profile)[patch]


def nodule_profile(nodule: NoduleShape, half: int, offset: Points) -> Image:
    """Soft disc that every nodule has, whatever its margin, (2 half + 1, 2 half + 1) in [0, 1]."""
    ys, xs = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    dx, dy = xs - np.float32(offset[0]), ys - np.float32(offset[1])
    angle = np.arctan2(dy, dx)
    edge = np.ones_like(angle)
    for order, (c, s) in enumerate(nodule.harmonics, start=2):
        edge += np.float32(c) * np.cos(order * angle) + np.float32(s) * np.sin(order * angle)
    distance = np.hypot(dx, dy) / np.float32(nodule.radius)
    dome = np.sqrt(np.clip(1 - 0.55 * (distance / 1.2) ** 2, 0.2, 1))
    return np.asarray(falloff(distance - edge, 0.055) * dome, dtype=np.float32)


def add_nodule_texture(image: Image, nodule: NoduleShape, look: Exposure) -> None:
    """Margin and core, each structured or a faint decoy, in place."""
    half = _half(nodule)
    inside, patch, _ = _window(image, nodule.centre, half)
    size = 2 * half + 1
    pairs = (
        (detail.spicules, nodule.spiculated, _SPICULE_GAIN),
        (detail.specks, nodule.calcified, _SPECK_GAIN),
    )
    total = np.zeros((size, size), np.float32)
    for index, (paint, present, gain) in enumerate(pairs):
        rng = np.random.default_rng((nodule.seed, index))
        texture = paint(size, nodule.radius, rng)
        total += gain * (texture if present else detail.DECOY_SHARE * detail.decoy(texture, rng))
    image[inside] += look.contrast * total[patch]


def add_patch_texture(image: Image, patch: PatchShape, look: Exposure) -> None:
    """Bronchi through a consolidation, or a faint decoy of them, in place."""
    x0, y0, x1, y1 = patch.box_px
    cells = (
        slice(y0 // GRID_STEP, y1 // GRID_STEP),
        slice(x0 // GRID_STEP, x1 // GRID_STEP),
    )
    opacity = resize(patch.opacity[cells], (y1 - y0, x1 - x0))
    rng = np.random.default_rng((patch.seed, 0))
    texture = detail.bronchi(opacity, rng)
    if not patch.bronchogram:
        texture = detail.DECOY_SHARE * detail.decoy(texture, rng, 5.0)
    image[y0:y1, x0:x1] += _BRONCHUS_GAIN * look.contrast * texture


def _device(scene: Scene, tube: TubeShape) -> Image:
    canvas = Canvas.empty(scene.anatomy.frame)
    width = max(1, round(tube.width / FINE_STEP))
    canvas.stroke_px(tube.path, width, 200 if tube.marker else 240)
    if tube.marker and width >= 3:
        canvas.stroke_px(tube.path, 1)
    return np.float32(0.30) * canvas.ink()


def _half(nodule: NoduleShape) -> int:
    return int(np.ceil(RIM * nodule.radius)) + _PAD


def _window(
    image: Image, centre: Points, half: int
) -> tuple[tuple[slice, slice], tuple[slice, slice], Points]:
    """Slices of the image and of a (2 half + 1) patch that overlap, and the sub-pixel offset."""
    x, y = (int(v) for v in np.floor(centre))
    rows, cols = image.shape
    y0, y1 = max(0, y - half), min(rows, y + half + 1)
    x0, x1 = max(0, x - half), min(cols, x + half + 1)
    inside = (slice(y0, y1), slice(x0, x1))
    patch = (slice(y0 - y + half, y1 - y + half), slice(x0 - x + half, x1 - x + half))
    return inside, patch, centre - 0.5 - (x, y)
