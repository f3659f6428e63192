"""Where evidence maps are highest, to a fraction of a cell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.trace import peak_place


def test_by_hand() -> None:
    # Across: 1, 4, 3 bends by -4 and leans by 2, so that the vertex lies a quarter of a cell on.
    values = np.array([[0.0, 2.0, 0.0], [1.0, 4.0, 3.0], [0.0, 2.0, 0.0]])
    assert peak_place(values) == pytest.approx(((1.5 + 0.25) / 3, 0.5))
    # Down: 1, 4, 4 has its vertex on the border of two cells.
    values = np.array([[1.0], [4.0], [4.0], [1.0]])
    assert peak_place(values) == pytest.approx((0.5, 0.5))


def test_at_the_border_and_on_a_plain() -> None:
    assert peak_place(np.array([[5.0, 4.0], [3.0, 0.0]])) == pytest.approx((0.25, 0.25))
    assert peak_place(np.ones((3, 3))) == pytest.approx((1 / 6, 1 / 6))
    flat = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert peak_place(flat) == pytest.approx((1 / 6, 0.5))
    assert peak_place(np.array([[2.0]])) == (0.5, 0.5)


@given(
    st.integers(3, 9),
    st.integers(3, 9),
    st.floats(1.01, 1.99),
    st.floats(1.01, 1.99),
    st.floats(0.1, 5),
)
def test_a_sampled_parabola_is_located_exactly(
    rows: int, columns: int, x: float, y: float, height: float
) -> None:
    down, across = np.mgrid[:rows, :columns] + 0.5
    values = height * (9.0 - (across - x) ** 2 - 2 * (down - y) ** 2)
    assert peak_place(values) == pytest.approx((x / columns, y / rows))


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_it_stays_within_the_highest_cell(cells: list[float]) -> None:
    values = np.array(cells, dtype=np.float32).reshape(3, 4)
    x, y = peak_place(values)
    row, column = divmod(int(values.argmax()), 4)
    assert column <= x * 4 + 1e-6
    assert x * 4 <= column + 1 + 1e-6
    assert row <= y * 3 + 1e-6
    assert y * 3 <= row + 1 + 1e-6
