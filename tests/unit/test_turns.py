"""Turns of tests that run beside each other."""

import threading
from pathlib import Path

from tests.turns import turn

PATIENCE = 20.0
A_MOMENT = 0.2


class Runner(threading.Thread):
    """Takes a turn and keeps it until it is told to end."""

    def __init__(self, folder: Path, *, alone: bool) -> None:
        super().__init__(daemon=True)
        self.runs, self.may_end = threading.Event(), threading.Event()
        self._folder, self._alone = folder, alone
        self.start()

    def run(self) -> None:
        with turn(self._folder, alone=self._alone):
            self.runs.set()
            self.may_end.wait(PATIENCE)

    def end(self) -> None:
        self.may_end.set()
        self.join(PATIENCE)


def test_one_that_is_to_be_alone_waits_and_is_waited_for(tmp_path: Path) -> None:
    first, second = (Runner(tmp_path, alone=False) for _ in range(2))
    assert first.runs.wait(PATIENCE)
    assert second.runs.wait(PATIENCE)

    alone = Runner(tmp_path, alone=True)
    first.end()
    assert not alone.runs.wait(A_MOMENT)
    later = Runner(tmp_path, alone=False)
    assert not later.runs.wait(A_MOMENT)
    second.end()
    assert alone.runs.wait(PATIENCE)
    assert not later.runs.wait(A_MOMENT)
    alone.end()
    assert later.runs.wait(PATIENCE)
    later.end()
