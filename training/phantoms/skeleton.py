"""Ribs, clavicles, shoulder blades and spine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.phantoms.anatomy import Generator, Image, Points, smooth_curve
from training.phantoms.canvas import Canvas, resize
from training.phantoms.film import Exposure
from training.phantoms.findings import Scene

_POSTERIOR_RIBS = 10
_ANTERIOR_RIBS = 6


@dataclass(frozen=True)
class _Cage:
    """Canvases of the rib cage, and the slope and spacing that its ribs share."""

    back: Canvas
    front: Canvas
    rim: Canvas
    tilt: float
    gap: float


def bones(scene: Scene, look: Exposure, air: Image, rng: Generator) -> Image:
    """Attenuation of the skeleton on the fine grid; ``air`` (h, w) is on the coarse one."""
    frame = scene.anatomy.frame
    cage = _Cage(
        Canvas.empty(frame),
        Canvas.empty(frame),
        Canvas.empty(frame),
        rng.uniform(0.02, 0.10),
        rng.uniform(0.088, 0.102),
    )
    for sign in (-1, 1):
        for index in range(_POSTERIOR_RIBS):
            _posterior_rib(cage, sign, index, rng)
        for index in range(_ANTERIOR_RIBS):
            _anterior_rib(cage, sign, index, rng)
    ribs = 0.62 * cage.back.ink(1.4) + 0.42 * cage.front.ink(1.8) + 0.75 * cage.rim.ink(0.7)
    shape = ribs.shape
    # ribs stand out against air and fade against soft tissue
    ribs *= look.bone * (0.45 + 0.55 * np.clip(resize(air, shape), 0, 1))
    total = ribs + _clavicles(scene, look, rng) + _spine(scene, rng)
    return np.asarray(total * resize(scene.anatomy.masks["torso"], shape), dtype=np.float32)


def _posterior_rib(cage: _Cage, sign: int, index: int, rng: Generator) -> None:
    top = -0.02 + cage.gap * index + rng.normal(0, 0.004)
    reach = min(1.04, 0.60 + 0.15 * index)
    u = np.linspace(0.10, 1.07, 15)
    lift = 0.055 * np.sin(np.pi * np.minimum(u * 1.25, 1)) - 0.02
    drop = top - lift + (cage.tilt + 0.16 + 0.012 * index) * u**3.2
    line = np.stack([sign * reach * u, drop], axis=-1)
    cage.back.stroke(line, cage.back.lung_height * rng.uniform(0.034, 0.042))
    _rims(cage.rim, line, 0.019)


def _anterior_rib(cage: _Cage, sign: int, index: int, rng: Generator) -> None:
    outer = 0.13 + cage.gap * 1.18 * index + rng.normal(0, 0.005)
    u = np.linspace(0, 1, 10)
    a = sign * (min(1.02, 0.82 + 0.09 * index) - u * (0.52 + 0.02 * index))
    b = outer + (0.13 + 0.012 * index) * u**0.8
    line = np.stack([a, b], axis=-1)
    cage.front.stroke(line, cage.front.lung_height * 0.050)
    _rims(cage.rim, line, 0.023, 110)


def _rims(canvas: Canvas, line: Points, half: float, value: int = 255) -> None:
    """Bright cortex at both edges of a bone."""
    offset = np.array([0.0, half])
    canvas.stroke(line - offset, 1, value)
    canvas.stroke(line + offset, 1, value)


def _clavicles(scene: Scene, look: Exposure, rng: Generator) -> Image:
    """Clavicles and the medial borders of the shoulder blades."""
    canvas, edge = Canvas.empty(scene.anatomy.frame), Canvas.empty(scene.anatomy.frame)
    height = rng.uniform(0.0, 0.12)
    for sign in (-1, 1):
        points = np.array(
            [
                (0.14, height + 0.06),
                (0.34, height + 0.035),
                (0.62, height - 0.015),
                (0.92, height - 0.075),
                (1.25, height - 0.085),
            ]
        )
        points += rng.normal(0, 0.006, points.shape)
        curve = smooth_curve(points * (sign, 1), closed=False)
        canvas.stroke(curve, canvas.lung_height * 0.045)
        _rims(edge, curve, 0.022)
        _scapula(canvas, sign, rng)
    return np.float32(1.15 * look.bone) * (canvas.ink(1.3) + np.float32(0.5) * edge.ink(0.9))


def _scapula(canvas: Canvas, sign: int, rng: Generator) -> None:
    lateral = rng.uniform(0.98, 1.16)
    border = np.array([(1.12, 0.02), (lateral, 0.14), (lateral - 0.02, 0.34), (1.14, 0.52)])
    curve = smooth_curve(border * (sign, 1), closed=False)
    canvas.stroke(curve, canvas.lung_height * 0.02, 120)


def _spine(scene: Scene, rng: Generator) -> Image:
    """Vertebral bodies and their discs, faint through the mediastinum."""
    canvas = Canvas.empty(scene.anatomy.frame)
    unit = canvas.half_width
    height = rng.uniform(0.072, 0.088)
    for index in range(-4, 16):
        b = index * height
        canvas.stroke(np.array([(-0.10, b), (0.10, b)]), unit * 0.075, 200)
        canvas.stroke(np.array([(0.0, b + 0.01), (0.0, b + 0.03)]), unit * 0.03)
    return np.float32(rng.uniform(0.02, 0.05)) * canvas.ink(1.6)
