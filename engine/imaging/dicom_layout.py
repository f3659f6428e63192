"""The Image Pixel module of a DICOM file, checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from engine.imaging.errors import (
    DAMAGED_MESSAGE,
    DamagedImageError,
    FrameRangeError,
    TooLargeError,
    UnsupportedImageError,
)
from engine.imaging.limits import Limits, check_frame_size
from engine.imaging.tags import TechnicalTags

GREY_MODELS = ("MONOCHROME1", "MONOCHROME2")
_COLOR_MODELS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NO_IMAGE = "This DICOM file holds no image (a report, a plan or an index). Choose an image file."


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """What the Image Pixel module says of the pixels (PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    @property
    def is_grey(self) -> bool:
        """MONOCHROME1 or MONOCHROME2."""
        return self.photometric in GREY_MODELS


def read_layout(dataset: Dataset, limits: Limits) -> PixelLayout:
    """The pixel layout, checked against the limits and against the bytes that are there.

    Raises:
        DamagedImageError: no image, or fewer bytes than it needs.
        TooLargeError, UnusableImageError: absurd sizes.
        UnsupportedImageError: a photometric interpretation that is not supported.
    """
    tags = TechnicalTags(dataset)
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        # The parser drops everything behind the element in which a file ends.
        cut_short = "Rows" in dataset or _is_of_an_image(tags)
        # Reports and plans say what they are, an index lists files: what does neither is no data
        # set, but something else behind a preamble.
        says_what_it_is = "SOPClassUID" in dataset or "DirectoryRecordSequence" in dataset
        cut_short = cut_short or not says_what_it_is
        raise DamagedImageError(DAMAGED_MESSAGE if cut_short else _NO_IMAGE)
    stored = tags.integer("BitsStored", tags.integer("BitsAllocated"))
    layout = PixelLayout(
        rows=tags.integer("Rows"),
        columns=tags.integer("Columns"),
        samples=tags.integer("SamplesPerPixel", 1),
        frames=max(tags.integer("NumberOfFrames", 1), 1),
        photometric=tags.code("PhotometricInterpretation") or "MONOCHROME2",
        bits_allocated=tags.integer("BitsAllocated"),
        bits_stored=stored,
        high_bit=tags.integer("HighBit", stored - 1),
        signed=tags.integer("PixelRepresentation", 0) == 1,
    )
    _check_sizes(layout, limits)
    _check_model(layout)
    _check_native_length(dataset, layout)
    return layout


def _is_of_an_image(tags: TechnicalTags) -> bool:
    """Whether the SOP class is one of the storage classes of images (PS3.4, annex B)."""
    return UID(tags.code("SOPClassUID")).name.endswith("Image Storage")


def check_frame_index(frame: int, layout: PixelLayout, limits: Limits) -> None:
    """Refuse a frame that the file does not have, or that is not listed.

    Raises:
        FrameRangeError: `frame` is outside of the listed ones.
    """
    count = min(layout.frames, limits.listed_frames)
    if not 0 <= frame < count:
        raise FrameRangeError(
            f"Frame {frame} does not exist: this file has {count} frame(s), counted from 0."
        )


def _check_sizes(layout: PixelLayout, limits: Limits) -> None:
    check_frame_size(layout.rows, layout.columns, limits)
    if layout.frames > limits.declared_frames:
        raise TooLargeError(
            f"This file claims {layout.frames} frames, which cannot be right or is too many. "
            "Export fewer frames."
        )
    if layout.bits_allocated not in (1, 8, 16, 32, 64) or not (
        1 <= layout.bits_stored <= layout.bits_allocated
    ):
        raise DamagedImageError("The number of bits per pixel in this file makes no sense.")


def _check_model(layout: PixelLayout) -> None:
    single = layout.is_grey or layout.photometric == "PALETTE COLOR"
    known = single or layout.photometric in _COLOR_MODELS
    if not known or layout.samples != (1 if single else 3):
        raise UnsupportedImageError(
            "The colour model of this DICOM image is not supported. Export it as RGB or greyscale."
        )


def _check_native_length(dataset: Dataset, layout: PixelLayout) -> None:
    """Raw pixels must be as many bytes as rows, columns, samples and frames say."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return
    data = next(dataset[keyword].value for keyword in _PIXEL_KEYWORDS if keyword in dataset)
    samples = 2 if layout.photometric == "YBR_FULL_422" else layout.samples
    bits = layout.rows * layout.columns * samples * layout.frames * layout.bits_allocated
    if data is None or len(data) * 8 < bits:
        raise DamagedImageError(DAMAGED_MESSAGE)
