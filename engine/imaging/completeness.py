"""Whether a compressed image holds all of its pixels; decoders fill up what is missing in silence.

A file that was cut and then closed properly, or whose header claims more than was written, opens
as a picture with a grey or black rest. The same goes for a header that claims another shape.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import simplejpeg

_PNG_SIGNATURE_BYTES = 8
# Samples of a pixel by colour type (PNG, 11.2.2).
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First row and column of each pass of Adam7, and steps between them (PNG, 8.2).
_ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)),
    (1, 0, 2, 1),
)
_PIECE = 1 << 20
# Start-of-frame markers of JPEG (T.81, table B.1) and of JPEG-LS (T.87, C.1.1).
_JPEG_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7))
_RLE_HEADER = struct.Struct("<16L")


def is_png_cut_short(data: bytes) -> bool:
    """Whether a PNG's image data unpack to less than its header says.

    Args:
        data: the file; its header has been read by a decoder, its size is within limits.
    """
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _PNG_SAMPLES.get(color, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    expected = sum(
        rows * (1 + -(-columns * bits // 8))
        for top, left, down, right in passes
        if (rows := -(-(height - top) // down)) > 0 and (columns := -(-(width - left) // right)) > 0
    )
    unpacker, found = zlib.decompressobj(), 0
    for packed in _image_data(data):
        rest = packed
        while rest and found < expected:
            found += len(unpacker.decompress(rest, _PIECE))
            rest = unpacker.unconsumed_tail
    return bool(found < expected)


def _image_data(data: bytes) -> Iterator[bytes]:
    """The contents of the IDAT chunks."""
    place = _PNG_SIGNATURE_BYTES
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 8] == b"IDAT":
            yield data[place + 8 : place + 8 + length]
        place += 12 + length


def is_jpeg_cut_short(data: bytes) -> bool:
    """Whether a JPEG ends before all of its blocks have come (libjpeg's "premature end").

    What else a strict decoder complains of is left to the one that shows the picture.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, min_factor=8, strict=True)
    except ValueError as error:
        return "premature end" in str(error).lower()
    return False


def jpeg_size(codestream: bytes) -> tuple[int, int] | None:
    """`(rows, columns)` that a JPEG or JPEG-LS codestream says of itself.

    None for what is neither. JPEG 2000 is not: its decoders compare the size themselves.
    """
    place = 2
    while place + 9 <= len(codestream) and codestream[place] == 0xFF:
        marker = codestream[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if marker in _JPEG_FRAMES:
            rows, columns = struct.unpack_from(">HH", codestream, place + 5)
            return rows, columns
        (length,) = struct.unpack_from(">H", codestream, place + 2)
        place += 2 + length
    return None


def rle_segment_bytes(frame: bytes, most: int) -> list[int]:
    """How many bytes each segment of an RLE frame unpacks to (PS3.5 G.3 to G.5).

    A last run that breaks off counts as far as it is there; nothing is counted much beyond `most`.
    """
    if len(frame) < _RLE_HEADER.size:
        return []
    count, *offsets = _RLE_HEADER.unpack_from(frame)
    starts = offsets[: min(count, len(offsets))]
    return [
        _packed_length(frame[start:stop], most)
        for start, stop in zip(starts, [*starts[1:], len(frame)], strict=True)
    ]


def _packed_length(segment: bytes, most: int) -> int:
    place = total = 0
    while place < len(segment) - 1 and total <= most:
        control = segment[place]
        if control < 128:
            total += min(control + 1, len(segment) - place - 1)
            place += control + 2
        else:
            # 128 stands for nothing (PS3.5 G.3.1).
            total += 0 if control == 128 else 257 - control
            place += 1 if control == 128 else 2
    return total
