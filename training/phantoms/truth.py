"""The exact truth of a phantom: what was drawn, where, and with which attributes.

Boxes are ``(x0, y0, x1, y1)``, half-open, normalised to the displayed image. The left side of
the image is the patient's right. Masks are boolean grids of ``MASK_GRID x MASK_GRID`` cells that
span the whole image, whatever its aspect ratio.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]

MASK_GRID: Final = 128

NODULE: Final = "nodule"
CONSOLIDATION: Final = "consolidation"
EFFUSION: Final = "pleural effusion"
PNEUMOTHORAX: Final = "pneumothorax"
CARDIOMEGALY: Final = "cardiomegaly"
TUBE: Final = "endotracheal tube"
LINE: Final = "central line"
FINDING_KINDS: Final = (
    NODULE,
    CONSOLIDATION,
    EFFUSION,
    PNEUMOTHORAX,
    CARDIOMEGALY,
    TUBE,
    LINE,
)

RIGHT: Final = "right"
LEFT: Final = "left"
MIDLINE: Final = "midline"
SIDES: Final = (RIGHT, LEFT)
LEVELS: Final = ("upper", "middle", "lower")
ZONES: Final = tuple(f"{side} {level} zone" for side in SIDES for level in LEVELS)

SMOOTH: Final = "smooth"
SPICULATED: Final = "spiculated"
MARGINS: Final = (SMOOTH, SPICULATED)
EFFUSION_GRADES: Final = ("small", "moderate", "large")
HEART_SIZES: Final = ("normal", "mildly enlarged", "severely enlarged")
TIP_LEVELS: Final = ("above the carina", "in the right main bronchus")

SPLITS: Final = ("train", "validation", "test", "demo")
_SPLIT_BITS: Final = 2
_INDEX_BITS: Final = 48


def seed_for(split: str, index: int, base_seed: int = 0) -> int:
    """Seed of the ``index``-th phantom of a split.

    The split is stored in the two low bits, so two splits can never share a seed, whatever the
    base seeds. Seeds stay below 2**50 and so survive JSON.

    Raises:
        ValueError: unknown split, or a negative index or base seed.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    if index < 0 or base_seed < 0:
        raise ValueError("The index and the base seed of a phantom must not be negative.")
    code = SPLITS.index(split)
    state = np.random.SeedSequence((base_seed, index), spawn_key=(code,)).generate_state(
        1, np.uint64
    )
    return ((int(state[0]) >> (64 - _INDEX_BITS)) << _SPLIT_BITS) | code


def split_of(seed: int) -> str:
    """Split that a phantom seed belongs to (its two low bits)."""
    return SPLITS[seed & (2**_SPLIT_BITS - 1)]


@dataclass(frozen=True)
class Finding:
    """One finding of a phantom.

    Attributes:
        kind: one of ``FINDING_KINDS``.
        side: ``right``, ``left`` or ``midline`` (of the patient).
        zone: one of ``ZONES``, or empty where a zone says nothing (heart, devices).
        box: extent of the finding; for a nodule, the square that holds it and its rim.
        focus: where to look for the attributes (the tip of a tube; otherwise ``box``).
        mask: bool (``MASK_GRID``, ``MASK_GRID``).
        attributes: text attributes, such as ``margin``, ``grade`` or ``tip``.
        measures: numbers, such as ``radius_mm``; lengths in mm at the detector.
    """

    kind: str
    side: str
    zone: str
    box: Box
    focus: Box
    mask: Mask = field(repr=False, compare=False)
    attributes: dict[str, str] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)

    def to_json(self, *, masks: bool = True) -> dict[str, Any]:
        """JSON-ready dictionary; masks as base64 of their packed bits.

        Boxes keep every digit: crops are found by the boxes that questions point to.
        """
        record: dict[str, Any] = {
            "kind": self.kind,
            "side": self.side,
            "zone": self.zone,
            "box": [float(v) for v in self.box],
            "focus": [float(v) for v in self.focus],
            "attributes": dict(self.attributes),
            "measures": {k: round(v, 4) for k, v in self.measures.items()},
        }
        if masks:
            record["mask"] = pack_mask(self.mask)
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Finding:
        """Inverse of :meth:`to_json`; a record without a mask gives an empty one."""
        return cls(
            kind=record["kind"],
            side=record["side"],
            zone=record["zone"],
            box=_box(record["box"]),
            focus=_box(record["focus"]),
            mask=unpack_mask(record.get("mask")),
            attributes=dict(record["attributes"]),
            measures=dict(record["measures"]),
        )


