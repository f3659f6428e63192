"""Fine texture that a close look can read and the small view cannot.

Every fine attribute comes as a pair of textures: a structured one (spicules, specks of calcium,
branching bronchi) and its *decoy*, fainter noise with the same radial power spectrum. Both are
band-passed above ``BAND[0]`` cycles per pixel, where a view that is four times smaller has next
to no response: the mean at the view is equal, and what energy leaks is below what can be read
(`training.phantoms.leakage` measures it).
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from training.phantoms.anatomy import Generator, Image, Points
from training.phantoms.canvas import smooth

BAND: Final = (0.20, 0.25)
"""Cycles per pixel below which nothing passes, and above which everything does."""

DECOY_SHARE: Final = np.float32(0.35)
"""Amplitude of a decoy against its texture. At equal energy only phase tells the two apart, which
a small vision tower did not learn to read from crops in an hour; a faint decoy still keeps an
absent texture from being no texture at all. What the view gives away is tested either way."""

_BINS: Final = 24


def band_pass(texture: Image) -> Image:
    """Remove what a four times smaller view can show from a (h, w) texture."""
    h, w = texture.shape
    fy = np.fft.fftfreq(h)[:, None]
    fx = np.fft.rfftfreq(w)[None, :]
    radius = np.hypot(fy, fx)
    ramp = np.clip((radius - BAND[0]) / (BAND[1] - BAND[0]), 0, 1)
    gain = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    passed: Image = np.fft.irfft2(np.fft.rfft2(texture) * gain, s=(h, w)).astype(np.float32)
    return passed


def decoy(structured: Image, rng: Generator, spread: float = 7.0) -> Image:
    """Band-limited noise with the local energy and the radial spectrum of a texture."""
    h, w = structured.shape
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :])
    bins = np.minimum((radius * 2 * _BINS).astype(int), _BINS - 1)
    power = np.abs(np.fft.rfft2(structured)) ** 2
    count = np.bincount(bins.ravel(), minlength=_BINS)
    mean = np.bincount(bins.ravel(), power.ravel(), minlength=_BINS) / np.maximum(count, 1)
    noise = np.fft.rfft2(rng.standard_normal((h, w), np.float32)) * np.sqrt(mean)[bins]
    grain = np.fft.irfft2(noise, s=(h, w)).astype(np.float32)
    envelope = np.sqrt(local_energy(structured, spread))
    return match_energy(band_pass(grain * envelope), structured)


def local_energy(texture: Image, spread: float) -> Image:
    """Smoothed square of a texture, (h, w)."""
    return smooth(texture * texture, spread)


def match_energy(texture: Image, reference: Image) -> Image:
    """Scale a texture to the total energy of a reference."""
    have, want = float(np.square(texture).sum()), float(np.square(reference).sum())
    return texture * np.float32(np.sqrt(want / max(have, 1e-12)))


def spicules(size: int, radius: float, rng: Generator) -> Image:
    """Thin strands that run outwards through the rim of a nodule, (size, size)."""
    canvas = np.zeros((size, size), np.uint8)
    centre = (size - 1) / 2
    count = int(rng.integers(20, 27))
    angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    for angle in angles:
        bend = angle + rng.normal(0, 0.05)
        inner, outer = radius * rng.uniform(0.86, 0.96), radius * rng.uniform(1.32, 1.5)
        _strand(canvas, centre, (inner, angle), (outer, bend))
    return band_pass(canvas.astype(np.float32) / np.float32(255))


def _strand(
    canvas: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    centre: float,
    start: tuple[float, float],
    end: tuple[float, float],
) -> None:
    ends = [(centre + r * np.cos(angle), centre + r * np.sin(angle)) for r, angle in (start, end)]
    (x0, y0), (x1, y1) = (tuple(round(v * 16) for v in p) for p in ends)
    cv2.line(canvas, (x0, y0), (x1, y1), 255, 1, cv2.LINE_AA, 4)


def specks(size: int, radius: float, rng: Generator) -> Image:
    """Small bright grains of calcium in the core of a nodule, (size, size)."""
    canvas = np.zeros((size, size), np.float32)
    count = int(10 + 0.012 * radius**2)
    r = radius * 0.68 * np.sqrt(rng.uniform(0, 1, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    xs = np.round((size - 1) / 2 + r * np.cos(angle)).astype(int)
    ys = np.round((size - 1) / 2 + r * np.sin(angle)).astype(int)
    canvas[ys, xs] = rng.uniform(0.7, 1.0, count)
    return band_pass(smooth(canvas, 0.8))


def bronchi(opacity: Image, rng: Generator) -> Image:
    """Dark branching tubes inside a consolidation of the given opacity, (h, w)."""
    h, w = opacity.shape
    canvas = np.zeros((h, w), np.uint8)
    heading = rng.uniform(0, 2 * np.pi)
    for offset in np.arange(-0.5, 0.51, 0.14):
        across = np.array([-np.sin(heading), np.cos(heading)]) * offset * max(h, w)
        start = np.array([w / 2, h / 2]) + across
        _branch(canvas, start, heading + rng.normal(0, 0.1), 0.55 * max(h, w), rng)
        _branch(canvas, start, heading + np.pi + rng.normal(0, 0.1), 0.55 * max(h, w), rng)
    inside = np.clip((opacity - 0.35) / 0.25, 0, 1)
    return -band_pass(canvas.astype(np.float32) / 255 * inside)


def _branch(
    canvas: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    start: Image,
    heading: float,
    length: float,
    rng: Generator,
) -> None:
    """A wavering line with side branches."""
    steps = 9
    turns = heading + np.cumsum(rng.normal(0, 0.10, steps))
    moves = np.stack([np.cos(turns), np.sin(turns)], axis=-1) * length / steps
    path = start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    cv2.polylines(canvas, [np.round(path * 16).astype(np.int32)], False, 255, 1, cv2.LINE_AA, 4)
    for at in range(1, steps, 2):
        angle = turns[at] + rng.choice((-1, 1)) * rng.uniform(0.5, 0.8)
        tip = path[at] + np.array([np.cos(angle), np.sin(angle)]) * length * 0.22
        ends = np.round(np.stack([path[at], tip]) * 16).astype(np.int32)
        cv2.polylines(canvas, [ends], False, 255, 1, cv2.LINE_AA, 4)


def swirls(opacity: Image, rng: Generator) -> Image:
    """Dark whorls of thin lines inside a bleeding of the given opacity, (h, w)."""
    h, w = opacity.shape
    canvas = np.zeros((h, w), np.uint8)
    for _ in range(3):
        centre = np.array([w, h]) * rng.uniform(0.2, 0.8, 2)
        for radius in np.arange(4, 0.34 * max(h, w), 4.0):
            start = rng.uniform(0, 360)
            _whorl(canvas, centre, radius, (start, start + rng.uniform(90, 160)))
    inside = np.clip((opacity - 0.35) / 0.4, 0, 1)
    return -band_pass(canvas.astype(np.float32) / 255 * inside)


def _whorl(
    canvas: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    centre: Points,
    radius: float,
    angles: tuple[float, float],
) -> None:
    """A piece of a circle; ``angles`` in degrees."""
    t = np.deg2rad(np.linspace(*angles, 16))
    path = centre + radius * np.stack([np.cos(t), np.sin(t)], axis=-1)
    cv2.polylines(canvas, [np.round(path * 16).astype(np.int32)], False, 255, 1, cv2.LINE_AA, 4)


def layers(opacity: Image, rng: Generator) -> Image:
    """Thin level lines in a fluid of the given opacity, (h, w), from its middle downwards."""
    h, w = opacity.shape
    canvas = np.zeros((h, w), np.float32)
    top = round(h * rng.uniform(0.42, 0.5))
    canvas[top : top + 60 : 4] = 1
    inside = np.clip((opacity - 0.35) / 0.4, 0, 1)
    return band_pass(canvas * inside)


def strands(size: tuple[int, int], outline: Points, rng: Generator) -> Image:
    """Thin strands that run outwards through a closed outline, (n, 2) pixels; (h, w)."""
    canvas = np.zeros(size, np.uint8)
    centre = outline.mean(axis=0)
    count = int(rng.integers(22, 29))
    starts = ((np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count * len(outline)).astype(int)
    for start in starts % len(outline):
        arm = outline[start] - centre
        bend = rng.normal(0, 0.05)
        turned = arm + bend * np.array([-arm[1], arm[0]])
        ends = np.stack(
            [centre + arm * rng.uniform(0.84, 0.96), centre + turned * rng.uniform(1.3, 1.5)]
        )
        cells = np.round(ends * 16).astype(np.int32)
        cv2.polylines(canvas, [cells], False, 255, 1, cv2.LINE_AA, 4)
    return band_pass(canvas.astype(np.float32) / np.float32(255))


def grains(size: tuple[int, int], outline: Points, rng: Generator) -> Image:
    """Small bright grains in the middle of a closed outline, (n, 2) pixels; (h, w)."""
    canvas = np.zeros(size, np.float32)
    centre = outline.mean(axis=0)
    count = int(rng.integers(16, 23))
    arms = outline[rng.integers(len(outline), size=count)] - centre
    at = np.round(centre + arms * 0.62 * np.sqrt(rng.uniform(0, 1, (count, 1)))).astype(int)
    at = np.clip(at, 0, np.array([size[1], size[0]]) - 1)
    canvas[at[:, 1], at[:, 0]] = rng.uniform(0.7, 1.0, count)
    return band_pass(smooth(canvas, 0.8))
