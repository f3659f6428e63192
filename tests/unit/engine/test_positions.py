"""Position ids against a naive twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.geometry import PatchGrid
from engine.positions import PositionCursor

PAD = 7


def naive(parts: list[int | PatchGrid], start: int) -> tuple[list[tuple[int, int, int]], int]:
    """Ids one by one: a number is a run of text, a grid an image."""
    ids: list[tuple[int, int, int]] = []
    at = start
    for part in parts:
        if isinstance(part, int):
            ids += [(at + n, at + n, at + n) for n in range(part)]
            at += part
            continue
        ids += [(at, at + r, at + c) for r in range(part.rows) for c in range(part.columns)]
        at += max(part.rows, part.columns)
    return ids, at


@given(
    st.lists(
        st.one_of(
            st.integers(1, 5),
            st.builds(PatchGrid, st.integers(1, 6), st.integers(1, 6)),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 100),
)
def test_a_sequence_equals_the_naive_twin(parts: list[int | PatchGrid], start: int) -> None:
    # Two images in a row are parted by text, as vision markers part them.
    spaced: list[int | PatchGrid] = []
    for part in parts:
        spaced += [1, part] if isinstance(part, PatchGrid) else [part]
    tokens: list[int] = []
    for part in spaced:
        tokens += [1] * part if isinstance(part, int) else [PAD] * part.cells
    grids = [part for part in spaced if isinstance(part, PatchGrid)]
    cursor = PositionCursor(start)
    got = cursor.sequence(tokens, PAD, grids)
    expected, following = naive(spaced, start)

    assert got.T.tolist() == [list(one) for one in expected]
    assert got.dtype == torch.int64
    assert cursor.next == following


def test_segments_one_by_one_equal_the_whole() -> None:
    grid = PatchGrid(2, 3)
    tokens = [1, 1, *[PAD] * 6, 1, 1, 1, *[PAD] * 6, 1]
    whole = PositionCursor().sequence(tokens, PAD, [grid, grid])
    cursor = PositionCursor()
    parts = [
        cursor.sequence(tokens[:9], PAD, [grid]),
        cursor.text(2),
        cursor.image(grid),
        cursor.text(1),
    ]

    assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize(
    ("tokens", "grids"),
    [
        ([1, PAD, PAD], []),
        ([1, PAD, PAD], [PatchGrid(1, 3)]),
        ([1, 1], [PatchGrid(1, 1)]),
        ([PAD, 1, PAD], [PatchGrid(1, 2)]),
    ],
)
def test_runs_that_do_not_fit_their_grids_are_refused(
    tokens: list[int], grids: list[PatchGrid]
) -> None:
    with pytest.raises(ValueError, match=r"grid|image"):
        PositionCursor().sequence(tokens, PAD, grids)


def test_nothing_has_no_positions() -> None:
    assert PositionCursor().sequence([], PAD, []).shape == (3, 0)
