"""What phantoms of a modality can show, in words: the names of everything that is labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from training.phantoms.truth import (
    CONSOLIDATION,
    EFFUSION,
    EFFUSION_GRADES,
    HEART_SIZES,
    LINE,
    MARGINS,
    NODULE,
    PNEUMOTHORAX,
    SIDES,
    TIP_LEVELS,
    TUBE,
    ZONES,
)


@dataclass(frozen=True)
class LabelNames:
    """Names of what the phantoms of one modality, or of several together, can show.

    Attributes:
        modalities: which; keys of `training.phantoms.SECTIONS`, or ``chest``.
        structures: of the anatomy, whose coverage is labelled.
        boxed: structures whose boxes are labelled, too.
        findings: kinds whose coverage and boxes are labelled.
        attributes: values of each attribute of findings and of the whole image.
        fine: attributes that only a close look tells.
        cored: fine attributes that show in the middle of their focus alone.
        carriers: attributes of the whole image, each with the structure that carries its label.
        counted: kinds of findings, each with a side, whose number there is labelled.
        gathered: coarse families that are read off the image as a whole: those that no single
            place answers, and those of the last finding.
        places: kinds of findings, each with a side or zone in which it may lie; the two sides of
            the first three kinds come first.
    """

    modalities: tuple[str, ...]
    structures: tuple[str, ...]
    boxed: tuple[str, ...]
    findings: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    fine: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    cored: tuple[str, ...] = ()
    carriers: dict[str, str] = field(default_factory=dict)
    counted: tuple[tuple[str, str], ...] = ()
    gathered: tuple[str, ...] = ()

    @property
    def covers(self) -> tuple[str, ...]:
        """Everything whose coverage is labelled: structures, then findings."""
        return self.structures + self.findings

    @property
    def box_groups(self) -> tuple[str, ...]:
        """Boxes that a token can belong to: a group for each boxed structure, and any finding."""
        return (*self.boxed, "finding")


def joined(names: Sequence[LabelNames]) -> LabelNames:
    """The names of several modalities together, in their order; names must not clash."""
    if len(names) == 1:
        return names[0]
    return LabelNames(
        modalities=tuple(name for one in names for name in one.modalities),
        structures=tuple(name for one in names for name in one.structures),
        boxed=tuple(name for one in names for name in one.boxed),
        findings=tuple(name for one in names for name in one.findings),
        attributes={name: values for one in names for name, values in one.attributes.items()},
        fine=tuple(name for one in names for name in one.fine),
        places=tuple(place for one in names for place in one.places),
        cored=tuple(name for one in names for name in one.cored),
        carriers={name: place for one in names for name, place in one.carriers.items()},
        counted=tuple(place for one in names for place in one.counted),
        gathered=tuple(family for one in names for family in one.gathered),
    )


CHEST_LABELS: Final = LabelNames(
    modalities=("chest",),
    structures=("right_lung", "left_lung", "heart", "mediastinum"),
    boxed=("right_lung", "left_lung", "heart"),
    findings=(NODULE, CONSOLIDATION, EFFUSION, PNEUMOTHORAX, TUBE, LINE),
    attributes={
        "margin": MARGINS,
        "calcification": ("not calcified", "calcified"),
        "air bronchogram": ("no", "yes"),
        "grade": EFFUSION_GRADES,
        "heart size": HEART_SIZES,
        "tip": TIP_LEVELS,
    },
    fine=("margin", "calcification", "air bronchogram"),
    places=(
        *(
            (kind, side)
            for kind in (NODULE, CONSOLIDATION, EFFUSION, PNEUMOTHORAX, LINE)
            for side in SIDES
        ),
        *((kind, zone) for kind in (NODULE, CONSOLIDATION) for zone in ZONES),
    ),
    cored=("calcification",),
    carriers={"heart size": "heart"},
    counted=tuple((NODULE, side) for side in SIDES),
    gathered=("nodule_count", "larger_nodule", "more_nodules", "line_present", "line_side"),
)
