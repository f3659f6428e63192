"""Rendering to 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.imaging.source import SourceImage, list_presets, render
from engine.imaging.window import Window, WindowFunction, apply_window
from tests.unit.imaging.dicom_files import open_here, to_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


def with_pixels(pixels: np.ndarray, *, inverted: bool = False) -> SourceImage:
    """A greyscale image around given modality values."""
    import dataclasses

    return dataclasses.replace(open_here(to_file(RAMP)), pixels=pixels, inverted=inverted)


@given(
    hnp.arrays(np.int32, (5, 7), elements=st.integers(-(2**31), 2**31 - 1)),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.booleans(),
)
def test_the_table_equals_the_direct_way(
    pixels: np.ndarray, function: WindowFunction, inverted: bool
) -> None:
    window = Window(17, 1000, function)
    for values in (pixels, pixels % 5000):
        shown = render(with_pixels(values.astype(np.int32), inverted=inverted), window)
        unit = apply_window(values, window)
        np.testing.assert_array_equal(shown, np.rint((1 - unit if inverted else unit) * 255))


@pytest.mark.parametrize("inverted", [False, True])
def test_floats_in_blocks_with_nan_dark(inverted: bool) -> None:
    pixels = np.linspace(0, 1, 600 * 4, dtype=np.float32).reshape(600, 4)
    pixels[300, 2] = np.nan
    shown = render(with_pixels(pixels, inverted=inverted), Window(0.5, 1, "LINEAR_EXACT"))
    assert shown[300, 2] == 0
    assert (int(shown[0, 0]), int(shown[599, 3])) == ((255, 0) if inverted else (0, 255))
    rest = np.delete(shown.reshape(-1), 300 * 4 + 2).astype(int)
    assert (np.diff(rest) <= 0).all() if inverted else (np.diff(rest) >= 0).all()


def test_pixels_are_read_only_and_rendering_is_a_copy() -> None:
    color = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    source = open_here(to_file(color))
    with pytest.raises(ValueError, match="read-only"):
        source.pixels[0, 0] = 1
    render(source)[...] = 0
    np.testing.assert_array_equal(source.pixels, color)


def test_colour_ignores_windows() -> None:
    color = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    source = open_here(to_file(color))
    np.testing.assert_array_equal(source.render(Window(10, 10)), color)


def test_size_is_width_then_height() -> None:
    assert open_here(to_file(RAMP[:4])).size == (8, 4)


def test_every_preset_renders() -> None:
    source = open_here(to_file(RAMP, Modality="CT", RescaleSlope=1, RescaleIntercept=-30))
    presets = list_presets(source)
    assert [p.name for p in presets[:4]] == ["Soft tissue", "Lung", "Bone", "Brain"]
    images = {preset.name: render(source, preset.window) for preset in presets}
    assert images["Full range"].min() == 0
    assert images["Full range"].max() == 255
    assert images["Brain"].max() < 255
