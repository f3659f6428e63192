"""Palettes: plain, segmented, in both byte orders, against pydicom and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from engine.imaging.errors import DamagedImageError
from engine.imaging.palette import expand_segments
from tests.unit.imaging.dicom_files import make_dataset, open_here, to_file

INDEX = np.arange(16, dtype=np.uint8).reshape(4, 4)


def palette_elements(order: str = "<", bits: int = 16) -> dict[str, object]:
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for n, channel in enumerate(("Red", "Green", "Blue")):
        table = ((np.arange(16) * (n + 5)) << 8).astype(f"{order}u2")
        elements[f"{channel}PaletteColorLookupTableDescriptor"] = [16, 0, bits]
        elements[f"{channel}PaletteColorLookupTableData"] = table.tobytes()
    return elements


@pytest.mark.parametrize(
    ("syntax", "order"), [(ExplicitVRLittleEndian, "<"), (ExplicitVRBigEndian, ">")]
)
def test_upper_bytes_are_shown_in_both_byte_orders(syntax: UID, order: str) -> None:
    source = open_here(to_file(INDEX, syntax, **palette_elements(order)))
    expected = np.stack([INDEX * 5, INDEX * 6, INDEX * 7], axis=-1)
    np.testing.assert_array_equal(source.pixels, expected)
    assert source.is_color


def test_equals_pydicom() -> None:
    dataset = make_dataset(INDEX, **palette_elements())
    theirs = apply_color_lut(INDEX, dataset) >> 8
    np.testing.assert_array_equal(open_here(to_file(INDEX, **palette_elements())).pixels, theirs)


def test_small_entries_in_wide_tables_are_not_lost() -> None:
    elements = palette_elements()
    for channel in ("Red", "Green", "Blue"):
        elements[f"{channel}PaletteColorLookupTableData"] = (
            (np.arange(16) * 17).astype("<u2").tobytes()
        )
    source = open_here(to_file(INDEX, **elements))
    np.testing.assert_array_equal(source.pixels[..., 0], INDEX * 17)


def test_a_missing_table_is_damage() -> None:
    elements = palette_elements()
    del elements["GreenPaletteColorLookupTableData"]
    with pytest.raises(DamagedImageError, match="colour table"):
        open_here(to_file(INDEX, **elements))


def words(*values: int, order: str = "<") -> bytes:
    return np.array(values, dtype=f"{order}u2").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_segments_by_hand(order: str) -> None:
    # discrete 10, 20; a line of 4 steps to 60; then once more the discrete one, by offset 0.
    data = words(0, 2, 10, 20, 1, 4, 60, 2, 1, 0, 0, order=order)
    entries = expand_segments(data, 8, bits=16, little_endian=order == "<")
    assert entries == [10, 20, 30, 40, 50, 60, 10, 20]


def test_segments_of_bytes_by_hand() -> None:
    data = bytes([0, 2, 10, 20, 2, 1, 0, 0, 0, 0])
    assert expand_segments(data, 4, bits=8, little_endian=True) == [10, 20, 10, 20]


def test_expansion_stops_at_the_count() -> None:
    data = words(0, 1, 5, *([1, 65535, 9] * 1000))
    assert len(expand_segments(data, 100, bits=16, little_endian=True)) == 100


@given(st.binary(max_size=200), st.sampled_from([8, 16]), st.booleans())
def test_random_segments_end_or_are_damaged(data: bytes, bits: int, little: bool) -> None:
    try:
        entries = expand_segments(data, 256, bits=bits, little_endian=little)
    except DamagedImageError:
        return
    assert len(entries) <= 256
