"""Which numbers a backbone writes for a place in an image; inside the project boxes are shares.

Qwen2.5-VL writes pixels of the image as it sees it, after its resize. Qwen3-VL, and models trained
in its way, write thousandths of each side, whatever the size (methods notes, 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from engine.geometry import Box, box_from_pixels

CoordinateKind = Literal["pixels", "thousandths"]

THOUSAND: Final = 1000


@dataclass(frozen=True, slots=True)
class CoordinateFrame:
    """The rectangle from (0, 0) to (width, height) that coordinates count in.

    >>> frame = CoordinateFrame.of("thousandths", 448, 224)
    >>> frame.to_numbers(Box(0.25, 0.5, 0.7502, 1.0))
    (250, 500, 750, 1000)
    >>> frame.to_box(250, 500, 750, 1000)
    (Box(x0=0.25, y0=0.5, x1=0.75, y1=1.0), False)
    """

    width: int
    height: int

    @classmethod
    def of(cls, kind: CoordinateKind, seen_width: int, seen_height: int) -> CoordinateFrame:
        """The frame of an image that the model sees at a size, pixels."""
        if kind == "thousandths":
            return cls(THOUSAND, THOUSAND)
        return cls(seen_width, seen_height)

    def to_box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[Box, bool]:
        """The box that four numbers name, and whether it was cut at the image edge.

        Raises:
            BoxError: the part inside the image is empty.
        """
        return box_from_pixels(x0, y0, x1, y1, self.width, self.height)

    def to_numbers(self, box: Box) -> tuple[int, int, int, int]:
        """A box in whole numbers, the nearest ones; never empty."""
        x0, y0, x1, y1 = box.to_pixels(self.width, self.height)
        left, right = _whole_span(x0, x1, self.width)
        top, bottom = _whole_span(y0, y1, self.height)
        return left, top, right, bottom


def _whole_span(low: float, high: float, size: int) -> tuple[int, int]:
    """Both ends in whole numbers, at least one apart, inside a side of `size`."""
    first = min(round(low), size - 1)
    return first, min(max(round(high), first + 1), size)
