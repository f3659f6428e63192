"""Boxes, patch grids and the transforms between image spaces.

One convention inside the project: a box is `(x0, y0, x1, y1)`, half-open, normalised to
[0, 1] over the full displayed image; x grows to the right, y grows downwards. Pixel versions
carry `_px` in their name. The left side of the displayed image is the patient's right, as
radiographs hang; a file may say otherwise (`PatientSide`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# A side of the patient; '' where it is not known.
PatientSide = Literal["left", "right", ""]
SpacingKind = Literal["patient", "detector", "nominal", ""]


class BoxError(ValueError):
    """A box that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box, normalised to [0, 1] over the full displayed image.

    Raises:
        BoxError: when a coordinate is not finite, lies outside [0, 1], or the box is empty.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        values = (self.x0, self.y0, self.x1, self.y1)
        if not all(math.isfinite(value) for value in values):
            raise BoxError(f"Box {values} has a coordinate that is not a finite number.")
        if min(values) < 0.0 or max(values) > 1.0:
            raise BoxError(f"Box {values} reaches outside the image.")
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise BoxError(f"Box {values} is empty: x0 < x1 and y0 < y1 are needed.")

    @property
    def area(self) -> float:
        """Share of the image that the box covers, in [0, 1]."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    @property
    def center(self) -> tuple[float, float]:
        """Centre `(x, y)`, normalised."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def contains(self, x: float, y: float) -> bool:
        """Whether the normalised point lies in the half-open box."""
        return self.x0 <= x < self.x1 and self.y0 <= y < self.y1

    def intersection_over_union(self, other: Box) -> float:
        """Intersection over union with another box, in [0, 1].

        >>> Box(0.0, 0.0, 0.5, 1.0).intersection_over_union(Box(0.25, 0.0, 0.75, 1.0))
        0.3333333333333333
        """
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        if width <= 0 or height <= 0:
            return 0.0
        shared = width * height
        return shared / (self.area + other.area - shared)

    def padded(self, fraction: float) -> Box:
        """The box grown by `fraction` of its own size on every side, cut at the image edge."""
        dx, dy = (self.x1 - self.x0) * fraction, (self.y1 - self.y0) * fraction
        return clamped_box(self.x0 - dx, self.y0 - dy, self.x1 + dx, self.y1 + dy)[0]

    def to_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box in pixels of an image of the given size (pixel edges are integers)."""
        return self.x0 * width, self.y0 * height, self.x1 * width, self.y1 * height

    def to_pixels_outward(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Whole pixels that cover the box: rounded outwards and cut at the image edge."""
        x0, y0, x1, y1 = self.to_pixels(width, height)
        # A guard of a millionth of a pixel keeps a box that is meant to end on a pixel edge
        # from swallowing the next pixel through floating-point noise.
        guard = 1e-6
        left = min(max(0, math.floor(x0 + guard)), width - 1)
        top = min(max(0, math.floor(y0 + guard)), height - 1)
        right, bottom = min(width, math.ceil(x1 - guard)), min(height, math.ceil(y1 - guard))
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def as_tuple(self) -> tuple[float, float, float, float]:
        """`(x0, y0, x1, y1)`."""
        return self.x0, self.y0, self.x1, self.y1


FULL_IMAGE = Box(0.0, 0.0, 1.0, 1.0)


def clamped_box(x0: float, y0: float, x1: float, y1: float) -> tuple[Box, bool]:
    """A box from any four finite numbers cut at the image edge, and whether it was cut.

    Raises:
        BoxError: when the part inside the image is empty.
    """
    raw = (x0, y0, x1, y1)
    cut = tuple(min(1.0, max(0.0, value)) if math.isfinite(value) else value for value in raw)
    return Box(*cut), cut != raw


def box_from_pixels(
    x0: float, y0: float, x1: float, y1: float, width: int, height: int
) -> tuple[Box, bool]:
    """A normalised box from pixel edges of an image of the given size, and whether it was cut.

    Raises:
        BoxError: when the part inside the image is empty.
    """
    return clamped_box(x0 / width, y0 / height, x1 / width, y1 / height)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """The grid of visual tokens over one image: `rows` x `columns`, in raster order."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"PatchGrid needs at least one cell each way, not {self}.")

    @property
    def cells(self) -> int:
        """How many visual tokens the grid has."""
        return self.rows * self.columns

    def cells_of(self, box: Box) -> tuple[int, ...]:
        """Raster indices of the cells that a box touches; at least one each way (LVR).

        >>> PatchGrid(2, 2).cells_of(Box(0.0, 0.0, 0.5, 1.0))
        (0, 2)
        """
        guard = 1e-9
        first_column = min(self.columns - 1, math.floor(box.x0 * self.columns + guard))
        first_row = min(self.rows - 1, math.floor(box.y0 * self.rows + guard))
        last_column = min(self.columns, math.ceil(box.x1 * self.columns - guard))
        last_row = min(self.rows, math.ceil(box.y1 * self.rows - guard))
        return tuple(
            row * self.columns + column
            for row in range(first_row, max(last_row, first_row + 1))
            for column in range(first_column, max(last_column, first_column + 1))
        )

    def box_of(self, row: int, column: int) -> Box:
        """The box of one cell, normalised to the image that the grid covers."""
        return Box(
            column / self.columns,
            row / self.rows,
            (column + 1) / self.columns,
            (row + 1) / self.rows,
        )
