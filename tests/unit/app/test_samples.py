"""The list of samples."""

from __future__ import annotations

import json
from pathlib import Path

from app.samples import list_samples


def test_listed_files_become_samples_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"x")
    (tmp_path / "b.radtrace.zip").write_bytes(b"x")
    entries = [
        {
            "file": "a.dcm",
            "title": "Nodule",
            "question": "Where?",
            "options": ["left", "right"],
            "method": "zoom",
            "truth": {"side": "left", "count": 1, "boxes": [[0, 0, 1, 1]]},
        },
        {"file": "missing.dcm", "title": "Gone"},
        {"file": "b.radtrace.zip", "title": "Recorded", "method": "nonsense"},
    ]
    (tmp_path / "samples.json").write_text(json.dumps(entries))

    own = [sample for sample in list_samples(tmp_path) if sample.kind != "real"]

    assert [sample.title for sample in own] == ["Nodule", "Recorded"]
    assert [sample.kind for sample in own] == ["phantom", "recorded"]
    assert own[0].form() == {
        "question": "Where?",
        "options": ["left", "right"],
        "method": "zoom",
        "truth": "side: left; count: 1",
    }
    assert own[1].method == "auto"


def test_real_files_carry_no_diagnosis_and_no_path(tmp_path: Path) -> None:
    real = list_samples(tmp_path)

    assert {sample.kind for sample in real} <= {"real"}
    for index, sample in enumerate(real):
        assert sample.truth == ""
        assert str(sample.path.parent) not in json.dumps(sample.to_json(index))
