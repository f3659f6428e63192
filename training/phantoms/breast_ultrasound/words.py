"""What a breast ultrasound phantom can show, in words.

An ultrasound image says nothing of the side of the patient: sides are those of the image.
"""

from __future__ import annotations

from typing import Final

from training.phantoms.label_names import LabelNames

STUDY: Final = "breast_ultrasound"

CYST: Final = "cyst"
BENIGN: Final = "benign mass"
MALIGNANT: Final = "malignant mass"
KINDS: Final = (CYST, BENIGN, MALIGNANT)
SOLID: Final = (BENIGN, MALIGNANT)

IMAGE_LEFT: Final = "left side of the image"
IMAGE_RIGHT: Final = "right side of the image"
SIDES: Final = (IMAGE_LEFT, IMAGE_RIGHT)
DEPTHS: Final = ("superficial", "deep")

FORMATS: Final = ("rectangular", "sector")
COMPOSITIONS: Final = ("mostly fatty", "mostly glandular")
SIZES: Final = ("small", "medium", "large")
SHAPES: Final = ("oval", "irregular")
ORIENTATIONS: Final = ("parallel", "not parallel")
POSTERIOR: Final = ("enhancement", "shadowing")
ECHOES: Final = ("anechoic", "hypoechoic")
INDISTINCT: Final = "indistinct"
SPICULATED: Final = "spiculated"
MARGINS: Final = (INDISTINCT, SPICULATED)

FORMAT: Final = "image format"
COMPOSITION: Final = "composition"
SIZE: Final = "mass size"
SHAPE: Final = "mass shape"
ORIENTATION: Final = "orientation"
FEATURES: Final = "posterior features"
ECHO: Final = "echo pattern"
MARGIN: Final = "mass margin"
MICROCALCIFICATIONS: Final = "microcalcifications"

BREAST_LABELS: Final = LabelNames(
    modalities=(STUDY,),
    structures=("fat_layer", "glandular_layer", "muscle"),
    boxed=("fat_layer", "glandular_layer", "muscle"),
    findings=KINDS,
    attributes={
        MARGIN: MARGINS,
        MICROCALCIFICATIONS: ("no", "yes"),
        SIZE: SIZES,
        SHAPE: SHAPES,
        ORIENTATION: ORIENTATIONS,
        FEATURES: POSTERIOR,
        ECHO: ECHOES,
        COMPOSITION: COMPOSITIONS,
        FORMAT: FORMATS,
    },
    fine=(MARGIN, MICROCALCIFICATIONS),
    places=(
        *((kind, side) for kind in KINDS for side in SIDES),
        *((kind, depth) for kind in KINDS for depth in DEPTHS),
    ),
    cored=(MICROCALCIFICATIONS,),
    carriers={COMPOSITION: "glandular_layer", FORMAT: "muscle"},
)
