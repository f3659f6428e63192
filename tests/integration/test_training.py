"""The whole pipeline on a handful of phantoms: pretrain, fine-tune, open, evaluate."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.engine import Engine
from training.cli import main

PART = """
- name: find
  steps: {steps: 2, learning_rate: 0.001, warmup: 1, save_every: 1, log_every: 1}
  mix: {views: 1, view_windows: 1, crops: 1, fine_crops: 1, fine_windows: 1}
  weights: {cover: 1.0, attributes: 1.0, edges: 1.0}
  image: {places: 1.0, centres: 1.0, answers: 1.0, boxes: 1.0}
"""
FIRST = (
    "{steps: {steps: 2, learning_rate: 0.001, warmup: 1, save_every: 1, log_every: 1}, batch: 2}"
)
STEPS = "{steps: 2, batch: 2, learning_rate: 0.001, warmup: 1, save_every: 1, log_every: 1}"
WORLD = "{count: 29, seed: 3, split: SPLIT, crops_per_target: 1, shard: 29, workers: 1}"
MIX = (
    "{zoom: 0.5, probe: 0.2, auto: 0.1, real: 0.0, report: 0.2, conversation: 0.2, short: 0.2, "
    "letters: 1}"
)


def config(folder: Path, extra: str) -> str:
    """A configuration file for a few steps on a few phantoms."""
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(
        f"seed: 5\nthreads: 1\nlanguage: {STEPS}\nmix: {MIX}\n"
        f"train: {WORLD.replace('SPLIT', 'train')}\n"
        f"validation: {WORLD.replace('SPLIT', 'validation')}\n{extra}",
        encoding="utf-8",
    )
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of both commands."""
    folder = tmp_path_factory.mktemp("training")
    run = folder / "run"
    assert (
        main(
            [
                "pretrain",
                config(folder, f"out: {run}\nfirst_layer: {FIRST}\nvision:{PART}"),
            ]
        )
        == 0
    )
    extra = f"out: {folder / 'sft'}\nbase: {run / 'checkpoint'}\nworld: {run / 'world'}\n"
    assert main(["sft", config(folder, extra)]) == 0
    return folder


@pytest.mark.timeout(900)
def test_checkpoint_is_small_half_precision_and_opens(trained: Path) -> None:
    folder = trained / "sft" / "checkpoint"
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (folder / "model.safetensors").stat().st_size < 10_000_000
    engine = Engine.load(folder)
    facts = engine.loaded.facts
    assert facts.embedded
    assert facts.parameters < 5_000_000


@pytest.mark.timeout(900)
def test_fine_tuning_changes_the_language_model_and_not_the_tower(trained: Path) -> None:
    before = load_file(trained / "run" / "checkpoint" / "model.safetensors")
    after = load_file(trained / "sft" / "checkpoint" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert not any("visual" in name for name in changed)


@pytest.mark.timeout(900)
def test_a_rehearsal_of_the_pretraining_touches_nothing_and_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, f"out: {tmp_path / 'run'}\nfirst_layer: {FIRST}\nvision:{PART}")
    few = ["train.count=4", "validation.count=4"]

    assert main(["pretrain", path, *few, "--rehearse"]) == 0

    said = capsys.readouterr()
    assert "The rehearsal works: the whole run will take about" in said.out
    for part in ("first layer", "find", "language"):
        assert f"{part}: step 3/3" in said.err
    assert [file.name for file in tmp_path.iterdir()] == [Path(path).name]


@pytest.mark.timeout(900)
def test_evaluation_prints_one_json_object_with_every_key(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(trained / "sft" / "checkpoint")
    arguments = ["evaluate", "--checkpoint", folder, "--method", "zoom", "--limit", "2", "--json"]
    assert main([*arguments, "--split", "validation", "--families", "nodule_margin"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {
        "overall": 2,
        "fine": 2,
        "nodule_margin": 2,
    }
    assert main(arguments) == 0
    table = json.loads(capsys.readouterr().out)
    assert set(table) >= {
        "accuracy",
        "ci95",
        "counts",
        "invalid_rate",
        "mean_iou",
        "pointing_game",
        "zoom_entropy",
        "zooms_per_question",
        "seconds_per_question",
    }
    assert table["counts"]["overall"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrain", "nowhere.yaml"], "Cannot read the configuration"),
        (["phantoms", "--out", "x", "--count", "0"], "--count must be at least 1"),
        (["evaluate", "--checkpoint", "x", "--limit", "0"], "--limit must be at least 1"),
        (
            ["evaluate", "--checkpoint", "x", "--modality", "head_ct", "--families", "lung"],
            "There are no questions 'lung' about head_ct phantoms: choose from head_modality",
        ),
        (
            ["evaluate", "--checkpoint", "x", "--data", "app.py"],
            "--data has no meaning for --benchmark phantoms: leave it out.",
        ),
        (
            ["evaluate", "--checkpoint", "x", "--benchmark", "lungs", "--families", "lung"],
            "--families has no meaning for --benchmark lungs",
        ),
        (
            ["evaluate", "--checkpoint", "x", "--benchmark", "distribution", "--method", "zoom"],
            "--method has no meaning for --benchmark distribution",
        ),
        (
            ["evaluate", "--checkpoint", "x", "--max-crops", "99", "--limit", "1"],
            "max_crops must lie in 0 to 16, not 99",
        ),
        (["evaluate", "--checkpoint", "/nowhere/at/all"], "There is no checkpoint all"),
        (["evaluate", "--checkpoint", "assets"], "assets"),
        (["evaluate", "--checkpoint", "x", "--traces", "app.py/x"], "x cannot be used: Not a dir"),
        (["phantoms", "--out", "app.py", "--count", "1"], "app.py cannot be used: File exists"),
        (["phantoms", "--out", "x", "--count", "many"], "invalid int value"),
        (
            ["tree", "/nowhere", "app.py", "--question", "?", "--out", "/tmp/a.radgroup.zip"],
            "not a DICOM",
        ),
        (["nothing"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_status_two(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_without_radiographs_is_no_empty_table(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(trained / "sft" / "checkpoint")
    arguments = ["evaluate", "--benchmark", "lungs", "--checkpoint", folder, "--method", "zoom"]
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    assert "holds no radiographs with lung boxes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("  image: {places: 1.0, centres: 1.0, answers: 1.0, boxes: 1.0}", "image.places"),
        ("centres: 1.0, ", "image.centres"),
        ("edges: 1.0", "weights.edges"),
    ],
)
def test_a_warm_up_that_leaves_untaught_what_is_read_later_is_refused(
    without: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert without in PART
    part = PART.replace(without, "")
    extra = f"out: {tmp_path / 'run'}\nfirst_layer: {FIRST}\nvision:{part}"
    assert main(["pretrain", config(tmp_path, extra)]) == 2
    error = capsys.readouterr().err
    assert f"Give some part of vision a weight for {said}: " in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_phantoms_are_written_with_their_truth(tmp_path: Path) -> None:
    assert main(["phantoms", "--out", str(tmp_path / "set"), "--count", "2", "--seed", "9"]) == 0
    lines = (tmp_path / "set" / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert len(list((tmp_path / "set").glob("*.dcm"))) == 2


def test_phantoms_of_another_modality_are_written(tmp_path: Path) -> None:
    arguments = ["phantoms", "--out", str(tmp_path / "set"), "--count", "1"]
    assert main([*arguments, "--modality", "head_ct"]) == 0
    (line,) = (tmp_path / "set" / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    assert '"study":"head_ct"' in line
