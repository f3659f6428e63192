"""Question families about breast ultrasound images."""

from __future__ import annotations

from typing import Final

from training.phantoms import SectionConfig, SectionRequest, SectionTruth
from training.phantoms.breast_ultrasound.words import (
    BENIGN,
    COMPOSITION,
    COMPOSITIONS,
    CYST,
    DEPTHS,
    ECHO,
    ECHOES,
    FEATURES,
    FORMAT,
    FORMATS,
    KINDS,
    MALIGNANT,
    MARGIN,
    MARGINS,
    MICROCALCIFICATIONS,
    ORIENTATION,
    ORIENTATIONS,
    POSTERIOR,
    SHAPE,
    SHAPES,
    SIDES,
    SIZE,
    SIZES,
    SOLID,
    STUDY,
)
from training.question_forms import COARSE, NO, YES, Family, Generator, Item
from training.section_questions import Subject, body_part, modality, trait, which

_SEARCHED: Final = "The layers of the breast are searched."
_WHERE: Final = "on the {}"

_CYST: Final = Subject(STUDY, (CYST,), "cyst", SIDES, _WHERE, _SEARCHED)
_MASS: Final = Subject(STUDY, SOLID, "mass", SIDES, _WHERE, _SEARCHED)
_MALIGNANT: Final = Subject(STUDY, (MALIGNANT,), MALIGNANT, SIDES, _WHERE, _SEARCHED)
_IRREGULAR: Final = Subject(STUDY, (MALIGNANT,), "irregular mass", SIDES, _WHERE, _SEARCHED)
_LESION: Final = Subject(STUDY, KINDS, "lesion", SIDES, _WHERE, _SEARCHED)

_DIAGNOSES: Final = {BENIGN: "benign", MALIGNANT: "malignant"}
_KINDS_OF: Final = {
    SHAPES[0]: (BENIGN,),
    SHAPES[1]: (MALIGNANT,),
    ORIENTATIONS[0]: (BENIGN,),
    ORIENTATIONS[1]: (MALIGNANT,),
    POSTERIOR[0]: (BENIGN,),
    POSTERIOR[1]: (MALIGNANT,),
    ECHOES[0]: (CYST,),
    ECHOES[1]: SOLID,
}


def _diagnosis(truth: SectionTruth) -> list[Item]:
    found = _MASS.found(truth)
    if len(found) != 1:
        return []
    answer = _DIAGNOSES[found[0].kind]
    shape = found[0].attributes[SHAPE]
    return [
        Item(
            ("Is the mass benign or malignant?", "Does the mass look benign or malignant?"),
            tuple(_DIAGNOSES.values()),
            answer,
            (found[0].box,),
            f"There is a mass with an {shape} shape.",
            f"It looks {answer}.",
        )
    ]


def _order_diagnosis(answer: str, rng: Generator) -> SectionConfig:
    del rng
    kind = next(kind for kind, name in _DIAGNOSES.items() if name == answer)
    return SectionConfig(STUDY, (SectionRequest(kind),), SOLID)


BREAST_FAMILIES: Final[dict[str, Family]] = {
    "breast_modality": modality(STUDY, "ultrasound", "Layers of tissue show speckle."),
    "breast_region": body_part(
        STUDY,
        ("breast", "abdomen", "head", "knee"),
        "breast",
        "Skin, fat, gland and muscle lie over each other.",
    ),
    "image_format": trait(
        STUDY,
        FORMAT,
        FORMATS,
        ("Which format does the image have?", "What is the format of the image field?"),
        ("The borders of the image are looked at.", "The format is {}."),
        "muscle",
    ),
    "breast_composition": trait(
        STUDY,
        COMPOSITION,
        COMPOSITIONS,
        ("What is the composition of the breast?", "Is the breast mostly fatty or glandular?"),
        ("The fat layer is compared with the glandular layer.", "The breast is {}."),
        "glandular_layer",
    ),
    "cyst_present": _CYST.presence(),
    "mass_present": _MASS.presence(),
    "malignant_present": _MALIGNANT.presence(),
    "which_lesion": which(
        STUDY,
        KINDS,
        ("Which lesion is present?", "Which lesion does the breast show?"),
        _SEARCHED,
    ),
    "mass_diagnosis": Family(COARSE, tuple(_DIAGNOSES.values()), _diagnosis, _order_diagnosis),
    "cyst_side": _CYST.side(),
    "mass_side": _MASS.side(),
    "lesion_depth": _LESION.zone(
        DEPTHS,
        ("Is the lesion superficial or deep?", "How deep does the lesion lie?"),
        "It is {}.",
    ),
    "mass_shape": _MASS.attribute(
        SHAPE,
        SHAPES,
        ("What is the shape of the mass?", "Which shape does the mass have?"),
        "Its shape is {}.",
        _KINDS_OF,
    ),
    "mass_orientation": _MASS.attribute(
        ORIENTATION,
        ORIENTATIONS,
        (
            "Is the mass parallel to the skin?",
            "What is the orientation of the mass to the skin?",
        ),
        "It is {} to the skin.",
        _KINDS_OF,
    ),
    "posterior_features": _MASS.attribute(
        FEATURES,
        POSTERIOR,
        ("What is seen behind the mass?", "Which posterior features does the mass have?"),
        "Behind it there is {}.",
        _KINDS_OF,
    ),
    "echo_pattern": _LESION.attribute(
        ECHO,
        ECHOES,
        ("What is the echo pattern of the lesion?", "Is the lesion anechoic or hypoechoic?"),
        "It is {}.",
        _KINDS_OF,
    ),
    "lesion_size": _LESION.attribute(
        SIZE,
        SIZES,
        ("How large is the lesion?", "What is the size of the lesion?"),
        "It is {}.",
    ),
    "lesion_count": _LESION.count(
        ("How many lesions are there?", "What is the number of lesions?"), "lesions"
    ),
    "larger_lesion": _LESION.larger(
        ("Where is the larger lesion?", "On which side is the larger lesion?"),
        "radius_px",
        (SIZE, SIZES[0], SIZES[-1]),
    ),
    "mass_margin": _IRREGULAR.fine(
        MARGIN,
        MARGINS,
        ("What is the margin of {name}?", "Which margin does {name} have?"),
        {value: f"Its margin is {value}." for value in MARGINS},
    ),
    "mass_microcalcifications": _MASS.fine(
        MICROCALCIFICATIONS,
        (YES, NO),
        ("Does {name} contain microcalcifications?", "Are there microcalcifications in {name}?"),
        {
            YES: "It contains microcalcifications.",
            NO: "It contains no microcalcifications.",
        },
    ),
}
