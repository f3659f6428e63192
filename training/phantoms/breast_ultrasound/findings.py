"""Where masses and cysts lie and what they look like, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from training.phantoms.anatomy import Generator, Image, Points, mask_box
from training.phantoms.breast_ultrasound.anatomy import Breast
from training.phantoms.breast_ultrasound.words import (
    BENIGN,
    CYST,
    DEPTHS,
    ECHO,
    ECHOES,
    FEATURES,
    IMAGE_LEFT,
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
    SPICULATED,
)
from training.phantoms.room import NoRoomError
from training.phantoms.section import (
    STEP,
    SectionRequest,
    filled,
    pick,
    square,
    truth_mask,
)
from training.phantoms.truth import Box, Finding

RADII: Final = dict(zip(SIZES, ((33.0, 40.0), (50.0, 57.0), (70.0, 78.0)), strict=True))
"""Radius of the circle of equal area, in native pixels."""

DEPTH_RANGES: Final = dict(zip(DEPTHS, ((0.17, 0.31), (0.44, 0.56)), strict=True))
FOCUS: Final = (62.0, 90.0)
"""Least and greatest half side of the square in which the fine attributes show."""

# width over height
_ASPECTS: Final = {CYST: (1.1, 1.45), BENIGN: (1.5, 1.9), MALIGNANT: (0.62, 0.76)}
_ATTRIBUTES: Final = {
    CYST: {SHAPE: SHAPES[0], ORIENTATION: ORIENTATIONS[0], FEATURES: POSTERIOR[0], ECHO: ECHOES[0]},
    BENIGN: {
        SHAPE: SHAPES[0],
        ORIENTATION: ORIENTATIONS[0],
        FEATURES: POSTERIOR[0],
        ECHO: ECHOES[1],
    },
    MALIGNANT: {
        SHAPE: SHAPES[1],
        ORIENTATION: ORIENTATIONS[1],
        FEATURES: POSTERIOR[1],
        ECHO: ECHOES[1],
    },
}


@dataclass(frozen=True)
class Mass:
    """A mass or cyst as the drawing code needs it.

    Attributes:
        kind: of the finding.
        cover: coverage on the grid of ``STEP``.
        outline: (n, 2) native pixels.
        centre: (2,) native pixels.
        half: half width and half height, native pixels.
        focus: where its fine attributes show.
        spiculated: whether thin strands run through its margin.
        calcified: whether it holds microcalcifications.
        seed: of the textures.
    """

    kind: str
    cover: Image
    outline: Points
    centre: Points
    half: tuple[float, float]
    focus: Box
    spiculated: bool
    calcified: bool
    seed: int


@dataclass
class Scene:
    """A breast with the findings placed so far."""

    breast: Breast
    masses: list[Mass] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def place(scene: Scene, request: SectionRequest, rng: Generator) -> None:
    """Add a mass or cyst to the scene.

    Raises:
        NoRoomError: there is no room for it; the scene is unchanged.
    """
    shape = scene.breast.field.shape
    size = pick(rng, SIZES, request.attributes.get(SIZE))
    radius = float(rng.uniform(*RADII[size]))
    outline = _outline(rng, request.kind) * radius
    half = (float(np.ptp(outline[:, 0]) / 2), float(np.ptp(outline[:, 1]) / 2))
    side, depth, centre = _spot(scene, request, rng, half)
    px = centre + outline
    cover = filled(px, shape)
    focus = square(centre, float(np.clip(1.3 * max(half), *FOCUS)), shape)
    attributes = {**_ATTRIBUTES[request.kind], SIZE: size}
    for name, value in request.attributes.items():
        if attributes.get(name, value) != value:
            raise NoRoomError(request.kind)
    attributes |= _fine(request, rng)
    scene.masses.append(
        Mass(
            request.kind,
            cover,
            px,
            centre,
            half,
            focus,
            attributes.get(MARGIN) == SPICULATED,
            attributes.get(MICROCALCIFICATIONS) == "yes",
            int(rng.integers(2**31)),
        )
    )
    measures = {"radius_px": radius, "radius_mm": radius * scene.breast.spacing}
    box = mask_box(cover)
    scene.findings.append(
        Finding(request.kind, side, depth, box, focus, truth_mask(cover), attributes, measures)
    )


def _fine(request: SectionRequest, rng: Generator) -> dict[str, str]:
    """The attributes that only a close look tells; cysts have none."""
    fine = {}
    if request.kind == MALIGNANT:
        fine[MARGIN] = pick(rng, MARGINS, request.attributes.get(MARGIN))
    if request.kind != CYST:
        wanted = request.attributes.get(MICROCALCIFICATIONS)
        fine[MICROCALCIFICATIONS] = pick(rng, ("no", "yes"), wanted)
    return fine


def _spot(
    scene: Scene, request: SectionRequest, rng: Generator, half: tuple[float, float]
) -> tuple[str, str, Points]:
    """Side, depth and centre; what lies behind another mass would lie in its shadow."""
    field_ = scene.breast.field
    rows, cols = field_.shape
    side = pick(rng, SIDES, request.side)
    depth = pick(rng, DEPTHS, request.zone)
    x = rng.uniform(0.12, 0.43) if side == IMAGE_LEFT else rng.uniform(0.57, 0.88)
    centre = np.array([x * cols, rng.uniform(*DEPTH_RANGES[depth]) * rows])
    row, column = (int(v / STEP) for v in centre[::-1])
    reach, down = int(1.35 * half[0] / STEP), 1.3 * half[1] / rows
    z = float(field_.z[row, column])
    low, high = DEPTH_RANGES[depth]
    inside = reach < column < cols // STEP - reach and z - down > 0.05 and z + down < 0.68
    if not inside or not low - 0.03 <= z <= high + 0.03:
        raise NoRoomError(request.kind)
    if min(field_.seen[row, column - reach], field_.seen[row, column + reach]) < 0.9:
        raise NoRoomError(request.kind)
    for mass in scene.masses:
        if abs(mass.centre[0] - centre[0]) < 1.3 * (mass.half[0] + half[0]):
            raise NoRoomError(request.kind)
    return side, depth, centre


def _outline(rng: Generator, kind: str) -> Points:
    """Closed outline around the origin with the area of a circle of radius 1, (n, 2)."""
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = np.ones_like(t)
    if kind == MALIGNANT:
        corners = int(rng.integers(8, 12))
        turns = (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) / corners * 2 * np.pi
        reach = 1 + rng.uniform(-0.28, 0.28, corners)
        radius = np.interp(t, turns, reach, period=2 * np.pi)
    else:
        lobes = 0.02 if kind == CYST else 0.035
        for order in (2, 3, 4):
            radius += rng.normal(0, lobes / order, 2) @ np.stack(
                [np.cos(order * t), np.sin(order * t)]
            )
    points = np.stack([radius * np.cos(t), radius * np.sin(t)], axis=-1)
    aspect = np.sqrt(rng.uniform(*_ASPECTS[kind]))
    points *= np.array([aspect, 1 / aspect]) / np.ptp(points, axis=0)
    tilt = np.deg2rad(rng.uniform(-9, 9))
    turned = points @ np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    x, y = turned.T
    area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    outline: Points = turned * np.sqrt(np.pi / area)
    return outline
