"""One phantom: its pixels and its truth, as functions of a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.phantoms.config import PhantomConfig
from training.phantoms.draw import draw
from training.phantoms.film import MAX_STORED
from training.phantoms.scene import plan
from training.phantoms.truth import Truth


@dataclass(frozen=True)
class Phantom:
    """One phantom.

    Attributes:
        pixels: stored values, uint16 (rows, columns) in [0, 4095]; bright means little
            attenuation where ``truth.photometric`` is ``MONOCHROME1``.
        truth: what was drawn.
    """

    pixels: NDArray[np.uint16]
    truth: Truth


def generate(seed: int, config: PhantomConfig | None = None) -> Phantom:
    """Draw the phantom of a seed.

    Raises:
        ValueError: a negative seed, or findings that fit into no patient at once.
    """
    scene, truth = plan(seed, config or PhantomConfig())
    pixels = draw(scene, seed)
    if truth.photometric == "MONOCHROME1":
        pixels = (MAX_STORED - pixels).astype(np.uint16)
    return Phantom(pixels, truth)


def truth_for(seed: int, config: PhantomConfig | None = None) -> Truth:
    """Truth of the phantom that :func:`generate` draws, at a fraction of the cost."""
    return plan(seed, config or PhantomConfig())[1]
