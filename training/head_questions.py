"""Question families about head CT slices."""

from __future__ import annotations

from typing import Final

from training.phantoms import SectionConfig, SectionRequest, SectionTruth
from training.phantoms.head_ct.words import (
    BLEED_SIZES,
    EPIDURAL,
    FLUID_LEVEL,
    INTRAPARENCHYMAL,
    KINDS,
    NO_SHIFT,
    SHIFT,
    SHIFT_SIDE,
    SHIFTS,
    SIZE,
    SLICE_LEVEL,
    SLICE_LEVELS,
    STUDY,
    SUBDURAL,
    SWIRL,
    THICKNESS,
    THICKNESSES,
    ZONES,
)
from training.phantoms.truth import SIDES
from training.question_forms import COARSE, NO, YES, Family, Generator, Item, side_item
from training.section_questions import (
    Subject,
    body_part,
    modality,
    trait,
    which,
)

_BRAIN: Final = "The brain is searched for blood."
_SKULL: Final = "The border between skull and brain is searched."
_WHERE: Final = "on the {} side"

_CLOT: Final = Subject(STUDY, (INTRAPARENCHYMAL,), INTRAPARENCHYMAL, SIDES, _WHERE, _BRAIN)
_SUBDURAL: Final = Subject(STUDY, (SUBDURAL,), SUBDURAL, SIDES, _WHERE, _SKULL)
_EPIDURAL: Final = Subject(STUDY, (EPIDURAL,), EPIDURAL, SIDES, _WHERE, _SKULL)

_SHAPES: Final = {SUBDURAL: "crescent", EPIDURAL: "biconvex"}
_SWIRL_TEXTS: Final = ("Is there a swirl sign in {name}?", "Does {name} show a swirl sign?")
_SWIRL_AFTER: Final = {YES: "There is a swirl sign.", NO: "There is no swirl sign."}


def _hemisphere(truth: SectionTruth) -> list[Item]:
    return [
        side_item("hemisphere", side, truth.anatomy[f"{side}_hemisphere"].box) for side in SIDES
    ]


def _order_hemisphere(answer: str, rng: Generator) -> SectionConfig:
    del answer, rng
    return SectionConfig(STUDY)


def _shape(truth: SectionTruth) -> list[Item]:
    found = [f for f in truth.findings if f.kind in _SHAPES]
    if len(found) != 1:
        return []
    shape = _SHAPES[found[0].kind]
    return [
        Item(
            (
                "Which shape does the blood under the skull have?",
                "What is the shape of the blood next to the skull?",
            ),
            tuple(_SHAPES.values()),
            shape,
            (found[0].box,),
            f"There is blood next to the skull on the {found[0].side} side.",
            f"Its shape is {shape}.",
        )
    ]


def _order_shape(answer: str, rng: Generator) -> SectionConfig:
    del rng
    kind = next(kind for kind, shape in _SHAPES.items() if shape == answer)
    return SectionConfig(STUDY, (SectionRequest(kind),), tuple(_SHAPES))


def _shift(truth: SectionTruth) -> list[Item]:
    shift = truth.traits[SHIFT]
    after = "There is no midline shift." if shift == NO_SHIFT else f"The midline shift is {shift}."
    return [
        Item(
            ("How large is the midline shift?", "Grade the midline shift."),
            SHIFTS,
            shift,
            (truth.anatomy["midline"].box,),
            "The midline is compared with a straight line.",
            after,
        )
    ]