@dataclass(frozen=True)
class Structure:
    """One structure of the anatomy: its box and its mask."""

    box: Box
    mask: Mask = field(repr=False, compare=False)


@dataclass(frozen=True)
class Truth:
    """Everything that is known about a phantom.

    Attributes:
        seed: seed of the phantom.
        split: split of that seed.
        height: rows of the image.
        width: columns of the image.
        anatomy: ``right_lung``, ``left_lung``, ``heart``, ``mediastinum``.
        carina: normalised (x, y) of the tracheal bifurcation.
        findings: what is to be seen, in drawing order.
        cardiothoracic_ratio: heart width over inner thoracic width.
        pixel_spacing: mm per pixel, row and column alike.
        photometric: ``MONOCHROME1`` or ``MONOCHROME2``.
        modality: DICOM modality, ``CR`` or ``DX``.
    """

    seed: int
    split: str
    height: int
    width: int
    anatomy: dict[str, Structure]
    carina: tuple[float, float]
    findings: tuple[Finding, ...]
    cardiothoracic_ratio: float
    pixel_spacing: float
    photometric: str
    modality: str

    @property
    def traits(self) -> dict[str, str]:
        """Attributes of the whole image."""
        return {"heart size": self.heart_size}

    @property
    def heart_size(self) -> str:
        """One of ``HEART_SIZES``."""
        for finding in self.of_kind(CARDIOMEGALY):
            return finding.attributes["grade"]
        return HEART_SIZES[0]

    def of_kind(self, kind: str, side: str | None = None) -> tuple[Finding, ...]:
        """Findings of one kind, on one side when it is given."""
        return findings_of_kind(self.findings, kind, side)

    def to_json(self, *, masks: bool = True) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "seed": self.seed,
            "split": self.split,
            "height": self.height,
            "width": self.width,
            "anatomy": anatomy_to_json(self.anatomy, masks=masks),
            "carina": [round(v, 6) for v in self.carina],
            "findings": [f.to_json(masks=masks) for f in self.findings],
            "cardiothoracic_ratio": round(self.cardiothoracic_ratio, 4),
            "pixel_spacing": self.pixel_spacing,
            "photometric": self.photometric,
            "modality": self.modality,
            "mask_grid": MASK_GRID,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Truth:
        """Inverse of :meth:`to_json`."""
        return cls(
            seed=int(record["seed"]),
            split=record["split"],
            height=int(record["height"]),
            width=int(record["width"]),
            anatomy=anatomy_from_json(record["anatomy"]),
            carina=(float(record["carina"][0]), float(record["carina"][1])),
            findings=tuple(Finding.from_json(f) for f in record["findings"]),
            cardiothoracic_ratio=float(record["cardiothoracic_ratio"]),
            pixel_spacing=float(record["pixel_spacing"]),
            photometric=record["photometric"],
            modality=record["modality"],
        )


def findings_of_kind(
    findings: tuple[Finding, ...], kind: str, side: str | None = None
) -> tuple[Finding, ...]:
    """Findings of one kind, on one side when it is given."""
    return tuple(f for f in findings if f.kind == kind and (side is None or f.side == side))


def anatomy_to_json(anatomy: dict[str, Structure], *, masks: bool) -> dict[str, Any]:
    """JSON-ready dictionary of structures by name."""
    return {
        name: {
            "box": [float(v) for v in structure.box],
            **({"mask": pack_mask(structure.mask)} if masks else {}),
        }
        for name, structure in anatomy.items()
    }


def anatomy_from_json(record: dict[str, Any]) -> dict[str, Structure]:
    """Inverse of :func:`anatomy_to_json`."""
    return {
        name: Structure(_box(structure["box"]), unpack_mask(structure.get("mask")))
        for name, structure in record.items()
    }


def pack_mask(mask: Mask) -> str:
    """Base64 of the row-major packed bits of a (``MASK_GRID``, ``MASK_GRID``) mask."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode("ascii")


def unpack_mask(text: str | None) -> Mask:
    """Inverse of :func:`pack_mask`; ``None`` gives an empty mask."""
    if text is None:
        return np.zeros((MASK_GRID, MASK_GRID), dtype=np.bool_)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    return bits.reshape(MASK_GRID, MASK_GRID).astype(np.bool_)


def _box(values: list[float]) -> Box:
    x0, y0, x1, y1 = (float(v) for v in values)
    return (x0, y0, x1, y1)
