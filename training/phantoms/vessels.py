"""Vessels and hila, the fine markings of the lung, trachea and main bronchi."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.phantoms.anatomy import Generator, Image, Points, smooth_curve
from training.phantoms.canvas import Canvas, resize, smooth
from training.phantoms.film import Exposure
from training.phantoms.findings import Scene
from training.phantoms.truth import LEFT, SIDES

_STEPS = 8
_TAPER = ((0, 2, 1.0), (2, 5, 0.55), (5, 8, 0.28))
"""First and last piece of a stretch of vessel, and its share of the full width."""


@dataclass(frozen=True)
class _Vessel:
    """A vessel: start and heading in patient coordinates, length, width in cells, order."""

    start: Points
    heading: Points
    length: float
    width: float
    depth: int = 0


def vessels(scene: Scene, look: Exposure, air: Image, rng: Generator) -> Image:
    """Branching vessels that taper from the hila, seen only against air, on the fine grid."""
    frame = scene.anatomy.frame
    canvas = Canvas.empty(frame)
    for side in SIDES:
        sign = 1 if side == LEFT else -1
        hilum = np.array([sign * 0.22, 0.43 if side == LEFT else 0.46])
        count = int(rng.integers(11, 15))
        for fan in np.linspace(-1.35, 1.45, count) + rng.normal(0, 0.06, count):
            heading = np.array([sign * np.cos(fan), np.sin(fan) * 0.62])
            length = rng.uniform(0.45, 0.75)
            start = hilum + heading * 0.03
            _grow(canvas, _Vessel(start, heading, length, canvas.half_width * 0.030), rng)
        _hilum(canvas, sign, hilum, rng)
    shape = canvas.cells.shape
    grain = _parenchyma(shape, rng)
    visible = np.clip(resize(air, shape), 0, 1)
    for pleural in scene.layers.pleural_air:
        visible *= 1 - resize(pleural, shape)
    haze = _hilar_haze(scene, shape)
    lines = canvas.ink(0.9) * (0.75 + 0.5 * haze)
    markings = np.float32(look.vessels) * (lines + np.float32(0.35) * haze) + grain
    return np.asarray(markings * visible, dtype=np.float32)


def airways(scene: Scene) -> Image:
    """Dark trachea and main bronchi on the fine grid (negative attenuation)."""
    canvas = Canvas.empty(scene.anatomy.frame)
    unit = canvas.half_width
    x, y = scene.anatomy.carina
    trachea = smooth_curve(np.array([(0.0, -0.6), (x, -0.1), (x, y - 0.01)]), closed=False)
    canvas.stroke(trachea, unit * 0.10)
    right = np.array([(x, y - 0.01), (x - 0.10, y + 0.06), (x - 0.2, y + 0.14)])
    left = np.array([(x, y - 0.01), (x + 0.13, y + 0.055), (x + 0.27, y + 0.10)])
    canvas.stroke(right, unit * 0.075, 190)
    canvas.stroke(left, unit * 0.065, 190)
    return np.float32(-0.13) * canvas.ink(2.2)


def _hilar_haze(scene: Scene, shape: tuple[int, ...]) -> Image:
    a, b = scene.anatomy.frame.coarse_patient_grid()
    distance = np.hypot((abs(a) - 0.26) / 0.26, (b - 0.50) / 0.24)
    return resize(np.exp(-(distance**2)).astype(np.float32), shape)


def _parenchyma(shape: tuple[int, ...], rng: Generator) -> Image:
    """Irregular markings of the lung between the visible vessels, on two scales."""
    small = smooth(rng.standard_normal(shape, np.float32), 1.1)
    large = smooth(rng.standard_normal((shape[0] // 2, shape[1] // 2), np.float32), 2.0)
    return np.float32(rng.uniform(0.02, 0.05)) * small + np.float32(0.10) * resize(large, shape)


def _hilum(canvas: Canvas, sign: int, hilum: Points, rng: Generator) -> None:
    bow = np.array([(0.02, -0.05), (0.06, 0.0), (0.07, 0.06), (0.04, 0.14)])
    curve = smooth_curve(hilum + bow * (sign, 1) + rng.normal(0, 0.008, (4, 2)), closed=False)
    canvas.stroke(curve, canvas.half_width * 0.085, 150)


def _grow(canvas: Canvas, vessel: _Vessel, rng: Generator) -> None:
    """Draw a vessel that wavers and tapers, then its side branches."""
    turns = np.cumsum(rng.normal(0, 0.13, _STEPS))
    moves = np.stack([_turn(vessel.heading, turn) for turn in turns])
    steps = np.cumsum(moves * vessel.length / _STEPS, axis=0)
    path = vessel.start + np.concatenate([np.zeros((1, 2)), steps])
    for first, last, share in _TAPER:
        width = vessel.width * share
        value = 255 if width >= 1.4 else int(60 + 140 * width / 1.4)
        canvas.stroke(path[first : last + 1], width, value)
    if vessel.depth == 2:
        return
    for at in (2, 4, 6):
        heading = _turn(moves[at], rng.choice((-1, 1)) * rng.uniform(0.4, 0.8))
        width = vessel.width * (0.62 if at < 4 else 0.42)
        branch = _Vessel(path[at], heading, vessel.length * 0.5, width, vessel.depth + 1)
        _grow(canvas, branch, rng)


def _turn(heading: Points, angle: float) -> Points:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([heading[0] * cos - heading[1] * sin, heading[0] * sin + heading[1] * cos])
