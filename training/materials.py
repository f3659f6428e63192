"""What every stage of the training draws from: phantoms and real radiographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.loop import Report
from training.real_images import RealRadiograph, load_radiographs
from training.world import Case, WorldConfig, load_world


@dataclass(frozen=True, slots=True)
class Materials:
    """What every stage draws from."""

    train: list[Case]
    validation: list[Case]
    real_train: list[RealRadiograph]
    real_validation: list[RealRadiograph]


def load_materials(
    folder: Path,
    train: WorldConfig,
    validation: WorldConfig,
    real: Path | None,
    report: Report,
) -> Materials:
    """Phantoms (built once, then read) and, where they are at hand, real radiographs."""
    if real is not None and not real.is_dir():
        report("The real radiographs are not there: training goes on with phantoms alone.")
        real = None
    return Materials(
        load_world(folder, train, report),
        load_world(folder, validation, report),
        load_radiographs(real, "train") if real else [],
        load_radiographs(real, "validation") if real else [],
    )
