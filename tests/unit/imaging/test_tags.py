"""Only technical tags can be read, and only as plain numbers and codes."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from engine.imaging.errors import DamagedImageError
from engine.imaging.tags import ALLOWED_KEYWORDS, TechnicalTags, count_hidden

# Files that break the rules are what is tested; pydicom warns as it writes them.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")

IDENTITY_WORDS = (
    "Patient", "Name", "Date", "Time", "Address", "Institution", "Physician", "Operator",
    "Comment", "Description", "Identifier", "Number", "Station", "Explanation",
)  # fmt: skip


def test_no_allowed_tag_can_identify_anyone() -> None:
    found = {name for name in ALLOWED_KEYWORDS if any(word in name for word in IDENTITY_WORDS)}
    assert found == {"NumberOfFrames", "PatientOrientation", "ImageOrientationPatient"}


@pytest.mark.parametrize("keyword", ["PatientName", "StudyDate", "WindowCenterWidthExplanation"])
def test_other_tags_cannot_be_asked_for(keyword: str) -> None:
    with pytest.raises(KeyError):
        TechnicalTags(Dataset()).has(keyword)


def make_tags() -> TechnicalTags:
    dataset = Dataset()
    dataset.WindowCenter = [40, -600.5]
    dataset.Rows = 7
    dataset.Modality = "ct "
    dataset.RescaleType = "Jane Doe, born 1970"
    item = Dataset()
    item.RescaleSlope = 2
    dataset.PixelValueTransformationSequence = [item]
    return TechnicalTags(dataset)


def test_multi_valued_numbers_keep_their_order() -> None:
    assert make_tags().numbers("WindowCenter") == (40.0, -600.5)
    assert make_tags().integers("Rows") == (7,)
    assert make_tags().numbers("WindowWidth") == ()


def test_text_in_place_of_a_code_is_dropped() -> None:
    assert make_tags().code("Modality") == "CT"
    assert make_tags().code("RescaleType") == ""


def test_every_value_of_a_code_is_cleaned_alone() -> None:
    dataset = Dataset()
    dataset.PatientOrientation = [" lp", "Doe^Jane"]
    assert TechnicalTags(dataset).codes("PatientOrientation") == ("LP", "")
    assert TechnicalTags(dataset).codes("ImageOrientationPatient") == ()


def test_text_in_place_of_numbers_is_no_number() -> None:
    assert make_tags().numbers("Modality") == ()


def test_items_stay_behind_the_list() -> None:
    item = make_tags().item("PixelValueTransformationSequence")
    assert item is not None
    assert item.numbers("RescaleSlope") == (2.0,)
    with pytest.raises(KeyError):
        item.has("PatientID")
    assert make_tags().item("PixelValueTransformationSequence", 1) is None


def test_a_required_number_that_is_missing_is_damage() -> None:
    with pytest.raises(DamagedImageError):
        make_tags().integer("Columns")
    assert make_tags().integer("Columns", 3) == 3


def test_hidden_tags_are_counted() -> None:
    dataset = Dataset()
    dataset.Rows = 5
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "1"
    dataset.add_new(0x00091001, "LO", "private")
    assert count_hidden(dataset) == 3
