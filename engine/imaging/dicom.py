"""DICOM files: from bytes to one frame of modality values, with its windows.

Order matters for untrusted data: the File Meta first, then the transfer syntax, then the
sizes, and only then one frame is decoded.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import dcmread, read_dataset
from pydicom.tag import BaseTag

from engine.geometry import PatientSide, SpacingKind
from engine.imaging.arrays import Bytes, Pixels
from engine.imaging.codecs import CODECS, check_shape, check_syntax, decode_frame
from engine.imaging.dicom_layout import PixelLayout, check_frame_index, read_layout
from engine.imaging.dicom_values import (
    frame_tags,
    is_inverted,
    read_left_edge,
    read_rescale,
    read_spacing,
    read_units,
    read_voi_table,
    read_windows,
    to_modality_values,
    without_padding,
)
from engine.imaging.errors import (
    DAMAGED_MESSAGE,
    MEMORY_MESSAGE,
    DamagedImageError,
    ImagingError,
    TooLargeError,
    UnsupportedImageError,
    UnusableImageError,
)
from engine.imaging.limits import Limits
from engine.imaging.lut import LookupTable
from engine.imaging.palette import apply_palette
from engine.imaging.sniff import DICOM_MAGIC_OFFSET, ImageFormat, has_preamble
from engine.imaging.source import SourceImage, table_window
from engine.imaging.tags import TechnicalTags, count_hidden
from engine.imaging.window import (
    Window,
    WindowSource,
    bounded,
    full_range_window,
    percentile_window,
)

# Kinds that are often photographs of a screen, or have names written into the pixels.
_SCREEN_MODALITIES = frozenset(("US", "IVUS", "SC", "OT", "XC", "ES", "GM", "SM", "OP", "DOC"))
_SECONDARY_CAPTURE_UID = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True, slots=True)
class _OpenedFile:
    """A parsed file whose sizes passed the checks, and the frame that is wanted."""

    dataset: Dataset
    syntax: str
    layout: PixelLayout
    frame: int


def load_dicom(data: bytes, *, frame: int, limits: Limits, sha256: str) -> SourceImage:
    """Read one frame of a DICOM file.

    Args:
        data: the whole file.
        frame: index from 0.
        limits: sizes that are refused.
        sha256: of `data`, passed through.

    Raises:
        ImagingError: see `engine.imaging.errors`; anything that a parser raises on damaged
            data becomes E102, running out of memory E103.
    """
    with _quiet(), _typed_errors():
        dataset, syntax = read_file(data)
        layout = read_layout(dataset, limits)
        check_frame_index(frame, layout, limits)
        opened = _OpenedFile(dataset, syntax, layout, frame)
        facts = _read_facts(opened, limits, sha256)
        stored = _decode(opened)
        return (_read_grey if layout.is_grey else _read_color)(opened, stored, facts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from warning or logging: both would echo tag values."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _typed_errors() -> Iterator[None]:
    """A damaged file makes pydicom and the codecs raise nearly anything."""
    try:
        yield
    except ImagingError:
        raise
    except MemoryError as error:
        raise TooLargeError(MEMORY_MESSAGE) from error
    except Exception as error:
        raise DamagedImageError(DAMAGED_MESSAGE) from error


def read_file(data: bytes) -> tuple[Dataset, str]:
    """The data set, unparsed beyond its element headers, and its transfer syntax UID.

    The File Meta alone is read first, so that a deflated data set is never inflated.

    Raises:
        UnsupportedImageError: the transfer syntax is refused.
        DamagedImageError: there is none in a file that must have one.
    """
    with_preamble = has_preamble(data)
    meta = read_file_meta(data, DICOM_MAGIC_OFFSET + 4 if with_preamble else 0)
    declared = str(meta.get("TransferSyntaxUID", "")).strip()
    if declared:
        check_syntax(declared)
    # Without a preamble only what `sniff.starts_like_dicom` accepted comes here.
    dataset = dcmread(io.BytesIO(data), force=not with_preamble)
    if not declared:
        declared = _guess_syntax(dataset)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid.UID(declared)
    if str(dataset.file_meta.get("TransferSyntaxUID", "")).strip() != declared:
        raise DamagedImageError(DAMAGED_MESSAGE)
    return dataset, declared


def read_file_meta(data: bytes, offset: int) -> Dataset:
    """The group 0002 elements (PS3.10, section 7.1); always explicit little endian."""

    def behind_meta(tag: BaseTag, *_: object) -> bool:
        return tag.group != 2

    stream = io.BytesIO(data)
    stream.seek(offset)
    return read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=behind_meta)


def _guess_syntax(dataset: Dataset) -> str:
    """Old files without File Meta: raw pixels, in the encoding that the parser found."""
    implicit, little = dataset.original_encoding
    if not little:
        return str(uid.ExplicitVRBigEndian)
    return str(uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian)


def _decode(opened: _OpenedFile) -> Pixels:
    """Stored values of one frame; shifts down what was stored above bit 0 (old files)."""
    dataset, layout = opened.dataset, opened.layout
    if "PhotometricInterpretation" not in dataset:  # ACR-NEMA
        dataset.PhotometricInterpretation = layout.photometric
    if "SamplesPerPixel" not in dataset:
        dataset.SamplesPerPixel = layout.samples
    shift = layout.high_bit + 1 - layout.bits_stored
    native = not dataset.file_meta.TransferSyntaxUID.is_compressed
    shifted = native and 0 < shift <= layout.bits_allocated - layout.bits_stored
    if shifted:
        dataset.BitsStored = layout.high_bit + 1
    check_shape(dataset, opened.syntax, opened.frame)
    stored = decode_frame(dataset, opened.syntax, opened.frame)
    expected = (layout.rows, layout.columns) + ((3,) if layout.samples == 3 else ())
    if stored.shape != expected:
        raise DamagedImageError(DAMAGED_MESSAGE)
    return np.right_shift(stored, shift) if shifted else stored


def _read_color(opened: _OpenedFile, stored: Pixels, facts: _Facts) -> SourceImage:
    layout = opened.layout
    if layout.photometric == "PALETTE COLOR":
        little = bool(opened.dataset.original_encoding[1])
        pixels = apply_palette(stored, opened.dataset, little_endian=little, signed=layout.signed)
    elif stored.dtype.kind == "u":
        pixels = scale_to_bytes(stored, layout.bits_stored)
    else:
        raise UnsupportedImageError("Signed colour is not supported. Export it as 8-bit RGB.")
    if layout.frames == 1:
        full_range_window(pixels)  # raises when the image is blank
    return SourceImage(
        pixels=pixels,
        is_color=True,
        inverted=False,
        windows=(),
        default_window=None,
        window_source="identity",
        voi_lut=None,
        percentile_window=None,
        full_window=None,
        units="",
        **facts,
    )


def scale_to_bytes(values: Pixels, bits: int) -> Bytes:
    """Unsigned samples of `bits` bits as 8 bits, so that full scale stays full scale."""
    if bits == 8 and values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    if bits > 16:
        return np.right_shift(values, bits - 8).astype(np.uint8)
    table = np.rint(np.arange(2**bits) * (255.0 / (2**bits - 1))).astype(np.uint8)
    scaled: Bytes = np.take(table, values.astype(np.intp), mode="clip")
    return scaled


def _read_grey(opened: _OpenedFile, stored: Pixels, facts: _Facts) -> SourceImage:
    layout = opened.layout
    image = TechnicalTags(opened.dataset)
    tags = frame_tags(image, opened.frame)
    little = bool(opened.dataset.original_encoding[1])
    rescale = read_rescale(tags)
    values = to_modality_values(stored, tags, rescale, little_endian=little, signed=layout.signed)
    full, percentile = _computed_windows(
        without_padding(values, stored, image), blank_ok=layout.frames > 1
    )
    values = bounded(values)
    windows, rejected = read_windows(tags)
    table = read_voi_table(tags, values, little_endian=little, signed=layout.signed)
    default, source = _default_window(table, windows, percentile)
    facts["warnings"] += _grey_warnings(source, rejected=rejected, has_table=table is not None)
    if not rescale.is_sound:
        facts["warnings"] += (
            "The rescale of this file is unusable: values are shown as they are stored.",
        )
    return SourceImage(
        pixels=values,
        is_color=False,
        inverted=is_inverted(image, layout.photometric),
        windows=windows,
        default_window=default,
        window_source=source,
        voi_lut=table,
        percentile_window=percentile,
        full_window=full,
        units=read_units(tags, rescale),
        **facts,
    )


def _computed_windows(values: Pixels, *, blank_ok: bool) -> tuple[Window, Window]:
    """Full range and percentiles; a blank frame of a series gets a window that shows it dark.

    Raises:
        UnusableImageError: the image is blank and there are no other frames.
    """
    try:
        return full_range_window(values), percentile_window(values)
    except UnusableImageError:
        if not blank_ok:
            raise
    level = float(np.nan_to_num(values.reshape(-1)[0].astype(np.float64), posinf=0, neginf=0))
    blank = Window(level + 0.5, 1.0, "LINEAR_EXACT")
    return blank, blank


def _default_window(
    table: LookupTable | None, windows: tuple[Window, ...], percentile: Window
) -> tuple[Window, WindowSource]:
    """The VOI LUT, else the first window of the file, else the percentiles."""
    if table is not None:
        return table_window(table), "file"
    if windows:
        return windows[0], "file"
    return percentile, "percentile"


def _grey_warnings(source: WindowSource, *, rejected: bool, has_table: bool) -> tuple[str, ...]:
    found = []
    if rejected:
        found.append("A window in this file is unusable and was left out.")
    if has_table:
        found.append("Grey values come from a table in the file; another window replaces it.")
    if source == "percentile":
        found.append(
            "This file has no window: values from the 1st to the 99th percentile are shown."
        )
    return tuple(found)


class _Facts(TypedDict):
    """The attributes of `SourceImage` that do not depend on its pixels."""

    bits_stored: int
    modality: str
    spacing_mm: tuple[float, float] | None
    spacing_kind: SpacingKind
    left_edge: PatientSide
    frame: int
    frame_count: int
    sha256: str
    format: ImageFormat
    transfer_syntax: str
    hidden_tag_count: int
    burned_in_risk: bool
    warnings: tuple[str, ...]


def _read_facts(opened: _OpenedFile, limits: Limits, sha256: str) -> _Facts:
    tags = TechnicalTags(opened.dataset)
    modality = tags.code("Modality")
    spacing, kind = read_spacing(frame_tags(tags, opened.frame))
    count = min(opened.layout.frames, limits.listed_frames)
    warned: tuple[str, ...] = ()
    if count < opened.layout.frames:
        warned = (f"Only the first {count} of {opened.layout.frames} frames are listed.",)
    return _Facts(
        bits_stored=opened.layout.bits_stored,
        modality=modality if len(modality) <= 16 and " " not in modality else "",
        spacing_mm=spacing,
        spacing_kind=kind,
        left_edge=_read_left_edge(tags),
        frame=opened.frame,
        frame_count=count,
        sha256=sha256,
        format="DICOM",
        transfer_syntax=CODECS[opened.syntax].name,
        hidden_tag_count=count_hidden(opened.dataset),
        burned_in_risk=has_burned_in_risk(tags),
        warnings=warned,
    )


def _read_left_edge(tags: TechnicalTags) -> PatientSide:
    try:
        return read_left_edge(tags)
    except Exception:  # noqa: BLE001 (a damaged orientation must not cost the picture)
        return ""


def has_burned_in_risk(tags: TechnicalTags) -> bool:
    """Whether text in the pixels is declared, or common for this kind of image.

    Burned In Annotation (0028,0301) can declare it and never rule it out: no tag proves absence,
    and NO is often written by a machine that did not look.
    """
    sop_class = tags.code("SOPClassUID") + "."
    return (
        tags.code("BurnedInAnnotation") == "YES"
        or tags.code("Modality") in _SCREEN_MODALITIES
        or sop_class.startswith(_SECONDARY_CAPTURE_UID + ".")
        or tags.has("ConversionType")
    )