def _one_bleeding(rng: Generator, name: str, value: str) -> SectionConfig:
    """Any single bleeding: whether there is one must not tell whether the midline is shifted."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return SectionConfig(STUDY, (SectionRequest(kind),), extras=(1.0,), traits={name: value})


def _order_shift(answer: str, rng: Generator) -> SectionConfig:
    return _one_bleeding(rng, SHIFT, answer)


def _shift_side(truth: SectionTruth) -> list[Item]:
    side = truth.traits[SHIFT_SIDE]
    if side == NO_SHIFT:
        return []
    return [
        Item(
            (
                "To which side is the midline shifted?",
                "In which direction is the midline shifted?",
            ),
            SIDES,
            side,
            (truth.anatomy["midline"].box,),
            "The midline is shifted.",
            f"It is shifted to the {side} side.",
        )
    ]


def _order_shift_side(answer: str, rng: Generator) -> SectionConfig:
    return _one_bleeding(rng, SHIFT_SIDE, answer)


HEAD_FAMILIES: Final[dict[str, Family]] = {
    "head_modality": modality(STUDY, "ct", "Bone is white and air is black in a section."),
    "head_region": body_part(
        STUDY, ("chest", "abdomen", "head", "knee"), "head", "A skull and a brain are seen."
    ),
    "hemisphere": Family(
        COARSE,
        ("left side of the image", "right side of the image"),
        _hemisphere,
        _order_hemisphere,
    ),
    "slice_level": trait(
        STUDY,
        SLICE_LEVEL,
        SLICE_LEVELS,
        ("At which level is the slice?", "Which level of the brain does the slice show?"),
        ("The ventricles are looked for.", "The slice shows the level of the {}."),
        "midline",
    ),
    "intraparenchymal_present": _CLOT.presence(),
    "subdural_present": _SUBDURAL.presence(),
    "epidural_present": _EPIDURAL.presence(),
    "which_haemorrhage": which(
        STUDY,
        KINDS,
        ("Which kind of bleeding is present?", "Which bleeding does the head show?"),
        "The brain and its border to the skull are searched.",
    ),
    "intraparenchymal_side": _CLOT.side(),
    "subdural_side": _SUBDURAL.side(),
    "epidural_side": _EPIDURAL.side(),
    "intraparenchymal_lobe": _CLOT.zone(
        ZONES,
        (
            f"Where is the {INTRAPARENCHYMAL}?",
            f"Which part of the brain shows the {INTRAPARENCHYMAL}?",
        ),
        "It lies in the {}.",
    ),
    "collection_shape": Family(COARSE, tuple(_SHAPES.values()), _shape, _order_shape),
    "haemorrhage_size": _CLOT.attribute(
        SIZE,
        BLEED_SIZES,
        (
            f"How large is the {INTRAPARENCHYMAL}?",
            f"What is the size of the {INTRAPARENCHYMAL}?",
        ),
        "It is {}.",
    ),
    "subdural_thickness": _SUBDURAL.attribute(
        THICKNESS,
        THICKNESSES,
        (f"Is the {SUBDURAL} thin or thick?", f"How thick is the {SUBDURAL}?"),
        "It is {}.",
    ),
    "midline_shift": Family(COARSE, SHIFTS, _shift, _order_shift),
    "shift_side": Family(COARSE, SIDES, _shift_side, _order_shift_side),
    "haemorrhage_count": _CLOT.count(
        (
            "How many intraparenchymal haemorrhages are there?",
            "What is the number of intraparenchymal haemorrhages?",
        ),
        "intraparenchymal haemorrhages",
    ),
    "larger_haemorrhage": _CLOT.larger(
        (
            f"On which side is the larger {INTRAPARENCHYMAL}?",
            f"Which side shows the larger {INTRAPARENCHYMAL}?",
        ),
        "radius_mm",
        (SIZE, BLEED_SIZES[0], BLEED_SIZES[-1]),
    ),
    "haemorrhage_swirl": _CLOT.fine(SWIRL, (YES, NO), _SWIRL_TEXTS, _SWIRL_AFTER),
    "epidural_swirl": _EPIDURAL.fine(SWIRL, (YES, NO), _SWIRL_TEXTS, _SWIRL_AFTER),
    "subdural_level": _SUBDURAL.fine(
        FLUID_LEVEL,
        (YES, NO),
        ("Is there a fluid level in {name}?", "Does {name} show a fluid level?"),
        {YES: "There is a fluid level.", NO: "There is no fluid level."},
    ),
}
