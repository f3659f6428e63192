"""What stored DICOM numbers mean: modality values, padding, windows, millimetres, units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.geometry import PatientSide, SpacingKind
from engine.imaging.arrays import Pixels
from engine.imaging.lut import LookupTable, make_table
from engine.imaging.tags import TechnicalTags
from engine.imaging.window import WINDOW_FUNCTIONS, Window, WindowFunction

_INT32 = np.iinfo(np.int32)
_AXES = {"L": "x", "R": "x", "P": "y", "A": "y", "H": "z", "F": "z"}
# A row this close to the left-right axis (within 37 degrees) runs from side to side; further off
# a mark would say more than the edge of the picture shows.
_LEAST_SIDEWAYS = 0.8
_UNIT_TOLERANCE = 0.01
_SPACINGS: tuple[tuple[str, SpacingKind], ...] = (
    ("PixelSpacing", "patient"),
    ("ImagerPixelSpacing", "detector"),
    ("NominalScannedPixelSpacing", "nominal"),
)


@dataclass(frozen=True, slots=True)
class FrameTags:
    """Tags of one frame: its functional groups (PS3.3 C.7.6.16), then the data set itself."""

    image: TechnicalTags
    groups: tuple[TechnicalTags, ...]

    def group(self, keyword: str, needed: str) -> TechnicalTags:
        """The functional group `keyword` that holds `needed`, else the data set."""
        for groups in self.groups:
            item = groups.item(keyword)
            if item is not None and item.has(needed):
                return item
        return self.image


def frame_tags(image: TechnicalTags, frame: int) -> FrameTags:
    """The tags of frame `frame`; what is per frame comes before what is shared."""
    own = image.item("PerFrameFunctionalGroupsSequence", frame)
    shared = image.item("SharedFunctionalGroupsSequence")
    return FrameTags(image, tuple(item for item in (own, shared) if item is not None))


@dataclass(frozen=True, slots=True)
class Rescale:
    """`value = stored * slope + intercept` (PS3.3 C.11.1.1).

    Attributes:
        is_sound: whether the file's own numbers could be used, or it has none.
    """

    slope: float = 1.0
    intercept: float = 0.0
    is_sound: bool = True


def read_rescale(tags: FrameTags) -> Rescale:
    """The rescale of a frame; where its numbers make no sense, values stay as they are stored.

    A slope of 0, a known export fault, would blank the image; half of a rescale would show wrong
    values under a right unit.
    """
    group = tags.group("PixelValueTransformationSequence", "RescaleSlope")
    found = []
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        numbers = group.numbers(keyword)
        if not numbers and group.has_value(keyword):
            return Rescale(is_sound=False)
        found.append(next(iter(numbers), default))
    slope, intercept = found
    return Rescale(slope, intercept) if slope else Rescale(is_sound=False)


def to_modality_values(
    stored: Pixels, tags: FrameTags, rescale: Rescale, *, little_endian: bool, signed: bool
) -> Pixels:
    """Stored values through the modality LUT or the rescale (PS3.3 C.11.1).

    Returns:
        int32 where the values are whole numbers that fit, else float32; same shape.
    """
    item = tags.image.item("ModalityLUTSequence")
    if item is not None:
        table = _table(item, little_endian=little_endian, signed=signed)
        return table.apply(stored).astype(np.int32)
    return _rescale(stored, rescale.slope, rescale.intercept)


def _rescale(stored: Pixels, slope: float, intercept: float) -> Pixels:
    whole = stored.dtype.kind in "biu" and slope.is_integer() and intercept.is_integer()
    if whole:
        ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
        if _INT32.min <= min(ends) and max(ends) <= _INT32.max and _fits(stored, slope):
            values = stored.astype(np.int32)
            if slope != 1:
                values *= int(slope)
            if intercept != 0:
                values += int(intercept)
            return values
    if slope == 1 and intercept == 0:
        return stored.astype(np.float32)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _fits(stored: Pixels, slope: float) -> bool:
    """Whether the stored values and their multiples fit in 32 bits on the way."""
    largest = max(abs(int(stored.min())), abs(int(stored.max())))
    return largest * max(abs(int(slope)), 1) <= _INT32.max


def without_padding(values: Pixels, stored: Pixels, tags: TechnicalTags) -> Pixels:
    """The modality values outside of the padding, flat; all when everything is padding.

    Pixel Padding Value and Pixel Padding Range Limit are stored values (PS3.3 C.7.5.1.1.2).
    """
    padding = tags.integers("PixelPaddingValue")
    if not padding or stored.dtype.kind not in "iu":
        return values.reshape(-1)
    limit = tags.integers("PixelPaddingRangeLimit") or padding
    ends = sorted(_as_stored(end, stored.dtype) for end in (padding[0], limit[0]))
    kept = values[np.less(stored, ends[0]) | np.greater(stored, ends[1])]
    return kept if kept.size else values.reshape(-1)


def _as_stored(value: int, dtype: np.dtype[np.integer | np.floating]) -> int:
    """A padding value written with the wrong sign, as the pixels hold it."""
    bits = int(dtype.itemsize) * 8
    wrapped: int = value & (2**bits - 1)
    return wrapped - 2**bits if dtype.kind == "i" and wrapped >= 2 ** (bits - 1) else wrapped


def read_windows(tags: FrameTags) -> tuple[tuple[Window, ...], bool]:
    """The windows of a frame in their order (PS3.3 C.11.2.1.2), and whether any is unusable.

    Both elements may hold several values; a width that the function forbids is left out.
    """
    group = tags.group("FrameVOILUTSequence", "WindowCenter")
    code = group.code("VOILUTFunction")
    function: WindowFunction = "LINEAR"
    for name in WINDOW_FUNCTIONS:
        if code == name:
            function = name
    centers, widths = group.numbers("WindowCenter"), group.numbers("WindowWidth")
    windows = []
    for center, width in zip(centers, widths, strict=False):
        if width >= 1 or (width > 0 and function != "LINEAR"):
            windows.append(Window(center, width, function))
    given = group.has("WindowCenter") or group.has("WindowWidth")
    return tuple(windows), given and len(windows) < max(len(centers), len(widths), 1)


def read_voi_table(
    tags: FrameTags, values: Pixels, *, little_endian: bool, signed: bool
) -> LookupTable | None:
    """The first VOI LUT of a frame (PS3.3 C.11.2.1.1), or None."""
    group = tags.group("FrameVOILUTSequence", "VOILUTSequence")
    item = group.item("VOILUTSequence")
    if item is None:
        return None
    table = _table(item, little_endian=little_endian, signed=signed)
    if table.first >= 2**15 and values.min() < 0:  # written unsigned, meant signed
        return LookupTable(table.first - 2**16, table.bits, table.entries)
    return table


def _table(item: TechnicalTags, *, little_endian: bool, signed: bool) -> LookupTable:
    count, first, bits = (*item.integers("LUTDescriptor"), 0, 0, 0)[:3]
    if signed and first >= 2**15:
        first -= 2**16
    data = item.raw("LUTData") or item.integers("LUTData")
    return make_table((count & 0xFFFF, first, bits), data, little_endian=little_endian)


def read_spacing(tags: FrameTags) -> tuple[tuple[float, float] | None, SpacingKind]:
    """`(row, column)` spacing in millimetres and which plane it holds for (PS3.3 10.7).

    A projection that was not calibrated has, as Pixel Spacing, the values of Imager or Nominal
    Scanned Pixel Spacing again (10.7.1.1): these are of the detector, or of the film, and not of
    the patient.
    """
    known: list[tuple[tuple[float, float], SpacingKind]] = []
    for keyword, kind in _SPACINGS:
        found = tags.group("PixelMeasuresSequence", keyword).numbers(keyword)
        if len(found) == 2 and min(found) > 0:
            known.append(((found[0], found[1]), kind))
    if not known:
        return None, ""
    # Of tags with the same values the last one says where they hold.
    return next(one for one in reversed(known) if one[0] == known[0][0])


def read_left_edge(tags: TechnicalTags) -> PatientSide:
    """The patient's side at the left edge of the image as stored.

    From Patient Orientation (PS3.3 C.7.6.1.1.1), whose first value is the direction of the rows
    from left to right, and from Image Orientation Patient (C.7.6.2.1.1), whose x grows towards
    the patient's left. '' where neither is there, where one is malformed or runs elsewhere than
    from side to side, where the two contradict each other, and for animals, of which the same
    letters mean other directions.
    """
    if tags.codes("AnatomicalOrientationType") not in ((), ("BIPED",)):
        return ""
    found = set()
    if tags.codes("PatientOrientation"):
        found.add(_side_by_letters(tags.codes("PatientOrientation")))
    if tags.has("ImageOrientationPatient"):
        found.add(_side_by_cosines(tags.numbers("ImageOrientationPatient")))
    return found.pop() if len(found) == 1 else ""


def _side_by_letters(directions: tuple[str, ...]) -> PatientSide:
    """Of the rows' and the columns' direction, each with its main letter first."""
    axes = [[_AXES.get(letter) for letter in direction] for direction in directions]
    sound = all(None not in named and len({*named}) == len(named) for named in axes)
    if len(axes) != 2 or not all(axes) or not sound or axes[0][0] == axes[1][0]:
        return ""
    main = directions[0][0]
    return "right" if main == "L" else "left" if main == "R" else ""


def _side_by_cosines(cosines: tuple[float, ...]) -> PatientSide:
    """Of the unit vectors along the rows and the columns, at right angles to each other."""
    if len(cosines) != 6:
        return ""
    rows, columns = cosines[:3], cosines[3:]
    product = sum(one * other for one, other in zip(rows, columns, strict=True))
    faults = (math.hypot(*rows) - 1, math.hypot(*columns) - 1, product)
    if max(abs(fault) for fault in faults) > _UNIT_TOLERANCE or abs(rows[0]) < _LEAST_SIDEWAYS:
        return ""
    return "right" if rows[0] > 0 else "left"


def is_inverted(tags: TechnicalTags, photometric: str) -> bool:
    """Whether low values are bright.

    Presentation LUT Shape decides where it is present (PS3.3 C.11.6: INVERSE or IDENTITY on
    the way to P-Values), as in DCMTK, dcm4che and Weasis; else MONOCHROME1 does.
    """
    shape = tags.code("PresentationLUTShape")
    return shape == "INVERSE" if shape in ("INVERSE", "IDENTITY") else photometric == "MONOCHROME1"


def read_units(tags: FrameTags, rescale: Rescale) -> str:
    """'HU' for CT that is rescaled to HU; without a type, CT values are HU (C.8.2.1)."""
    group = tags.group("PixelValueTransformationSequence", "RescaleSlope")
    is_rescaled = rescale.is_sound and group.has("RescaleSlope")
    if tags.image.code("Modality") != "CT" or not is_rescaled:
        return ""
    return "HU" if group.code("RescaleType") in ("HU", "") else ""
