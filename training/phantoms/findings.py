"""Where findings lie and what they look like, before anything is drawn.

Every grade is drawn from its own interval with a gap to the next, and nothing is placed where
something else hides it, so that each coarse question has one visible answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np

from training.phantoms.anatomy import (
    GRID_STEP,
    Anatomy,
    Generator,
    Image,
    Points,
    fill,
    mask_box,
    smooth_curve,
)
from training.phantoms.config import FindingRequest
from training.phantoms.room import NoRoomError
from training.phantoms.truth import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    EFFUSION_GRADES,
    HEART_SIZES,
    LEFT,
    LEVELS,
    LINE,
    MARGINS,
    MASK_GRID,
    MIDLINE,
    NODULE,
    PNEUMOTHORAX,
    RIGHT,
    SIDES,
    SPICULATED,
    TIP_LEVELS,
    TUBE,
    Box,
    Finding,
    Mask,
)

HEART_RATIOS: Final = {
    HEART_SIZES[0]: (0.40, 0.46),
    HEART_SIZES[1]: (0.53, 0.57),
    HEART_SIZES[2]: (0.65, 0.69),
}
EFFUSION_HEIGHTS: Final = {"small": (0.16, 0.20), "moderate": (0.33, 0.40), "large": (0.57, 0.68)}
NODULE_RADII: Final = {"small": (21.0, 28.0), "large": (43.0, 48.0)}
"""Radius in pixels of an image whose short side has 896; all other nodules lie in 21 to 48."""

RIM: Final = 1.55
"""Half the side of a nodule's box in radii: room for the longest spicules, spiculated or not."""

_ZONE_GAP: Final = 0.05
"""Distance of a focal finding's centre from the borders of its zone, in lung heights."""

_COVERS: Final = ("moderate", "large")


@dataclass(frozen=True)
class NoduleShape:
    """A nodule: centre (x, y) and radius in pixels, contrast, contour harmonics, texture seed."""

    centre: Points
    radius: float
    contrast: float
    harmonics: Points
    spiculated: bool
    calcified: bool
    seed: int


@dataclass(frozen=True)
class PatchShape:
    """A consolidation: opacity (h, w) on the coarse grid, pixel box, texture seed."""

    opacity: Image
    box_px: tuple[int, int, int, int]
    bronchogram: bool
    seed: int


@dataclass(frozen=True)
class TubeShape:
    """A tube or line: path (n, 2) in pixels and its width in pixels."""

    path: Points
    width: float
    marker: bool


@dataclass
class Layers:
    """What the drawing code needs of the findings; coverages are on the coarse grid."""

    fluid: list[Image] = field(default_factory=list)
    pleural_air: list[Image] = field(default_factory=list)
    pleural_lines: list[Points] = field(default_factory=list)
    patches: list[PatchShape] = field(default_factory=list)
    nodules: list[NoduleShape] = field(default_factory=list)
    tubes: list[TubeShape] = field(default_factory=list)


@dataclass
class Scene:
    """A patient with the findings placed so far.

    Attributes:
        anatomy: the patient.
        zones: per side, normalised (y0, y1) of the lung, whose thirds are its zones.
        taken: coarse coverage of all focal findings, grown by a margin.
        layers: what to draw.
        findings: the truth so far.
    """

    anatomy: Anatomy
    zones: dict[str, tuple[float, float]]
    taken: Image
    layers: Layers = field(default_factory=Layers)
    findings: list[Finding] = field(default_factory=list)

    @property
    def scale(self) -> float:
        """Short side of the image over 896."""
        return min(self.anatomy.frame.shape) / 896

    def has(self, kind: str, side: str | None = None) -> bool:
        """Whether a finding of this kind (on this side) is placed."""
        return any(f.kind == kind and (side is None or f.side == side) for f in self.findings)


