"""From a placed scene to 12-bit pixels.

Soft structures are drawn on the coarse grid (4 native pixels a cell), bones, vessels and tubes on
a grid of 2, noise and fine texture at native resolution. Brightness stands for attenuation: air is
dark, bone and fluid are bright. Fine texture is added after the tone curve, because a curve
would turn its zero mean into a shift that the small view could see.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms import film, lesions
from training.phantoms.anatomy import Generator, Image
from training.phantoms.canvas import resize, smooth
from training.phantoms.film import Exposure
from training.phantoms.findings import Scene
from training.phantoms.skeleton import bones
from training.phantoms.soft_tissue import lung_air, soft_tissue
from training.phantoms.vessels import airways, vessels

_LOOK_STREAM = 1_000_003


def draw(scene: Scene, seed: int) -> NDArray[np.uint16]:
    """Render a scene as MONOCHROME2, uint16 (rows, columns) in [0, 4095]."""
    rng = np.random.default_rng((seed, _LOOK_STREAM))
    look = film.sample_exposure(rng)
    image = _attenuation(scene, look, rng)
    for nodule in scene.layers.nodules:
        lesions.add_nodule(image, nodule, look)
    film.apply_tone(image, look)
    for nodule in scene.layers.nodules:
        lesions.add_nodule_texture(image, nodule, look)
    for patch in scene.layers.patches:
        lesions.add_patch_texture(image, patch, look)
    film.add_noise(image, look, rng)
    film.collimate(image, look, rng)
    if look.marker:
        film.mark_side(image, rng)
    return film.quantise(image)


def _attenuation(scene: Scene, look: Exposure, rng: Generator) -> Image:
    """Everything but nodules and texture, at native resolution."""
    air = lung_air(scene)
    soft = soft_tissue(scene, look, air, rng)
    thin = bones(scene, look, air, rng) + vessels(scene, look, air, rng)
    thin += airways(scene) + lesions.devices(scene) + lesions.pleural_lines(scene)
    thin = smooth(thin, 0.8)
    return resize(resize(soft, thin.shape, cv2.INTER_CUBIC) + thin, scene.anatomy.frame.shape)
