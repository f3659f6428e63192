"""What every stage of the training draws from: phantoms and real radiographs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from training.language import Asked
from training.loop import Report
from training.phantoms import CHEST
from training.phantoms.label_names import CHEST_LABELS, LabelNames
from training.real_images import RealRadiograph, load_radiographs
from training.world import Case, WorldConfig, load_world


@dataclass(frozen=True, slots=True)
class Materials:
    """What every stage draws from.

    Attributes:
        labels: what is labelled in the pictures of the phantoms.
        own_train, own_validation: questions about images of one's own (`training.own_records`).
    """

    train: list[Case]
    validation: list[Case]
    real_train: list[RealRadiograph]
    real_validation: list[RealRadiograph]
    labels: LabelNames = CHEST_LABELS
    own_train: list[Asked] = field(default_factory=list)
    own_validation: list[Asked] = field(default_factory=list)


def load_materials(
    folder: Path,
    train: WorldConfig,
    validation: WorldConfig,
    real: Path | None,
    report: Report,
) -> Materials:
    """Phantoms (built once, then read) and, where they are at hand, real radiographs.

    Raises:
        ValueError: training and validation have phantoms of other modalities.
    """
    labels = train.modalities.labels
    if validation.modalities.labels.modalities != labels.modalities:
        raise ValueError("Training and validation phantoms must be of the same modalities.")
    if real is not None and CHEST not in labels.modalities:
        report("The real radiographs are of chests, which no phantom shows: they are left out.")
        real = None
    if real is not None and not real.is_dir():
        report("The real radiographs are not there: training goes on with phantoms alone.")
        real = None
    return Materials(
        load_world(folder, train, report),
        load_world(folder, validation, report),
        load_radiographs(real, "train") if real else [],
        load_radiographs(real, "validation") if real else [],
        labels,
    )
