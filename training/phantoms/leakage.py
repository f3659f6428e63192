"""What the small view gives away about fine attributes, and what a crop shows.

A fine attribute is only worth a zoom if the view says nothing about it. Here simple classifiers
try to read it from the view around the finding, whose box they are given, and from a crop cut at
native resolution. They must be at chance on the first and near perfect on the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from training.phantoms import (
    CHEST,
    AnyConfig,
    Box,
    FindingRequest,
    Phantom,
    PhantomConfig,
    SectionConfig,
    SectionRequest,
    generate,
    seed_for,
    to_view8,
)
from training.phantoms.breast_ultrasound import words as breast
from training.phantoms.head_ct import words as head
from training.phantoms.truth import CONSOLIDATION, NODULE, SPICULATED

Resizer = Literal["bicubic", "area"]
Statistic = Literal["direction", "grains", "energy", "core energy", "core grains"]
Pixels = NDArray[np.float32]
Features = NDArray[np.float64]
Labels = NDArray[np.bool_]

VIEW: Final = 224
CROP_PADDING: Final = 0.2
_PATCH: Final = 24
_RINGS: Final = 12


@dataclass(frozen=True)
class FineSign:
    """A fine attribute of one kind of finding, and how a crop is read for it.

    Attributes:
        kind: of the finding.
        attribute: its name.
        positive: the value of the structured texture; the other is that of its decoy.
        statistic: what tells the two apart, see :func:`crop_statistic`.
    """

    kind: str
    attribute: str
    positive: str
    statistic: Statistic


@dataclass(frozen=True)
class LeakageStudy:
    """Fine signs of a modality by name, and phantoms that have all of their findings once."""

    signs: dict[str, FineSign]
    config: AnyConfig


STUDIES: Final = {
    CHEST: LeakageStudy(
        {
            "margin": FineSign(NODULE, "margin", SPICULATED, "direction"),
            "calcification": FineSign(NODULE, "calcification", "calcified", "grains"),
            "air bronchogram": FineSign(CONSOLIDATION, "air bronchogram", "yes", "direction"),
        },
        PhantomConfig(
            require=(FindingRequest(NODULE), FindingRequest(CONSOLIDATION)),
            extras=(1.0,),
            size=(896, 896),
        ),
    ),
    head.STUDY: LeakageStudy(
        {
            "swirl in brain": FineSign(head.INTRAPARENCHYMAL, head.SWIRL, "yes", "core energy"),
            "swirl at skull": FineSign(head.EPIDURAL, head.SWIRL, "yes", "core energy"),
            "fluid level": FineSign(head.SUBDURAL, head.FLUID_LEVEL, "yes", "core energy"),
        },
        SectionConfig(
            head.STUDY, tuple(SectionRequest(kind) for kind in head.KINDS), extras=(1.0,)
        ),
    ),
    breast.STUDY: LeakageStudy(
        {
            "margin": FineSign(breast.MALIGNANT, breast.MARGIN, breast.SPICULATED, "energy"),
            "grains in irregular": FineSign(
                breast.MALIGNANT, breast.MICROCALCIFICATIONS, "yes", "core grains"
            ),
            "grains in oval": FineSign(
                breast.BENIGN, breast.MICROCALCIFICATIONS, "yes", "core grains"
            ),
        },
        SectionConfig(
            breast.STUDY, tuple(SectionRequest(kind) for kind in breast.SOLID), extras=(1.0,)
        ),
    ),
}
"""What is measured of each modality."""


@dataclass(frozen=True)
class Leakage:
    """Accuracies of the best classifier per attribute.

    Attributes:
        view: best test accuracy on views, by attribute and resizer.
        crop: test accuracy of one threshold on one statistic of the crops, by attribute.
        train: number of phantoms trained on.
        test: number of phantoms tested on.
    """

    view: dict[tuple[str, str], float]
    crop: dict[str, float]
    train: int
    test: int


@dataclass(frozen=True)
class _Sample:
    labels: dict[str, bool]
    views: dict[tuple[str, str], tuple[Pixels, Pixels]]
    crops: dict[str, Pixels]


def measure_leakage(train: int, test: int, base_seed: int = 0, modality: str = CHEST) -> Leakage:
    """Draw phantoms, train the classifiers on some and test them on the others."""
    study = STUDIES[modality]
    samples = [_sample(study, seed_for("validation", i, base_seed)) for i in range(train + test)]
    view = {
        (name, resizer): max(_view_accuracies(samples, name, resizer, train).values())
        for name in study.signs
        for resizer in ("bicubic", "area")
    }
    crop = {
        name: _crop_accuracy(samples, name, sign.statistic, train)
        for name, sign in study.signs.items()
    }
    return Leakage(view, crop, train, test)


def resize_view(image: NDArray[np.uint8], resizer: Resizer = "bicubic") -> NDArray[np.uint8]:
    """Small view with an area of ``VIEW ** 2`` pixels at most and sides that are multiples of 28.

    ``bicubic`` is Pillow's antialiased filter, which the model's processor uses.
    """
    rows, cols = image.shape
    shrink = max(1.0, (rows * cols) ** 0.5 / VIEW)
    size = (int(cols / shrink // 28) * 28, int(rows / shrink // 28) * 28)
    if resizer == "area":
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BICUBIC))


def cut(image: NDArray[np.uint8], box: Box, padding: float = CROP_PADDING) -> NDArray[np.uint8]:
    """Pixels of a normalised box grown by ``padding`` of its size in all."""
    rows, cols = image.shape
    dx, dy = (box[2] - box[0]) * padding / 2, (box[3] - box[1]) * padding / 2
    x0, x1 = max(0, round((box[0] - dx) * cols)), min(cols, round((box[2] + dx) * cols))
    y0, y1 = max(0, round((box[1] - dy) * rows)), min(rows, round((box[3] + dy) * rows))
    return image[y0:y1, x0:x1]


def _sample(study: LeakageStudy, seed: int) -> _Sample:
    phantom = generate(seed, study.config)
    image = to_view8(phantom)
    small = {"bicubic": resize_view(image), "area": resize_view(image, "area")}
    labels, views, crops = {}, {}, {}
    for name, sign in study.signs.items():
        finding = phantom.truth.of_kind(sign.kind)[0]
        labels[name] = finding.attributes[sign.attribute] == sign.positive
        for resizer, view in small.items():
            views[name, resizer] = _view_patches(view, finding.focus)
        crop = PillowImage.fromarray(cut(image, finding.focus))
        resized = crop.resize((VIEW, VIEW), PillowImage.Resampling.BICUBIC)
        crops[name] = np.asarray(resized, dtype=np.float32)
    return _Sample(labels, views, crops)


def _view_patches(view: NDArray[np.uint8], box: Box) -> tuple[Pixels, Pixels]:
    """Patch of a view and its high-pass residue, both (``_PATCH``, ``_PATCH``)."""
    values = view.astype(np.float32)
    residue = values - cv2.GaussianBlur(values, (0, 0), 1.0)
    rows, cols = view.shape
    x0, y0 = box[0] * cols, box[1] * rows
    width, height = (box[2] - box[0]) * cols, (box[3] - box[1]) * rows
    step = np.arange(_PATCH, dtype=np.float32)
    xs = x0 - 0.1 * width + (step + 0.5) * (1.2 * width / _PATCH) - 0.5
    ys = y0 - 0.1 * height + (step + 0.5) * (1.2 * height / _PATCH) - 0.5
    at = np.meshgrid(xs.astype(np.float32), ys.astype(np.float32))
    border = cv2.BORDER_REPLICATE
    patch = cv2.remap(values, at[0], at[1], cv2.INTER_LINEAR, borderMode=border)
    rest = cv2.remap(residue, at[0], at[1], cv2.INTER_NEAREST, borderMode=border)
    return np.asarray(patch, dtype=np.float32), np.asarray(rest, dtype=np.float32)


def _view_accuracies(
    samples: list[_Sample], name: str, resizer: str, train: int
) -> dict[str, float]:
    labels = np.array([s.labels[name] for s in samples])
    patches = np.stack([s.views[name, resizer][0] for s in samples])
    residues = np.stack([s.views[name, resizer][1] for s in samples])
    raw = patches.reshape(len(samples), -1).astype(np.float64)
    rings = np.stack([_ring_features(p, r) for p, r in zip(patches, residues, strict=True)])
    trials: dict[str, tuple[Features, Callable[..., Labels]]] = {
        "pixels, centroid": (raw, _nearest_centroid),
        "pixels, logistic": (raw, _logistic),
        "rings, centroid": (rings, _nearest_centroid),
        "rings, logistic": (rings, _logistic),
    }
    out = {}
    for trial, (features, classify) in trials.items():
        scaled = _standardise(features, train)
        guess = classify(scaled[:train], labels[:train], scaled[train:])
        out[trial] = float((guess == labels[train:]).mean())
    return out


def _ring_features(patch: Pixels, residue: Pixels) -> Features:
    """Radial means of the patch, radial log energy of the residue, and its higher moments."""
    ys, xs = np.mgrid[0:_PATCH, 0:_PATCH] - (_PATCH - 1) / 2
    ring = np.minimum((np.hypot(ys, xs) / (_PATCH / 2) * _RINGS * 0.72).astype(int), _RINGS - 1)
    count = np.bincount(ring.ravel(), minlength=_RINGS)
    mean = np.bincount(ring.ravel(), patch.ravel(), minlength=_RINGS) / count
    energy = np.bincount(ring.ravel(), residue.ravel() ** 2, minlength=_RINGS) / count
    return np.concatenate([mean - mean[0], np.log(energy + 0.05), _moments(residue)])


def _moments(values: Pixels) -> Features:
    spread = float(values.std()) + 1e-6
    z = (values - values.mean()) / spread
    return np.array([np.log(spread), (z**3).mean(), np.log((z**4).mean())])


def _standardise(features: Features, train: int) -> Features:
    known = features[:train]
    scaled: Features = (features - known.mean(axis=0)) / (known.std(axis=0) + 1e-9)
    return scaled


def _nearest_centroid(train: Features, labels: Labels, test: Features) -> Labels:
    yes, no = train[labels].mean(axis=0), train[~labels].mean(axis=0)
    nearer: Labels = np.linalg.norm(test - yes, axis=1) < np.linalg.norm(test - no, axis=1)
    return nearer


def _logistic(train: Features, labels: Labels, test: Features, penalty: float = 0.05) -> Labels:
    """Logistic regression by gradient descent with an L2 penalty."""
    weights, bias = np.zeros(train.shape[1]), 0.0
    rate = 4.0 / (float(np.linalg.norm(train, 2)) ** 2 / len(train) + penalty)
    for _ in range(400):
        error = 1 / (1 + np.exp(-np.clip(train @ weights + bias, -30, 30))) - labels
        weights -= rate * (train.T @ error / len(train) + penalty * weights)
        bias -= rate * float(error.mean())
    guess: Labels = test @ weights + bias > 0
    return guess


def _crop_accuracy(samples: list[_Sample], name: str, statistic: Statistic, train: int) -> float:
    """Test accuracy of the best training threshold on :func:`crop_statistic`."""
    labels = np.array([s.labels[name] for s in samples])
    scores = np.array([crop_statistic(s.crops[name], statistic) for s in samples])
    edges = np.sort(scores[:train])
    hits = [((scores[:train] > e) == labels[:train]).mean() for e in edges]
    threshold = edges[int(np.argmax(hits))]
    return float(((scores[train:] > threshold) == labels[train:]).mean())


def crop_statistic(crop: Pixels, statistic: Statistic) -> float:
    """One number that tells structured texture from its decoy in a (224, 224) crop.

    ``direction``: how strongly fine detail keeps one direction locally (coherence of the
    structure tensor, energy-weighted). ``grains``: skewness of the fine detail in the core.
    ``energy``: logarithm of the energy of the finest detail; ``core energy`` and ``core grains``:
    energy and skewness of the finest detail in the core.
    """
    finest = crop - cv2.GaussianBlur(crop, (0, 0), 0.8)
    core = slice(VIEW // 3, -VIEW // 3)
    if statistic == "core grains":
        return float(_moments(finest[core, core])[1])
    if statistic in ("energy", "core energy"):
        part = finest if statistic == "energy" else finest[core, core]
        return float(np.log(np.square(part).mean() + 1e-3))
    fine = cv2.GaussianBlur(crop, (0, 0), 1.0) - cv2.GaussianBlur(crop, (0, 0), 3.0)
    if statistic == "grains":
        return float(_moments(fine[core, core])[1])
    gx, gy = cv2.Sobel(fine, cv2.CV_32F, 1, 0), cv2.Sobel(fine, cv2.CV_32F, 0, 1)
    xx, yy, xy = (cv2.GaussianBlur(g, (0, 0), 6.0) for g in (gx * gx, gy * gy, gx * gy))
    oriented = np.hypot(xx - yy, 2 * xy)
    return float(oriented.sum() / (xx + yy).sum())


def paired_difference(seed: int, **attributes: str | bool) -> tuple[Phantom, Phantom]:
    """The same phantom twice, with both values of one nodule or consolidation attribute.

    Args:
        seed: seed of the phantom.
        **attributes: one of ``margin``, ``calcified``, ``bronchogram`` with the first value.
    """
    ((name, first),) = attributes.items()
    kind = CONSOLIDATION if name == "bronchogram" else NODULE
    other = (
        (not first)
        if isinstance(first, bool)
        else ("smooth" if first == SPICULATED else SPICULATED)
    )
    pair = [
        generate(
            seed,
            PhantomConfig(
                require=(FindingRequest(kind, **{name: value}),),  # type: ignore[arg-type]
                extras=(1.0,),
                size=(896, 896),
            ),
        )
        for value in (first, other)
    ]
    return pair[0], pair[1]
