"""The image that a model is asked about, under the window that somebody chose or the file's own."""

from __future__ import annotations

import numpy as np
import pytest

from engine.display import display_image
from engine.imaging import SourceImage, Window, open_image, render
from tests.factories import png
from tests.unit.imaging.dicom_files import to_file


@pytest.fixture
def ramp() -> SourceImage:
    return open_image(to_file(np.arange(4096, dtype=np.uint16).reshape(64, 64)))


def test_an_untouched_window_keeps_its_source(ramp: SourceImage) -> None:
    shown = display_image(ramp)

    np.testing.assert_array_equal(shown.pixels, render(ramp))
    assert shown.window_source == ramp.window_source == "percentile"
    assert ramp.default_window is not None
    assert shown.window_center == ramp.default_window.center
    assert shown.sha256 == ramp.sha256


@pytest.mark.parametrize("chosen_by", ["request", "preset"])
def test_a_chosen_window_is_part_of_the_request(ramp: SourceImage, chosen_by: str) -> None:
    window = Window(1_000.0, 400.0)

    shown = display_image(ramp, window, chosen_by)

    np.testing.assert_array_equal(shown.pixels, render(ramp, window))
    assert (shown.window_center, shown.window_width) == (1_000.0, 400.0)
    assert shown.window_source == chosen_by


def test_colour_has_no_window() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)

    shown = display_image(open_image(png(pixels)), Window(100.0, 50.0), "request")

    np.testing.assert_array_equal(shown.pixels, pixels)
    assert (shown.window_center, shown.window_width) == (None, None)
    assert shown.window_source == "identity"


def test_what_the_file_says_of_sides_and_distances_travels_along() -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    shown = display_image(
        open_image(to_file(pixels, PatientOrientation=["R", "F"], ImagerPixelSpacing=[0.2, 0.1]))
    )
    unknown = display_image(open_image(png(pixels.astype(np.uint8))))

    assert shown.left_edge == "left"
    assert shown.spacing_mm == (0.2, 0.1)
    assert shown.spacing_kind == "detector"
    assert (unknown.left_edge, unknown.spacing_mm, unknown.spacing_kind) == ("", None, "")
