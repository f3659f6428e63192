"""Records of one's own: what a line may hold, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.geometry import Box
from tests.unit.imaging.dicom_files import to_file
from training.config import ConfigError, load_config
from training.own_records import RecordsConfig, asked_of_records, read_records
from training.sft import FinetuneConfig

LINE: dict[str, Any] = {
    "id": "1",
    "image": "images/a.png",
    "question": "Where is the nodule?",
    "options": ["left", "right", "both"],
    "answer": "B",
    "answer_text": "right",
    "bboxes": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.0, 1.0]],
    "bbox_format": "norm_xyxy",
    "modality": "CR",
    "source": "drawn",
    "split": "train",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    values = np.random.default_rng(0).integers(0, 255, (80, 160, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "images" / "a.png")
    pixels = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
    (tmp_path / "images" / "b.dcm").write_bytes(to_file(pixels))
    return tmp_path


def written(folder: Path, *lines: object) -> Path:
    path = folder / "records.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return path


def test_a_line_is_a_question_about_an_image(folder: Path) -> None:
    path = written(folder, LINE, {**LINE, "split": "test"}, {**LINE, "split": "validation"})

    (record,) = read_records(path, "train")

    question = record.question
    assert (question.answer, question.answer_index, record.modality) == ("right", 1, "CR")
    # The largest box first.
    assert question.target_boxes == ((0.5, 0.5, 1.0, 1.0), (0.1, 0.2, 0.3, 0.4))
    assert question.reasoning == ""
    assert record.pixels.shape == (80, 160)
    assert len(read_records(path, "validation")) == 1


def test_only_image_question_and_answer_are_needed(folder: Path) -> None:
    (record,) = read_records(
        written(folder, {"image": "images/b.dcm", "question": "What?", "answer": "A ramp."}), "test"
    )

    assert record.question.open
    assert record.question.answer == "A ramp."
    assert record.question.target_boxes == ()


@pytest.mark.parametrize(
    ("form", "box"),
    [
        ("norm_xyxy", [0.25, 0.5, 0.75, 1.0]),
        ("pixel_xyxy", [40, 40, 120, 80]),
        ("pixel_xywh", [40, 40, 80, 40]),
        # Rounded corners, a pixel outside.
        ("pixel_xywh", [40, 40, 80, 41]),
    ],
)
def test_boxes_of_every_form_come_to_the_same(folder: Path, form: str, box: list[float]) -> None:
    line = {**LINE, "bboxes": [box], "bbox_format": form}

    (record,) = read_records(written(folder, line), "train")

    assert record.question.target_boxes == ((0.25, 0.5, 0.75, 1.0),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "must hold one object"),
        ({"image": ""}, "'image' must be a text"),
        ({"image": "images/none.png"}, "There is no image images/none.png"),
        ({"question": 3}, "'question' must be a text"),
        ({"answer": "D"}, "neither an option nor its letter"),
        ({"answer_text": "left"}, "'answer' stands for 'right', and 'answer_text' is 'left'"),
        ({"options": ["left"]}, "none, or at least two"),
        ({"options": ["left", "left"]}, "none, or at least two"),
        ({"options": "left"}, "'options' must be a list"),
        ({"bboxes": [[0, 0, 1]]}, "list of four numbers"),
        ({"bboxes": [[0.2, 0.2, 0.1, 0.4]]}, "is none as norm_xyxy"),
        ({"bboxes": [[10, 10, 20, 20]]}, "reaches outside of the image as norm_xyxy"),
        # Corners taken for sizes: said before anything is learned from them.
        (
            {"bboxes": [[40, 40, 140, 80]], "bbox_format": "pixel_xywh"},
            "reaches outside of the image as pixel_xywh",
        ),
        ({"bbox_format": "yxyx"}, "must be one of norm_xyxy, pixel_xyxy, pixel_xywh"),
        ({"bbox": []}, "Unknown key 'bbox'. Did you mean 'bboxes'?"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(folder: Path, change: Any, said: str) -> None:
    bad = {**LINE, **change} if isinstance(change, dict) else change

    with pytest.raises(ConfigError) as caught:
        read_records(written(folder, LINE, bad), "train")
    assert str(caught.value).startswith("records.jsonl, line 2: ")
    assert said in str(caught.value)


def test_files_that_hold_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the records none\.jsonl"):
        read_records(folder / "none.jsonl", "train")
    with pytest.raises(ConfigError, match="holds no record of the split validation"):
        read_records(written(folder, LINE), "validation")
    (folder / "records.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match=r"line 1: It is not valid JSON"):
        read_records(folder / "records.jsonl", "train")
    (folder / "images" / "a.png").write_bytes(b"no picture")
    (record,) = read_records(written(folder, LINE), "train")
    with pytest.raises(ConfigError, match=r"a\.png: "):
        _ = record.pixels


def test_an_image_is_one_picture_however_often_it_is_asked_about(folder: Path) -> None:
    single = {**LINE, "bboxes": LINE["bboxes"][:1]}
    path = written(folder, LINE, single)
    config = RecordsConfig(train=path, most_pixels=56 * 112, least_pixels=784, crops_per_target=2)

    both, one = asked_of_records(read_records(path, "train"), config, seed=1)

    assert both.view is one.view
    assert both.view.pixels.shape == (56, 112)
    assert both.crops == {}
    (crops,) = one.crops.values()
    assert list(one.crops) == [Box(0.1, 0.2, 0.3, 0.4)]
    assert len(crops) == 2
    for crop in crops:
        assert crop.region.intersection_over_union(Box(0.1, 0.2, 0.3, 0.4)) > 0.3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["mix.own=0.5"], "records and a share mix.own above 0 go together"),
        (["mix.own=0"], "Phantoms are needed unless mix.own is 1"),
        (["records={train: a.jsonl}", "mix.own=0.5"], "Phantoms are needed"),
        (["records={train: a.jsonl}", "mix.letters=2"], "mix.letters asks about phantoms"),
        (["records={train: a.jsonl}", "language.corners=0.1"], "language.corners is read off"),
        (["records={train: a.jsonl}", "export.embedded=true"], "set export.embedded to false"),
        (
            ["records={train: a.jsonl}", "tuning.evaluate_every=5"],
            "give records.validation, or set it to 0",
        ),
        (["records={train: a.jsonl, most_pixels: 10}"], "784 <= least <= most"),
        (["records={train: a.jsonl, crops_per_target: -1}"], "must not be negative"),
        (["records={train: a.jsonl}", "mix.calls=given", "mix.zoom=0.5"], "mix.own must be 0"),
    ],
)
def test_shares_of_what_is_not_there_are_refused(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "{out: x, base: y, seed: 1, language: {steps: 1, batch: 1, learning_rate: 0.1, warmup: 0,"
        " save_every: 1, log_every: 1}, mix: {own: 1.0, zoom: 0.0, probe: 0.0, auto: 0.0,"
        " real: 0.0}, export: {embedded: false}}"
    )
    with pytest.raises(ConfigError, match=said):
        load_config(FinetuneConfig, path, overrides)
