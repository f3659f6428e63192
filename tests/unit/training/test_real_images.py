"""Real radiographs: split by patient, side of the lungs, moved boxes."""

from pathlib import Path

import numpy as np
import pytest

from engine.geometry import Box
from training.phantoms.label_names import CHEST_LABELS
from training.real_images import (
    RealRadiograph,
    load_radiographs,
    real_picture,
    shifted_view,
    split_of_patient,
)


@pytest.fixture
def radiograph() -> RealRadiograph:
    """Two bright boxes on black, so that boxes can be measured after a move."""
    pixels = np.zeros((600, 500), dtype=np.uint8)
    lungs = {"right lung": Box(0.2, 0.3, 0.4, 0.7), "left lung": Box(0.6, 0.3, 0.8, 0.7)}
    for box in lungs.values():
        x0, y0, x1, y1 = box.to_pixels_outward(500, 600)
        pixels[y0:y1, x0:x1] = 200
    return RealRadiograph("drawn.png", "1", "train", pixels, lungs)


def test_films_of_one_patient_stay_in_one_split() -> None:
    assert split_of_patient("331a") == split_of_patient("331b") == split_of_patient("331")
    splits = [split_of_patient(str(number)) for number in range(2000)]
    assert 0.55 < splits.count("train") / 2000 < 0.65
    assert 0.23 < splits.count("test") / 2000 < 0.31


def test_moved_boxes_follow_the_pixels(radiograph: RealRadiograph) -> None:
    for seed in range(20):
        pixels, lungs = shifted_view(radiograph, np.random.default_rng(seed))
        height, width = pixels.shape
        half = width // 2
        bright = pixels > 100
        columns = np.flatnonzero(bright[:, :half].any(axis=0))
        rows = np.flatnonzero(bright[:, :half].any(axis=1))
        measured = Box(
            columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
        )
        assert lungs["right lung"].intersection_over_union(measured) > 0.75


def test_coverage_is_known_in_the_core_and_outside_only(radiograph: RealRadiograph) -> None:
    picture = real_picture(radiograph.pixels, radiograph.lungs)
    column = CHEST_LABELS.covers.index("right_lung")
    known, cover = picture.known_cover[:, column], picture.cover[:, column]
    assert (cover[~known] == 0).all()
    assert set(cover[known]) == {0, 255}
    outside = sorted(
        set(range(picture.grid.cells)) - set(picture.grid.cells_of(radiograph.lungs["right lung"]))
    )
    assert known[outside].all()
    assert not picture.known_cover[:, CHEST_LABELS.covers.index("nodule")].any()


def test_missing_folder_is_no_radiographs(tmp_path: Path) -> None:
    assert load_radiographs(tmp_path, "train") == []


def test_real_table_has_the_right_lung_on_the_left_and_no_shared_patient(
    shared_data: Path,
) -> None:
    folder = shared_data / "cxr_lungbox_ccby"
    if not folder.is_dir():
        pytest.skip("the real radiographs are not at hand")
    found = {split: load_radiographs(folder, split) for split in ("train", "validation", "test")}
    assert sum(len(images) for images in found.values()) >= 60
    assert len(found["test"]) >= 10
    patients = [{image.patient.rstrip("ab") for image in images} for images in found.values()]
    assert not patients[0] & patients[2]
    assert not patients[0] & patients[1]
    for image in found["test"]:
        assert image.lungs["right lung"].center[0] < image.lungs["left lung"].center[0]
