"""Where bleeding lies and what it looks like, before anything is drawn.

Grades are drawn from intervals with gaps, and lobes from boxes that do not touch, so that each
coarse question has one visible answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np

from training.phantoms.anatomy import Generator, Image, Points, mask_box
from training.phantoms.head_ct.anatomy import Head
from training.phantoms.head_ct.words import (
    BLEED_SIZES,
    FLUID_LEVEL,
    GANGLIA,
    INTRAPARENCHYMAL,
    SEMIOVALE,
    SIZE,
    SUBDURAL,
    SWIRL,
    THICKNESS,
    THICKNESSES,
    VENTRICLES,
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
from training.phantoms.truth import LEFT, SIDES, Box, Finding

RADII_MM: Final = dict(zip(BLEED_SIZES, ((7.0, 9.0), (13.0, 16.0), (22.0, 25.0)), strict=True))
THICK_MM: Final = dict(zip(THICKNESSES, ((4.5, 6.0), (9.5, 12.0)), strict=True))
LENS_MM: Final = (17.0, 25.0)
"""Thickness of an epidural haematoma: more than the skull is curved along it."""

FOCUS: Final = 78.0
"""Half the side in native pixels of the square in which a fine attribute shows."""

# |a| and b from and to, where the centre of a bleeding may lie: lobes never touch
_LOBE_BOXES: Final = {
    GANGLIA: {
        "frontal lobe": ((0.30, 0.45), (-0.74, -0.56)),
        "temporal lobe": ((0.66, 0.78), (-0.04, 0.24)),
        "basal ganglia": ((0.26, 0.38), (-0.20, 0.06)),
        "occipital lobe": ((0.26, 0.48), (0.64, 0.76)),
    },
    VENTRICLES: {
        "frontal lobe": ((0.34, 0.56), (-0.68, -0.40)),
        "parietal lobe": ((0.50, 0.70), (0.14, 0.38)),
        "occipital lobe": ((0.26, 0.44), (0.66, 0.76)),
    },
    SEMIOVALE: {
        "frontal lobe": ((0.34, 0.58), (-0.66, -0.32)),
        "parietal lobe": ((0.34, 0.60), (0.26, 0.60)),
    },
}
# angle of the middle of a collection from the front, in half turns
_CONVEXITY: Final = (0.44, 0.56)
_LENS_ANGLES: Final = ((0.20, 0.28), (0.46, 0.58), (0.70, 0.78))


@dataclass(frozen=True)
class Bleeding:
    """One bleeding, as the drawing code needs it.

    Attributes:
        blood: coverage on the grid of ``STEP``.
        oedema_mm: width of the rim of oedema; 0 for none.
        density: HU of the blood.
        focus: where its fine attribute shows.
        sign: ``SWIRL`` or ``FLUID_LEVEL``.
        present: whether that sign is there.
        seed: of the texture.
    """

    blood: Image
    oedema_mm: float
    density: float
    focus: Box
    sign: str
    present: bool
    seed: int


@dataclass(frozen=True)
class _Spot:
    """Where a bleeding lies: its centre in native pixels, or that of its fine attribute."""

    side: str
    zone: str
    centre: Points
    oedema_mm: float


@dataclass
class Scene:
    """A patient with the bleedings placed so far; ``taken`` is their coverage with a margin."""

    head: Head
    taken: Image
    bleedings: list[Bleeding] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def lobes_at(level: str) -> tuple[str, ...]:
    """Lobes in which a bleeding may lie at a level."""
    return tuple(_LOBE_BOXES[level])


def levels_of(request: SectionRequest) -> tuple[str, ...]:
    """Levels at which the zone of a request exists."""
    if request.zone is None:
        return tuple(_LOBE_BOXES)
    lobe = request.zone.split(maxsplit=1)[1]
    return tuple(level for level, boxes in _LOBE_BOXES.items() if lobe in boxes)


def place(scene: Scene, request: SectionRequest, rng: Generator) -> None:
    """Add a bleeding whose side is decided.

    Raises:
        NoRoomError: the patient has no room for it; the scene is unchanged.
    """
    if request.kind == INTRAPARENCHYMAL:
        _intraparenchymal(scene, request, rng)
    else:
        _collection(scene, request, rng)


def _intraparenchymal(scene: Scene, request: SectionRequest, rng: Generator) -> None:
    head = scene.head
    side = pick(rng, SIDES, request.side)
    size = pick(rng, BLEED_SIZES, request.attributes.get(SIZE))
    lobe = request.zone.split(maxsplit=1)[1] if request.zone else None
    lobe = pick(rng, lobes_at(head.level), lobe)
    if lobe not in lobes_at(head.level):
        raise NoRoomError(request.kind)
    (low_a, high_a), (low_b, high_b) = _LOBE_BOXES[head.level][lobe]
    sign = 1 if side == LEFT else -1
    at = np.array([sign * rng.uniform(low_a, high_a), rng.uniform(low_b, high_b)])
    radius_mm = rng.uniform(*RADII_MM[size])
    centre = head.frame.to_px(head.moved(at))
    outline = centre + _blob(rng) * radius_mm / head.spacing
    blood = filled(outline, head.frame.shape) * head.inside
    cell = tuple(int(v / STEP) for v in centre)
    # a bleeding cut by the skull would not show its size
    if head.depth_mm[cell[1], cell[0]] < 0.9 * radius_mm:
        raise NoRoomError(request.kind)
    spot = _Spot(side, f"{side} {lobe}", centre, float(rng.uniform(3.0, 6.0)))
    _add(scene, request, spot, blood, {SIZE: size}, rng)
    scene.findings[-1].measures["radius_mm"] = float(radius_mm)


def _collection(scene: Scene, request: SectionRequest, rng: Generator) -> None:
    """Blood between skull and brain: a crescent (subdural) or a lens (epidural)."""
    head = scene.head
    side = pick(rng, SIDES, request.side)
    attributes = {}
    if request.kind == SUBDURAL:
        thick = pick(rng, THICKNESSES, request.attributes.get(THICKNESS))
        attributes[THICKNESS] = thick
        thickness = rng.uniform(*THICK_MM[thick])
        middle, span = rng.uniform(*_CONVEXITY), rng.uniform(0.58, 0.72)
        bulge = 0.55
    else:
        thickness = rng.uniform(*LENS_MM)
        low, high = _LENS_ANGLES[int(rng.integers(len(_LENS_ANGLES)))]
        middle, span = rng.uniform(low, high), rng.uniform(0.20, 0.25)
        bulge = 1.0
    u = np.linspace(0, 1, 61)
    profile = thickness * np.clip(4 * u * (1 - u), 0, 1) ** bulge
    outer, inward = _arc(head, side, middle - span / 2, middle + span / 2, len(u))
    inner = outer + inward * (profile / head.spacing)[:, None]
    blood = filled(np.concatenate([outer, inner[::-1]]), head.frame.shape) * head.inside
    # blood settles: a level stands in the lower (posterior) part
    at = round((0.74 if request.kind == SUBDURAL else 0.5) * (len(u) - 1))
    spot = _Spot(side, "", (outer[at] + inner[at]) / 2, 0.0)
    _add(scene, request, spot, blood, attributes, rng)
    scene.findings[-1].measures["thickness_mm"] = float(thickness)


def _arc(head: Head, side: str, start: float, end: float, count: int) -> tuple[Points, Points]:
    """Points of the inner table in pixels and unit vectors into the skull, (count, 2) each."""
    n = len(head.outline)
    turn = np.linspace(start, end, count) / 2 * n
    turn = turn if side == LEFT else n - turn
    closed = np.concatenate([head.outline, head.outline[:1]])
    at = np.clip(turn, 0, n)
    points = np.stack([np.interp(at, np.arange(n + 1), closed[:, i]) for i in (0, 1)], axis=-1)
    px = head.frame.to_px(points)
    along = np.gradient(px, axis=0)
    inward = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    towards = np.sign(((head.frame.origin - px) * inward).sum(axis=1, keepdims=True))
    return px, inward * towards


def _add(
    scene: Scene,
    request: SectionRequest,
    spot: _Spot,
    blood: Image,
    attributes: dict[str, str],
    rng: Generator,
) -> None:
    if float((blood * scene.taken).sum()) > 1.0:
        raise NoRoomError(request.kind)
    sign = FLUID_LEVEL if request.kind == SUBDURAL else SWIRL
    shown = pick(rng, ("no", "yes"), request.attributes.get(sign))
    focus = square(spot.centre, FOCUS, scene.head.frame.shape)
    scene.bleedings.append(
        Bleeding(
            blood,
            spot.oedema_mm,
            float(rng.uniform(54, 60)),
            focus,
            sign,
            shown == "yes",
            int(rng.integers(2**31)),
        )
    )
    box = mask_box(blood)
    scene.findings.append(
        Finding(
            request.kind,
            spot.side,
            spot.zone,
            box,
            focus,
            truth_mask(blood),
            {**attributes, sign: shown},
        )
    )
    radius = max(1, round(scene.head.cells(6.0)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    grown = np.asarray(cv2.dilate(blood, kernel), dtype=np.float32)
    np.maximum(scene.taken, grown, out=scene.taken)


def _blob(rng: Generator) -> Points:
    """Irregular closed outline around the origin with a mean radius of 1, (n, 2)."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(t)
    for order, spread in ((2, 0.10), (3, 0.06), (4, 0.035), (5, 0.03), (7, 0.02)):
        wave = rng.normal(0, spread, 2)
        radius += wave[0] * np.cos(order * t) + wave[1] * np.sin(order * t)
    radius *= 1 / np.sqrt((radius**2).mean())
    return np.stack([radius * np.cos(t), radius * np.sin(t)], axis=-1)
