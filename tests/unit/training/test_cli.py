"""What the command line of training makes of an error: a line of ours, or a trace of a fault."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
import torch

from training import cli
from training.rewards import RewardConfig


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
