"""Phantoms with exact truth: chest radiographs, head CT slices, breast ultrasound images.

``generate(seed)`` draws one phantom; ``truth_for(seed)`` gives its truth without drawing.
Both are functions of the seed and the configuration alone, which also chooses the modality.
"""

from training.phantoms.config import FindingRequest, PhantomConfig
from training.phantoms.dataset import write_dataset
from training.phantoms.dicom import phantom_id, to_dicom, to_view8
from training.phantoms.phantom import (
    CHEST,
    MODALITIES,
    SECTIONS,
    AnyConfig,
    AnyTruth,
    Phantom,
    default_config,
    generate,
    labels_of,
    modality_of,
    truth_for,
    truth_from_json,
)
from training.phantoms.section import SectionConfig, SectionRequest, SectionTruth
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
    "CHEST",
    "FINDING_KINDS",
    "MASK_GRID",
    "MODALITIES",
    "SECTIONS",
    "SPLITS",
    "ZONES",
    "AnyConfig",
    "AnyTruth",
    "Box",
    "Finding",
    "FindingRequest",
    "Phantom",
    "PhantomConfig",
    "SectionConfig",
    "SectionRequest",
    "SectionTruth",
    "Structure",
    "Truth",
    "default_config",
    "generate",
    "labels_of",
    "modality_of",
    "phantom_id",
    "seed_for",
    "split_of",
    "to_dicom",
    "to_view8",
    "truth_for",
    "truth_from_json",
    "write_dataset",
]
