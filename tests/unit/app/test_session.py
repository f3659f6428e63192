"""Sessions: apart from each other, and gone with their tab."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from app import session as session_module
from app.session import Session, Sessions
from engine.trace import RunStarted
from tests.factories import trace


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "private", tmp_path / "served")


def with_run(session: Session) -> Session:
    session.new_run(replay=True)
    session.take(trace())
    return session


def test_each_key_has_folders_of_its_own(sessions: Sessions) -> None:
    first, second = sessions.get("a"), sessions.get("b")

    assert sessions.get("a") is first
    assert first.served != second.served
    assert first.private != second.private
    assert stat.S_IMODE(first.served.stat().st_mode) == 0o700
    assert stat.S_IMODE(first.private.stat().st_mode) == 0o700


def test_a_run_writes_what_the_page_fetches(sessions: Sessions) -> None:
    session = with_run(sessions.get("a"))
    assert session.run_folder is not None
    assert session.view is not None

    names = {file.name for file in session.run_folder.iterdir()}

    assert names == {"details.jsonl", "display.png", "seen.png", "crop-1.png"}
    details = (session.run_folder / "details.jsonl").read_bytes()
    assert details == b"".join(session.view.details)


def test_events_in_pieces_write_the_same_files(sessions: Sessions) -> None:
    whole, pieces = with_run(sessions.get("a")), sessions.get("b")
    pieces.new_run(replay=True)
    for event in trace():
        pieces.take([event])
    assert whole.run_folder is not None
    assert pieces.run_folder is not None

    for file in whole.run_folder.iterdir():
        assert (pieces.run_folder / file.name).read_bytes() == file.read_bytes()


def test_a_new_run_deletes_the_files_of_the_one_before(sessions: Sessions) -> None:
    session = with_run(sessions.get("a"))
    old = session.run_folder
    session.new_run(replay=False)

    assert old is not None
    assert not old.exists()
    assert session.events == []


def test_dropping_a_session_stops_it_and_deletes_everything(sessions: Sessions) -> None:
    session = with_run(sessions.get("a"))
    sessions.drop("a")

    assert session.stop.is_set()
    assert not session.served.exists()
    assert not session.private.exists()
    assert len(sessions) == 0
    sessions.drop("a")


def test_idle_sessions_are_swept(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sessions.get("old")
    monkeypatch.setattr(session_module, "IDLE_SECONDS", -1)
    sessions.get("new")

    assert not old.served.exists()
    assert len(sessions) == 1


def test_idle_sessions_go_by_themselves(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "IDLE_SECONDS", -1)
    monkeypatch.setattr(session_module, "SWEEP_SECONDS", 0.02)
    old = sessions.get("old")
    end = time.monotonic() + 20
    while old.private.exists() and time.monotonic() < end:
        time.sleep(0.02)

    assert len(sessions) == 0
    assert not old.private.exists()


def test_too_many_sessions_push_out_the_oldest(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_SESSIONS", 2)
    first = sessions.get("1")
    sessions.get("2")
    sessions.get("3")

    assert len(sessions) == 2
    assert not first.served.exists()


def test_a_run_whose_stream_just_ends_counts_as_stopped(sessions: Sessions) -> None:
    session = sessions.get("a")
    session.new_run(replay=False)
    session.take(event for event in trace() if isinstance(event, RunStarted))

    assert session.end_open_run()
    assert session.view is not None
    assert session.view.status == "stopped"
    assert not session.end_open_run()
