"""From a placed scene to 12-bit pixels.

Soft structures are drawn on the coarse grid (4 native pixels a cell), bones, vessels and tubes on
a grid of 2, noise and fine texture at native resolution. Brightness stands for attenuation: air is
dark, bone and fluid are bright. Fine texture is added after the tone curve, because a curve
would turn its zero mean into a shift that the small view could see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms import detail
from training.phantoms.anatomy import (
    GRID_STEP,
    Generator,
    Image,
    Points,
    fill,
    fixed_point,
    smooth_curve,
)
from training.phantoms.findings import RIM, NoduleShape, PatchShape, Scene, TubeShape
from training.phantoms.truth import LEFT, RIGHT, SIDES

BITS: Final = 12
MAX_STORED: Final = 2**BITS - 1
FINE_STEP: Final = 2
_PAD: Final = 6


@dataclass(frozen=True)
class Exposure:
    """Look of one film: tone, contrast, noise and borders.

    Attributes:
        low: display value of air, in [0, 1].
        high: display value of the densest part.
        bend: strength of the quadratic tone curve, in [-0.5, 0.5].
        noise: standard deviation of the quantum noise at mid-grey, in display units.
        lung: attenuation that the air of a lung takes away.
        bone: strength of the ribs.
        vessels: strength of the vessels.
        collimation: widths of the shutter borders (left, top, right, bottom), fractions.
        marker: whether a side marker is drawn.
    """

    low: float
    high: float
    bend: float
    noise: float
    lung: float
    bone: float
    vessels: float
    collimation: tuple[float, float, float, float]
    marker: bool


def sample_exposure(rng: Generator) -> Exposure:
    """Draw the look of a film."""
    borders = np.where(rng.random(4) < 0.18, rng.uniform(0.01, 0.05, 4), 0.0)
    low = rng.uniform(0.02, 0.16)
    return Exposure(
        low=low,
        high=low + rng.uniform(0.45, 0.82),
        bend=rng.uniform(-0.35, 0.45),
        noise=rng.uniform(0.006, 0.012),
        lung=rng.uniform(0.40, 0.54),
        bone=rng.uniform(0.05, 0.11),
        vessels=rng.uniform(0.06, 0.12),
        collimation=(float(borders[0]), float(borders[1]), float(borders[2]), float(borders[3])),
        marker=bool(rng.random() < 0.7),
    )


def draw(scene: Scene, seed: int) -> NDArray[np.uint16]:
    """Render a scene as MONOCHROME2, uint16 (rows, columns) in [0, 4095]."""
    rng = np.random.default_rng((seed, 1_000_003))
    look = sample_exposure(rng)
    rows, cols = scene.anatomy.frame.shape
    air = _air(scene)
    soft = _soft_tissue(scene, look, air, rng)
    fine = _bones(scene, look, air, rng) + _vessels(scene, look, air, rng)
    fine += _airways(scene) + _devices(scene) + _pleural_lines(scene)
    fine = _smooth(fine, 0.8)
    image = cv2.resize(soft, (fine.shape[1], fine.shape[0]), interpolation=cv2.INTER_CUBIC)
    image = cv2.resize(image + fine, (cols, rows), interpolation=cv2.INTER_LINEAR)
    for nodule in scene.layers.nodules:
        _add_nodule(image, nodule, look)
    _tone(image, look)
    for nodule in scene.layers.nodules:
        _add_nodule_texture(image, nodule, look)
    for patch in scene.layers.patches:
        _add_patch_texture(image, patch, look)
    _add_noise(image, look, rng)
    _collimate(image, look, rng)
    if look.marker:
        _mark_side(image, rng)
    return _quantise(image)


def _smooth(image: Image, sigma: float) -> Image:
    blurred: Image = cv2.GaussianBlur(image, (0, 0), sigma)
    return blurred


def _air(scene: Scene) -> Image:
    """How much air lies in the beam, (h, w) in [0, ~1.1] on the coarse grid."""
    masks, layers = scene.anatomy.masks, scene.layers
    open_lung = np.maximum(
        fill(scene.anatomy.frame, scene.anatomy.lungs[RIGHT]),
        fill(scene.anatomy.frame, scene.anatomy.lungs[LEFT]),
    )
    bulk = _smooth(open_lung, 9.0)
    air = _smooth(open_lung, 1.2) * (0.62 + 0.42 * bulk)
    air *= 1 - 0.86 * _smooth(masks["heart"], 1.5)
    air *= 1 - 0.90 * _smooth(masks["mediastinum"], 1.5)
    for pleural in layers.pleural_air:
        air *= 1 + 0.22 * _smooth(pleural, 0.7)
    for patch in layers.patches:
        air *= 1 - 0.72 * _smooth(patch.opacity, 0.8)
    for fluid in layers.fluid:
        air *= 1 - 0.93 * _smooth(fluid, 1.0)
    return air


def _soft_tissue(scene: Scene, look: Exposure, air: Image, rng: Generator) -> Image:
    """Attenuation of body, heart, abdomen and lungs on the coarse grid."""
    anatomy = scene.anatomy
    a, b = anatomy.frame.coarse_patient_grid()
    torso = anatomy.masks["torso"]
    thickness = _smooth(torso, 1.0) * (0.35 + 0.65 * _smooth(torso, 10.0))
    soft = 0.03 + 0.60 * thickness
    soft += 0.10 * thickness / (1 + np.exp(-(b - 0.95) / np.float32(0.06)))
    soft += (0.07 + 0.05 * rng.random()) * np.exp(-((a / np.float32(0.22)) ** 2)) * thickness
    soft += 0.05 * _smooth(anatomy.masks["heart"], 1.5)
    soft += _breasts(a, b, rng) * torso
    soft += _mottle(torso.shape, rng) * thickness
    soft += rng.normal(0, 0.03) * a + rng.normal(0, 0.02) * (b - 0.5)
    soft -= _stomach_bubble(a, b, rng) * (1 - _smooth(anatomy.masks["heart"], 1.0))
    return (soft - look.lung * air).astype(np.float32)


def _mottle(shape: tuple[int, int], rng: Generator) -> Image:
    """Slow irregularity of soft tissue on two scales."""
    wide = _smooth(rng.standard_normal(shape, np.float32), 12.0) * 0.55
    narrow = _smooth(rng.standard_normal(shape, np.float32), 2.0) * 0.06
    return wide + narrow


def _breasts(a: Image, b: Image, rng: Generator) -> Image:
    """Soft shadows over the lower lungs, or none."""
    if rng.random() < 0.5:
        return np.zeros_like(a)
    strength, centre = rng.uniform(0.04, 0.11), rng.uniform(0.60, 0.75)
    total = np.zeros_like(a)
    for sign in (-1, 1):
        distance = np.hypot((a - sign * 0.68) / 0.46, (b - centre) / 0.26)
        total += 1 / (1 + np.exp(np.minimum((distance - 1) / np.float32(0.06), 50)))
    return (strength * total).astype(np.float32)


def _stomach_bubble(a: Image, b: Image, rng: Generator) -> Image:
    """Gas under the left dome, or none."""
    if rng.random() < 0.55:
        return np.zeros_like(a)
    x, y = rng.uniform(0.42, 0.6), rng.uniform(1.03, 1.08)
    distance = np.hypot((a - x) / rng.uniform(0.12, 0.22), (b - y) / rng.uniform(0.04, 0.07))
    bubble: Image = (0.16 / (1 + np.exp(np.minimum((distance - 1) / 0.12, 50)))).astype(np.float32)
    return bubble


def _canvas(scene: Scene) -> NDArray[np.uint8]:
    rows, cols = scene.anatomy.frame.shape
    return np.zeros((rows // FINE_STEP, cols // FINE_STEP), np.uint8)


def _polyline(
    canvas: NDArray[np.uint8], scene: Scene, points: Points, width: float, value: int = 255
) -> None:
    """Draw a path given in patient coordinates; the width is in cells of the canvas."""
    cells = fixed_point(scene.anatomy.frame.to_px(points), FINE_STEP)
    cv2.polylines(canvas, [cells], False, value, max(1, round(width)), cv2.LINE_AA, 4)


def _to_fine(coarse: Image, shape: tuple[int, ...]) -> Image:
    fine: Image = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return fine


def _bones(scene: Scene, look: Exposure, air: Image, rng: Generator) -> Image:
    """Ribs, clavicles and spine on the fine grid."""
    unit = scene.anatomy.frame.matrix[1, 1] / FINE_STEP
    back, front, rim = _canvas(scene), _canvas(scene), _canvas(scene)
    tilt, gap = rng.uniform(0.02, 0.10), rng.uniform(0.088, 0.102)
    for sign in (-1, 1):
        for index in range(10):
            _posterior_rib(back, rim, scene, (sign, index, gap, tilt), unit, rng)
        for index in range(6):
            _anterior_rib(front, rim, scene, (sign, index, gap), unit, rng)
    weight = 0.45 + 0.55 * np.clip(_to_fine(air, back.shape), 0, 1)
    bones = 0.62 * look.bone * _smooth(back.astype(np.float32) / 255, 1.4)
    bones += 0.42 * look.bone * _smooth(front.astype(np.float32) / 255, 1.8)
    bones += 0.75 * look.bone * _smooth(rim.astype(np.float32) / 255, 0.7)
    torso = _to_fine(scene.anatomy.masks["torso"], back.shape)
    return (bones * weight + _clavicles(scene, look, rng, unit) + _spine(scene, rng)) * torso


def _posterior_rib(
    body: NDArray[np.uint8],
    rim: NDArray[np.uint8],
    scene: Scene,
    rib: tuple[int, int, float, float],
    unit: float,
    rng: Generator,
) -> None:
    sign, index, gap, tilt = rib
    top = -0.02 + gap * index + rng.normal(0, 0.004)
    reach = min(1.04, 0.60 + 0.15 * index)
    u = np.linspace(0.10, 1.07, 15)
    lift = 0.055 * np.sin(np.pi * np.minimum(u * 1.25, 1)) - 0.02
    drop = top - lift + (tilt + 0.16 + 0.012 * index) * u**3.2
    line = np.stack([sign * reach * u, drop], axis=-1)
    width = unit * rng.uniform(0.034, 0.042)
    _polyline(body, scene, line, width)
    for edge in (-0.5, 0.5):
        _polyline(rim, scene, line + (0, edge * 0.038), 1)


def _anterior_rib(
    canvas: NDArray[np.uint8],
    rim: NDArray[np.uint8],
    scene: Scene,
    rib: tuple[int, int, float],
    unit: float,
    rng: Generator,
) -> None:
    sign, index, gap = rib
    outer = 0.13 + gap * 1.18 * index + rng.normal(0, 0.005)
    u = np.linspace(0, 1, 10)
    a = sign * (min(1.02, 0.82 + 0.09 * index) - u * (0.52 + 0.02 * index))
    b = outer + (0.13 + 0.012 * index) * u**0.8
    line = np.stack([a, b], axis=-1)
    _polyline(canvas, scene, line, unit * 0.050)
    _polyline(rim, scene, line - (0, 0.023), 1, 110)
    _polyline(rim, scene, line + (0, 0.023), 1, 110)


def _clavicles(scene: Scene, look: Exposure, rng: Generator, unit: float) -> Image:
    canvas, edge = _canvas(scene), _canvas(scene)
    height = rng.uniform(0.0, 0.12)
    for sign in (-1, 1):
        points = np.array(
            [
                (0.14, height + 0.06),
                (0.34, height + 0.035),
                (0.62, height - 0.015),
                (0.92, height - 0.075),
                (1.25, height - 0.085),
            ]
        ) + rng.normal(0, 0.006, (5, 2))
        curve = smooth_curve(points * (sign, 1), closed=False)
        _polyline(canvas, scene, curve, unit * 0.045)
        for shift in (-0.022, 0.022):
            _polyline(edge, scene, curve + (0, shift), 1)
        _scapula(canvas, scene, sign, unit, rng)
    strength = look.bone * 1.15
    return strength * _smooth(canvas.astype(np.float32) / 255, 1.3) + (
        0.5 * strength * _smooth(edge.astype(np.float32) / 255, 0.9)
    )


def _scapula(
    canvas: NDArray[np.uint8], scene: Scene, sign: int, unit: float, rng: Generator
) -> None:
    lateral = rng.uniform(0.98, 1.16)
    border = np.array([(1.12, 0.02), (lateral, 0.14), (lateral - 0.02, 0.34), (1.14, 0.52)])
    curve = smooth_curve(border * (sign, 1), closed=False)
    _polyline(canvas, scene, curve, unit * 0.02, 120)


def _spine(scene: Scene, rng: Generator) -> Image:
    """Vertebral bodies and their discs, faint through the mediastinum."""
    canvas = _canvas(scene)
    unit = scene.anatomy.frame.matrix[0, 0] / FINE_STEP
    height = rng.uniform(0.072, 0.088)
    for index in range(-4, 16):
        b = index * height
        bar = np.array([(-0.10, b), (0.10, b)])
        _polyline(canvas, scene, bar, unit * 0.075, 200)
        process = np.array([(0.0, b + 0.01), (0.0, b + 0.03)])
        _polyline(canvas, scene, process, unit * 0.03, 255)
    return rng.uniform(0.02, 0.05) * _smooth(canvas.astype(np.float32) / 255, 1.6)


def _vessels(scene: Scene, look: Exposure, air: Image, rng: Generator) -> Image:
    """Branching vessels that taper from the hila, seen only against air."""
    canvas = _canvas(scene)
    unit = scene.anatomy.frame.matrix[0, 0] / FINE_STEP
    for side in SIDES:
        sign = 1 if side == LEFT else -1
        hilum = np.array([sign * 0.22, 0.43 if side == LEFT else 0.46])
        count = int(rng.integers(11, 15))
        for fan in np.linspace(-1.35, 1.45, count) + rng.normal(0, 0.06, count):
            heading = np.array([sign * np.cos(fan), np.sin(fan) * 0.62])
            length = rng.uniform(0.45, 0.75)
            _vessel(canvas, scene, hilum + heading * 0.03, heading, length, unit * 0.030, rng)
        _hilum(canvas, scene, sign, hilum, unit, rng)
    lines = _smooth(canvas.astype(np.float32) / 255, 0.9)
    grain = _parenchyma(canvas.shape, rng)
    visible = np.clip(_to_fine(air, canvas.shape), 0, 1)
    for pleural in scene.layers.pleural_air:
        visible *= 1 - _to_fine(pleural, canvas.shape)
    a, b = scene.anatomy.frame.coarse_patient_grid()
    distance = np.hypot((abs(a) - 0.26) / 0.26, (b - 0.50) / 0.24)
    haze = _to_fine(np.exp(-(distance**2)).astype(np.float32), canvas.shape)
    return (look.vessels * (lines * (0.75 + 0.5 * haze) + 0.35 * haze) + grain) * visible


def _parenchyma(shape: tuple[int, ...], rng: Generator) -> Image:
    """Irregular markings of the lung between the visible vessels, on two scales."""
    small = _smooth(rng.standard_normal(shape, np.float32), 1.1)
    large = _smooth(rng.standard_normal((shape[0] // 2, shape[1] // 2), np.float32), 2.0)
    return rng.uniform(0.02, 0.05) * small + 0.10 * _to_fine(large, shape)


def _hilum(
    canvas: NDArray[np.uint8],
    scene: Scene,
    sign: int,
    hilum: Points,
    unit: float,
    rng: Generator,
) -> None:
    bow = np.array([(0.02, -0.05), (0.06, 0.0), (0.07, 0.06), (0.04, 0.14)])
    curve = smooth_curve(hilum + bow * (sign, 1) + rng.normal(0, 0.008, (4, 2)), closed=False)
    _polyline(canvas, scene, curve, unit * 0.085, 150)


def _vessel(
    canvas: NDArray[np.uint8],
    scene: Scene,
    start: Points,
    heading: Points,
    length: float,
    width: float,
    rng: Generator,
    depth: int = 0,
) -> None:
    """One vessel of eight pieces with side branches."""
    steps = 8
    turn = np.cumsum(rng.normal(0, 0.13, steps))
    cos, sin = np.cos(turn), np.sin(turn)
    moves = np.stack(
        [heading[0] * cos - heading[1] * sin, heading[0] * sin + heading[1] * cos], axis=-1
    )
    path = start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves * length / steps, axis=0)])
    for first, last, share in ((0, 2, 1.0), (2, 5, 0.55), (5, 8, 0.28)):
        value = 255 if width * share >= 1.4 else int(60 + 140 * min(1.0, width * share / 1.4))
        _polyline(canvas, scene, path[first : last + 1], width * share, value)
    if depth == 2:
        return
    for at in (2, 4, 6):
        angle = rng.choice((-1, 1)) * rng.uniform(0.4, 0.8)
        cos1, sin1 = np.cos(angle), np.sin(angle)
        way = np.array(
            [moves[at][0] * cos1 - moves[at][1] * sin1, moves[at][0] * sin1 + moves[at][1] * cos1]
        )
        share = 0.62 if at < 4 else 0.42
        _vessel(canvas, scene, path[at], way, length * 0.5, width * share, rng, depth + 1)


def _airways(scene: Scene) -> Image:
    """Dark trachea and main bronchi."""
    canvas = _canvas(scene)
    unit = scene.anatomy.frame.matrix[0, 0] / FINE_STEP
    x, y = scene.anatomy.carina
    trachea = smooth_curve(np.array([(0.0, -0.6), (x, -0.1), (x, y - 0.01)]), closed=False)
    _polyline(canvas, scene, trachea, unit * 0.10, 255)
    right = np.array([(x, y - 0.01), (x - 0.10, y + 0.06), (x - 0.2, y + 0.14)])
    left = np.array([(x, y - 0.01), (x + 0.13, y + 0.055), (x + 0.27, y + 0.10)])
    _polyline(canvas, scene, right, unit * 0.075, 190)
    _polyline(canvas, scene, left, unit * 0.065, 190)
    return -0.13 * _smooth(canvas.astype(np.float32) / 255, 2.2)


def _devices(scene: Scene) -> Image:
    """Tubes and lines: bright walls, or a bright stripe."""
    total = np.zeros(_canvas(scene).shape, np.float32)
    for tube in scene.layers.tubes:
        total += _device(scene, tube)
    return total


def _device(scene: Scene, tube: TubeShape) -> Image:
    canvas = _canvas(scene)
    cells = fixed_point(tube.path, FINE_STEP)
    width = max(1, round(tube.width / FINE_STEP))
    cv2.polylines(canvas, [cells], False, 200 if tube.marker else 240, width, cv2.LINE_AA, 4)
    if tube.marker and width >= 3:
        cv2.polylines(canvas, [cells], False, 255, 1, cv2.LINE_AA, 4)
    return np.float32(0.30) * canvas.astype(np.float32) / 255


def _pleural_lines(scene: Scene) -> Image:
    canvas = _canvas(scene)
    for line in scene.layers.pleural_lines:
        cv2.polylines(canvas, [fixed_point(line, FINE_STEP)], False, 255, 2, cv2.LINE_AA, 4)
    return np.float32(0.20) * canvas.astype(np.float32) / 255


def _window(
    image: Image, centre: Points, half: int
) -> tuple[tuple[slice, slice], tuple[slice, slice], Points]:
    """Slices of the image and of a (2 half + 1) patch that overlap, and the sub-pixel offset."""
    x, y = (int(v) for v in np.floor(centre))
    rows, cols = image.shape
    y0, y1, x0, x1 = (
        max(0, y - half),
        min(rows, y + half + 1),
        max(0, x - half),
        min(cols, x + half + 1),
    )
    inside = (slice(y0, y1), slice(x0, x1))
    patch = (slice(y0 - y + half, y1 - y + half), slice(x0 - x + half, x1 - x + half))
    return inside, patch, centre - 0.5 - (x, y)


def nodule_profile(nodule: NoduleShape, half: int, offset: Points) -> Image:
    """Soft disc that every nodule has, whatever its margin, (2 half + 1, 2 half + 1) in [0, 1]."""
    ys, xs = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    dx, dy = xs - np.float32(offset[0]), ys - np.float32(offset[1])
    angle = np.arctan2(dy, dx)
    edge = np.ones_like(angle)
    for order, (c, s) in enumerate(nodule.harmonics, start=2):
        edge += np.float32(c) * np.cos(order * angle) + np.float32(s) * np.sin(order * angle)
    distance = np.hypot(dx, dy) / np.float32(nodule.radius)
    rim = 1 / (1 + np.exp((distance - edge) / np.float32(0.055)))
    dome = np.sqrt(np.clip(1 - 0.55 * (distance / 1.2) ** 2, 0.2, 1))
    profile: Image = (rim * dome).astype(np.float32)
    return profile


def _add_nodule(image: Image, nodule: NoduleShape, look: Exposure) -> None:
    half = int(np.ceil(RIM * nodule.radius)) + _PAD
    inside, patch, offset = _window(image, nodule.centre, half)
    image[inside] += (nodule.contrast * look.lung * nodule_profile(nodule, half, offset))[patch]


def _add_nodule_texture(image: Image, nodule: NoduleShape, look: Exposure) -> None:
    """Margin and core, each structured or its decoy, at the same energy."""
    half = int(np.ceil(RIM * nodule.radius)) + _PAD
    inside, patch, _ = _window(image, nodule.centre, half)
    size = 2 * half + 1
    total = np.zeros((size, size), np.float32)
    pairs = (
        (detail.spicules, nodule.spiculated, 0.30),
        (detail.specks, nodule.calcified, 2.0),
    )
    for index, (paint, present, gain) in enumerate(pairs):
        rng = np.random.default_rng((nodule.seed, index))
        texture = paint(size, nodule.radius, rng)
        total += gain * (texture if present else detail.decoy(texture, rng))
    image[inside] += (look.high - look.low) * total[patch]


def _add_patch_texture(image: Image, patch: PatchShape, look: Exposure) -> None:
    x0, y0, x1, y1 = patch.box_px
    rng = np.random.default_rng((patch.seed, 0))
    opacity = cv2.resize(
        patch.opacity[y0 // GRID_STEP : y1 // GRID_STEP, x0 // GRID_STEP : x1 // GRID_STEP],
        (x1 - x0, y1 - y0),
        interpolation=cv2.INTER_LINEAR,
    )
    texture = detail.bronchi(opacity, rng)
    if not patch.bronchogram:
        texture = detail.decoy(texture, rng, 5.0)
    image[y0:y1, x0:x1] += 0.24 * (look.high - look.low) * texture


def _tone(image: Image, look: Exposure) -> None:
    """Attenuation to display values, in place: quadratic curve, contrast, soft shoulders."""
    np.clip(image, 0, 1.05, out=image)
    image += look.bend * image * (1 - image)
    image *= look.high - look.low
    image += look.low


def _add_noise(image: Image, look: Exposure, rng: Generator) -> None:
    """Quantum noise, stronger where fewer quanta arrive (bright parts), in place."""
    noise = rng.standard_normal(image.shape, np.float32)
    noise *= look.noise * (0.6 + 0.8 * image)
    image += noise


def _collimate(image: Image, look: Exposure, rng: Generator) -> None:
    """Shutter borders, in place."""
    rows, cols = image.shape
    left, top, right, bottom = look.collimation
    shade = rng.uniform(0.0, 0.03)
    image[:, : int(left * cols)] = shade
    image[: int(top * rows)] = shade
    image[:, cols - int(right * cols) :] = shade
    image[rows - int(bottom * rows) :] = shade


def _mark_side(image: Image, rng: Generator) -> None:
    """Letter at the upper corner of the patient's side."""
    rows, cols = image.shape
    letter, x = (
        ("R", rng.uniform(0.04, 0.10)) if rng.random() < 0.5 else ("L", rng.uniform(0.86, 0.92))
    )
    y, size = rng.uniform(0.07, 0.16), rng.uniform(1.1, 2.0)
    stamp = np.zeros(image.shape, np.uint8)
    at = (int(x * cols), int(y * rows))
    cv2.putText(stamp, letter, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 3, cv2.LINE_AA)
    top, bottom = max(0, at[1] - 80), at[1] + 10
    left, right = at[0] - 5, min(cols, at[0] + 60)
    left = max(0, left)
    part = stamp[top:bottom, left:right].astype(np.float32) / 255
    view = image[top:bottom, left:right]
    view += part * (0.95 - view)


def _quantise(image: Image) -> NDArray[np.uint16]:
    np.clip(image, 0, 1, out=image)
    image *= MAX_STORED
    image += 0.5
    return image.astype(np.uint16)
