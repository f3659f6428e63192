"""The whole pipeline on a handful of phantoms: pretrain, fine-tune, open, evaluate."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.engine import Engine
from engine.loading import load_checkpoint
from engine.tiny import tiny_model
from tests.integration.test_loading import save
from tests.source_tree import ROOT
from training.averages import looks_evenly
from training.cli import main
from training.counts import counts_columns
from training.numbers import number_ids, slow_waves

PART = """
- name: find
  steps: {steps: 2, learning_rate: 0.001, warmup: 1, save_every: 1, log_every: 1}
  mix: {views: 1, view_windows: 1, crops: 1, fine_crops: 1, fine_windows: 1}
  weights: {cover: 1.0, attributes: 1.0, edges: 1.0}
  image: {places: 1.0, centres: 1.0, answers: 1.0, boxes: 1.0}
"""
FIRST = "{steps: {steps: 2, learning_rate: 0.001, warmup: 1, save_every: 1, log_every: 1}, SIZE}"
# What comes before the language model learns any word.
BEFORE = (
    f"first_layer: {FIRST.replace('SIZE', 'batch: 2')}\n"
    f"looking: {FIRST.replace('SIZE', 'letters: 2, places: 2')}"
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
                config(folder, f"out: {run}\n{BEFORE}\nvision:{PART}"),
            ]
        )
        == 0
    )
    extra = f"out: {folder / 'sft'}\nbase: {run / 'checkpoint'}\nworld: {run / 'world'}\n"
    extra += "tuning: {smooth_numbers: true}\n"
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
def test_all_stages_leave_where_the_averaging_head_looks_alone(trained: Path) -> None:
    """The rest of its layer is trained, and so is what it reads."""
    models = [load_checkpoint(trained / run / "checkpoint").model for run in ("run", "sft")]
    assert all(looks_evenly(model) for model in models)
    before, after = (model.model.language_model.layers[1].self_attn for model in models)
    width = before.head_dim
    for part in ("weight", "bias"):
        kept = [getattr(layer.q_proj, part)[-width:] for layer in (before, after)]
        assert torch.equal(*kept)
    assert not torch.equal(before.q_proj.weight[:width], after.q_proj.weight[:width])
    assert not torch.equal(before.v_proj.weight[-1], after.v_proj.weight[-1])


@pytest.mark.timeout(900)
def test_all_stages_leave_the_counts_of_rows_and_columns_alone(trained: Path) -> None:
    """The rest of the first layer is trained; after two stages the counts are those of one."""
    models = [load_checkpoint(trained / run / "checkpoint").model for run in ("run", "sft")]
    assert all(counts_columns(model) for model in models)
    before, after = (model.model.language_model.layers[0].self_attn for model in models)
    width = before.head_dim
    for parts in (
        [layer.q_proj.weight[: 2 * width] for layer in (before, after)],
        [layer.q_proj.bias[: 2 * width] for layer in (before, after)],
        [layer.o_proj.weight[:, [0, width]] for layer in (before, after)],
        [layer.v_proj.weight[0] for layer in (before, after)],
    ):
        assert torch.equal(*parts)
    assert not torch.equal(before.q_proj.weight[2 * width :], after.q_proj.weight[2 * width :])
    # Where the counts are written, nothing else is: to the rounding of half precision.
    counts = after.o_proj.weight[:, [0, width]] / after.o_proj.weight[:, [0, width]].norm(dim=0)
    for layer in models[1].model.language_model.layers[:2]:
        writer = layer.mlp.down_proj.weight.detach()
        written = counts.detach().T @ writer
        assert float(written.abs().max()) < 2e-3 * float(writer.norm(dim=0).max())


@pytest.mark.timeout(900)
def test_fine_tuning_smooths_numbers_and_keeps_them_so(trained: Path) -> None:
    loaded = [load_checkpoint(trained / run / "checkpoint") for run in ("run", "sft")]
    before, after = (
        one.model.get_input_embeddings().weight.detach()[number_ids(one.tokenizer)[10:]]
        for one in loaded
    )
    waves = slow_waves(10 + len(before))
    rough = after - waves @ (waves.T @ after)
    assert float(rough.square().sum()) < 1e-5 * float(after.square().sum())
    # Slow waves are trained: to be smoothed at the end would not be the same.
    assert float((waves.T @ (after - before)).abs().max()) > 1e-3


@pytest.mark.timeout(900)
def test_a_tower_can_be_taken_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Its last part alone is run, for the readings; the tower itself stays as it is."""
    parts = PART.replace("find", "left_out") + PART
    extra = (
        f"out: {tmp_path / 'run'}\n{BEFORE}\nvision:{parts}\n"
        f"tower: {trained / 'run' / 'checkpoint'}\n"
    )
    shutil.copytree(trained / "run" / "world", tmp_path / "run" / "world")
    assert main(["pretrain", config(tmp_path, extra)]) == 0
    assert not (tmp_path / "run" / "left_out").exists()
    given, own = (
        load_file(path / "checkpoint" / "model.safetensors")
        for path in (trained / "run", tmp_path / "run")
    )
    towers = [name for name in given if "visual" in name]
    # The scale of its tokens is set anew, which changes the last layer by rounding alone.
    last = max(name for name in towers if "merger.mlp" in name).rpartition(".")[0]
    for name in towers:
        if name.startswith(last):
            torch.testing.assert_close(own[name], given[name], rtol=4e-3, atol=1e-5)
        else:
            assert torch.equal(own[name], given[name]), name