def start_scene(anatomy: Anatomy) -> Scene:
    """Scene without findings."""
    zones = {}
    for side in SIDES:
        box = mask_box(anatomy.masks[side])
        zones[side] = (box[1], box[3])
    return Scene(anatomy, zones, np.zeros_like(anatomy.masks["heart"]))


def place(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    """Add a finding to the scene.

    Raises:
        NoRoomError: the patient has no room for it; the scene is unchanged.
    """
    _PLACERS[request.kind](scene, request, rng)


def zone_of(scene: Scene, side: str, y: float) -> tuple[str, float]:
    """Zone at a normalised height of a lung, and the distance to its borders in lung heights."""
    top, bottom = scene.zones[side]
    position = float(np.clip((y - top) / (bottom - top), 0, 0.999)) * 3
    level = int(position)
    inner = [abs(position - edge) / 3 for edge in (1, 2)]
    return f"{side} {LEVELS[level]} zone", min(inner)


def grid_mask(coverage: Image, threshold: float = 0.5) -> Mask:
    """Coarse coverage to the mask grid of the truth."""
    small = cv2.resize(coverage, (MASK_GRID, MASK_GRID), interpolation=cv2.INTER_AREA)
    mask: Mask = small > threshold
    return mask


def _pick(rng: Generator, options: tuple[str, ...], wanted: str | None) -> str:
    return wanted if wanted is not None else options[int(rng.integers(len(options)))]


def _grow(coverage: Image, pixels: float) -> Image:
    radius = max(1, round(pixels / GRID_STEP))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(coverage, kernel).astype(np.float32)


def _take(scene: Scene, coverage: Image, margin: float) -> None:
    np.maximum(scene.taken, _grow(coverage, margin * scene.scale), out=scene.taken)


def _px_box(scene: Scene, x0: float, y0: float, x1: float, y1: float) -> Box:
    rows, cols = scene.anatomy.frame.shape
    return (
        float(np.clip(x0 / cols, 0, 1)),
        float(np.clip(y0 / rows, 0, 1)),
        float(np.clip(x1 / cols, 0, 1)),
        float(np.clip(y1 / rows, 0, 1)),
    )


def _room(scene: Scene, side: str, level: str | None, reach: float) -> Points:
    """Native pixel centres (n, 2) at which a disc of radius ``reach`` lies free in a lung."""
    free = (scene.anatomy.masks[side] > 0.9) & (scene.taken < 0.05)
    padded = np.pad(free, 1).astype(np.uint8)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] * GRID_STEP
    rows, cols = np.nonzero(depth >= reach)
    top, bottom = scene.zones[side]
    position = ((rows + 0.5) / free.shape[0] - top) / (bottom - top) * 3
    clear = np.minimum(abs(position - 1), abs(position - 2)) > 3 * _ZONE_GAP
    if level is not None:
        clear &= position.astype(int) == LEVELS.index(level)
    centres = np.stack([cols, rows], axis=-1)[clear].astype(np.float64)
    room: Points = (centres + 0.5) * GRID_STEP
    return room


def _spot(
    scene: Scene, request: FindingRequest, rng: Generator, reach: float
) -> tuple[str, Points]:
    """Side and centre for a focal finding; side and level are drawn before room is sought."""
    side = _pick(rng, SIDES, request.side)
    level = _pick(rng, LEVELS, request.level)
    # under much fluid nobody can tell the thirds of a lung
    if any(f.side == side and f.attributes.get("grade") in _COVERS for f in scene.findings):
        raise NoRoomError(request.kind)
    room = _room(scene, side, level, reach)
    if len(room) == 0 and request.level is None:
        room = _room(scene, side, None, reach)
    if len(room) == 0:
        raise NoRoomError(request.kind)
    return side, room[int(rng.integers(len(room)))] + rng.uniform(-2, 2, 2)


