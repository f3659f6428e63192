"""Windowing: from modality values to display values in [0, 1].

The three functions of DICOM PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.2 (LINEAR_EXACT) and
C.11.2.1.3.1 (SIGMOID), the usual presets, and the fallbacks for files without a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.imaging.arrays import Pixels
from engine.imaging.errors import UnusableImageError

WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
WindowSource = Literal["file", "preset", "percentile", "request", "identity"]
WINDOW_FUNCTIONS: tuple[WindowFunction, ...] = get_args(WindowFunction)
WINDOW_SOURCES: tuple[str, ...] = get_args(WindowSource)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """A window in modality values (HU for CT).

    Attributes:
        center: middle of the window.
        width: at least 1 for LINEAR, positive for the other two.
        function: the VOI LUT function (0028,1056).
    """

    center: float
    width: float
    function: WindowFunction = "LINEAR"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            raise ValueError("A window needs a finite center and a finite width.")
        if self.width <= 0 or (self.function == "LINEAR" and self.width < 1):
            raise ValueError(
                f"A {self.function} window needs a width of at least 1, or above 0 for "
                f"LINEAR_EXACT and SIGMOID; got {self.width:g}."
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """The values that map to black and to white (for SIGMOID: to 12% and 88%)."""
        if self.function == "LINEAR":
            half = (self.width - 1.0) / 2.0
            return self.center - 0.5 - half, self.center - 0.5 + half
        return self.center - self.width / 2.0, self.center + self.width / 2.0


@dataclass(frozen=True, slots=True)
class Preset:
    """A window with a name for a menu; the names are ours, never free text of a file."""

    name: str
    window: Window


IDENTITY_8_BIT = Window(127.5, 255.0, "LINEAR_EXACT")

# OHIF's defaults, as clinicians know them from the keys 1 to 4.
CT_PRESETS: tuple[Preset, ...] = (
    Preset("Soft tissue", Window(40.0, 400.0)),
    Preset("Lung", Window(-600.0, 1500.0)),
    Preset("Bone", Window(480.0, 2500.0)),
    Preset("Brain", Window(40.0, 80.0)),
)


def apply_window(values: npt.ArrayLike, window: Window) -> FloatArray:
    """Display values of modality values under a window.

    Args:
        values: modality values of any shape; infinities saturate, NaN becomes 0.
        window: center, width and function.

    Returns:
        float64 of the same shape, in [0, 1].
    """
    x = np.asarray(values, dtype=np.float64)
    sigmoid = window.function == "SIGMOID"
    shown = _sigmoid(x, window) if sigmoid else _linear(x, *window.bounds)
    return np.nan_to_num(shown, copy=False, nan=0.0)


def _linear(x: FloatArray, low: float, high: float) -> FloatArray:
    """0 at and below `low`, 1 above `high`, a straight line between.

    With the bounds of `Window.bounds` this is C.11.2.1.2.1 and C.11.2.1.3.2: for LINEAR,
    `((x - (c - 0.5)) / (w - 1) + 0.5)` is `(x - low) / (high - low)`.
    """
    if high <= low:  # LINEAR with a width of 1 is a threshold
        stepped: FloatArray = np.where(np.isnan(x), np.nan, x > low).astype(np.float64)
        return stepped
    with np.errstate(invalid="ignore"):
        line: FloatArray = (x - low) / (high - low)
    return np.clip(line, 0.0, 1.0)


def _sigmoid(x: FloatArray, window: Window) -> FloatArray:
    """`1 / (1 + exp(-4 (x - c) / w))`, C.11.2.1.3.1; tanh does not overflow."""
    with np.errstate(invalid="ignore"):
        curve: FloatArray = 0.5 * (1.0 + np.tanh(2.0 * (x - window.center) / window.width))
    return curve


def window_between(low: float, high: float) -> Window:
    """The LINEAR_EXACT window that maps `low` to black and `high` to white (`low < high`)."""
    return Window((low + high) / 2.0, high - low, "LINEAR_EXACT")


def percentile_window(values: Pixels, low: float = 1.0, high: float = 99.0) -> Window:
    """The fallback for images without a window: from the 1st to the 99th percentile.

    Where these coincide (a mask, a mostly empty image) the full range is taken.

    Args:
        values: modality values of any shape; NaN and infinities are left out.
        low: percentile in [0, 100] that becomes black.
        high: percentile that becomes white.

    Raises:
        UnusableImageError: all finite values are equal, or there is none.
    """
    finite = finite_values(values)
    start, end = (float(v) for v in np.percentile(finite, (low, high)))
    return window_between(start, end) if end > start else full_range_window(finite)


def full_range_window(values: Pixels) -> Window:
    """The window from the smallest to the largest finite value.

    Raises:
        UnusableImageError: all finite values are equal, or there is none.
    """
    finite = finite_values(values)
    start, end = float(finite.min()), float(finite.max())
    if not end > start:
        raise UnusableImageError("All pixels of this image have the same value: it is blank.")
    return window_between(start, end)


def finite_values(values: Pixels) -> Pixels:
    """The finite values as a flat array, without a copy for integers.

    Raises:
        UnusableImageError: there is none.
    """
    flat = values.reshape(-1)
    finite = flat if flat.dtype.kind in "biu" else flat[np.isfinite(flat)]
    if finite.size == 0:
        raise UnusableImageError("No pixel of this image holds a finite number.")
    return finite


def bounded(values: Pixels) -> Pixels:
    """The values with each infinity as the largest or the smallest finite value.

    So a viewer can scale them into any number of levels. NaN stays, but where there is no finite
    value at all every value becomes 0. Integers come back as they are.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros_like(values)
    return np.clip(values, finite.min(), finite.max())
