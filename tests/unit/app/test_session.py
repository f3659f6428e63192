"""Sessions: apart from each other, and gone with their tab."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import session as session_module
from app.session import CrowdedError, Session, Sessions
from engine.trace import Event, RunStarted
from tests.factories import trace


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "private", tmp_path / "served")


def with_run(session: Session) -> Session:
    session.take(session.new_run(replay=True), trace())
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
    view = pieces.new_run(replay=True)
    for event in trace():
        pieces.take(view, [event])
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


def test_files_live_for_half_an_hour_at_most() -> None:
    assert session_module.IDLE_SECONDS + session_module.SWEEP_SECONDS <= 30 * 60


def running(session: Session) -> Session:
    session.new_run(replay=False)
    return session


def test_a_run_is_never_idle(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = running(sessions.get("busy"))
    monkeypatch.setattr(session_module, "IDLE_SECONDS", -1)
    sessions.get("new")

    assert sessions.get("busy") is busy
    assert busy.served.exists()


def test_too_many_sessions_push_out_the_one_that_was_idle_for_the_longest_time(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_SESSIONS", 3)
    busy, first, second = running(sessions.get("1")), sessions.get("2"), sessions.get("3")
    sessions.get("4")

    assert len(sessions) == 3
    assert first.closed
    assert not first.served.exists()
    assert not busy.closed
    assert not busy.stop.is_set()
    assert second.served.exists()


def test_where_every_session_runs_there_is_no_room(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_SESSIONS", 2)
    one, two = running(sessions.get("1")), running(sessions.get("2"))

    with pytest.raises(CrowdedError):
        sessions.get("3")
    assert [sessions.get("1"), sessions.get("2")] == [one, two]

    assert one.view is not None
    one.end_open_run(one.view)
    sessions.get("3")
    assert one.closed


def test_a_run_whose_stream_just_ends_counts_as_stopped(sessions: Sessions) -> None:
    session = sessions.get("a")
    view = session.new_run(replay=False)
    session.take(view, (event for event in trace() if isinstance(event, RunStarted)))

    assert session.end_open_run(view)
    assert view.status == "stopped"
    assert not session.end_open_run(view)


def test_events_of_a_run_that_was_replaced_are_not_taken(sessions: Sessions) -> None:
    session = sessions.get("a")
    first = session.new_run(replay=False)
    second = session.new_run(replay=False)

    assert not session.take(first, trace())
    assert session.events == []
    assert second.items == []
    assert session.take(second, trace())
    assert session.events == list(trace())


def test_a_run_cannot_begin_while_events_of_another_are_taken(sessions: Sessions) -> None:
    session = sessions.get("a")
    view = session.new_run(replay=False)
    reached, go_on = threading.Event(), threading.Event()
    whole = list(trace())

    def interrupted() -> Iterator[Event]:
        yield from whole[:5]
        reached.set()
        go_on.wait(20.0)
        yield from whole[5:]

    def begin_another() -> None:
        with session.lock:
            session.new_run(replay=False)

    taking = threading.Thread(target=session.take, args=(view, interrupted()))
    beginning = threading.Thread(target=begin_another)
    taking.start()
    assert reached.wait(20.0)
    beginning.start()
    beginning.join(0.3)
    waited = beginning.is_alive()
    go_on.set()
    taking.join()
    beginning.join()

    assert waited
    assert session.events == []
    assert session.run_folder is not None
    assert list(session.run_folder.iterdir()) == []


def test_what_comes_too_late_does_not_land(sessions: Sessions) -> None:
    session = sessions.get("a")

    assert session.lands(3)
    assert not session.lands(2)
    assert not session.lands(3)
    assert session.lands(None)
    assert session.turn == 4
    sessions.drop("a")
    assert not session.lands(5)
    assert not session.lands(None)


def test_a_stop_ends_its_own_run_even_before_it_begins_and_no_later_one(
    sessions: Sessions,
) -> None:
    session = sessions.get("a")
    session.end_run(1)
    session.lands(1)
    session.new_run(replay=False)
    assert session.stop.is_set()

    session.lands(2)
    session.new_run(replay=False)
    session.end_run(1)
    assert not session.stop.is_set()
    session.end_run(2)
    assert session.stop.is_set()


def test_a_stop_without_a_number_ends_the_run_in_progress(sessions: Sessions) -> None:
    session = sessions.get("a")
    session.lands(1)
    session.new_run(replay=False)
    session.end_run(None)
    assert session.stop.is_set()

    session.lands(2)
    session.new_run(replay=False)
    assert not session.stop.is_set()
