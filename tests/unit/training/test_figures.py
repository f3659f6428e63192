"""Figures of an ablation: what is drawn of what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.cli import main
from training.figures import _seconds, smoothed, write_figures

CURVE = [{"step": step, "entropy": 0.1 * step, "tool_rate": 0.0} for step in (2.0, 4.0)]
LATENTS = {"between_steps": [[1.0, 0.5], [0.5, 1.0]], "between_inputs": [0.75, 0.85], "inputs": 4}


def line(name: str, **more: Any) -> dict[str, Any]:
    known = {"name": name, "accuracy": 0.5, "ci95": [0.4, 0.6], "by_seed": [0.45, 0.55]}
    return {**known, "overlap": None, **more}


def found(**changes: Any) -> dict[str, Any]:
    boxes = {"overlap": 0.3, "overlap_ci95": [0.2, 0.4]}
    return {
        "lines": [line("plain"), line("zoomed", **boxes)],
        "curves": {"plain": [], "zoomed": [CURVE, CURVE]},
        "latents": {"plain": [None], "zoomed": [LATENTS], "zoomed, blinded": [LATENTS]},
        **changes,
    }


def test_every_figure_names_its_rows(tmp_path: Path) -> None:
    written = write_figures(tmp_path / "new" / "folder", found())

    texts = {path.stem: path.read_text() for path in written}
    assert list(texts) == ["accuracy", "boxes", "curves", "latents"]
    assert "plain" in texts["accuracy"]
    assert "zoomed" in texts["accuracy"]
    assert "plain" not in texts["boxes"]
    assert "entropy of the policy" in texts["curves"]
    # Logged, but never by these rows.
    assert "drift of the latents" not in texts["curves"]
    # Logged as zeros alone.
    assert "share of rollouts that zoom" not in texts["curves"]
    assert "blinded" not in texts["latents"]
    assert "between inputs 0.80" in texts["latents"]


def test_entropy_is_drawn_against_overlap_where_rows_zoom(tmp_path: Path) -> None:
    measured = {
        "spearman": 0.37,
        "spearman_ci95": [0.27, 0.46],
        "mean_iou_of_thirds": [0.1, 0.2, 0.3],
    }
    lines = [
        line("plain"),
        line("zoomed", zoom_entropy=measured),
        line("unmeasured", zoom_entropy=None),
    ]
    texts = {path.stem: path.read_text() for path in write_figures(tmp_path, found(lines=lines))}

    assert "zoomed: +0.37 [+0.27, +0.46]" in texts["entropy"]
    assert "plain" not in texts["entropy"]
    assert "unmeasured" not in texts["entropy"]
    assert "surest third" in texts["entropy"]
    many = [line(f"row {number}", zoom_entropy=measured) for number in range(12)]
    (*_, entropy) = (p for p in write_figures(tmp_path, found(lines=many)) if p.stem == "entropy")
    assert all(f"row {number}: " in entropy.read_text() for number in range(12))


def test_inputs_are_set_beside_each_other_where_they_were_kept(tmp_path: Path) -> None:
    wide = {**LATENTS, "across_inputs": np.eye(3).tolist()}
    (*_, latents) = write_figures(tmp_path, found(latents={"old": [LATENTS], "new": [wide, wide]}))
    text = latents.read_text()
    assert text.count("3 inputs, mean over steps") == 1
    assert "or of two inputs" in text


def test_accuracy_is_drawn_against_seconds_too(tmp_path: Path) -> None:
    slow = [
        {"step": 2.0, "steps_per_second": 0.5},
        {"step": 2.0, "validation_accuracy": 0.4},
        {"step": 6.0, "steps_per_second": 0.4},
        {"step": 6.0, "validation_accuracy": 0.8},
    ]
    # A run that does not log its speed is put where the others of its row were.
    untimed = [{"step": 2.0, "validation_accuracy": 0.5}, {"step": 6.0, "validation_accuracy": 0.7}]
    assert _seconds([slow, untimed]) == {0.0: 0.0, 2.0: 4.0, 6.0: 14.0}
    assert _seconds([untimed]) == {}

    *_, curves, _ = write_figures(tmp_path, found(curves={"row": [slow, untimed]}))
    assert curves.name == "curves.svg"
    assert curves.read_text().count("accuracy, validation") == 2
    assert curves.read_text().count("seconds by the clock") == 1


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    plain = found(lines=[line("plain")], curves={"plain": [[]]}, latents={})

    assert [path.name for path in write_figures(tmp_path, plain)] == ["accuracy.svg"]


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_figures(tmp_path / "a", found())]
    second = [path.read_bytes() for path in write_figures(tmp_path / "b", found())]

    assert first == second


def test_means_around_a_value_are_of_what_there_is() -> None:
    assert smoothed(np.array([0.0, 3.0, 6.0, 3.0]), 3).tolist() == [1.5, 3.0, 4.0, 4.5]


def test_figures_without_their_library_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "training.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert main(["ablate", "medvr", "--config", "nowhere.yaml", "--figures", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == "--figures needs matplotlib: pip install -r requirements-dev.txt.\n"
