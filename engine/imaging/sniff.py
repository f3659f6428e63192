"""Tell the format of a file from its content, never from its name."""

from __future__ import annotations

import struct
from typing import Literal

from engine.imaging.errors import NotAnImageError

ImageFormat = Literal["DICOM", "PNG", "JPEG"]

DICOM_MAGIC_OFFSET = 128
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_EXPLICIT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

# Formats that people do try, by their first bytes, so that the message can name them.
_KNOWN_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"PK\x03\x04", "ZIP"),
    (b"PK\x05\x06", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "RAR"),
    (b"%PDF", "PDF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000 (without DICOM)"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 (without DICOM)"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"NRRD", "NRRD"),
)


def detect_format(data: bytes) -> ImageFormat:
    """The format of `data` by its first bytes.

    DICOM is the four bytes `DICM` after a preamble of 128 (DICOM PS3.10, section 7.1), or,
    for old files without a preamble, a run of data elements in ascending order that starts
    in group 0002 or 0008, little endian.

    Raises:
        NotAnImageError: anything else; the message names the format where it is known.
    """
    if not data:
        raise NotAnImageError("This file is empty. Choose a DICOM, PNG or JPEG file.")
    if has_preamble(data) or starts_like_dicom(data):
        return "DICOM"
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(_JPEG):
        return "JPEG"
    raise NotAnImageError(_refusal(data))


def has_preamble(data: bytes) -> bool:
    """Whether `data` is a DICOM file with its preamble and prefix."""
    return data[DICOM_MAGIC_OFFSET : DICOM_MAGIC_OFFSET + 4] == b"DICM"


def starts_like_dicom(data: bytes, elements: int = 3) -> bool:
    """Whether `data` starts with data elements as DICOM without a preamble does.

    The first `elements` must lie in groups 0002 or 0008, ascend, and have a sane length;
    random bytes pass this with a probability below 1e-12.
    """
    offset = 0
    previous = (0, 0)
    for index in range(elements):
        header = _read_element_header(data, offset)
        if header is None:
            return False
        tag, offset = header
        if tag[0] not in (0x0002, 0x0008) or (index > 0 and tag <= previous):
            return False
        previous = tag
    return True


def _read_element_header(data: bytes, offset: int) -> tuple[tuple[int, int], int] | None:
    """Tag of the element at `offset` and the offset behind its value; None when it is none."""
    if offset + 8 > len(data):
        return None
    group, element, vr, length = struct.unpack_from("<HH2sH", data, offset)
    value = offset + 8
    if vr == b"OB" and offset + 12 <= len(data):  # two empty bytes, then a long length
        length, value = struct.unpack_from("<I", data, offset + 8)[0], offset + 12
    elif vr not in _EXPLICIT_VRS:
        length = struct.unpack_from("<I", data, offset + 4)[0]
    if length % 2 or length > 1024 or value + length > len(data):
        return None
    return (group, element), value + length


def _refusal(data: bytes) -> str:
    """One sentence that says what the file is not and, where known, what it is."""
    plain = "This is not a DICOM, PNG or JPEG file."
    name = _name_of(data)
    if name in ("ZIP", "gzip", "7z", "RAR"):
        return f"{plain} It is a {name} archive: unpack it and choose one image."
    if name is not None:
        return f"{plain} It looks like {name}: convert it to PNG, or export it as DICOM."
    return f"{plain} Choose another file."


def _name_of(data: bytes) -> str | None:
    for magic, name in _KNOWN_OTHERS:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "HEIC or AVIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return "NIfTI" if data[344:348] in (b"n+1\x00", b"ni1\x00") else _markup_name(data)


def _markup_name(data: bytes) -> str | None:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    return None