@pytest.mark.parametrize(
    ("tower", "said"),
    [("nowhere/at/all", "There is no checkpoint all"), ("tiny", "of another size than that of")],
)
def test_a_tower_that_cannot_be_taken_is_one_line(
    trained: Path, tmp_path: Path, tower: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny_model(), tmp_path / "tiny")
    shutil.copytree(trained / "run" / "world", tmp_path / "run" / "world")
    extra = f"out: {tmp_path / 'run'}\n{BEFORE}\nvision:{PART}\ntower: {tmp_path / tower}\n"
    assert main(["pretrain", config(tmp_path, extra)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error


@pytest.mark.timeout(900)
def test_a_rehearsal_of_the_pretraining_touches_nothing_and_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, f"out: {tmp_path / 'run'}\n{BEFORE}\nvision:{PART}")
    few = ["train.count=4", "validation.count=4"]

    assert main(["pretrain", path, *few, "--rehearse"]) == 0

    said = capsys.readouterr()
    assert "The rehearsal works: the whole run will take about" in said.out
    for part in ("first layer", "where to look", "find", "language"):
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


@pytest.mark.timeout(900)
def test_tokens_know_their_place_behind_the_layer_that_counts(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tower of two steps tells little of places; the counts of the first layer tell them."""
    folder = str(trained / "sft" / "checkpoint")
    arguments = ["evaluate", "--benchmark", "places", "--checkpoint", folder, "--limit", "12"]
    assert main([*arguments, "--split", "validation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"fitted": 12, "scored": 12}
    errors = found["place_error"]
    assert list(errors) == ["tower", *(f"layer_{number}" for number in range(1, 6))]
    for side in ("x", "y"):
        # Of tokens that are 28 pixels wide.
        assert errors["layer_1"][side] < 4
        assert 3 * errors["layer_1"][side] < errors["tower"][side]
    assert main([*arguments, "--split", "validation"]) == 0
    assert f"tower      x {errors['tower']['x']:5.2f}" in capsys.readouterr().out
    assert main([*arguments, "--split", "train"]) == 2
    assert "score them on others" in capsys.readouterr().err


def test_boxes_of_the_shipped_checkpoint_lie_where_it_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = str(ROOT / "assets" / "checkpoints" / "base")
    arguments = ["evaluate", "--benchmark", "boxes", "--checkpoint", base, "--limit", "12"]
    arguments += ["--split", "validation", "--seed", "1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Both lungs and the heart, in two forms.
    assert found["organs"]["boxes"] == 12 * 3 * 2
    assert found["organs"]["mean_iou"] > 0.6
    means = [found["mean_iou"][name] for name in ("heart", "left lung", "right lung")]
    assert found["organs"]["mean_iou"] == pytest.approx(sum(means) / 3)
    low, high = found["findings"]["mean_iou_ci95"]
    assert 0.3 < low < found["findings"]["mean_iou"] < high
    assert found["findings"]["attention"] > 0.8
    assert main(arguments) == 0
    assert "findings" in capsys.readouterr().out


def test_letters_of_the_shipped_checkpoint_follow_from_its_reasoning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = str(ROOT / "assets" / "checkpoints" / "base")
    arguments = ["evaluate", "--benchmark", "letters", "--checkpoint", base, "--limit", "12"]
    arguments += ["--split", "validation", "--seed", "1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = found["counts"]
    assert counts.pop("letters") == sum(counts.values()) >= 24
    assert set(found["families"]) == set(counts)
    right = sum(found["families"][family] * counts[family] for family in counts)
    assert found["accuracy"] == pytest.approx(right / sum(counts.values()))
    assert found["accuracy"] > 0.8
    assert found["ci95"][0] < found["accuracy"] <= found["ci95"][1]
    assert main(arguments) == 0
    assert "accuracy" in capsys.readouterr().out


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
            ["evaluate", "--checkpoint", "x", "--benchmark", "places", "--method", "zoom"],
            "--method has no meaning for --benchmark places",
        ),
        (
            ["evaluate", "--checkpoint", "x", "--benchmark", "letters", "--latent-steps", "2"],
            "--latent-steps has no meaning for --benchmark letters",
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
    extra = f"out: {tmp_path / 'run'}\n{BEFORE}\nvision:{part}"
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
