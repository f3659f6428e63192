"""Numbers of a call in each backbone's own way, there and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.coordinates import CoordinateFrame
from engine.geometry import Box, BoxError, clamped_box
from engine.prompt import ZOOM_TOOL_NAME, system_text
from engine.tool_call import ImageSizes, ToolCallError, parse_zoom_call

EDGES = st.floats(0.0, 1.0)
KINDS = st.sampled_from(["pixels", "thousandths"])
SIDES = st.integers(28, 2000)


@given(KINDS, SIDES, SIDES, EDGES, EDGES, EDGES, EDGES)
def test_a_box_comes_back_within_one_step(
    kind: str, width: int, height: int, a: float, b: float, c: float, d: float
) -> None:
    """Half a step by rounding, a whole one where the box would be empty."""
    try:
        box, _ = clamped_box(min(a, c), min(b, d), max(a, c), max(b, d))
    except BoxError:
        return
    frame = CoordinateFrame.of(kind, width, height)  # type: ignore[arg-type]

    back, clamped = frame.to_box(*frame.to_numbers(box))

    assert not clamped
    for own, other, side in zip(
        box.as_tuple(), back.as_tuple(), (frame.width, frame.height) * 2, strict=True
    ):
        assert abs(own - other) * side <= 1.0 + 1e-9


@given(KINDS, SIDES, SIDES, st.data())
def test_numbers_come_back_exactly(kind: str, width: int, height: int, data: st.DataObject) -> None:
    frame = CoordinateFrame.of(kind, width, height)  # type: ignore[arg-type]
    x0 = data.draw(st.integers(0, frame.width - 1))
    y0 = data.draw(st.integers(0, frame.height - 1))
    numbers = (
        x0,
        y0,
        data.draw(st.integers(x0 + 1, frame.width)),
        data.draw(st.integers(y0 + 1, frame.height)),
    )

    assert frame.to_numbers(frame.to_box(*numbers)[0]) == numbers


def call(*numbers: float) -> str:
    return json.dumps({"name": ZOOM_TOOL_NAME, "arguments": {"bbox_2d": list(numbers)}})


def test_the_same_place_is_written_in_two_ways() -> None:
    """The right half of an image seen at 448 x 224 pixels."""
    pixels = ImageSizes(448, 224, 1792, 896)
    thousandths = ImageSizes(448, 224, 1792, 896, coordinates="thousandths")

    right = Box(0.5, 0.0, 1.0, 1.0)
    assert parse_zoom_call(call(224, 0, 448, 224), pixels) == (right, False)
    assert parse_zoom_call(call(500, 0, 1000, 1000), thousandths) == (right, False)
    # Beyond the image in one way, inside it in the other.
    assert parse_zoom_call(call(224, 0, 1000, 1000), pixels) == (right, True)
    with pytest.raises(ToolCallError, match="too small"):
        parse_zoom_call(call(10, 10, 20, 20), thousandths)


def test_the_prompt_says_what_is_counted() -> None:
    assert "[x1, y1, x2, y2] in pixels of the image." in system_text("full", "zoom")
    said = system_text("full", "zoom", "thousandths")
    assert "in thousandths of the image, 0 to 1000" in said
    assert "pixels" not in said
