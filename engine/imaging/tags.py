"""Access to DICOM elements through one allow-list of technical elements.

Everything else, above all what identifies a person, stays unread in the parsed file.
"""

from __future__ import annotations

import math

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from engine.imaging.errors import DAMAGED_MESSAGE, DamagedImageError

ALLOWED_KEYWORDS: frozenset[str] = frozenset(
    (
        # What kind of image it is
        "SOPClassUID",
        "Modality",
        "BurnedInAnnotation",
        "ConversionType",
        # How pixels are stored: Image Pixel module, PS3.3 C.7.6.3
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        # What values mean and how they are shown: C.11.1, C.11.2
        "ModalityLUTSequence",
        "RescaleIntercept",
        "RescaleSlope",
        "RescaleType",
        "VOILUTSequence",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "PresentationLUTShape",
        "LUTDescriptor",
        "LUTData",
        # Millimetres, section 10.7
        "PixelSpacing",
        "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
        # Which side of the patient is where: C.7.6.1.1.1, C.7.6.2.1.1
        "PatientOrientation",
        "ImageOrientationPatient",
        "AnatomicalOrientationType",
        # The same facts per frame: C.7.6.16
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "FrameVOILUTSequence",
    )
)

# Needed to decode, used by the decoder only: never returned as a value.
_DECODER_KEYWORDS: frozenset[str] = frozenset(
    (
        "PixelData",
        "FloatPixelData",
        "DoubleFloatPixelData",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "RedPaletteColorLookupTableDescriptor",
        "GreenPaletteColorLookupTableDescriptor",
        "BluePaletteColorLookupTableDescriptor",
        "RedPaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "SegmentedRedPaletteColorLookupTableData",
        "SegmentedGreenPaletteColorLookupTableData",
        "SegmentedBluePaletteColorLookupTableData",
    )
)


class TechnicalTags:
    """Read-only view of a data set that only knows `ALLOWED_KEYWORDS`."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def has(self, keyword: str) -> bool:
        """Whether the element is there with a value."""
        return self._value(keyword) is not None

    def has_value(self, keyword: str) -> bool:
        """Whether the element is there and not empty, whatever it holds."""
        return bool(_as_items(self._value(keyword)))

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """All finite numbers of an element, in order; empty when missing or not numbers."""
        numbers = []
        for value in _as_items(self._value(keyword)):
            try:
                number = float(value)  # type: ignore[arg-type]
            except (TypeError, ValueError, OverflowError):
                return ()
            if not math.isfinite(number):
                return ()
            numbers.append(number)
        return tuple(numbers)

    def integers(self, keyword: str) -> tuple[int, ...]:
        """The numbers of an element as integers."""
        return tuple(int(number) for number in self.numbers(keyword))

    def integer(self, keyword: str, default: int | None = None) -> int:
        """The first number of an element as an integer.

        Raises:
            DamagedImageError: the element is missing and there is no default.
        """
        found = self.integers(keyword)
        if found:
            return found[0]
        if default is None:
            raise DamagedImageError(DAMAGED_MESSAGE)
        return default

    def code(self, keyword: str) -> str:
        """A code string in capitals, or '' when it is missing or no plain code.

        Free text that someone put in the place of a code is dropped.
        """
        return next(iter(self.codes(keyword)), "")

    def codes(self, keyword: str) -> tuple[str, ...]:
        """All values of an element as `code` gives the first; '' for each that is no code."""
        return tuple(_plain_code(value) for value in _as_items(self._value(keyword)))

    def raw(self, keyword: str) -> bytes | None:
        """The bytes of an element of VR OW or OB; None when it holds something else."""
        value = self._value(keyword)
        return value if isinstance(value, bytes) else None

    def items(self, keyword: str) -> tuple[TechnicalTags, ...]:
        """The items of a sequence, behind the same allow-list."""
        value = self._value(keyword)
        return tuple(TechnicalTags(item) for item in value) if isinstance(value, Sequence) else ()

    def item(self, keyword: str, index: int = 0) -> TechnicalTags | None:
        """Item `index` of a sequence, or None."""
        value = self._value(keyword)
        if not isinstance(value, Sequence) or not 0 <= index < len(value):
            return None
        return TechnicalTags(value[index])

    def _value(self, keyword: str) -> object:
        if keyword not in ALLOWED_KEYWORDS:
            raise KeyError(f"{keyword} is not on the list of technical tags.")
        return self._dataset.get(keyword)


def count_hidden(dataset: Dataset) -> int:
    """How many elements of the top level are not on the list (each sequence counts once)."""
    known = ALLOWED_KEYWORDS | _DECODER_KEYWORDS
    tags = list(dataset.keys())
    return sum(keyword_for_tag(tag) not in known for tag in tags)


def _plain_code(value: object) -> str:
    text = str(value).strip().upper()
    plain = text.replace("_", "").replace(" ", "").replace(".", "")
    return text if len(text) <= 64 and plain.isascii() and plain.isalnum() else ""


def _as_items(value: object) -> tuple[object, ...]:
    """Multi-valued elements as a tuple; `MultiValue` is no `list`."""
    if value is None or value == "":
        return ()
    if isinstance(value, MultiValue | list | tuple):
        return tuple(value)
    return (value,)
