"""Boxes and grids: one convention, and round trips between its spaces."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.geometry import (
    FULL_IMAGE,
    Box,
    BoxError,
    PatchGrid,
    box_from_pixels,
    clamped_box,
)

SIDES = st.integers(min_value=1, max_value=5000)
UNIT = st.floats(min_value=0.0, max_value=1.0)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x0, x1 = sorted((draw(UNIT), draw(UNIT)))
    y0, y1 = sorted((draw(UNIT), draw(UNIT)))
    assume(x0 < x1)
    assume(y0 < y1)
    return Box(x0, y0, x1, y1)


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 0.0, 0.0, 1.0),
        (0.5, 0.0, 0.4, 1.0),
        (-0.1, 0.0, 1.0, 1.0),
        (0.0, 0.0, 1.1, 1.0),
        (math.nan, 0.0, 1.0, 1.0),
        (0.0, 0.0, math.inf, 1.0),
    ],
)
def test_boxes_that_are_none_are_refused(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(BoxError):
        Box(*values)


@given(boxes(), SIDES, SIDES)
def test_a_box_comes_back_from_pixels(box: Box, width: int, height: int) -> None:
    back, cut = box_from_pixels(*box.to_pixels(width, height), width, height)

    assert back.as_tuple() == pytest.approx(box.as_tuple(), abs=1e-12)
    assert not cut or max(back.as_tuple()) == 1.0


@given(boxes(), SIDES, SIDES)
def test_whole_pixels_cover_the_box_and_stay_inside_the_image(
    box: Box, width: int, height: int
) -> None:
    x0, y0, x1, y1 = box.to_pixels_outward(width, height)
    left, top, right, bottom = box.to_pixels(width, height)

    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert x0 <= left + 1e-5
    assert x1 >= right - 1e-5
    assert y0 <= top + 1e-5
    assert y1 >= bottom - 1e-5
    # No whole pixel more than is needed on either side.
    assert x0 > left - 1 or x0 == width - 1
    assert y0 > top - 1 or y0 == height - 1
    assert x1 < right + 1 or x1 == x0 + 1
    assert y1 < bottom + 1 or y1 == y0 + 1


def test_an_edge_on_a_pixel_takes_no_further_pixel() -> None:
    assert Box(0.1, 0.2, 0.3, 0.7).to_pixels_outward(10, 10) == (1, 2, 3, 7)


@pytest.mark.parametrize(
    ("raw", "expected", "cut"),
    [
        ((-0.5, 0.2, 0.5, 1.5), (0.0, 0.2, 0.5, 1.0), True),
        ((0.1, 0.2, 0.5, 0.9), (0.1, 0.2, 0.5, 0.9), False),
    ],
)
def test_what_reaches_over_the_edge_is_cut(
    raw: tuple[float, ...], expected: tuple[float, ...], cut: bool
) -> None:
    box, was_cut = clamped_box(*raw)

    assert box.as_tuple() == expected
    assert was_cut is cut


def test_what_lies_outside_is_no_box() -> None:
    with pytest.raises(BoxError):
        clamped_box(1.2, 0.0, 1.5, 1.0)


@given(boxes(), boxes())
def test_intersection_over_union_equals_counting_cells(one: Box, other: Box) -> None:
    value = one.intersection_over_union(other)

    assert 0.0 <= value <= 1.0 + 1e-12
    assert value == pytest.approx(other.intersection_over_union(one))
    assert one.intersection_over_union(one) == pytest.approx(1.0)


def test_intersection_over_union_by_hand() -> None:
    one, other = Box(0.0, 0.0, 0.4, 0.4), Box(0.2, 0.2, 0.6, 0.6)

    assert one.intersection_over_union(other) == pytest.approx(0.04 / 0.28)
    assert one.intersection_over_union(Box(0.5, 0.5, 1.0, 1.0)) == 0.0


def test_padding_grows_by_a_share_of_the_box_and_stops_at_the_edge() -> None:
    assert Box(0.4, 0.4, 0.6, 0.8).padded(0.5).as_tuple() == pytest.approx((0.3, 0.2, 0.7, 1.0))
    assert FULL_IMAGE.padded(1.0) == FULL_IMAGE


@given(boxes(), st.integers(1, 40), st.integers(1, 40))
def test_cells_of_a_box_are_those_that_it_touches(box: Box, rows: int, columns: int) -> None:
    grid = PatchGrid(rows, columns)
    cells = grid.cells_of(box)
    edge = 1e-7

    assert cells
    assert list(cells) == sorted(set(cells))
    for index in range(grid.cells):
        cell = grid.box_of(*divmod(index, columns))
        apart = (
            min(cell.x1, box.x1) - max(cell.x0, box.x0),
            min(cell.y1, box.y1) - max(cell.y0, box.y0),
        )
        if min(apart) > edge:
            assert index in cells
        elif min(apart) < -edge:
            assert index not in cells


def test_cells_tile_the_image() -> None:
    grid = PatchGrid(3, 5)

    assert sum(grid.box_of(r, c).area for r in range(3) for c in range(5)) == pytest.approx(1.0)
    assert grid.cells_of(FULL_IMAGE) == tuple(range(15))
    with pytest.raises(ValueError, match="one cell"):
        PatchGrid(0, 5)
