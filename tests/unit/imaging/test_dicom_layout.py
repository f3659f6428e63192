"""The pixel layout is checked against limits and bytes before anything is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from engine.imaging.errors import (
    DamagedImageError,
    FrameRangeError,
    ImagingError,
    TooLargeError,
    UnsupportedImageError,
    UnusableImageError,
)
from engine.imaging.limits import Limits
from engine.imaging.opening import open_image
from tests.unit.imaging.dicom_files import open_here, to_file

# Files that break the rules are what is tested; pydicom warns as it writes them.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    ("elements", "error"),
    [
        ({"Rows": 65535, "Columns": 65535}, TooLargeError),
        ({"Rows": 0}, UnusableImageError),
        ({"Rows": 1, "Columns": 1}, UnusableImageError),
        ({"Rows": 1, "Columns": 10_000}, UnusableImageError),
        ({"Rows": 9}, DamagedImageError),
        ({"NumberOfFrames": 2}, DamagedImageError),
        ({"NumberOfFrames": 2_000_000_000}, TooLargeError),
        ({"BitsAllocated": 7}, DamagedImageError),
        ({"BitsStored": 17}, DamagedImageError),
        ({"BitsStored": 0}, DamagedImageError),
        ({"SamplesPerPixel": 3}, UnsupportedImageError),
        ({"SamplesPerPixel": 60_000}, UnsupportedImageError),
        ({"PhotometricInterpretation": "CMYK"}, UnsupportedImageError),
        ({"PhotometricInterpretation": "RGB"}, UnsupportedImageError),
    ],
)
def test_layouts_that_cannot_be(elements: dict[str, object], error: type[ImagingError]) -> None:
    with pytest.raises(error):
        open_here(to_file(RAMP, **elements))


def test_frames_that_do_not_exist() -> None:
    stack = np.arange(128, dtype=np.uint16).reshape(2, 8, 8)
    data = to_file(stack)
    assert np.array_equal(open_here(data, frame=1).pixels, stack[1])
    for frame in (-1, 2):
        with pytest.raises(FrameRangeError, match=r"2 frame\(s\)"):
            open_here(data, frame=frame)


def test_frames_beyond_the_listed_ones_are_left_off() -> None:
    stack = np.arange(5 * 64, dtype=np.uint16).reshape(5, 8, 8)
    limits = Limits(listed_frames=3)
    source = open_image(to_file(stack), frame=2, limits=limits, sandboxed=False)
    assert source.frame_count == 3
    assert any("first 3 of 5 frames" in text for text in source.warnings)
    with pytest.raises(FrameRangeError):
        open_image(to_file(stack), frame=3, limits=limits, sandboxed=False)


def test_what_is_no_data_set_behind_a_preamble_is_damaged_and_no_report() -> None:
    for content in (b"this is a text, and not a data set at all", bytes(range(200)), b""):
        with pytest.raises(DamagedImageError) as caught:
            open_here(b"\0" * 128 + b"DICM" + content)
        assert "report" not in caught.value.message


@pytest.mark.parametrize("name", ["rtplan.dcm", "reportsi.dcm", "DICOMDIR"])
def test_plans_reports_and_indices_are_told_from_damage(name: str) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"needs the DICOM file {name} of pydicom-data")
    with pytest.raises(DamagedImageError, match=r"holds no image \(a report"):
        open_here(Path(str(path)).read_bytes())
