"""Lookup tables of a DICOM file: modality LUT and VOI LUT.

DICOM PS3.3 C.11.1 (Modality LUT) and C.11.2.1.1 (VOI LUT): three numbers describe a table:
the number of entries (0 means 65,536), the first value mapped, the bits of an entry. Values
below the first take the first entry, values above the last take the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.imaging.arrays import Pixels
from engine.imaging.errors import DamagedImageError


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """A table from integer values to unsigned integers.

    Attributes:
        first: the value that the first entry maps.
        bits: bits of an entry, 1 to 16; `2**bits - 1` is white for a VOI LUT.
        entries: uint16 `(N,)`.
    """

    first: int
    bits: int
    entries: npt.NDArray[np.uint16]

    def apply(self, values: Pixels) -> npt.NDArray[np.uint16]:
        """Entries for `values` (any shape, any number type; NaN takes the first entry)."""
        index = np.nan_to_num(values, nan=self.first).astype(np.int64) - self.first
        return np.take(self.entries, index, mode="clip")

    def apply_unit(self, values: Pixels) -> npt.NDArray[np.float64]:
        """Display values in [0, 1]: entries over the largest value that their bits hold."""
        shown: npt.NDArray[np.float64] = self.apply(values) / float(2**self.bits - 1)
        return np.minimum(shown, 1.0)


def make_table(
    descriptor: tuple[int, ...], data: bytes | tuple[int, ...], *, little_endian: bool
) -> LookupTable:
    """A table from LUT Descriptor (0028,3002) and LUT Data (0028,3006).

    Args:
        descriptor: number of entries, first value mapped, bits per entry.
        data: bytes of VR OW in the byte order of the file, or numbers of VR US.
        little_endian: byte order of `data`.

    Raises:
        DamagedImageError: the numbers make no table.
    """
    if len(descriptor) != 3 or not 1 <= descriptor[2] <= 16:
        raise DamagedImageError("A lookup table in this file is damaged. Export the file again.")
    count = descriptor[0] or 65536
    entries = _entries(data, count, little_endian=little_endian)
    if entries.size < count:
        raise DamagedImageError("A lookup table in this file is cut short. Export it again.")
    return LookupTable(descriptor[1], descriptor[2], entries[:count])


def _entries(
    data: bytes | tuple[int, ...], count: int, *, little_endian: bool
) -> npt.NDArray[np.uint16]:
    if isinstance(data, bytes):
        if len(data) < 2 * count:  # entries of 8 bits, packed one per byte
            return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
        order = "<u2" if little_endian else ">u2"
        return np.frombuffer(data[: 2 * count], dtype=order).astype(np.uint16)
    return np.array([value & 0xFFFF for value in data], dtype=np.uint16)
