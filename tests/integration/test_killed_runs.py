"""A training run that was killed with signal 9 goes on as if it had never stopped, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.integration.small_run import SAVE_EVERY, STEPS, train
from tests.source_tree import ROOT
from training.checkpoints import kept_state


def started(folder: Path, moment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.integration.small_run", str(folder), moment]
    return subprocess.Popen(command, cwd=ROOT)


def metrics(folder: Path) -> list[dict[str, float]]:
    """What was logged, without what the clock says."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k != "steps_per_second"} for record in records]


def saved_step(folder: Path) -> int:
    state = kept_state(folder)
    assert state is not None
    return int(torch.load(state, weights_only=True)["step"])


def assert_goes_on_as_if_never_stopped(folder: Path, whole: Path) -> None:
    weights = train(whole)
    assert torch.equal(train(folder), weights)
    states = [torch.load(run / "state.pt", weights_only=True) for run in (folder, whole)]
    moments = [state["optimizer"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for key, entries in moments[1].items():
        assert all(torch.equal(moments[0][key][name], value) for name, value in entries.items())
    assert metrics(folder) == metrics(whole)
    assert [record["step"] for record in metrics(folder)] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(("moment", "kept"), [("step", 2 * SAVE_EVERY), ("rename", SAVE_EVERY)])
def test_killed_in_the_middle_of(tmp_path: Path, moment: str, kept: int) -> None:
    """`step`: between forward and backward. `rename`: the new checkpoint is whole and not in place,
    and the former one has made way for it.
    """
    folder = tmp_path / "killed"
    assert started(folder, moment).wait(60) == -signal.SIGKILL
    assert saved_step(folder) == kept < STEPS

    assert_goes_on_as_if_never_stopped(folder, tmp_path / "whole")


def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    """The checkpoint goes into a pipe, which holds a part of it: the writer waits, and dies."""
    folder = tmp_path / "killed"
    folder.mkdir()
    partial = folder / "state.pt.partial"
    os.mkfifo(partial)
    process = started(folder, "none")
    reader = os.open(partial, os.O_RDONLY | os.O_NONBLOCK)
    try:
        received = b""
        while len(received) < 1000:
            assert process.poll() is None, "nothing was saved"
            try:
                received += os.read(reader, 1000)
            except BlockingIOError:
                continue
            finally:
                # There is nothing to wait for before the other side has opened the pipe.
                time.sleep(0.01)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    finally:
        os.close(reader)
        process.kill()
    # What a disk would hold now: the beginning of a checkpoint beside no checkpoint at all.
    partial.unlink()
    partial.write_bytes(received)
    assert not (folder / "state.pt").exists()

    assert_goes_on_as_if_never_stopped(folder, tmp_path / "whole")
