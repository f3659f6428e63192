"""A `SourceImage` or an error as one line of JSON and plain arrays, from child to parent.

The parent trusts nothing that it reads: the child may have been taken over by the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import IO, Any

import numpy as np

from engine.imaging.arrays import Pixels
from engine.imaging.errors import (
    DAMAGED_MESSAGE,
    ERRORS_BY_CODE,
    DamagedImageError,
    ImagingError,
)
from engine.imaging.limits import Limits
from engine.imaging.lut import LookupTable
from engine.imaging.source import IMAGE_FORMATS, PATIENT_SIDES, SPACING_KINDS, SourceImage
from engine.imaging.window import WINDOW_FUNCTIONS, WINDOW_SOURCES, Window

_HEADER_BYTES = 1 << 20
_MESSAGE_CHARACTERS = 400
_DTYPES = ("uint8", "int32", "float32")
_ARRAYS = ("pixels", "voi_lut")
_VOCABULARIES = {
    "window_source": WINDOW_SOURCES,
    "spacing_kind": SPACING_KINDS,
    "left_edge": PATIENT_SIDES,
    "format": IMAGE_FORMATS,
}

_TYPES: dict[str, type] = {
    **dict.fromkeys(("is_color", "inverted", "burned_in_risk"), bool),
    **dict.fromkeys(("bits_stored", "frame", "frame_count", "hidden_tag_count"), int),
    **dict.fromkeys(("modality", "units", "sha256", "transfer_syntax"), str),
}
_MOST_CHARACTERS = 128

Json = dict[str, object]


def write_source(stream: IO[bytes], source: SourceImage) -> None:
    """Write the facts as one line, then the pixels, then the entries of the VOI LUT."""
    facts: Json = {
        field.name: getattr(source, field.name)
        for field in dataclasses.fields(source)
        if field.name not in _ARRAYS
    }
    for name in ("default_window", "percentile_window", "full_window"):
        facts[name] = _pack_window(getattr(source, name))
    facts["windows"] = [_pack_window(window) for window in source.windows]
    pixels = np.ascontiguousarray(source.pixels)
    facts["dtype"], facts["shape"] = pixels.dtype.name, list(pixels.shape)
    table = source.voi_lut
    facts["table"] = None if table is None else [table.first, table.bits, table.entries.size]
    stream.write(json.dumps(facts).encode() + b"\n")
    stream.write(pixels.data)
    if table is not None:
        stream.write(np.ascontiguousarray(table.entries).data)


def write_error(stream: IO[bytes], error: ImagingError) -> None:
    """Write an error in the place of the facts."""
    line = json.dumps({"code": error.code, "message": error.message})
    stream.write(line.encode() + b"\n")


def read_source(stream: IO[bytes], limits: Limits) -> SourceImage:
    """Read what `write_source` or `write_error` wrote.

    Raises:
        ImagingError: the error that was written; E102 when what was written is malformed.
    """
    try:
        return _read(stream, limits)
    except ImagingError:
        raise
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise DamagedImageError(DAMAGED_MESSAGE) from error


def _read(stream: IO[bytes], limits: Limits) -> SourceImage:
    facts = json.loads(stream.readline(_HEADER_BYTES))
    if not isinstance(facts, dict):
        raise TypeError("Facts that are none.")
    if "code" in facts:
        kind = ERRORS_BY_CODE[facts["code"]]
        raise kind(_printable(facts["message"])[:_MESSAGE_CHARACTERS])
    pixels = _read_pixels(stream, facts.pop("dtype"), facts.pop("shape"), limits)
    table = _read_table(stream, facts.pop("table"))
    for name in ("default_window", "percentile_window", "full_window"):
        facts[name] = None if facts[name] is None else _unpack_window(facts[name])
    facts["windows"] = tuple(_unpack_window(window) for window in facts["windows"])
    facts["warnings"] = tuple(_printable(text) for text in facts["warnings"])
    if facts["spacing_mm"] is not None:
        row, column = facts["spacing_mm"]
        facts["spacing_mm"] = (float(row), float(column))
        if not all(0 < side < math.inf for side in facts["spacing_mm"]):
            raise ValueError("A spacing that is never sent.")
    for name, words in _VOCABULARIES.items():
        if facts[name] not in words:
            raise ValueError("A word that is not of the vocabulary.")
    _check(facts, pixels)
    return SourceImage(pixels=pixels, voi_lut=table, **facts)


def _check(facts: dict[str, Any], pixels: Pixels) -> None:
    """Refuses facts that no file can have.

    Raises:
        ValueError: one has a type, a length or a size that is never sent.
    """
    for name, kind in _TYPES.items():
        value: Any = facts[name]
        # Exactly: True is a whole number, too.
        is_right = type(value) is kind
        if not is_right or (kind is int and value < 0):
            raise ValueError("A fact of a type that is never sent.")
        if kind is str and (len(value) > _MOST_CHARACTERS or not value.isprintable()):
            raise ValueError("A text that is never sent.")
    if facts["is_color"] != (pixels.ndim == 3) or facts["frame"] >= facts["frame_count"]:
        raise ValueError("Facts that contradict each other.")


def _read_pixels(stream: IO[bytes], dtype: str, shape: list[int], limits: Limits) -> Pixels:
    if dtype not in _DTYPES or len(shape) not in (2, 3) or shape[2:] not in ([], [3]):
        raise ValueError("Pixels of a type that is never sent.")
    rows, columns = int(shape[0]), int(shape[1])
    if min(rows, columns) < 1 or rows * columns > limits.frame_pixels:
        raise ValueError("Pixels of a size that is never sent.")
    pixels = np.empty(shape, dtype=np.dtype(dtype))
    _fill(stream, pixels)
    pixels.setflags(write=False)
    return pixels


def _read_table(stream: IO[bytes], facts: list[int] | None) -> LookupTable | None:
    if facts is None:
        return None
    first, bits, size = (int(value) for value in facts)
    if not (1 <= bits <= 16 and 1 <= size <= 65536):
        raise ValueError("A lookup table of a size that is never sent.")
    entries = np.empty(size, dtype=np.uint16)
    _fill(stream, entries)
    return LookupTable(first, bits, entries)


def _fill(stream: IO[bytes], array: Pixels) -> None:
    """Read straight into the array, without a copy.

    Raises:
        ValueError: the stream ends early.
    """
    view = memoryview(array.data).cast("B")
    filled = 0
    while filled < len(view):
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("The pixels ended early.")
        filled += count


def _pack_window(window: Window | None) -> list[object] | None:
    return None if window is None else [window.center, window.width, window.function]


def _unpack_window(packed: list[object]) -> Window:
    center, width, function = packed
    if function not in WINDOW_FUNCTIONS:
        raise ValueError("A window function that does not exist.")
    return Window(float(center), float(width), function)  # type: ignore[arg-type]


def _printable(text: object) -> str:
    return "".join(letter for letter in str(text) if letter.isprintable())
