"""PALETTE COLOR: stored values to RGB through three tables.

DICOM PS3.3 C.7.6.3.1.5 and C.7.6.3.1.6 (tables), C.7.9.2 (segmented tables). Written out
here because pydicom 3.0 ignores the byte order of tables in big endian files, and expands
segments without a bound.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from engine.imaging.arrays import Bytes, Pixels
from engine.imaging.errors import DamagedImageError
from engine.imaging.lut import LookupTable, make_table

_CHANNELS = ("Red", "Green", "Blue")
_DAMAGED = "The colour table of this file is damaged. Export the file again as RGB."
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


def apply_palette(stored: Pixels, dataset: Dataset, *, little_endian: bool, signed: bool) -> Bytes:
    """RGB of stored values.

    16-bit entries show their upper 8 bits (0xFF00 is as white as 0xFFFF), unless no entry
    uses them.

    Args:
        stored: `(H, W)` integers.
        dataset: holds the palette.
        little_endian: byte order of the tables.
        signed: whether the stored values are, and so the first value mapped.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        DamagedImageError: a table is missing or makes no sense.
    """
    tables = [
        _channel_table(dataset, channel, little_endian=little_endian, signed=signed)
        for channel in _CHANNELS
    ]
    wide = max(int(table.entries.max()) for table in tables) > 255
    planes = [(table.apply(stored) >> (8 if wide else 0)).astype(np.uint8) for table in tables]
    return np.stack(planes, axis=-1)


def _channel_table(
    dataset: Dataset, channel: str, *, little_endian: bool, signed: bool
) -> LookupTable:
    prefix = f"{channel}PaletteColorLookupTable"
    descriptor = tuple(int(value) for value in dataset.get(f"{prefix}Descriptor") or ())
    if len(descriptor) != 3:
        raise DamagedImageError(_DAMAGED)
    count, first, bits = descriptor
    if signed and first >= 2**15:
        first -= 2**16
    data = dataset.get(f"{prefix}Data")
    segmented = dataset.get(f"Segmented{prefix}Data")
    if isinstance(data, bytes):
        return make_table((count & 0xFFFF, first, bits), data, little_endian=little_endian)
    if not isinstance(segmented, bytes):
        raise DamagedImageError(_DAMAGED)
    entries = expand_segments(segmented, count or 65536, bits=bits, little_endian=little_endian)
    return make_table((count & 0xFFFF, first, bits), tuple(entries), little_endian=little_endian)


def expand_segments(data: bytes, count: int, *, bits: int, little_endian: bool) -> list[int]:
    """The entries of a segmented table, at most `count` of them (PS3.3 C.7.9.2).

    Three kinds of segments: discrete (0, length, values), linear (1, length, end value: a
    line from the entry before, which is not repeated), indirect (2, number of segments,
    byte offset in two halves: repeats the segments there, which are not indirect).

    Args:
        data: the segments, as words of 8 bits when `bits` is 8, else of 16.
        count: entries of the table.
        bits: bits of an entry.
        little_endian: byte order of `data`.

    Raises:
        DamagedImageError: a segment is cut, unknown, or starts with a line from nothing.
    """
    size = 1 if bits == 8 else 2
    order = ("<" if little_endian else ">") + f"u{size}"
    words = np.frombuffer(data[: len(data) // size * size], dtype=order).astype(int).tolist()
    halves = 3 - size  # words in half an offset
    entries: list[int] = []
    at = 0
    while at + 1 < len(words) and len(entries) < count:
        if words[at] != _INDIRECT:
            at = _expand_one(words, at, entries)
            continue
        offset = np.frombuffer(data[(at + 2) * size :][:4], dtype=order[0] + "u2").astype(int)
        if offset.size != 2:
            raise DamagedImageError(_DAMAGED)
        _repeat_segments(words, int(offset[0] | offset[1] << 16) // size, words[at + 1], entries)
        at += 2 + 2 * halves
    return entries[:count]


def _expand_one(words: list[int], at: int, entries: list[int]) -> int:
    """Append one discrete or linear segment; the position behind it."""
    if at + 2 >= len(words):
        raise DamagedImageError(_DAMAGED)
    kind, length = words[at], words[at + 1]
    if kind == _DISCRETE and at + 2 + length <= len(words):
        entries.extend(words[at + 2 : at + 2 + length])
        return at + 2 + length
    if kind == _LINEAR and entries:
        line = np.rint(np.linspace(entries[-1], words[at + 2], length + 1)).astype(int)
        entries.extend(line[1:].tolist())
        return at + 3
    raise DamagedImageError(_DAMAGED)


def _repeat_segments(words: list[int], start: int, segments: int, entries: list[int]) -> None:
    """Append `segments` segments from `start`; a table never needs more than 65,536."""
    at = start
    for _ in range(segments):
        if at + 1 >= len(words) or words[at] == _INDIRECT or len(entries) > 65536:
            raise DamagedImageError(_DAMAGED)
        at = _expand_one(words, at, entries)
