"""What the viewer needs of an opened image: raw values for the browser, presets, facts.

Grey images travel as 16-bit values, so that the browser itself applies the window while the
mouse is dragged; the 8-bit image that a model sees is rendered here, by `engine.imaging`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.imaging import SourceImage, Window, list_presets, render

_LEVELS: Final = 65_535
# Numbers for what lies below, and for what lies above, all that a window is likely to show.
_TAIL: Final = 4_096


@dataclass(frozen=True, slots=True)
class RawGrey:
    """Grey values as unsigned 16-bit numbers.

    Attributes:
        data: little-endian uint16 in raster order.
        numbers, values: knots, both increasing: number `numbers[i]` stands for `values[i]`, and
            between two knots values grow in proportion.
    """

    data: bytes
    numbers: tuple[int, ...]
    values: tuple[float, ...]


def raw_grey(pixels: npt.NDArray[np.generic], windows: Sequence[Window] = ()) -> RawGrey:
    """The values as 16-bit numbers; NaN becomes the smallest value.

    They stay exact wherever they are whole numbers that span less than 65,536. Otherwise most
    numbers go to what the windows show, and a width of them to either side: one far-off value,
    such as a "no data" mark, does not cost the rest of the picture its contrast.

    Args:
        pixels: finite, but for NaN.
        windows: that are offered, the one over the full range left out.
    """
    if pixels.dtype.kind == "f":
        values = np.nan_to_num(pixels.astype(np.float64), nan=float(np.nanmin(pixels)))
    else:
        values = pixels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    # Integers beyond 32 bits come as fractions without any.
    whole = pixels.dtype.kind != "f" or bool((values == np.rint(values)).all())
    if whole and high - low <= _LEVELS:
        data = (values - low).astype("<u2").tobytes()
        return RawGrey(data, (0, _LEVELS), (low, low + _LEVELS))
    knots = _knots(low, high, windows, whole=whole)
    numbers = np.rint(np.interp(values, knots[1], knots[0]))
    return RawGrey(numbers.astype("<u2").tobytes(), *knots)


def _knots(
    low: float, high: float, windows: Sequence[Window], *, whole: bool
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Numbers and values of the knots from the smallest value to the largest, `low < high`.

    Whole values that the windows show stay exact where they are not too many.
    """
    first = max(low, min((w.bounds[0] - w.width for w in windows), default=low))
    last = min(high, max((w.bounds[1] + w.width for w in windows), default=high))
    if first >= last:
        first, last = low, high
    if whole:
        first, last = math.floor(first), math.ceil(last)
    begin = _TAIL if first > low else 0
    end = _LEVELS - _TAIL if last < high else _LEVELS
    if whole and last - first <= end - begin:
        end = begin + int(last - first)
    numbers, values = [begin, end], [float(first), float(last)]
    if first > low:
        numbers, values = [0, *numbers], [low, *values]
    if last < high:
        numbers, values = [*numbers, _LEVELS], [*values, high]
    return tuple(numbers), tuple(values)


def picture_files(source: SourceImage) -> tuple[dict[str, bytes], RawGrey | None]:
    """The files that the viewer fetches, and the raw values of a grey image.

    They are `image.raw` (grey) or `image.png` (colour), and `image.lut`, one byte per raw
    number, where the file brings a VOI LUT of its own.
    """
    if source.is_color:
        buffer = io.BytesIO()
        Image.fromarray(render(source)).save(buffer, format="PNG", compress_level=1)
        return {"image.png": buffer.getvalue()}, None
    likely = [preset.window for preset in list_presets(source)]
    raw = raw_grey(source.pixels, [window for window in likely if window != source.full_window])
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
        "numbers": list(raw.numbers) if raw else [],
        "values": list(raw.values) if raw else [],
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
