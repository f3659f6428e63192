"""What a head phantom can show, in words."""

from __future__ import annotations

from typing import Final

from training.phantoms.label_names import LabelNames
from training.phantoms.truth import LEFT, RIGHT, SIDES

STUDY: Final = "head_ct"

INTRAPARENCHYMAL: Final = "intraparenchymal haemorrhage"
SUBDURAL: Final = "subdural haematoma"
EPIDURAL: Final = "epidural haematoma"
KINDS: Final = (INTRAPARENCHYMAL, SUBDURAL, EPIDURAL)

GANGLIA: Final = "basal ganglia"
VENTRICLES: Final = "lateral ventricles"
SEMIOVALE: Final = "centrum semiovale"
SLICE_LEVELS: Final = (GANGLIA, VENTRICLES, SEMIOVALE)

LOBES: Final = ("frontal lobe", "temporal lobe", "parietal lobe", "occipital lobe", "basal ganglia")
ZONES: Final = tuple(f"{side} {lobe}" for side in SIDES for lobe in LOBES)

BLEED_SIZES: Final = ("small", "moderate", "large")
THICKNESSES: Final = ("thin", "thick")
NO_SHIFT: Final = "none"
SHIFTS: Final = (NO_SHIFT, "mild", "severe")
SHIFT_SIDES: Final = (NO_SHIFT, RIGHT, LEFT)

SLICE_LEVEL: Final = "slice level"
SHIFT: Final = "midline shift"
SHIFT_SIDE: Final = "shift side"
SIZE: Final = "haemorrhage size"
THICKNESS: Final = "collection thickness"
SWIRL: Final = "swirl sign"
FLUID_LEVEL: Final = "fluid level"

HEAD_LABELS: Final = LabelNames(
    modalities=(STUDY,),
    structures=("right_hemisphere", "left_hemisphere", "ventricles", "midline"),
    boxed=("right_hemisphere", "left_hemisphere", "midline"),
    findings=KINDS,
    attributes={
        SWIRL: ("no", "yes"),
        FLUID_LEVEL: ("no", "yes"),
        SIZE: BLEED_SIZES,
        THICKNESS: THICKNESSES,
        SHIFT: SHIFTS,
        SHIFT_SIDE: SHIFT_SIDES,
        SLICE_LEVEL: SLICE_LEVELS,
    },
    fine=(SWIRL, FLUID_LEVEL),
    places=(
        *((kind, side) for kind in KINDS for side in SIDES),
        *((INTRAPARENCHYMAL, zone) for zone in ZONES),
    ),
    carriers={SHIFT: "midline", SHIFT_SIDE: "midline", SLICE_LEVEL: "midline"},
)
