"""Head CT slices and breast ultrasound images as DICOM, and the data set on disk."""

import io
import json

import numpy as np
import pydicom
import pytest

from engine.imaging import open_image, render
from training.phantoms import (
    SECTIONS,
    default_config,
    generate,
    phantom_id,
    seed_for,
    to_dicom,
    to_view8,
    truth_for,
    truth_from_json,
    write_dataset,
)

SEED = seed_for("demo", 2)


@pytest.fixture(scope="module", params=SECTIONS)
def phantom(request):
    return generate(SEED, default_config(request.param))


@pytest.fixture(scope="module")
def data(phantom):
    return pydicom.dcmread(io.BytesIO(to_dicom(phantom)))


def test_a_viewer_shows_the_view(phantom):
    source = open_image(to_dicom(phantom), sandboxed=False)
    shown = render(source)
    assert np.abs(shown.astype(int) - to_view8(phantom)).max() <= 1
    assert source.spacing_mm is None or source.spacing_mm == pytest.approx(
        (phantom.truth.pixel_spacing,) * 2
    )


def test_a_slice_is_signed_and_rescaled_to_hounsfield_units():
    phantom = generate(SEED, default_config("head_ct"))
    data = pydicom.dcmread(io.BytesIO(to_dicom(phantom)))
    assert (data.Modality, data.BodyPartExamined) == ("CT", "HEAD")
    assert (data.BitsAllocated, data.BitsStored, data.PixelRepresentation) == (16, 16, 1)
    units = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    assert np.array_equal(units, phantom.pixels)
    assert data.RescaleType == "HU"
    assert (data.WindowCenter, data.WindowWidth) == (40, 80)
    assert list(data.PixelSpacing) == [phantom.truth.pixel_spacing] * 2
    assert data.SOPClassUID.name == "CT Image Storage"
    source = open_image(to_dicom(phantom), sandboxed=False)
    assert np.array_equal(source.pixels, phantom.pixels)
    shown = to_view8(phantom).astype(int)
    assert shown[phantom.pixels <= 0].max() == 0
    assert shown[phantom.pixels >= 80].min() == 255


def test_ultrasound_has_eight_bits_and_a_calibrated_region():
    phantom = generate(SEED, default_config("breast_ultrasound"))
    data = pydicom.dcmread(io.BytesIO(to_dicom(phantom)))
    assert (data.Modality, data.BodyPartExamined) == ("US", "BREAST")
    assert (data.BitsAllocated, data.BitsStored, data.PixelRepresentation) == (8, 8, 0)
    assert np.array_equal(data.pixel_array, phantom.pixels)
    assert np.array_equal(to_view8(phantom), phantom.pixels)
    (region,) = data.SequenceOfUltrasoundRegions
    assert region.PhysicalUnitsXDirection == 3
    assert 10 * region.PhysicalDeltaX == pytest.approx(phantom.truth.pixel_spacing)
    assert data.SOPClassUID.name == "Ultrasound Image Storage"


def test_identity_is_artificial_and_of_its_modality(phantom, data):
    assert str(data.PatientName) == "PHANTOM"
    assert data.PatientID == phantom_id(SEED, phantom.truth.study) != phantom_id(SEED)
    for tag in ("PatientBirthDate", "StudyDate", "AccessionNumber", "ReferringPhysicianName"):
        assert not str(data[tag].value)
    chest = pydicom.dcmread(io.BytesIO(to_dicom(generate(SEED))))
    for uid in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert data[uid].value.is_valid
        assert data[uid].value != chest[uid].value
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID


@pytest.mark.parametrize("study", SECTIONS)
def test_data_set_on_disk(study, tmp_path):
    path = write_dataset(tmp_path, 2, seed=4, split="test", modality=study)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for index, line in enumerate(lines):
        seed = seed_for("test", index, 4)
        assert line["seed"] == seed
        truth = truth_for(seed, default_config(study))
        assert truth_from_json(line).to_json() == truth.to_json()
        assert pydicom.dcmread(tmp_path / line["file"]).Rows == truth.height


def test_an_unknown_modality_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="Unknown modality 'knee'"):
        write_dataset(tmp_path / "set", 1, modality="knee")
    assert not (tmp_path / "set").exists()
