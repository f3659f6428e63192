"""Formats are told from content, and what is refused is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.imaging.errors import NotAnImageError
from engine.imaging.sniff import detect_format, starts_like_dicom
from tests.unit.imaging.dicom_files import open_here, to_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


def test_dicom_with_a_preamble_is_dicom() -> None:
    assert detect_format(to_file(RAMP)) == "DICOM"


def test_dicom_without_a_preamble_is_found_and_read() -> None:
    bare = to_file(RAMP)[132:]
    assert detect_format(bare) == "DICOM"
    assert np.array_equal(open_here(bare).pixels, RAMP)


def test_dicom_without_any_file_meta_is_found_and_read() -> None:
    whole = to_file(RAMP, ImageType=["ORIGINAL", "PRIMARY"])
    start = whole.index(b"\x08\x00\x08\x00CS")
    assert np.array_equal(open_here(whole[start:]).pixels, RAMP)


@pytest.mark.parametrize(
    ("data", "image_format"),
    [(b"\x89PNG\r\n\x1a\n" + b"\0" * 9, "PNG"), (b"\xff\xd8\xff\xe0" + b"\0" * 9, "JPEG")],
)
def test_raster_formats(data: bytes, image_format: str) -> None:
    assert detect_format(data) == image_format


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"hello, this is a text", "Choose another"),
        (b"II*\x00rest", "TIFF"),
        (b"MM\x00*rest", "TIFF"),
        (b"GIF89a....", "GIF"),
        (b"BM......", "BMP"),
        (b"PK\x03\x04....", "unpack"),
        (b"\x1f\x8b\x08...", "unpack"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic....", "HEIC"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><svg>", "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, word: str) -> None:
    with pytest.raises(NotAnImageError, match=word) as caught:
        detect_format(data)
    assert caught.value.code == "E101"


@given(st.binary(min_size=1, max_size=600))
def test_random_bytes_are_not_taken_for_dicom(data: bytes) -> None:
    assert not starts_like_dicom(data)


def test_descending_or_oversized_elements_are_not_dicom() -> None:
    element = b"\x08\x00\x08\x00CS\x02\x00AB"
    assert not starts_like_dicom(element * 3)
    oversized = b"\x08\x00\x08\x00" + (1 << 20).to_bytes(4, "little")
    assert not starts_like_dicom(oversized + b"\0" * 64)
