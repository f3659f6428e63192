"""A comparison on a model: the command, and what its runs have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from engine.cli import main
from engine.comparison import Effect, RunKey, report_json
from engine.tiny import tiny_model
from engine.trace import Trace
from engine.trace_io import read_trace
from tests.factories import chest, png
from tests.integration.test_loading import save
from tests.source_tree import ROOT

pytestmark = pytest.mark.slow

RUNS = (RunKey("direct"), RunKey("own_calls"), RunKey("entropy_rule"), RunKey("entropy_rule", 1))

SHIPPED: Final = ("base", "cold-start", "medlvr-sft", "medlvr", "medvr")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`python -m engine compare` on a tiny checkpoint: status, output, errors."""
    checkpoint = save(tiny_model(), tmp_path / "tiny")
    (tmp_path / "chest.png").write_bytes(png(chest(128)))
    # Saving a checkpoint draws a progress bar.
    capsys.readouterr()

    def run(*arguments: str) -> tuple[int, str, str]:
        image = str(tmp_path / "chest.png")
        status = main([
            *("compare", image, "Where is it?", "--option", "left", "--option", "right"),
            *("--checkpoint", str(checkpoint), "--max-new-tokens", "70", "--max-crops", "1"),
            *arguments,
        ])  # fmt: skip
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def until_crop(trace: Trace) -> list[int]:
    """The tokens before the first crop."""
    (crop,) = trace.regrounds
    return [token.token_id for token in trace.tokens if token.seconds < crop.seconds]


def test_the_report_is_a_fold_over_the_traces_that_it_saves(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "runs"

    # Random weights are unsure of every word: a limit of 0 opens a zoom at once.
    status, out, err = call("--json", "--entropy-threshold", "0", "--out", str(folder))

    assert (status, err) == (0, "")
    report: dict[str, Any] = json.loads(out)
    traces = {key: read_trace(folder / f"{key.name}.radtrace.zip") for key in RUNS}
    assert len(list(folder.iterdir())) == len(RUNS)
    assert report == json.loads(json.dumps(report_json(traces)))
    assert [way["way"] for way in report["ways"]] == ["direct", "own_calls", "entropy_rule"]
    assert "Nobody has said" in report["zoom_note"]

    (zoom,) = report["ways"][2]["zooms"]
    assert zoom["trigger"] == "entropy"
    assert zoom["tokens"] > 10
    assert zoom["seconds"] > 0
    assert zoom["withheld"]["failure"] == ""
    whole, without = traces[RunKey("entropy_rule")], traces[RunKey("entropy_rule", 1)]
    assert until_crop(whole) == until_crop(without)
    assert [crop.skipped for trace in (whole, without) for crop in trace.regrounds] == [False, True]
    with_it, without_it = (trace.beliefs[-1].probabilities for trace in (whole, without))
    option = report["ways"][2]["option"]
    # What random weights write may name no option: then the likeliest is followed.
    followed = with_it.index(max(with_it)) if option is None else option
    assert zoom["gain"] == with_it[followed] - without_it[followed]


def test_one_way_that_cannot_be_run_leaves_the_others(call: Call) -> None:
    # The tiny checkpoint names no limit of its own.
    status, out, err = call()

    assert status == 1
    assert err.count("\n") == 1
    assert "names no limit of its own" in err
    assert "Run 3 of at least 3: zooms after every word" in out
    assert "cost" in out


def test_bad_input_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own-calls-without-2.radtrace.zip").write_text("x")

    for arguments in (
        ("--seed", "-1"),
        ("--out", str(tmp_path / "file")),
        ("--out", str(tmp_path / "full")),
    ):
        status, out, err = call(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_checkpoint_looks_again_side_by_side(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Its own calls and the entropy rule on one image, with what each zoom cost and brought."""
    folder = ROOT / "assets" / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip(f"the checkpoint {name} is not here")
    image = str(ROOT / "assets" / "samples" / "phantom-1.dcm")
    question = "How is the margin of the nodule in the right lung?"
    options = ("--option", "spiculated", "--option", "smooth")
    arguments = ("compare", image, question, *options, "--checkpoint", str(folder), "--json")
    assert main([*arguments, "--max-crops", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [way["way"] for way in report["ways"]] == ["direct", "own_calls", "entropy_rule"]
    assert not any(way["failure"] for way in report["ways"])
    zooms = [zoom for way in report["ways"] for zoom in way["zooms"]]
    for zoom in zooms:
        assert zoom["tokens"] > 0
        assert zoom["image_tokens"] > 0
        assert zoom["effect"] in get_args(Effect)
        # Belief just before and just after it, and with the crop withheld.
        assert len(zoom["before"]["probabilities"]) == len(zoom["after"]["probabilities"]) == 2
        assert zoom["gain"] is None or -1.0 <= zoom["gain"] <= 1.0
    # Those that were trained for latent steps write no calls.
    assert bool(zooms) is not name.startswith("medlvr")
