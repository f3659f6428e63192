"""What the viewer needs of an opened image: raw values for the browser, presets, facts.

Grey images travel as 16-bit values, so that the browser itself applies the window while the
mouse is dragged; the 8-bit image that a model sees is rendered here, by `engine.imaging`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.imaging import SourceImage, Window, list_presets, render
from engine.request import DisplayImage

_LEVELS: Final = 65_535


@dataclass(frozen=True, slots=True)
class RawGrey:
    """Grey values as unsigned 16-bit numbers: `value = offset + slope * number`."""

    data: bytes
    offset: float
    slope: float


def raw_grey(pixels: npt.NDArray[np.generic]) -> RawGrey:
    """The values as little-endian uint16 in raster order; NaN becomes the smallest value.

    They stay exact wherever they are integers that span less than 65,536.
    """
    if pixels.dtype.kind == "f":
        finite = np.nan_to_num(pixels, nan=float(np.nanmin(pixels)))
        low, high = float(finite.min()), float(finite.max())
        values: npt.NDArray[np.float64] = finite.astype(np.float64)
        exact = False
    else:
        values = pixels.astype(np.int64)
        low, high = float(values.min()), float(values.max())
        exact = high - low <= _LEVELS
    slope = 1.0 if exact or high <= low else (high - low) / _LEVELS
    numbers = values - values.dtype.type(low)
    scaled = numbers if exact else np.rint(numbers / slope)
    return RawGrey(scaled.astype("<u2").tobytes(), low, slope)


def picture_files(source: SourceImage) -> tuple[dict[str, bytes], RawGrey | None]:
    """The files that the viewer fetches, and the raw values of a grey image.

    They are `image.raw` (grey) or `image.png` (colour), and `image.lut`, one byte per raw
    number, where the file brings a VOI LUT of its own.
    """
    if source.is_color:
        buffer = io.BytesIO()
        Image.fromarray(render(source)).save(buffer, format="PNG", compress_level=1)
        return {"image.png": buffer.getvalue()}, None
    raw = raw_grey(source.pixels)
    files = {"image.raw": raw.data}
    if source.voi_lut is not None:
        files["image.lut"] = _default_table(source, raw)
    return files, raw


def _default_table(source: SourceImage, raw: RawGrey) -> bytes:
    """Grey level of every raw number as `render(source)` shows it; unused numbers are 0."""
    numbers = np.frombuffer(raw.data, dtype="<u2")
    table = np.zeros(_LEVELS + 1, dtype=np.uint8)
    table[numbers] = render(source).reshape(-1)
    return table.tobytes()


def describe(source: SourceImage, raw: RawGrey | None) -> dict[str, Any]:
    """The facts that the page may show; none of them can identify a patient."""
    width, height = source.size
    return {
        "kind": "color" if source.is_color else "grey16",
        "width": width,
        "height": height,
        "offset": raw.offset if raw else 0,
        "slope": raw.slope if raw else 1,
        "lut": source.voi_lut is not None,
        "inverted": source.inverted,
        "modality": source.modality,
        "units": source.units,
        "spacing": None if source.spacing_mm is None else list(source.spacing_mm),
        "spacing_kind": source.spacing_kind,
        "left_edge": source.left_edge,
        "frame": source.frame,
        "frames": source.frame_count,
        "format": source.format,
        "bits": source.bits_stored,
        "window": _window_json(source.default_window),
        "window_source": source.window_source,
        "presets": [[preset.name, _window_json(preset.window)] for preset in list_presets(source)],
        "hidden_tags": source.hidden_tag_count,
        "burned_in": source.burned_in_risk,
        "warnings": list(source.warnings),
    }


def _window_json(window: Window | None) -> list[Any] | None:
    return None if window is None else [window.center, window.width, window.function]


def display_image(source: SourceImage, window: Window | None, preset: str) -> DisplayImage:
    """The 8-bit image under the window of the viewer; None is the file's own rendering.

    Args:
        source: the opened image.
        window: the window that the user set, or None where it is untouched.
        preset: `preset` or `request`, where that window came from.
    """
    shown = window or source.default_window
    center, width = (shown.center, shown.width) if shown and not source.is_color else (None, None)
    return DisplayImage(
        pixels=render(source, window),
        sha256=source.sha256,
        modality=source.modality,
        window_center=center,
        window_width=width,
        window_source=preset if window else source.window_source,
        spacing_mm=source.spacing_mm,
        left_edge=source.left_edge,
    )
