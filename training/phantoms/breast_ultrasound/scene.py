"""From a seed to a breast with masses, without drawing."""

from __future__ import annotations

from functools import partial
from typing import Final

from training.phantoms.anatomy import Generator, mask_box
from training.phantoms.breast_ultrasound.anatomy import sample_breast
from training.phantoms.breast_ultrasound.findings import Scene, place
from training.phantoms.breast_ultrasound.words import (
    BREAST_LABELS,
    COMPOSITION,
    COMPOSITIONS,
    FORMAT,
    FORMATS,
    KINDS,
    STUDY,
)
from training.phantoms.room import NoRoomError, first_with_room, place_somewhere
from training.phantoms.section import (
    SectionConfig,
    SectionTruth,
    check_wishes,
    pick,
    truth_mask,
    with_extras,
)
from training.phantoms.truth import Structure, split_of

_STREAM: Final = 13
_TRIES_EACH: Final = 12
_MOST: Final = 3


def plan(seed: int, config: SectionConfig) -> tuple[Scene, SectionTruth]:
    """Place everything that a seed and a configuration ask for.

    Raises:
        ValueError: unknown wishes, a negative seed, or no patient has room for them.
    """
    check_wishes(config, BREAST_LABELS)
    kinds = [request.kind for request in config.require]
    return first_with_room(seed, (_STREAM,), partial(_try_patient, seed, config), kinds)


def _try_patient(seed: int, config: SectionConfig, rng: Generator) -> tuple[Scene, SectionTruth]:
    requests = with_extras(config, KINDS, rng)
    image_format = pick(rng, FORMATS, config.traits.get(FORMAT))
    composition = pick(rng, COMPOSITIONS, config.traits.get(COMPOSITION))
    scene = Scene(sample_breast(rng, image_format, composition))
    for request in requests:
        required = request in config.require
        if not required and len(scene.masses) >= _MOST:
            continue
        try:
            place_somewhere(partial(place, scene, request, rng), _TRIES_EACH)
        except NoRoomError:
            if required:
                raise
    return scene, _truth(scene, seed)


def _truth(scene: Scene, seed: int) -> SectionTruth:
    breast = scene.breast
    coverage = {name: breast.layer(name) for name in BREAST_LABELS.structures}
    rows, cols = breast.field.shape
    return SectionTruth(
        study=STUDY,
        seed=seed,
        split=split_of(seed),
        height=rows,
        width=cols,
        anatomy={n: Structure(mask_box(c), truth_mask(c)) for n, c in coverage.items()},
        findings=tuple(scene.findings),
        traits={COMPOSITION: breast.composition, FORMAT: breast.format},
        pixel_spacing=breast.spacing,
        modality="US",
    )
