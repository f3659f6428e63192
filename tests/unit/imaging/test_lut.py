"""Lookup tables, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from engine.imaging.errors import DamagedImageError
from engine.imaging.lut import make_table


def test_values_outside_take_the_ends() -> None:
    table = make_table((3, 10, 16), (100, 200, 300), little_endian=True)
    np.testing.assert_array_equal(
        table.apply(np.array([0, 10, 11, 12, 99])), [100, 100, 200, 300, 300]
    )


def test_nan_takes_the_first_entry() -> None:
    table = make_table((2, -1, 8), (5, 6), little_endian=True)
    np.testing.assert_array_equal(table.apply(np.array([np.nan, 0.0])), [5, 6])


@pytest.mark.parametrize(
    ("little", "data"), [(True, b"\x01\x00\x00\x02"), (False, b"\x00\x01\x02\x00")]
)
def test_byte_order(little: bool, data: bytes) -> None:
    assert make_table((2, 0, 16), data, little_endian=little).entries.tolist() == [1, 512]


def test_packed_bytes() -> None:
    assert make_table((4, 0, 8), b"\x01\x02\x03\x04", little_endian=True).entries.tolist() == [
        1,
        2,
        3,
        4,
    ]


def test_zero_entries_means_65536() -> None:
    table = make_table((0, 0, 16), tuple(range(65536)), little_endian=True)
    assert table.entries.size == 65536


def test_unit_values_follow_the_bits() -> None:
    table = make_table((3, 0, 12), (0, 2048, 4095), little_endian=True)
    np.testing.assert_allclose(table.apply_unit(np.arange(3)), [0, 2048 / 4095, 1])


@pytest.mark.parametrize(
    ("descriptor", "data"),
    [((4, 0, 16), (1, 2)), ((4, 0), (1, 2, 3, 4)), ((1, 0, 17), (1,)), ((1, 0, 0), (1,))],
)
def test_damaged_tables(descriptor: tuple[int, ...], data: tuple[int, ...]) -> None:
    with pytest.raises(DamagedImageError):
        make_table(descriptor, data, little_endian=True)
