"""Pictures as PNG: without loss, in their colours, within a size."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engine.rasters import encoded_png


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["PNG"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (40, 30), (40, 30, 3), (1, 1, 3)])
def test_a_picture_comes_back_as_it_was(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    found = opened(encoded_png(pixels))

    assert found.mode == ("L" if len(shape) == 2 else "RGB")
    np.testing.assert_array_equal(np.asarray(found), pixels)


def test_parts_of_other_arrays_are_written_too() -> None:
    pixels = noise(40, 30, 3)
    flipped = pixels[::-2, 3:, ::-1]

    np.testing.assert_array_equal(np.asarray(opened(encoded_png(flipped))), flipped)
    np.testing.assert_array_equal(np.asarray(opened(encoded_png(flipped[..., 0]))), flipped[..., 0])


def test_equal_channels_are_stored_as_one() -> None:
    grey = noise(20, 20)
    found = opened(encoded_png(np.repeat(grey[..., None], 3, axis=2)))

    assert found.mode == "L"
    np.testing.assert_array_equal(np.asarray(found), grey)


@pytest.mark.parametrize("color", [False, True])
def test_a_large_picture_is_scaled_down_and_a_small_one_is_not(color: bool) -> None:
    pixels = noise(60, 40, 3) if color else noise(60, 40)
    expected = Image.fromarray(pixels)
    expected.thumbnail((30, 30), Image.Resampling.LANCZOS)

    found = opened(encoded_png(pixels, 30))
    assert found.size == (20, 30)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert opened(encoded_png(pixels, 60)).size == (40, 60)
