"""Phantoms that show a section of the body: truth, wishes, and what their generators share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.phantoms.anatomy import Generator, Image, Points, fixed_point
from training.phantoms.label_names import LabelNames
from training.phantoms.truth import (
    MASK_GRID,
    Box,
    Finding,
    Mask,
    Structure,
    anatomy_from_json,
    anatomy_to_json,
    findings_of_kind,
)

STEP: Final = 2
"""Native pixels per cell of the grid on which everything but fine texture is drawn."""


@dataclass(frozen=True)
class SectionTruth:
    """Everything that is known about a phantom of a section.

    Attributes:
        study: name of its modality's phantoms, a key of ``SECTIONS``.
        seed: seed of the phantom.
        split: split of that seed.
        height: rows of the image.
        width: columns of the image.
        anatomy: structures by name, as far as the section shows them.
        findings: what is to be seen, in drawing order.
        traits: attributes of the whole image, such as ``midline shift``.
        pixel_spacing: mm per pixel, row and column alike.
        modality: DICOM modality, ``CT`` or ``US``.
    """

    study: str
    seed: int
    split: str
    height: int
    width: int
    anatomy: dict[str, Structure]
    findings: tuple[Finding, ...]
    traits: dict[str, str]
    pixel_spacing: float
    modality: str

    def of_kind(self, kind: str, side: str | None = None) -> tuple[Finding, ...]:
        """Findings of one kind, on one side when it is given."""
        return findings_of_kind(self.findings, kind, side)

    def to_json(self, *, masks: bool = True) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "study": self.study,
            "seed": self.seed,
            "split": self.split,
            "height": self.height,
            "width": self.width,
            "anatomy": anatomy_to_json(self.anatomy, masks=masks),
            "findings": [f.to_json(masks=masks) for f in self.findings],
            "traits": dict(self.traits),
            "pixel_spacing": self.pixel_spacing,
            "modality": self.modality,
            "mask_grid": MASK_GRID,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> SectionTruth:
        """Inverse of :meth:`to_json`."""
        return cls(
            study=record["study"],
            seed=int(record["seed"]),
            split=record["split"],
            height=int(record["height"]),
            width=int(record["width"]),
            anatomy=anatomy_from_json(record["anatomy"]),
            findings=tuple(Finding.from_json(f) for f in record["findings"]),
            traits=dict(record["traits"]),
            pixel_spacing=float(record["pixel_spacing"]),
            modality=record["modality"],
        )


@dataclass(frozen=True)
class SectionRequest:
    """A finding that a phantom must show; what is not named is left to chance.

    Attributes:
        kind: kind of the finding.
        side: side on which it lies.
        zone: zone in which it lies.
        attributes: values of its attributes.
    """

    kind: str
    side: str | None = None
    zone: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SectionConfig:
    """Options of one phantom of a section.

    Attributes:
        study: name of its modality's phantoms, a key of ``SECTIONS``.
        require: findings that must be there.
        forbid: kinds that must not be added by chance. A required kind is never added to.
        extras: probabilities of 0, 1, 2, ... further findings, as far as they fit.
        traits: wanted attributes of the whole image.
    """

    study: str
    require: tuple[SectionRequest, ...] = ()
    forbid: tuple[str, ...] = ()
    extras: tuple[float, ...] = (0.3, 0.4, 0.3)
    traits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the probabilities."""
        if not self.extras or min(self.extras) < 0 or abs(sum(self.extras) - 1) > 1e-6:
            raise ValueError("The probabilities of further findings must sum to 1.")


def check_wishes(config: SectionConfig, names: LabelNames) -> None:
    """Refuse wishes for what a modality does not have.

    Raises:
        ValueError: an unknown kind, or an unknown attribute or value of one.
    """
    kinds = [*(request.kind for request in config.require), *config.forbid]
    unknown = [kind for kind in kinds if kind not in names.findings]
    if unknown:
        raise ValueError(f"Unknown findings {unknown}; use some of {names.findings}.")
    wanted = [*(request.attributes for request in config.require), config.traits]
    for name, value in (pair for wishes in wanted for pair in wishes.items()):
        if value not in names.attributes.get(name, ()):
            raise ValueError(f"Unknown attribute {name!r} or value {value!r}.")


def with_extras(
    config: SectionConfig, kinds: Sequence[str], rng: Generator
) -> list[SectionRequest]:
    """The required findings and some by chance, of other kinds, each once or twice."""
    taken = {request.kind for request in config.require} | set(config.forbid)
    free = [kind for kind in kinds if kind not in taken]
    count = min(int(rng.choice(len(config.extras), p=config.extras)), len(free))
    requests = list(config.require)
    for index in rng.permutation(len(free))[:count]:
        repeat = 1 + int(rng.random() < 0.3)
        requests.extend([SectionRequest(free[index])] * repeat)
    return requests


def pick(rng: Generator, options: Sequence[str], wanted: str | None) -> str:
    """A wanted option, or any."""
    return wanted if wanted is not None else options[int(rng.integers(len(options)))]


def filled(px: Points, shape: tuple[int, int]) -> Image:
    """Coverage in [0, 1] of an outline in native pixels, (n, 2), on the grid of ``STEP``."""
    canvas = np.zeros((shape[0] // STEP, shape[1] // STEP), np.uint8)
    cv2.fillPoly(canvas, [fixed_point(px, STEP)], 255, cv2.LINE_AA, 4)
    return np.multiply(canvas, np.float32(1 / 255), dtype=np.float32)


def truth_mask(coverage: Image, threshold: float = 0.5) -> Mask:
    """Coverage to the mask grid of the truth."""
    small = cv2.resize(coverage, (MASK_GRID, MASK_GRID), interpolation=cv2.INTER_AREA)
    mask: Mask = small > threshold
    return mask


def square(centre: Points, half: float, shape: tuple[int, int]) -> Box:
    """Normalised box around a centre in native pixels, cut at the image."""
    rows, cols = shape
    low, high = centre - half, centre + half
    return (
        float(np.clip(low[0] / cols, 0, 1)),
        float(np.clip(low[1] / rows, 0, 1)),
        float(np.clip(high[0] / cols, 0, 1)),
        float(np.clip(high[1] / rows, 0, 1)),
    )


def window_px(box: Box, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Whole native pixels of a box, as slices of rows and columns."""
    rows, cols = shape
    return (
        slice(round(box[1] * rows), round(box[3] * rows)),
        slice(round(box[0] * cols), round(box[2] * cols)),
    )


def at_native(coverage: Image, window: tuple[slice, slice]) -> Image:
    """The part of a coverage on the grid of ``STEP`` that a window of native pixels shows."""
    rows, cols = window
    ys = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / STEP - 0.5
    xs = (np.arange(cols.start, cols.stop, dtype=np.float32) + 0.5) / STEP - 0.5
    map_x, map_y = np.meshgrid(xs, ys)
    part = cv2.remap(coverage, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(part, dtype=np.float32)


Pixels = NDArray[np.uint16] | NDArray[np.int16] | NDArray[np.uint8]