def _nodule(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    margin = _pick(rng, MARGINS, request.margin)
    calcified = bool(rng.integers(2)) if request.calcified is None else request.calcified
    low, high = NODULE_RADII.get(request.size or "", (21.0, 40.0))
    radius = rng.uniform(low, high) * scene.scale
    side, centre = _spot(scene, request, rng, 1.22 * radius)
    half = RIM * radius
    box = _px_box(scene, *(centre - half), *(centre + half))
    disc = _disc(scene, centre, radius)
    zone, _ = zone_of(scene, side, centre[1] / scene.anatomy.frame.shape[0])
    scene.layers.nodules.append(
        NoduleShape(
            centre,
            radius,
            float(rng.uniform(0.42, 0.60)),
            rng.normal(0, 1, (3, 2)) * ((0.025,), (0.015,), (0.008,)),
            margin == SPICULATED,
            calcified,
            int(rng.integers(2**31)),
        )
    )
    attributes = {"margin": margin, "calcification": "calcified" if calcified else "not calcified"}
    scene.findings.append(
        Finding(
            NODULE, side, zone, box, box, grid_mask(disc), attributes, {"radius_px": float(radius)}
        )
    )
    _take(scene, disc, 0.75 * radius / scene.scale + 10)


def _disc(scene: Scene, centre: Points, radius: float) -> Image:
    canvas = np.zeros_like(scene.taken, dtype=np.uint8)
    at = np.round((centre / GRID_STEP - 0.5) * 16).astype(int)
    size = round(radius / GRID_STEP * 16)
    cv2.circle(canvas, (int(at[0]), int(at[1])), size, 255, -1, cv2.LINE_AA, 4)
    return np.multiply(canvas, np.float32(1 / 255), dtype=np.float32)


def _consolidation(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    bronchogram = bool(rng.integers(2)) if request.bronchogram is None else request.bronchogram
    reach = rng.uniform(72, 96) * scene.scale
    side, centre = _spot(scene, request, rng, 0.55 * reach)
    opacity = _patch_opacity(scene, centre, reach, rng)
    opacity *= scene.anatomy.masks[side]
    visible = opacity > 0.4
    if visible.sum() * GRID_STEP**2 < 1.1 * reach**2:
        raise NoRoomError(CONSOLIDATION)
    box = mask_box(opacity, 0.4)
    rows, cols = scene.anatomy.frame.shape
    box_px = (
        round(box[0] * cols),
        round(box[1] * rows),
        round(box[2] * cols),
        round(box[3] * rows),
    )
    zone, gap = zone_of(scene, side, (box[1] + box[3]) / 2)
    heights = (np.nonzero(visible)[0].mean() + 0.5) / visible.shape[0]
    disagree = zone_of(scene, side, float(heights))[0] != zone
    if gap < _ZONE_GAP or disagree or (request.level is not None and request.level not in zone):
        raise NoRoomError(CONSOLIDATION)
    scene.layers.patches.append(PatchShape(opacity, box_px, bronchogram, int(rng.integers(2**31))))
    attributes = {"air bronchogram": "yes" if bronchogram else "no"}
    scene.findings.append(
        Finding(CONSOLIDATION, side, zone, box, box, grid_mask(opacity, 0.4), attributes, {})
    )
    _take(scene, visible.astype(np.float32), 18)


def _patch_opacity(scene: Scene, centre: Points, reach: float, rng: Generator) -> Image:
    """Cloud of overlapping soft blobs with an irregular edge, (h, w) in [0, 1]."""
    h, w = scene.taken.shape
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    field_sum = np.zeros((h, w), np.float32)
    for _ in range(int(rng.integers(6, 10))):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.75) * reach
        x = (centre[0] + distance * np.cos(angle)) / GRID_STEP
        y = (centre[1] + distance * np.sin(angle)) / GRID_STEP
        spread = rng.uniform(0.22, 0.36) * reach / GRID_STEP
        field_sum += np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / np.float32(2 * spread**2))
    ragged = cv2.GaussianBlur(rng.standard_normal((h, w), np.float32), (0, 0), 2.2)
    field_sum *= 1 + 2.2 * ragged
    opacity: Image = 1 / (1 + np.exp(-(field_sum - 0.75) * np.float32(3.6)))
    distance_px = np.hypot(xs * GRID_STEP - centre[0], ys * GRID_STEP - centre[1])
    opacity *= np.clip((1.2 * reach - distance_px) / (0.25 * reach), 0, 1).astype(np.float32)
    opacity -= opacity.max() * 0.03
    return np.clip(opacity, 0, 1)


