"""From a planned breast to the grey levels of an ultrasound image.

Echo amplitudes are Rayleigh distributed (speckle), multiplied by what the tissue returns and
by what lies above lets through; their logarithm becomes grey. Fine signs are added afterwards, as
in `training.phantoms.draw`.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms import detail
from training.phantoms.anatomy import Generator, Image
from training.phantoms.breast_ultrasound.anatomy import SKIN, Breast, beam_noise, ligaments
from training.phantoms.breast_ultrasound.findings import Mass, Scene
from training.phantoms.breast_ultrasound.words import BENIGN, CYST, MALIGNANT
from training.phantoms.canvas import falloff, resize, smooth
from training.phantoms.section import STEP, window_px

_LOOK_STREAM: Final = 13_000_003
# Mean echo of each tissue in decibels under that of the brightest.
_FAT, _GLAND, _MUSCLE, _DEEP = -25.0, -12.0, -24.0, -37.0
_ECHO: Final = {CYST: -70.0, BENIGN: -36.0, MALIGNANT: -37.0}
_BEHIND: Final = {CYST: 8.0, BENIGN: 6.0, MALIGNANT: -15.0}
_FLOOR: Final = -45.0
_SPICULE_GAIN: Final = 110.0
_SPECK_GAIN: Final = 900.0
"""Grey levels of a line or grain of full strength before its low frequencies are taken out."""


def draw(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """Grey levels of a scene, uint8 (rows, columns)."""
    rng = np.random.default_rng((seed, _LOOK_STREAM))
    breast = scene.breast
    echo = breast.field.bent(_tissue(breast, rng))
    for mass in scene.masses:
        _add_mass(echo, breast, mass, rng)
    echo += breast.field.bent(_speckle(echo.shape, rng))
    grey = smooth(_compressed(echo, rng), 0.8)
    native = resize(grey, breast.field.shape, cv2.INTER_CUBIC)
    for mass in scene.masses:
        _add_signs(native, mass)
    native += rng.standard_normal(native.shape, np.float32) * np.float32(1.2)
    native *= resize(breast.field.seen, breast.field.shape)
    return np.rint(np.clip(native, 0, 255)).astype(np.uint8)


def _tissue(breast: Breast, rng: Generator) -> Image:
    """Mean echoes in decibels in the frame of the beams."""
    shape = breast.field.u.shape
    fat, gland, muscle = (breast.below(name) for name in ("fat", "gland", "muscle"))
    lobules = beam_noise(rng, shape, 11.0, 7.0)
    echo = np.full(shape, _FAT, np.float32) + 1.5 * beam_noise(rng, shape, 16.0, 9.0)
    echo += 11 * ligaments(rng, breast) * falloff(fat, 0.004)
    glandular = _GLAND + 3.2 * lobules + 1.8 * beam_noise(rng, shape, 5.0, 2.5)
    fibres = beam_noise(rng, shape, 26.0, 1.3)
    striated = _MUSCLE + 4.5 * fibres
    for below, layer in ((fat, glandular), (gland, striated), (muscle, _DEEP)):
        echo += falloff(-below, 0.004) * (layer - echo)
    for below, bright in ((gland, 9.0), (muscle, 17.0)):
        echo += bright * np.exp(-((below / np.float32(0.0045)) ** 2))
    z = (np.arange(shape[0], dtype=np.float32)[:, None] + 0.5) / shape[0]
    skin = falloff(z - SKIN, 0.002)
    echo += skin * (-16 - echo)
    for depth, bright in ((0.004, 12.0), (SKIN, 10.0)):
        echo += bright * np.exp(-(((z - depth) / np.float32(0.004)) ** 2))
    echo += -rng.uniform(1, 5) * z + 1.2 * beam_noise(rng, (shape[0], 1), 1.0, 40.0)
    echo += beam_noise(rng, (1, shape[1]), 14.0, 1.0)
    return echo


def _add_mass(echo: Image, breast: Breast, mass: Mass, rng: Generator) -> None:
    """A mass, its wall and what it does to the beams behind it, in place."""
    outside = cv2.distanceTransform((mass.cover < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    within = cv2.distanceTransform((mass.cover >= 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    away = (outside - within).astype(np.float32)
    cell = (int(mass.centre[1] / STEP), int(mass.centre[0] / STEP))
    u, z = breast.field.u, breast.field.z
    rows, cols = breast.field.shape
    fan = abs(float(u[cell[0], cell[1] + 8] - u[cell[0], cell[1] - 8])) / (16 * STEP / cols)
    half = mass.half[0] / cols * fan
    beams = falloff(abs(u - u[cell]) - 0.86 * half, 0.10 * half)
    start = z[cell] + 0.7 * mass.half[1] / rows
    behind = falloff(start - z, 0.012) * np.exp(-np.clip(z - start, 0, 1) * np.float32(1.1))
    echo += _BEHIND[mass.kind] * rng.uniform(0.85, 1.15) * beams * behind
    softness = {CYST: 0.9, BENIGN: 1.0, MALIGNANT: 1.2}[mass.kind]
    if mass.kind == MALIGNANT:
        echo += 7.0 * np.exp(-(((away - 6) / np.float32(6.0)) ** 2))
    inner = _ECHO[mass.kind] + 1.2 * beam_noise(rng, echo.shape, 5.0, 3.5)
    echo += falloff(away, softness) * (inner - echo)
    if mass.kind != MALIGNANT:
        wall = 9.0 if mass.kind == CYST else 6.0
        echo += wall * np.exp(-(((away - 1.2) / np.float32(1.2)) ** 2))


def _speckle(shape: tuple[int, ...], rng: Generator) -> Image:
    """Rayleigh amplitudes in decibels in the frame of the beams, 0 in the mean square."""
    real, imaginary = (beam_noise(rng, shape, 2.1, 1.1) for _ in range(2))
    power = (real * real + imaginary * imaginary) / 2
    return np.asarray(10 * np.log10(power + np.float32(1e-6)), dtype=np.float32)


def _compressed(echo: Image, rng: Generator) -> Image:
    """Grey levels of echoes in decibels; the noise of the machine keeps black from being empty."""
    dynamic, gain = rng.uniform(56, 64), rng.uniform(-1.5, 2.5)
    power = np.power(np.float32(10), echo / np.float32(10)) + np.float32(10 ** (_FLOOR / 10))
    levels = np.float32(10) * np.log10(power) + np.float32(dynamic - 13 + gain)
    return np.asarray(levels * np.float32(255 / dynamic), dtype=np.float32)


def _add_signs(image: Image, mass: Mass) -> None:
    """Spicules and microcalcifications, each as it is or as a faint decoy, in place."""
    if mass.kind == CYST:
        return
    window = window_px(mass.focus, (image.shape[0], image.shape[1]))
    rows, cols = window
    corner = np.array([cols.start, rows.start])
    size = (rows.stop - rows.start, cols.stop - cols.start)
    inner = mass.outline - corner
    total = np.zeros(size, np.float32)
    if mass.kind == MALIGNANT:
        rng = np.random.default_rng((mass.seed, 0))
        texture = detail.strands(size, inner, rng)
        if not mass.spiculated:
            texture = detail.DECOY_SHARE * detail.decoy(texture, rng)
        total += np.float32(_SPICULE_GAIN) * texture
    rng = np.random.default_rng((mass.seed, 1))
    texture = detail.grains(size, inner, rng)
    if not mass.calcified:
        texture = detail.DECOY_SHARE * detail.decoy(texture, rng)
    total += np.float32(_SPECK_GAIN) * texture
    image[window] += total
