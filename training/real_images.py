"""Real chest radiographs with a radiologist's lung boxes, split by patient.

Reads the folder `cxr_lungbox_ccby` (63 images, COCO boxes, CC BY / CC BY-SA): "Right Lung" is
the patient's right and lies on the image's left. Images never enter the project; only what
the model learned from them does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from engine.geometry import FULL_IMAGE, Box, PatchGrid, box_from_pixels
from engine.processor import TOKEN_SIZE
from training.phantoms.label_names import CHEST_LABELS, LabelNames
from training.world import UNKNOWN, Picture, fill_edges, resized

RealSplit = Literal["train", "validation", "test"]
LUNGS: Final = {1: "right lung", 2: "left lung"}
# Longest side that is kept in memory: four times what the model sees of a whole image.
WORKING_SIZE: Final = 896


@dataclass(frozen=True, slots=True, eq=False)
class RealRadiograph:
    """One real image with its two lung boxes.

    Attributes:
        name: file name inside the folder.
        pixels: uint8 `(H, W)`, at most `WORKING_SIZE` a side.
        lungs: boxes by `right lung` and `left lung`, normalised.
    """

    name: str
    patient: str
    split: RealSplit
    pixels: npt.NDArray[np.uint8]
    lungs: dict[str, Box]


def split_of_patient(patient: str) -> RealSplit:
    """A patient's split, from a hash of the id: about 60% train, 13% validation, 27% test."""
    # "331a" and "331b" are two films of one person.
    person = patient.rstrip("abcdefghijklmnopqrstuvwxyz")
    share = int(hashlib.sha256(f"lungbox-{person}".encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    if share < 0.60:
        return "train"
    return "validation" if share < 0.73 else "test"


def load_radiographs(folder: Path, split: RealSplit) -> list[RealRadiograph]:
    """The radiographs of one split that carry both lung boxes; empty when the folder is absent."""
    table = folder / "annotations.json"
    if not table.is_file():
        return []
    raw = json.loads(table.read_text(encoding="utf-8"))
    boxes: dict[int, dict[str, list[float]]] = {}
    for annotation in raw["annotations"]:
        lung = LUNGS.get(annotation.get("category_id"))
        if lung:
            boxes.setdefault(annotation["image_id"], {})[lung] = annotation["bbox"]
    found = []
    for record in raw["images"]:
        patient = str(record["metadata"]["patientid"])
        pair = boxes.get(record["id"], {})
        if split_of_patient(patient) != split or len(pair) != len(LUNGS):
            continue
        lungs = {
            lung: box_from_pixels(x, y, x + w, y + h, record["width"], record["height"])[0]
            for lung, (x, y, w, h) in pair.items()
        }
        # One box of the public table is on the wrong side; such a pair teaches a falsehood.
        if lungs["right lung"].center[0] >= lungs["left lung"].center[0]:
            continue
        pixels = _read(folder / "images" / record["file_name"])
        found.append(RealRadiograph(record["file_name"], patient, split, pixels, lungs))
    return found


def _read(path: Path) -> npt.NDArray[np.uint8]:
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise ValueError(f"{path.name} cannot be read as an image.")
    scale = WORKING_SIZE / max(pixels.shape)
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    grey: npt.NDArray[np.uint8] = pixels.astype(np.uint8)
    return grey


def shifted_view(
    radiograph: RealRadiograph, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], dict[str, Box]]:
    """The radiograph turned by up to 6 degrees, framed tighter or wider, with its boxes."""
    height, width = radiograph.pixels.shape
    turn = rng.uniform(-6, 6)
    frame_height = round(height * rng.uniform(0.82, 1.18))
    frame_width = round(width * rng.uniform(0.82, 1.18))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, 1.0)
    matrix[0, 2] += (frame_width - width) / 2 + rng.uniform(-0.06, 0.06) * width
    matrix[1, 2] += (frame_height - height) / 2 + rng.uniform(-0.06, 0.06) * height
    moved = cv2.warpAffine(radiograph.pixels, matrix, (frame_width, frame_height))
    lungs = {}
    for name, box in radiograph.lungs.items():
        x0, y0, x1, y1 = box.to_pixels(width, height)
        # The axis-aligned hull of a turned box is too large: an ellipse's hull is nearer.
        cx, cy = matrix @ np.array([(x0 + x1) / 2, (y0 + y1) / 2, 1.0])
        a, b, angle = (x1 - x0) / 2, (y1 - y0) / 2, np.deg2rad(turn)
        dx = np.hypot(a * np.cos(angle), b * np.sin(angle))
        dy = np.hypot(a * np.sin(angle), b * np.cos(angle))
        lungs[name], _ = box_from_pixels(
            cx - dx, cy - dy, cx + dx, cy + dy, frame_width, frame_height
        )
    pixels: npt.NDArray[np.uint8] = moved.astype(np.uint8)
    return pixels, lungs


def real_picture(
    pixels: npt.NDArray[np.uint8], lungs: dict[str, Box], labels: LabelNames = CHEST_LABELS
) -> Picture:
    """The picture of a whole radiograph, with what its lung boxes tell about each token.

    Coverage is known outside of a box (none) and in its core (all); the rest is unknown.
    """
    seen = resized(pixels)
    grid = PatchGrid(seen.shape[0] // TOKEN_SIZE, seen.shape[1] // TOKEN_SIZE)
    cover = np.zeros((grid.cells, len(labels.covers)), dtype=np.uint8)
    known = np.zeros((grid.cells, len(labels.covers)), dtype=np.bool_)
    edges = np.full((grid.cells, len(labels.box_groups), 4), np.nan, dtype=np.float32)
    boxes = []
    for lung, box in lungs.items():
        name = lung.replace(" ", "_")
        column = labels.covers.index(name)
        known[:, column] = True
        known[list(grid.cells_of(box)), column] = False
        core = list(grid.cells_of(box.padded(-0.3)))
        known[core, column], cover[core, column] = True, 255
        boxes.append((box.as_tuple(), labels.box_groups.index(name)))
    return Picture(
        pixels=seen,
        region=FULL_IMAGE,
        cover=cover,
        attributes=np.full((grid.cells, len(labels.attributes)), UNKNOWN, dtype=np.int8),
        edges=fill_edges(edges, boxes, grid),
        known_cover=known,
    )
