"""Boxes that are asked for outside of zooms."""

import pytest

from engine.geometry import Box
from training.box_scores import _overlap


@pytest.mark.parametrize(
    ("numbers", "overlap"),
    [
        ([56, 112, 168, 224], 1.0),
        ([112, 112, 168, 224], 0.5),
        # Beyond the picture it is cut.
        ([56, 112, 168, 400], 1.0),
        # No box: a word that is no number, sides that have changed places, nothing in the picture.
        ([-1, 112, 168, 224], 0.0),
        ([168, 112, 56, 224], 0.0),
        ([56, 224, 168, 112], 0.0),
        ([300, 112, 400, 224], 0.0),
    ],
)
def test_overlaps_by_hand(numbers: list[int], overlap: float) -> None:
    """The lower half of the middle half of a view of 224 x 224 pixels."""
    found = _overlap(numbers, Box(0.25, 0.5, 0.75, 1.0), (224, 224))
    assert found == pytest.approx(overlap)
