"""From a seed to a patient with findings, without drawing."""

from __future__ import annotations

from functools import partial
from typing import Final

from training.phantoms.anatomy import Anatomy, Generator, mask_box, sample_anatomy
from training.phantoms.config import SIZES, FindingRequest, PhantomConfig
from training.phantoms.findings import (
    HEART_RATIOS,
    Scene,
    grid_mask,
    place,
    start_scene,
)
from training.phantoms.room import NoRoomError, first_with_room, place_somewhere
from training.phantoms.truth import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    FINDING_KINDS,
    HEART_SIZES,
    LEFT,
    LINE,
    NODULE,
    PNEUMOTHORAX,
    RIGHT,
    TUBE,
    Structure,
    Truth,
    split_of,
)

# what fills most of a lung is placed before what must find room in the rest
_ORDER: Final = (CARDIOMEGALY, EFFUSION, PNEUMOTHORAX, CONSOLIDATION, NODULE, TUBE, LINE)
_TRIES_EACH: Final = 3


def plan(seed: int, config: PhantomConfig) -> tuple[Scene, Truth]:
    """Place everything that a seed and a configuration ask for.

    Patients are drawn until one has room for all required findings.

    Raises:
        ValueError: a negative seed, or no patient has room for the required findings.
    """

    def attempt(rng: Generator) -> tuple[Scene, Truth]:
        scene, shape = _try_patient(rng, config)
        return scene, _truth(scene, shape, seed, rng)

    return first_with_room(seed, (), attempt, [request.kind for request in config.require])


def _try_patient(rng: Generator, config: PhantomConfig) -> tuple[Scene, tuple[int, int]]:
    shape = config.size or SIZES[int(rng.integers(len(SIZES)))]
    extras = _sample_extras(rng, config)
    requests = sorted((*config.require, *extras), key=lambda r: _ORDER.index(r.kind))
    anatomy = _sample_patient(rng, shape, requests)
    scene = start_scene(anatomy)
    for request in requests:
        try:
            place_somewhere(partial(place, scene, request, rng), _TRIES_EACH)
        except NoRoomError:
            if request in config.require:
                raise
    return scene, shape


def _sample_extras(rng: Generator, config: PhantomConfig) -> tuple[FindingRequest, ...]:
    taken = {request.kind for request in config.require} | set(config.forbid)
    kinds = [kind for kind in FINDING_KINDS if kind not in taken]
    count = min(int(rng.choice(len(config.extras), p=config.extras)), len(kinds))
    chosen = rng.permutation(len(kinds))[:count]
    requests: list[FindingRequest] = []
    for index in chosen:
        repeat = 1
        if kinds[index] == NODULE:
            repeat = int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15)))
        requests.extend([FindingRequest(kinds[index])] * repeat)
    return tuple(requests)


def _sample_patient(
    rng: Generator, shape: tuple[int, int], requests: list[FindingRequest]
) -> Anatomy:
    grade = HEART_SIZES[0]
    for request in requests:
        if request.kind == CARDIOMEGALY:
            grade = request.grade or HEART_SIZES[1 + int(rng.integers(2))]
    return sample_anatomy(rng, shape, float(rng.uniform(*HEART_RATIOS[grade])))


def _truth(scene: Scene, shape: tuple[int, int], seed: int, rng: Generator) -> Truth:
    anatomy = scene.anatomy
    names = {
        "right_lung": RIGHT,
        "left_lung": LEFT,
        "heart": "heart",
        "mediastinum": "mediastinum",
    }
    structures = {
        name: Structure(mask_box(anatomy.masks[key]), grid_mask(anatomy.masks[key]))
        for name, key in names.items()
    }
    carina = anatomy.frame.to_px(anatomy.carina)
    spacing = round(float(rng.uniform(0.34, 0.42)) * 896 / min(shape), 4)
    for finding in scene.findings:
        if "radius_px" in finding.measures:
            finding.measures["radius_mm"] = finding.measures["radius_px"] * spacing
    return Truth(
        seed=seed,
        split=split_of(seed),
        height=shape[0],
        width=shape[1],
        anatomy=structures,
        carina=(float(carina[0]) / shape[1], float(carina[1]) / shape[0]),
        findings=tuple(scene.findings),
        cardiothoracic_ratio=anatomy.ctr,
        pixel_spacing=spacing,
        photometric=("MONOCHROME1", "MONOCHROME2")[int(rng.integers(2))],
        modality=("CR", "DX")[int(rng.integers(2))],
    )
