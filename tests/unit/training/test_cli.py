"""What the command line of training makes of an error: a line of ours, or a trace of a fault."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from training import ablation, bench, cli, rehearsal
from training.ablation import AblationConfig
from training.rewards import RewardConfig
from training.sft import FinetuneConfig
from training.world import WorldConfig, load_world


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """The exit status of a command that does something."""

    def run(what: Callable[[], object]) -> int:
        parser = argparse.ArgumentParser()
        parser.set_defaults(command=lambda _: what())
        monkeypatch.setattr(cli, "_parser", lambda: parser)
        return cli.main([])

    return run


def test_what_we_refuse_is_one_line(
    run: Callable[[Callable[[], object]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda: RewardConfig(format_penalty=-1.0)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_library_complains_of_keeps_its_place(
    run: Callable[[Callable[[], object]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="learning rate"):
        run(lambda: torch.optim.SGD([torch.zeros(1)], lr=-1.0))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("command", "name", "switch"), [
    ("pretrain", "pretrain", "first_layer.steps.tensorboard"),
    ("pretrain", "pretrain", "language.tensorboard"),
    ("sft", "medlvr-sft", "language.tensorboard"),
    ("vlpo", "vlpo", "steps.tensorboard"),
    ("medvr", "medvr", "steps.tensorboard"),
])  # fmt: skip
def test_curves_that_cannot_be_written_are_refused_before_anything_is_drawn(
    command: str,
    name: str,
    switch: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "out"
    path = f"training/configs/{name}.yaml"
    assert cli.main([command, path, f"out={out}", "threads=1", f"{switch}=true"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("The switch tensorboard needs the package tensorboard: install it")
    assert said.count("\n") == 1
    assert not out.exists()


def test_phantoms_of_other_settings_are_refused_before_a_rehearsal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = WorldConfig(count=1, seed=1, split="train", crops_per_target=1)
    load_world(tmp_path, few)
    arguments = ["training/configs/medlvr-sft.yaml", f"world={tmp_path}", "threads=1"]
    assert cli.main(["sft", *arguments, "--rehearse"]) == 2
    said = capsys.readouterr().err
    assert "crops_per_target: 1 there, 2 here" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    ["threads=1", "seed=7", "--rehearse"],
    ["--rehearse", "threads=1", "seed=7"],
    ["threads=1", "--rehearse", "seed=7"],
])  # fmt: skip
def test_changes_may_stand_on_either_side_of_an_option(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[FinetuneConfig] = []

    def rehearse(config: FinetuneConfig, report: object) -> str:
        del report
        seen.append(config)
        return "rehearsed"

    monkeypatch.setattr(rehearsal, "rehearse_finetune", rehearse)
    assert cli.main(["sft", "training/configs/medlvr-sft.yaml", *arguments]) == 0
    assert capsys.readouterr().out == "rehearsed\n"
    assert [(config.threads, config.seed) for config in seen] == [(1, 7)]


@pytest.mark.parametrize("arguments", [
    ["sft", "some.yaml", "--rehearse", "--other=1"],
    ["sft", "some.yaml", "--rehearse", "seed"],
    ["samples", "seed=7"],
])  # fmt: skip
def test_what_no_command_knows_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["medlvr", "medvr"])
def test_an_ablation_is_asked_for_and_printed(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped configuration and what the command line changes; nothing is trained."""
    asked: list[tuple[AblationConfig, list[str]]] = []

    def ablate(config: AblationConfig, report: object, rows: Sequence[str]) -> dict[str, Any]:
        asked.append((config, list(rows)))
        sys.stdout.write("what a library says\n")
        return {"lines": [], "seeds": list(config.seeds)}

    monkeypatch.setattr(ablation, "ablate", ablate)
    row = {"medlvr": "vlpo", "medvr": "zoom"}[method]
    arguments = ["--rows", row, "--seeds", "1", "2", "--json"]

    assert cli.main(["ablate", method, "out=elsewhere", *arguments]) == 0

    assert json.loads(capsys.readouterr().out) == {"lines": [], "seeds": [1, 2]}
    ((config, rows),) = asked
    assert (config.seeds, str(config.out), rows) == ((1, 2), "elsewhere", [row])
    assert row in {each.name for each in config.rows}
    # A change may stand behind the values of an option.
    behind = ["--seeds", "3", "questions.count=7", "--rows", row, "out=there", "--json"]
    assert cli.main(["ablate", method, *behind]) == 0
    config, rows = asked.pop()
    assert (config.seeds, config.questions.count, str(config.out)) == ((3,), 7, "there")
    assert rows == [row]
    # Seeds and rows are those of the file where none are given.
    assert cli.main(["ablate", method, "--json"]) == 0
    assert (asked[1][0].seeds, asked[1][1]) == ((1, 2, 3), [])


def test_a_benchmark_is_asked_for_and_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def benchmark(*, repeats: int) -> dict[str, Any]:
        asked.append(repeats)
        return {"settings": [], "trl": None}

    monkeypatch.setattr(bench, "benchmark", benchmark)

    assert cli.main(["bench", "--json", "--repeats", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"settings": [], "trl": None}
    assert cli.main(["bench", "--json"]) == 0
    assert asked == [3, 7]