def _effusion(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    side = _pick(rng, SIDES, request.side)
    grade = _pick(rng, EFFUSION_GRADES, request.grade)
    height = rng.uniform(*EFFUSION_HEIGHTS[grade])
    if scene.has(EFFUSION, side) or scene.has(PNEUMOTHORAX, side):
        raise NoRoomError(EFFUSION)
    anatomy = scene.anatomy
    a, b = anatomy.frame.coarse_patient_grid()
    outline = anatomy.lungs[side]
    base = float(outline[:, 1].max())
    lateral = np.clip((abs(a) - 0.15) / (abs(outline[:, 0]).max() - 0.15), 0, 1.1)
    meniscus = base - height * (0.74 + 0.26 * lateral**4)
    wet = 1 / (1 + np.exp(-(b - meniscus) / np.float32(0.008)))
    lung = anatomy.masks[side]
    half = (a > 0) if side == LEFT else (a < 0)
    fluid: Image = (wet * lung).astype(np.float32)
    if float((fluid * scene.taken).sum()) > 1.0:
        raise NoRoomError(EFFUSION)
    box = mask_box(fluid)
    scene.layers.fluid.append((wet * half).astype(np.float32))
    scene.findings.append(
        Finding(
            EFFUSION,
            side,
            f"{side} lower zone",
            box,
            box,
            grid_mask(fluid),
            {"grade": grade},
            {"height_fraction": float(height)},
        )
    )
    _take(scene, fluid, 18)


def _pneumothorax(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    side = _pick(rng, SIDES, request.side)
    if scene.has(EFFUSION, side) or scene.has(PNEUMOTHORAX, side):
        raise NoRoomError(PNEUMOTHORAX)
    anatomy = scene.anatomy
    outline = anatomy.lungs[side]
    sign = 1 if side == LEFT else -1
    anchor = np.array([sign * 0.22, 0.93])
    shrink = rng.uniform(0.70, 0.80)
    edge = anchor + (outline - anchor) * (shrink, shrink + 0.04)
    collapsed = fill(anatomy.frame, edge)
    _, b = anatomy.frame.coarse_patient_grid()
    above = np.clip((0.86 - b) / 0.05, 0, 1).astype(np.float32)
    air: Image = anatomy.masks[side] * (1 - collapsed) * above
    air = air * (1 - anatomy.masks["mediastinum"])
    if float((air * scene.taken).sum()) > 1.0:
        raise NoRoomError(PNEUMOTHORAX)
    box = mask_box(air)
    scene.layers.pleural_air.append(air)
    scene.layers.pleural_lines.append(anatomy.frame.to_px(_lateral_run(edge)))
    scene.findings.append(
        Finding(
            PNEUMOTHORAX,
            side,
            f"{side} upper zone",
            box,
            box,
            grid_mask(air),
            {},
            {"collapse": float(1 - shrink)},
        )
    )
    _take(scene, air, 14)


def _lateral_run(outline: Points) -> Points:
    """Apex and lateral wall of a lung outline as one open run, down to above the diaphragm."""
    run = np.concatenate([outline[-len(outline) // 20 :], outline[: len(outline) // 3]])
    return run[run[:, 1] < 0.84]


def _cardiomegaly(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    """Name the heart that the anatomy already has."""
    del rng
    ratio = scene.anatomy.ctr
    grade = next(g for g, (_, high) in HEART_RATIOS.items() if ratio <= high + 1e-9)
    if grade not in HEART_SIZES[1:] or request.grade not in (None, grade):
        raise NoRoomError(CARDIOMEGALY)
    heart = scene.anatomy.masks["heart"]
    box = mask_box(heart)
    scene.findings.append(
        Finding(
            CARDIOMEGALY,
            MIDLINE,
            "",
            box,
            box,
            grid_mask(heart),
            {"grade": grade},
            {"cardiothoracic_ratio": ratio},
        )
    )


def _tube(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    if scene.has(TUBE):
        raise NoRoomError(TUBE)
    tip = _pick(rng, TIP_LEVELS, request.tip)
    x, y = scene.anatomy.carina
    start = [(x + rng.normal(0, 0.02), -0.7), (x + rng.normal(0, 0.012), -0.2)]
    if tip == TIP_LEVELS[0]:
        points = [
            *start,
            (x + 0.004, y - 0.22),
            (x + rng.normal(0, 0.008), y - rng.uniform(0.10, 0.15)),
        ]
    else:
        points = [
            *start,
            (x - 0.005, y - 0.14),
            (x - 0.02, y - 0.01),
            (x - 0.17, y + rng.uniform(0.10, 0.13)),
        ]
    path = scene.anatomy.frame.to_px(smooth_curve(np.array(points), closed=False))
    tube = TubeShape(path, 7.0 * scene.scale, bool(rng.integers(2)))
    _add_device(scene, tube, TUBE, MIDLINE, {"tip": tip})


def _line(scene: Scene, request: FindingRequest, rng: Generator) -> None:
    if scene.has(LINE):
        raise NoRoomError(LINE)
    side = _pick(rng, SIDES, request.side)
    sign = 1 if side == LEFT else -1
    tip = (-0.135 + rng.normal(0, 0.01), rng.uniform(0.33, 0.44))
    outer = [
        (sign * 1.5, rng.uniform(0.10, 0.22)),
        (sign * 1.0, rng.uniform(0.07, 0.13)),
        (sign * 0.6, rng.uniform(0.03, 0.08)),
        (sign * 0.28, rng.uniform(0.06, 0.09)),
    ]
    inner = [(-0.145, 0.19)] if side == RIGHT else [(0.02, 0.14), (-0.13, 0.22)]
    path = scene.anatomy.frame.to_px(smooth_curve(np.array([*outer, *inner, tip]), closed=False))
    tube = TubeShape(path, 4.5 * scene.scale, bool(rng.integers(2)))
    _add_device(scene, tube, LINE, side, {})


def _add_device(
    scene: Scene, tube: TubeShape, kind: str, side: str, attributes: dict[str, str]
) -> None:
    path, pad = tube.path, 6 * scene.scale + tube.width / 2
    tip, reach = path[-1], 64 * scene.scale
    coverage = np.zeros_like(scene.taken, dtype=np.uint8)
    cells = np.round((path / GRID_STEP - 0.5) * 16).astype(np.int32)
    cv2.polylines(coverage, [cells], False, 255, 3, cv2.LINE_AA, 4)
    scene.layers.tubes.append(tube)
    scene.findings.append(
        Finding(
            kind,
            side,
            "",
            _px_box(scene, *(path.min(axis=0) - pad), *(path.max(axis=0) + pad)),
            _px_box(scene, *(tip - reach), *(tip + reach)),
            grid_mask(coverage.astype(np.float32) / np.float32(255), 0.3),
            attributes,
            {},
        )
    )


_PLACERS: Final[dict[str, Callable[[Scene, FindingRequest, Generator], None]]] = {
    NODULE: _nodule,
    CONSOLIDATION: _consolidation,
    EFFUSION: _effusion,
    PNEUMOTHORAX: _pneumothorax,
    CARDIOMEGALY: _cardiomegaly,
    TUBE: _tube,
    LINE: _line,
}
