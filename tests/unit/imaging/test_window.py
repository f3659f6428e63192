"""The three window functions against the standard's pseudo code, pydicom, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels.processing import apply_windowing

from engine.imaging.errors import UnusableImageError
from engine.imaging.window import (
    IDENTITY_8_BIT,
    Window,
    WindowFunction,
    apply_window,
    bounded,
    full_range_window,
    percentile_window,
    window_between,
)
from tests.unit.imaging.dicom_files import make_dataset

FUNCTIONS: tuple[WindowFunction, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def naive_window(x: float, c: float, w: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.2 and C.11.2.1.3.1, as printed, with y from 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(min(-4 * (x - c) / w, 700.0)))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    if x > c - 0.5 + (w - 1) / 2:
        return 1.0
    return (x - (c - 0.5)) / (w - 1) + 0.5


@given(
    st.lists(st.integers(-40_000, 40_000), min_size=1, max_size=20),
    st.integers(-4000, 4000),
    st.integers(1, 9000),
    st.sampled_from(FUNCTIONS),
)
def test_equals_the_pseudo_code_of_the_standard(
    values: list[int], center: int, width: int, function: WindowFunction
) -> None:
    shown = apply_window(np.array(values), Window(center, width, function))
    expected = [naive_window(x, center, width, function) for x in values]
    np.testing.assert_allclose(shown, expected, atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (127.5, 1), (2, 2)])
def test_equals_pydicom(function: WindowFunction, center: float, width: float) -> None:
    values = np.arange(-2000, 2000, dtype=np.int16).reshape(40, 100)
    dataset = make_dataset(values, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    with np.errstate(over="ignore"):
        theirs = apply_windowing(values, dataset)
    low, high = -(2**15), 2**15 - 1  # pydicom's output range for signed 16 bits
    expected = (theirs - low) / (high - low)
    shown = apply_window(values, Window(center, width, function))
    np.testing.assert_allclose(shown, expected, atol=1e-9)


def test_by_hand() -> None:
    # c = 2048, w = 4096 is the example of the standard: LINEAR maps 0 to 0 and 4095 to 1.
    linear = apply_window([-1, 0, 4095, 4096], Window(2048, 4096))
    np.testing.assert_allclose(linear, [0, 0, 1, 1])
    exact = apply_window([0, 5, 10], Window(5, 10, "LINEAR_EXACT"))
    np.testing.assert_allclose(exact, [0, 0.5, 1])
    sigmoid = apply_window([10, 20], Window(10, 40, "SIGMOID"))
    np.testing.assert_allclose(sigmoid, [0.5, 1 / (1 + math.exp(-1))])


def test_width_of_one_is_a_threshold() -> None:
    np.testing.assert_array_equal(apply_window([9, 9.5, 9.6, 10], Window(10, 1)), [0, 0, 1, 1])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_infinities_saturate_and_nan_is_dark(function: WindowFunction) -> None:
    shown = apply_window([-np.inf, np.inf, np.nan], Window(0, 10, function))
    np.testing.assert_array_equal(shown, [0, 1, 0])


def test_infinity_and_nan_pass_a_threshold() -> None:
    shown = apply_window([-np.inf, np.inf, np.nan], Window(0, 1))
    np.testing.assert_array_equal(shown, [0, 1, 0])


def test_identity_keeps_bytes() -> None:
    values = np.arange(256)
    np.testing.assert_array_equal(np.rint(apply_window(values, IDENTITY_8_BIT) * 255), values)


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [(0, 0, "LINEAR"), (0, 0.5, "LINEAR"), (0, 0, "SIGMOID"), (0, -5, "LINEAR_EXACT"),
     (math.nan, 10, "LINEAR"), (0, math.inf, "LINEAR")],
)  # fmt: skip
def test_impossible_windows_are_refused(
    center: float, width: float, function: WindowFunction
) -> None:
    with pytest.raises(ValueError, match="window needs"):
        Window(center, width, function)


def test_percentile_window_cuts_one_percent_on_each_side() -> None:
    values = np.arange(1001)
    assert percentile_window(values).bounds == (10.0, 990.0)


def test_percentile_window_ignores_what_is_not_finite() -> None:
    values = np.concatenate([np.arange(1001.0), [np.nan, np.inf, -np.inf]])
    assert percentile_window(values).bounds == pytest.approx((10.0, 990.0))


def test_percentile_window_of_a_sparse_mask_is_the_full_range() -> None:
    mask = np.zeros(10_000, dtype=np.uint8)
    mask[:3] = 1
    assert percentile_window(mask).bounds == (0.0, 1.0)


@pytest.mark.parametrize("values", [np.full(9, 7), np.full(9, np.nan), np.full(9, np.inf)])
def test_blank_images_have_no_window(values: np.ndarray) -> None:
    with pytest.raises(UnusableImageError):
        full_range_window(values)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_window_between_has_these_bounds(low: float, width: float) -> None:
    bounds = window_between(low, low + width).bounds
    assert bounds == pytest.approx((low, low + width), abs=1e-6)


def test_infinities_become_the_ends_of_what_is_finite() -> None:
    values = np.array([[np.inf, 2.0], [-np.inf, -1.0], [np.nan, 0.5]], dtype=np.float32)
    ends = bounded(values)
    assert ends.dtype == np.float32
    np.testing.assert_array_equal(ends, [[2, 2], [-1, -1], [np.nan, 0.5]])
    assert bounded(np.full((2, 2), np.nan)).tolist() == [[0, 0], [0, 0]]
    whole = np.array([[1, 2]], dtype=np.int32)
    assert bounded(whole) is whole
