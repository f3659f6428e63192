"""Chest phantoms and their questions are what prepared worlds and checkpoints were made from.

Values are those of the generator before it learned other modalities. Words are held by their
hash, pictures by the means of sixty-four blocks, which the last bit of a processor's arithmetic
does not move.
"""

import hashlib
import io
import json

import numpy as np
import pydicom
import pytest

from training.phantoms import generate, seed_for, to_dicom, to_view8, truth_for
from training.questions import balanced_questions, questions_for
from training.world import WorldConfig, balanced_case

PICTURES = {
    "train": (
        "c7ef79f3627b9868",
        "f818b48344e3422a",
        [
            [95, 99, 94, 100, 100, 88, 73, 64],
            [103, 91, 58, 85, 97, 59, 52, 93],
            [96, 55, 47, 73, 96, 43, 38, 73],
            [100, 55, 58, 78, 101, 51, 44, 66],
            [95, 55, 54, 100, 107, 71, 42, 62],
            [82, 52, 53, 104, 106, 91, 43, 58],
            [88, 78, 80, 101, 106, 91, 61, 60],
            [104, 98, 101, 108, 106, 95, 93, 95],
        ],
    ),
    "test": (
        "dd0cd6e5bbd79eb8",
        "f802f3a3a1cc5ca1",
        [
            [22, 30, 60, 100, 99, 40, 21, 12],
            [94, 80, 63, 100, 99, 51, 74, 83],
            [95, 34, 37, 82, 84, 24, 32, 89],
            [88, 41, 38, 90, 88, 38, 25, 84],
            [73, 38, 40, 106, 109, 49, 27, 75],
            [65, 34, 45, 114, 110, 80, 27, 62],
            [74, 64, 65, 116, 116, 99, 84, 76],
            [118, 113, 111, 123, 114, 87, 100, 106],
        ],
    ),
}


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def words(question) -> list:
    return [
        question.family,
        question.kind,
        question.text,
        list(question.options),
        question.answer,
        question.reasoning,
        question.reasoning_before_zoom,
        question.reasoning_after_zoom,
        len(question.target_boxes),
    ]


@pytest.mark.parametrize("split", PICTURES)
def test_pictures_files_and_findings(split):
    header, findings, means = PICTURES[split]
    phantom = generate(seed_for(split, 1, 5))
    view = to_view8(phantom)
    rows, cols = view.shape[0] // 8, view.shape[1] // 8
    blocks = view[: 8 * rows, : 8 * cols].reshape(8, rows, 8, cols).mean(axis=(1, 3))
    assert np.abs(blocks - means).max() < 0.6
    data = pydicom.dcmread(io.BytesIO(to_dicom(phantom)))
    del data.PixelData
    assert digest(data.to_json_dict()) == header
    shown = [[f.kind, f.side, f.zone, sorted(f.attributes.items())] for f in phantom.truth.findings]
    assert digest(shown) == findings


def test_questions_of_a_truth():
    asked = [
        words(question)
        for index in range(12)
        for question in questions_for(
            truth_for(seed_for("train", index, 9)), np.random.default_rng(index)
        )
    ]
    assert digest(asked) == "6a37f3f5bacd116b"


def test_balanced_questions():
    asked = [words(case.question) for case in balanced_questions(29, 3, "test")]
    assert digest(asked) == "6720003feefd8bc2"


def test_cases_of_a_world():
    made = [balanced_case(WorldConfig(seed=4), index * 11) for index in range(15)]
    asked = [[case.phantom_seed, words(case.question)] for case in made]
    assert digest(asked) == "623597e25ac97db2"
