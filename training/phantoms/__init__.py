"""Chest-radiograph phantoms with exact truth.

``generate(seed)`` draws one phantom; ``truth_for(seed)`` gives its truth without drawing.
Both are functions of the seed and the configuration alone.
"""

from training.phantoms.config import FindingRequest, PhantomConfig
from training.phantoms.dataset import write_dataset
from training.phantoms.dicom import phantom_id, to_dicom, to_view8
from training.phantoms.phantom import Phantom, generate, truth_for
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
