"""Sizes are refused before anything is decoded, each with its reason."""

from __future__ import annotations

import pytest

from engine.imaging.errors import TooLargeError, UnusableImageError
from engine.imaging.limits import Limits, check_file_size, check_frame_size

LIMITS = Limits()


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (3, 3), (200, 1), (8000, 5000)])
def test_sizes_within_the_limits_pass(rows: int, columns: int) -> None:
    check_frame_size(rows, columns, LIMITS)
    assert rows * columns <= LIMITS.frame_pixels


@pytest.mark.parametrize(
    ("rows", "columns", "reason"),
    [
        (0, 5, "width or height is zero"),
        (5, -1, "width or height is zero"),
        (1, 1, "single pixel"),
        (1, 10_000, "200 to 1"),
        (201, 1, "200 to 1"),
    ],
)
def test_shapes_that_show_nothing(rows: int, columns: int, reason: str) -> None:
    with pytest.raises(UnusableImageError, match=reason) as caught:
        check_frame_size(rows, columns, LIMITS)
    assert caught.value.code == "E104"


def test_too_many_pixels() -> None:
    with pytest.raises(TooLargeError, match="40 megapixels") as caught:
        check_frame_size(65535, 65535, LIMITS)
    assert caught.value.code == "E103"


def test_file_size() -> None:
    check_file_size(LIMITS.file_bytes, LIMITS)
    with pytest.raises(TooLargeError, match="64 MB"):
        check_file_size(LIMITS.file_bytes + 1, LIMITS)
