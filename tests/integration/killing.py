"""Kills a training command with signal 9 after its first checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.source_tree import ROOT

PATIENCE_SECONDS = 120.0


def killed_after_its_first_save(command: str, config: Path, state: Path) -> None:
    """Starts a stage and kills it as soon as its state is there, wherever it is by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "training", command, str(config)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    given_up = time.monotonic() + PATIENCE_SECONDS
    while not state.exists():
        assert process.poll() is None, "the command ended before it saved anything"
        assert time.monotonic() < given_up, "nothing was saved"
        time.sleep(0.002)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
