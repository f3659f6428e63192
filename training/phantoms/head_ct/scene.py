"""From a seed to a head with bleedings, without drawing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from training.phantoms.anatomy import Generator, mask_box
from training.phantoms.canvas import Canvas
from training.phantoms.head_ct.anatomy import hemisphere, midline, sample_head, ventricles
from training.phantoms.head_ct.findings import Scene, levels_of, place
from training.phantoms.head_ct.words import (
    EPIDURAL,
    HEAD_LABELS,
    INTRAPARENCHYMAL,
    KINDS,
    NO_SHIFT,
    SHIFT,
    SHIFT_SIDE,
    SHIFTS,
    SLICE_LEVEL,
    SLICE_LEVELS,
    STUDY,
    SUBDURAL,
)
from training.phantoms.room import NoRoomError, first_with_room, place_somewhere
from training.phantoms.section import (
    SectionConfig,
    SectionRequest,
    SectionTruth,
    check_wishes,
    pick,
    truth_mask,
    with_extras,
)
from training.phantoms.truth import LEFT, RIGHT, SIDES, Structure, split_of

SHIFTS_MM: Final = dict(zip(SHIFTS, ((0.0, 0.4), (4.5, 6.0), (10.0, 14.0)), strict=True))
_STREAM: Final = 11
# what has the least choice of where to lie comes first
_ORDER: Final = (SUBDURAL, EPIDURAL, INTRAPARENCHYMAL)
_TRIES_EACH: Final = 4


def plan(seed: int, config: SectionConfig) -> tuple[Scene, SectionTruth]:
    """Place everything that a seed and a configuration ask for.

    Raises:
        ValueError: unknown wishes, a negative seed, or no patient has room for them.
    """
    check_wishes(config, HEAD_LABELS)
    kinds = [request.kind for request in config.require]
    return first_with_room(seed, (_STREAM,), partial(_try_patient, seed, config), kinds)


def _try_patient(seed: int, config: SectionConfig, rng: Generator) -> tuple[Scene, SectionTruth]:
    requests = [
        replace(request, side=_side(request, rng)) for request in with_extras(config, KINDS, rng)
    ]
    level = _level(config, requests, rng)
    shift, side = _shift(config, requests, rng)
    towards = {LEFT: 1, RIGHT: -1, NO_SHIFT: 1}[side]
    head = sample_head(rng, level, towards * float(rng.uniform(*SHIFTS_MM[shift])))
    scene = Scene(head, np.zeros_like(head.inside))
    for request in sorted(requests, key=lambda r: _ORDER.index(r.kind)):
        place_somewhere(partial(place, scene, request, rng), _TRIES_EACH)
    traits = {SLICE_LEVEL: level, SHIFT: shift, SHIFT_SIDE: side}
    return scene, _truth(scene, seed, traits)


def _side(request: SectionRequest, rng: Generator) -> str:
    if request.zone is not None:
        return request.zone.split(maxsplit=1)[0]
    return pick(rng, SIDES, request.side)


def _level(config: SectionConfig, requests: list[SectionRequest], rng: Generator) -> str:
    """A level at which every wanted zone exists."""
    fit = [level for level in SLICE_LEVELS if all(level in levels_of(r) for r in requests)]
    wanted = config.traits.get(SLICE_LEVEL)
    if not fit or wanted not in (None, *fit):
        raise NoRoomError(SLICE_LEVEL)
    return pick(rng, fit, wanted)


def _shift(
    config: SectionConfig, requests: list[SectionRequest], rng: Generator
) -> tuple[str, str]:
    """Grade and side of the midline shift: away from bleedings that lie on one side alone."""
    sides = {request.side for request in requests}
    options = SHIFTS if len(sides) == 1 else SHIFTS[:1]
    shift = pick(rng, options, config.traits.get(SHIFT))
    side = NO_SHIFT
    if shift != NO_SHIFT and len(sides) == 1:
        side = LEFT if sides == {RIGHT} else RIGHT
    if shift not in options or config.traits.get(SHIFT_SIDE) not in (None, side):
        raise NoRoomError(SHIFT)
    return shift, side


def _truth(scene: Scene, seed: int, traits: dict[str, str]) -> SectionTruth:
    head = scene.head
    canvas = Canvas.empty(head.frame)
    canvas.stroke(midline(head), head.cells(7.0))
    coverage = {
        "right_hemisphere": hemisphere(head, -1),
        "left_hemisphere": hemisphere(head, 1),
        "ventricles": ventricles(head),
        "midline": canvas.ink(),
    }
    anatomy = {
        name: Structure(mask_box(cover), truth_mask(cover))
        for name, cover in coverage.items()
        if cover.max() > 0.5
    }
    rows, cols = head.frame.shape
    return SectionTruth(
        study=STUDY,
        seed=seed,
        split=split_of(seed),
        height=rows,
        width=cols,
        anatomy=anatomy,
        findings=tuple(scene.findings),
        traits=traits,
        pixel_spacing=head.spacing,
        modality="CT",
    )
