"""From a planned head to Hounsfield units.

Everything but noise and fine signs is drawn on the grid of ``STEP``. Densities are those of the
textbooks: fluid 6, white matter 28, grey matter 37, fresh blood 54 to 60 HU.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms import detail
from training.phantoms.anatomy import Generator, Image, Points, smooth_curve
from training.phantoms.canvas import Canvas, falloff, resize, smooth
from training.phantoms.head_ct.anatomy import Head, deep_grey, midline, ventricles
from training.phantoms.head_ct.findings import Bleeding, Scene
from training.phantoms.head_ct.words import FLUID_LEVEL, GANGLIA, SEMIOVALE
from training.phantoms.section import at_native, window_px

AIR: Final = -1000.0
FLUID: Final = 6.0
WHITE: Final = 28.0
GREY: Final = 37.0
_LOOK_STREAM: Final = 11_000_003
_SIGN_GAIN: Final = 26.0
"""HU of a line of full strength before its low frequencies are taken out."""


def draw(scene: Scene, seed: int) -> NDArray[np.int16]:
    """Hounsfield units of a scene, int16 (rows, columns)."""
    rng = np.random.default_rng((seed, _LOOK_STREAM))
    head = scene.head
    image = _outside(head, rng)
    brain = _brain(scene, rng)
    inside = falloff(-head.depth_mm, 0.18)
    image += inside * (brain - image)
    native = resize(image, head.frame.shape)
    for bleeding in scene.bleedings:
        _add_sign(native, bleeding)
    _add_noise(native, rng)
    return np.rint(np.clip(native, -1024, 3000)).astype(np.int16)


def _outside(head: Head, rng: Generator) -> Image:
    """Air, scalp and skull, everywhere."""
    a, b = _patient_grid(head)
    bone_mm = head.skull_mm * (1 + 0.18 * abs(b) ** 3) + 1.5 * np.exp(-((a / np.float32(0.3)) ** 2))
    temple = np.exp(
        -(((abs(a) - 0.9) / np.float32(0.3)) ** 2) - ((b + 0.3) / np.float32(0.35)) ** 2
    )
    scalp_mm = head.scalp_mm + (5.0 * temple if head.level == GANGLIA else 0.0)
    height = -head.depth_mm
    image = np.full(height.shape, AIR, np.float32)

    def layer(start: Image | float, end: Image | float, density: Image | float) -> None:
        weight = falloff(start - height, 0.2) * falloff(height - end, 0.2)
        image[:] += weight * (density - image)

    skin = bone_mm + scalp_mm
    layer(-1.0, skin, -70 + 90 * temple)
    layer(bone_mm - 0.5, bone_mm + 1.5, 30.0)
    layer(skin - 1.6, skin, 45.0)
    diploe = 550 + 160 * smooth(rng.standard_normal(height.shape, np.float32), 2.0) * 7
    layer(-1.0, bone_mm, 1250.0)
    layer(1.6, bone_mm - 1.8, diploe)
    if head.level == GANGLIA and rng.random() < 0.6:
        _frontal_sinus(image, a, height, bone_mm, rng)
    return image


def _frontal_sinus(image: Image, a: Image, height: Image, bone_mm: Image, rng: Generator) -> None:
    """Two pockets of air in the frontal bone, in place."""
    for sign in (-1, 1):
        along = (a - sign * rng.uniform(0.10, 0.14)) / rng.uniform(0.08, 0.11)
        across = (height - 0.5 * bone_mm) / (0.30 * bone_mm)
        air = falloff(np.hypot(along, across) - 1, 0.08)
        air[len(air) // 3 :] = 0
        image += air * (AIR - image)


def _brain(scene: Scene, rng: Generator) -> Image:
    """Everything within the skull."""
    head = scene.head
    fluid, grey = _surface(scene, rng)
    deep = smooth(ventricles(head), 0.8)
    np.maximum(grey, smooth(deep_grey(head), 1.2), out=grey)
    grey *= 1 - smooth(deep, 0.8)
    brain = WHITE + (GREY - WHITE) * grey + _mottle(head.inside.shape, rng)
    for bleeding in scene.bleedings:
        if bleeding.oedema_mm:
            _add_oedema(brain, bleeding, head, rng)
    brain += np.maximum(fluid, deep) * (FLUID - brain)
    _add_dura(brain, head)
    _add_calcifications(brain, head, rng)
    for bleeding in scene.bleedings:
        clot = bleeding.density + 1.6 * _mottle(head.inside.shape, rng)
        brain += smooth(bleeding.blood, 0.9) * (clot - brain)
    # the skull hardens the beam, which brightens what lies next to it
    brain += 4 * np.exp(-np.clip(head.depth_mm, 0, 60) / np.float32(4.0))
    return np.asarray(brain, dtype=np.float32)


def _surface(scene: Scene, rng: Generator) -> tuple[Image, Image]:
    """Fluid between the gyri, and the cortex, on the grid of ``STEP``."""
    head = scene.head
    fluid, cortex = Canvas.empty(head.frame), Canvas.empty(head.frame)
    for path, width_mm in (*_sulci(head, rng), *_fissures(head, rng)):
        px = head.frame.to_px(head.moved(path))
        fluid.stroke_px(px, head.cells(width_mm))
        cortex.stroke_px(px, head.cells(width_mm + 6.4))
    blood = np.zeros_like(head.inside)
    for bleeding in scene.bleedings:
        if not bleeding.oedema_mm:
            np.maximum(blood, bleeding.blood, out=blood)
    radius = round(head.cells(3.4))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    grey = np.maximum(cortex.ink(), falloff(head.depth_mm - head.rim_mm - 3.2, 0.3))
    grey = smooth(np.maximum(grey, cv2.dilate(blood, kernel)), 0.9)
    wet = np.maximum(fluid.ink(0.8), falloff(head.depth_mm - head.rim_mm, 0.25))
    return wet, grey


def _sulci(head: Head, rng: Generator) -> list[tuple[Points, float]]:
    """Wavering furrows from the surface inwards, with their widths in mm."""
    paths = []
    count = int(rng.integers(24, 31))
    shallow = 1.0 if head.level == SEMIOVALE else 0.8
    for k in range(count):
        turn = (k + rng.uniform(-0.3, 0.3)) / count
        start = head.outline[int(turn * len(head.outline)) % len(head.outline)]
        inward = -start / np.linalg.norm(start) * shallow * rng.uniform(0.16, 0.34)
        paths.append((_wavering(start, inward, rng), head.sulcus_mm * rng.uniform(0.7, 1.2)))
        if rng.random() < 0.5:
            # a gyrus between two furrows ends in a bend along the surface
            tip = paths[-1][0][-4]
            side = np.array([-inward[1], inward[0]]) * rng.choice((-1, 1)) * 0.5
            paths.append((_wavering(tip, side, rng), head.sulcus_mm * 0.7))
    for b in np.arange(-0.85, 0.95, 0.15):
        if head.level != SEMIOVALE and -0.48 < b < 0.6:
            continue
        for sign in (-1, 1):
            start = np.array([sign * 0.01, b + rng.uniform(-0.06, 0.06)])
            inward = np.array([sign * rng.uniform(0.06, 0.24), rng.uniform(-0.12, 0.12)])
            paths.append((_wavering(start, inward, rng), head.sulcus_mm * rng.uniform(0.5, 0.9)))
    return paths


def _wavering(start: Points, along: Points, rng: Generator) -> Points:
    """A path from a point along a vector, swinging to both sides."""
    u = np.linspace(0, 1, 7)[:, None]
    across = np.array([-along[1], along[0]])
    swing = rng.normal(0, 0.13, (7, 1)).cumsum(axis=0) * u
    return smooth_curve(start + u * along + swing * across, closed=False, per_segment=5)


def _fissures(head: Head, rng: Generator) -> list[tuple[Points, float]]:
    """The gaps between the hemispheres and, low down, above the temporal lobes."""
    falx = [(-0.99, 0.99)] if head.level == SEMIOVALE else [(-0.99, -0.46), (0.62, 0.99)]
    paths = []
    for start, end in falx:
        b = np.linspace(start, end, 15)
        paths.append((np.stack([np.zeros_like(b), b], axis=-1), 1.6 + 0.6 * head.sulcus_mm))
    if head.level == GANGLIA:
        for sign in (-1, 1):
            width = head.sulcus_mm + rng.uniform(0.4, 1.4)
            stem = [(0.98, -0.34), (0.80, -0.22), (0.64, -0.14), (0.58, -0.02)]
            insula = [(0.60, -0.30), (0.57, -0.14), (0.59, 0.02), (0.66, 0.18), (0.70, 0.28)]
            for points in (stem, insula):
                curve = smooth_curve(np.array(points) + rng.normal(0, 0.012, (1, 2)), closed=False)
                paths.append((curve * (sign, 1), width))
        cistern = np.array([(-0.16, 0.30), (-0.08, 0.33), (0, 0.31), (0.08, 0.33), (0.16, 0.30)])
        paths.append((smooth_curve(cistern, closed=False), 2.4))
    return paths


def _add_dura(brain: Image, head: Head) -> None:
    """The falx and the sinus at its back, in place."""
    canvas = Canvas.empty(head.frame)
    line = midline(head)
    if head.level == SEMIOVALE:
        canvas.stroke(line, head.cells(0.8))
    else:
        canvas.stroke(line[:11], head.cells(0.8))
        canvas.stroke(line[34:], head.cells(0.8))
    brain += canvas.ink(0.6) * (48 - brain)
    sinus = head.fill(np.array([(0.0, 0.90), (-0.055, 1.0), (0.055, 1.0)]))
    brain += smooth(sinus, 0.8) * (50 - brain)


def _add_calcifications(brain: Image, head: Head, rng: Generator) -> None:
    """Pineal gland and choroid plexus, as most adults have them, in place."""
    if head.level != GANGLIA:
        return
    spots = [(0.0, 0.27, 0.8), (-0.33, 0.44, 1.2), (0.33, 0.44, 1.2)]
    for (a, b, radius_mm), shown in zip(spots, rng.random(3) < 0.7, strict=True):
        if shown:
            t = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            centre = head.frame.to_px(head.moved(np.array([a, b])))
            ring = centre + np.stack([np.cos(t), np.sin(t)], -1) * radius_mm / head.spacing
            canvas = Canvas.empty(head.frame)
            canvas.stroke_px(ring, head.cells(radius_mm))
            brain += canvas.ink(0.8) * (130 - brain)


def _add_oedema(brain: Image, bleeding: Bleeding, head: Head, rng: Generator) -> None:
    """A dark uneven rim around a bleeding, in place."""
    outside = (bleeding.blood < 0.5).astype(np.uint8)
    away = cv2.distanceTransform(outside, cv2.DIST_L2, 5)
    width = head.cells(bleeding.oedema_mm)
    uneven = 1 + 4 * smooth(rng.standard_normal(brain.shape, np.float32), 7.0)
    rim = falloff(away - width * uneven, 1.2)
    brain += rim * (18 - brain)


def _mottle(shape: tuple[int, ...], rng: Generator) -> Image:
    """Slow irregularity of about 1 HU."""
    return smooth(rng.standard_normal(shape, np.float32), 5.0) * np.float32(14.0)


def _add_sign(image: Image, bleeding: Bleeding) -> None:
    """A swirl or a fluid level, or a faint decoy of it, in place."""
    window = window_px(bleeding.focus, (image.shape[0], image.shape[1]))
    blood = at_native(bleeding.blood, window)
    rng = np.random.default_rng((bleeding.seed, 0))
    paint = detail.layers if bleeding.sign == FLUID_LEVEL else detail.swirls
    texture = paint(blood, rng)
    if not bleeding.present:
        texture = detail.DECOY_SHARE * detail.decoy(texture, rng, 5.0)
    image[window] += np.float32(_SIGN_GAIN) * texture


def _add_noise(image: Image, rng: Generator) -> None:
    """Quantum noise with the grain of a soft kernel, in place."""
    strength = np.float32(rng.uniform(1.6, 2.4))
    coarse = smooth(
        rng.standard_normal((image.shape[0] // 2, image.shape[1] // 2), np.float32), 0.8
    )
    image += resize(coarse * (strength / coarse.std()), image.shape)
    image += rng.standard_normal(image.shape, np.float32) * np.float32(0.5)


def _patient_grid(head: Head) -> tuple[Image, Image]:
    """Patient coordinates (a, b) of the cells' centres on the grid of ``STEP``."""
    h, w = head.inside.shape
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32) * 2 + 1
    inverse = np.linalg.inv(head.frame.matrix).astype(np.float32)
    dx, dy = xs - np.float32(head.frame.origin[0]), ys - np.float32(head.frame.origin[1])
    return inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy
