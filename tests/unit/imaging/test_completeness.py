"""Images whose data end before the picture does, or are of another shape than they claim."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from engine.imaging import ImagingError
from engine.imaging.completeness import (
    is_jpeg_cut_short,
    is_png_cut_short,
    jpeg_size,
    rle_segment_bytes,
)
from engine.imaging.errors import DamagedImageError
from tests.unit.imaging.dicom_files import make_dataset, open_here, png_file, save

RNG = np.random.default_rng(0)


def picture(mode: str, width: int = 37, height: int = 23) -> Image.Image:
    """Noise of a mode, of a size that fills no byte and no block."""
    if mode == "1":
        return Image.fromarray(RNG.integers(0, 2, (height, width)).astype(bool))
    if mode == "I;16":
        return Image.fromarray(RNG.integers(0, 65_535, (height, width)).astype(np.uint16))
    shape = (height, width, *{"L": (), "P": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode])
    values = RNG.integers(0, 255, shape, dtype=np.uint8)
    image = Image.fromarray(values, "L" if mode == "P" else mode)
    return image.convert("P") if mode == "P" else image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_image_data(png: bytes, change: object) -> bytes:
    """A PNG of one IDAT chunk whose unpacked rows are changed; all sums are right."""
    start = png.index(b"IDAT")
    (length,) = struct.unpack(">I", png[start - 4 : start])
    rows = zlib.decompress(png[start + 4 : start + 4 + length])
    packed = zlib.compress(change(rows))  # type: ignore[operator]
    chunk = b"IDAT" + packed
    whole = struct.pack(">I", len(packed)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[: start - 4] + whole + png[start + 8 + length :]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "I;16", "RGB", "RGBA"])
def test_a_png_is_whole_or_a_byte_short(mode: str) -> None:
    whole = encoded(picture(mode), "PNG")

    assert not is_png_cut_short(whole)
    assert not is_png_cut_short(with_image_data(whole, lambda rows: rows + b"\0\0"))
    short = with_image_data(whole, lambda rows: rows[:-1])
    assert is_png_cut_short(short)
    with pytest.raises(DamagedImageError):
        open_here(short)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (8, 8), (37, 23)])
def test_an_interlaced_png_is_whole_or_a_byte_short(width: int, height: int) -> None:
    values = RNG.integers(0, 255, (height, width), dtype=np.uint8)
    passes = (
        values[0::8, 0::8], values[0::8, 4::8], values[4::8, 0::4], values[0::4, 2::4],
        values[2::4, 0::2], values[0::2, 1::2], values[1::2, 0::1],
    )  # fmt: skip
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    plain = bytearray(png_file(width, height, 8, 0, rows))
    plain[28] = 1  # interlace method
    plain[29:33] = struct.pack(">I", zlib.crc32(plain[12:29]))
    whole = bytes(plain)

    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(whole))), values)
    assert not is_png_cut_short(whole)
    assert is_png_cut_short(with_image_data(whole, lambda rows: rows[:-1]))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_whole_or_ends_early(mode: str, progressive: bool) -> None:
    base = picture("L" if mode == "L" else "RGB", 160, 120).convert(mode)
    whole = encoded(base, "JPEG", progressive=progressive)
    start = whole.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    taller = bytearray(whole)
    taller[start + 5 : start + 7] = struct.pack(">H", 480)

    assert not is_jpeg_cut_short(whole)
    assert not is_jpeg_cut_short(whole + b"behind the end")
    for broken in (whole[: len(whole) // 2] + b"\xff\xd9", bytes(taller)):
        assert is_jpeg_cut_short(broken)
        with pytest.raises(DamagedImageError):
            open_here(broken)


def test_packed_bits_are_counted_by_hand() -> None:
    # Three as they are, five times one, nothing, two as they are.
    segment = bytes([2, 7, 7, 7, 252, 9, 128, 1, 1, 2])
    frame = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13) + segment + bytes([0, 5])

    assert rle_segment_bytes(frame, 100) == [10, 1]
    assert rle_segment_bytes(b"short", 100) == []


def file_of(name: str) -> pydicom.Dataset:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"needs the DICOM file {name} of pydicom-data")
    return pydicom.dcmread(Path(str(path)))


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "SC_rgb_rle.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "JPEG-lossy.dcm",
        "MR_small_jp2klossless.dcm",
        "emri_small_RLE.dcm",
    ],
)
def test_a_header_of_another_shape_is_refused(name: str) -> None:
    dataset = file_of(name)
    syntax = dataset.file_meta.TransferSyntaxUID
    assert open_here(save(dataset, syntax)).size == (dataset.Columns, dataset.Rows)
    rows, columns = dataset.Rows, dataset.Columns

    for lie in ((rows + 1, columns), (rows - 4, columns + 1), (rows // 2, columns)):
        dataset.Rows, dataset.Columns = lie
        with pytest.raises(ImagingError):
            open_here(save(dataset, syntax))


def test_the_size_of_a_codestream_that_is_none_is_not_known() -> None:
    assert jpeg_size(b"") is None
    assert jpeg_size(b"\xff\xd8\xff") is None
    assert jpeg_size(b"\xff\x4f\xff\x51\x00\x04\x00\x00\xff\x93abc") is None


def test_frames_of_single_bits_need_not_begin_at_a_byte() -> None:
    frames = RNG.integers(0, 2, (4, 15, 13)).astype(np.uint8)
    dataset = make_dataset(frames)
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    packed = np.packbits(frames.reshape(-1), bitorder="little").tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset["PixelData"].VR = "OB"

    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(open_here(save(dataset), number).pixels, frame)
