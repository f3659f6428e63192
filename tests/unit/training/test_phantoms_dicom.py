"""Phantoms as DICOM: what a reader gets back, and the data set on disk."""

import io
import json

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_voi_lut

from engine.imaging import open_image
from training.phantoms import (
    PhantomConfig,
    Truth,
    generate,
    seed_for,
    split_of,
    to_dicom,
    to_view8,
    truth_for,
    write_dataset,
)


def by_photometric(wanted: str):
    for index in range(40):
        seed = seed_for("demo", index)
        if truth_for(seed).photometric == wanted:
            return generate(seed)
    raise LookupError(wanted)


@pytest.fixture(scope="module", params=["MONOCHROME1", "MONOCHROME2"])
def phantom(request):
    return by_photometric(request.param)


@pytest.fixture(scope="module")
def data(phantom):
    return pydicom.dcmread(io.BytesIO(to_dicom(phantom)))


def test_pixels_and_geometry_come_back(phantom, data):
    assert np.array_equal(data.pixel_array, phantom.pixels)
    assert (data.Rows, data.Columns) == phantom.pixels.shape
    assert (data.BitsAllocated, data.BitsStored, data.HighBit) == (16, 12, 11)
    assert data.PixelRepresentation == 0
    assert list(data.PixelSpacing) == [phantom.truth.pixel_spacing] * 2
    assert list(data.ImagerPixelSpacing) == [phantom.truth.pixel_spacing] * 2
    assert data.PhotometricInterpretation == phantom.truth.photometric


def test_the_right_of_the_patient_is_on_the_left(phantom):
    source = open_image(to_dicom(phantom), sandboxed=False)
    assert source.left_edge == "right"


def test_rendering_with_pydicom_gives_the_view(phantom, data):
    shown = apply_voi_lut(data.pixel_array, data).astype(float)
    shown = (shown - 0) / (2**12 - 1) * 255
    if phantom.truth.photometric == "MONOCHROME1":
        shown = 255 - shown
    view = to_view8(phantom)
    assert view.dtype == np.uint8
    assert np.abs(shown - view).max() <= 1.0


def test_window_clips_nothing_that_matters(phantom, data):
    low = data.WindowCenter - data.WindowWidth / 2
    high = data.WindowCenter + data.WindowWidth / 2
    assert low <= phantom.pixels.min()
    assert phantom.pixels.max() <= high


def test_identity_is_artificial(data):
    assert str(data.PatientName) == "PHANTOM"
    assert len(data.PatientID) == 12
    for tag in ("PatientBirthDate", "StudyDate", "AccessionNumber", "ReferringPhysicianName"):
        assert not str(data[tag].value)
    assert data.Modality in {"CR", "DX"}
    assert data.BodyPartExamined == "CHEST"
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    assert data.SOPInstanceUID.is_valid
    assert data.SOPInstanceUID != data.StudyInstanceUID != data.SeriesInstanceUID


def test_half_of_the_phantoms_are_monochrome1():
    kinds = [truth_for(seed_for("train", i)).photometric for i in range(200)]
    assert 70 <= kinds.count("MONOCHROME1") <= 130


def test_data_set_on_disk(tmp_path):
    out = tmp_path / "set"
    path = write_dataset(out, 3, seed=4, split="test")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path == out / "truth.jsonl"
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [line["file"] for line in lines] + ["truth.jsonl"]
    )
    for index, line in enumerate(lines):
        truth = Truth.from_json(line)
        assert truth.seed == seed_for("test", index, 4)
        assert split_of(truth.seed) == truth.split == "test"
        stored = pydicom.dcmread(out / line["file"]).pixel_array
        assert np.array_equal(stored, generate(truth.seed, PhantomConfig()).pixels)


def test_data_set_of_a_seed_is_the_same_twice(tmp_path):
    first = write_dataset(tmp_path / "a", 1, seed=1)
    second = write_dataset(tmp_path / "b", 1, seed=1)
    assert first.read_bytes() == second.read_bytes()
    name = json.loads(first.read_text())["file"]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_data_sets_do_not_mix_in_a_folder(tmp_path):
    write_dataset(tmp_path / "a", 2, seed=1)
    # The same set, or one that holds all of it, may be written again.
    write_dataset(tmp_path / "a", 3, seed=1)
    for count, seed in ((1, 1), (3, 2)):
        with pytest.raises(ValueError, match="a holds other phantoms already"):
            write_dataset(tmp_path / "a", count, seed=seed)
    assert len(list((tmp_path / "a").glob("*.dcm"))) == 3


@pytest.mark.parametrize(("count", "split"), [(-1, "train"), (1, "holdout")])
def test_bad_requests_leave_nothing_behind(tmp_path, count, split):
    with pytest.raises(ValueError, match=r"negative|split"):
        write_dataset(tmp_path / "set", count, split=split)
    assert not (tmp_path / "set").exists()
