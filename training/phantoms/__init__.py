"""Chest-radiograph phantoms with exact truth.

``generate(seed)`` draws one phantom; ``truth_for(seed)`` gives its truth without drawing.
Both are functions of the seed and the configuration alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.phantoms.config import FindingRequest, PhantomConfig
from training.phantoms.dicom import phantom_id, to_dicom, to_view8, write_dataset
from training.phantoms.draw import MAX_STORED, draw
from training.phantoms.scene import plan
from training.phantoms.truth import (
    FINDING_KINDS,
    MASK_GRID,
    SPLITS,
    ZONES,
    Box,
    Finding,
    Structure,
    Truth,
    seed_for,
    split_of,
)

__all__ = [
    "FINDING_KINDS",
    "MASK_GRID",
    "SPLITS",
    "ZONES",
    "Box",
    "Finding",
    "FindingRequest",
    "Phantom",
    "PhantomConfig",
    "Structure",
    "Truth",
    "generate",
    "phantom_id",
    "seed_for",
    "split_of",
    "to_dicom",
    "to_view8",
    "truth_for",
    "write_dataset",
]


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
