"""Body, heart, abdomen and the air of the lungs, on the coarse grid."""

from __future__ import annotations

import numpy as np

from training.phantoms.anatomy import Generator, Image, fill
from training.phantoms.canvas import falloff, smooth
from training.phantoms.film import Exposure
from training.phantoms.findings import Scene
from training.phantoms.truth import LEFT, RIGHT


def lung_air(scene: Scene) -> Image:
    """How much air lies in the beam, (h, w), 0 outside of the lungs and about 1 inside."""
    anatomy, layers = scene.anatomy, scene.layers
    open_lung = np.maximum(
        fill(anatomy.frame, anatomy.lungs[RIGHT]), fill(anatomy.frame, anatomy.lungs[LEFT])
    )
    air = smooth(open_lung, 1.2) * (0.62 + 0.42 * smooth(open_lung, 9.0))
    air *= 1 - 0.86 * smooth(anatomy.masks["heart"], 1.5)
    air *= 1 - 0.90 * smooth(anatomy.masks["mediastinum"], 1.5)
    for pleural in layers.pleural_air:
        air *= 1 + 0.22 * smooth(pleural, 0.7)
    for patch in layers.patches:
        air *= 1 - 0.72 * smooth(patch.opacity, 0.8)
    for fluid in layers.fluid:
        air *= 1 - 0.93 * smooth(fluid, 1.0)
    return air


def soft_tissue(scene: Scene, look: Exposure, air: Image, rng: Generator) -> Image:
    """Attenuation of everything soft, (h, w); 0 is free air, about 0.8 the densest part."""
    anatomy = scene.anatomy
    a, b = anatomy.frame.coarse_patient_grid()
    torso = anatomy.masks["torso"]
    thickness = smooth(torso, 1.0) * (0.35 + 0.65 * smooth(torso, 10.0))
    soft = 0.03 + 0.60 * thickness
    soft += 0.10 * thickness * falloff(0.95 - b, 0.06)
    soft += (0.07 + 0.05 * rng.random()) * np.exp(-((a / np.float32(0.22)) ** 2)) * thickness
    soft += 0.05 * smooth(anatomy.masks["heart"], 1.5)
    soft += _breasts(a, b, rng) * torso
    soft += _mottle(torso.shape, rng) * thickness
    soft += rng.normal(0, 0.03) * a + rng.normal(0, 0.02) * (b - 0.5)
    soft -= _stomach_bubble(a, b, rng) * (1 - smooth(anatomy.masks["heart"], 1.0))
    return (soft - look.lung * air).astype(np.float32)


def _mottle(shape: tuple[int, ...], rng: Generator) -> Image:
    """Slow irregularity of soft tissue on two scales."""
    wide = smooth(rng.standard_normal(shape, np.float32), 12.0)
    narrow = smooth(rng.standard_normal(shape, np.float32), 2.0)
    return 0.55 * wide + 0.06 * narrow


def _breasts(a: Image, b: Image, rng: Generator) -> Image:
    """Soft shadows over the lower lungs, or none."""
    total = np.zeros_like(a)
    if rng.random() < 0.5:
        return total
    strength, centre = rng.uniform(0.04, 0.11), rng.uniform(0.60, 0.75)
    for sign in (-1, 1):
        total += falloff(np.hypot((a - sign * 0.68) / 0.46, (b - centre) / 0.26) - 1, 0.06)
    return strength * total


def _stomach_bubble(a: Image, b: Image, rng: Generator) -> Image:
    """Gas under the left dome, or none."""
    if rng.random() < 0.55:
        return np.zeros_like(a)
    x, y = rng.uniform(0.42, 0.6), rng.uniform(1.03, 1.08)
    distance = np.hypot((a - x) / rng.uniform(0.12, 0.22), (b - y) / rng.uniform(0.04, 0.07))
    return 0.16 * falloff(distance - 1, 0.12)
