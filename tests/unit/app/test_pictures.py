"""What the viewer gets of an image agrees with what the model gets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from app.pictures import RawGrey, describe, picture_files, raw_grey
from engine.imaging import Window, open_image, render
from tests.factories import png
from tests.unit.imaging.dicom_files import to_file


def values_of(raw: RawGrey) -> np.ndarray:
    """What the numbers stand for."""
    return np.interp(np.frombuffer(raw.data, "<u2"), raw.numbers, raw.values)


@given(low=st.integers(-40_000, 40_000), span=st.integers(0, 65_535), seed=st.integers(0, 99))
def test_integers_travel_exactly(low: int, span: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(low, low + span + 1, size=(5, 7), dtype=np.int32)

    raw = raw_grey(values)

    np.testing.assert_array_equal(values_of(raw).reshape(5, 7), values)


@given(scale=st.floats(1e-3, 1e6), seed=st.integers(0, 99))
def test_fractions_travel_within_half_a_step(scale: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(scale=scale, size=(4, 6)).astype(np.float32)

    raw = raw_grey(values)

    step = float(np.ptp(values.astype(float))) / 65_535
    assert np.abs(values_of(raw).reshape(4, 6) - values).max() <= step * 0.51


@given(
    far=st.sampled_from([1e6, -3.4e38, 2.0**31, 70_000.0]),
    center=st.floats(-2, 2),
    width=st.floats(0.5, 8),
)
def test_a_value_far_off_does_not_cost_the_others_their_precision(
    far: float, center: float, width: float
) -> None:
    values = np.random.default_rng(0).normal(size=(30, 30))
    values[0, 0] = far
    window = Window(center, width, "LINEAR_EXACT")
    low, high = center - 1.5 * width, center + 1.5 * width

    raw = raw_grey(values, [window])
    back = values_of(raw).reshape(30, 30)

    near = (values >= low) & (values <= high)
    assert near.sum() > 20
    assert np.abs(back - values)[near].max() <= (high - low) / 50_000
    assert (back[values < low] <= low + 1e-9).all()
    assert (back[values > high] >= high - 1e-9).all()
    assert back[0, 0] == pytest.approx(far)
    # Whole numbers stay in their order, so that the picture has no edge that the data have not.
    order = np.argsort(values, axis=None)
    assert (np.diff(np.frombuffer(raw.data, "<u2").astype(int)[order]) >= 0).all()


def test_what_is_no_number_is_the_smallest() -> None:
    raw = raw_grey(np.array([[1.0, np.nan], [2.0, 3.0]], dtype=np.float32))

    assert np.frombuffer(raw.data, "<u2").tolist()[:2] == [0, 0]


def test_colour_travels_as_png() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    source = open_image(png(pixels))

    files, raw = picture_files(source)

    assert raw is None
    assert files.keys() == {"image.png"}
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(files["image.png"]))), pixels)
    assert describe(source, raw)["kind"] == "color"


def test_the_sides_of_the_patient_reach_the_browser() -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    mirrored = open_image(to_file(pixels, PatientOrientation=["R", "F"]))
    unknown = open_image(png(pixels.astype(np.uint8)))

    assert describe(mirrored, None)["left_edge"] == "left"
    assert describe(unknown, None)["left_edge"] == ""


def test_a_table_of_the_file_reaches_the_browser() -> None:
    path = get_testdata_file("vlut_04.dcm", download=False)
    if path is None:
        pytest.skip("needs the DICOM file vlut_04.dcm of pydicom-data")
    source = open_image(Path(str(path)))
    assert source.voi_lut is not None
    files, _ = picture_files(source)
    numbers = np.frombuffer(files["image.raw"], "<u2")

    shown = np.frombuffer(files["image.lut"], np.uint8)[numbers]

    np.testing.assert_array_equal(shown.reshape(source.pixels.shape), render(source))
