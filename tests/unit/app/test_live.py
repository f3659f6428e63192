"""Runs in threads: batches, turns, stopping, faults."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from app.live import BATCH_SECONDS, LiveRun, PreparedEngine, StreamEngine, Turns, pace_of
from engine.request import Request
from engine.trace import Event, Failed, Finished, Reground, TokenStep
from tests.factories import FakeEngine, events_of, request


def run_of(engine: StreamEngine, turns: Turns | None = None) -> tuple[LiveRun, threading.Event]:
    stop = threading.Event()
    return LiveRun(engine, request(), turns or Turns(), stop), stop


def test_all_events_arrive_in_order() -> None:
    run, _ = run_of(FakeEngine())

    events = [event for batch in run.batches() for event in batch]

    assert events[1:] == list(events_of(request()))[1:]


def test_batches_keep_their_distance() -> None:
    run, _ = run_of(FakeEngine(delay=0.004))
    times = [time.monotonic() for batch in run.batches() if batch]

    # One batch more than the time has room for: the first comes at once.
    assert len(times) <= (times[-1] - times[0]) / BATCH_SECONDS + 2


def test_stop_ends_the_run_with_its_own_event() -> None:
    run, stop = run_of(FakeEngine(delay=0.02))
    batches = run.batches()
    next(batches)
    next(batches)
    stop.set()

    events = [event for batch in batches for event in batch]

    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "stopped"


def test_closing_the_batches_stops_the_engine() -> None:
    engine = FakeEngine(delay=0.02)
    run, stop = run_of(engine)
    batches = run.batches()
    next(batches)
    next(batches)

    batches.close()

    assert stop.is_set()
    assert engine.stopped.wait(2.0)


def test_a_fault_becomes_an_event_and_the_log_keeps_no_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, _ = run_of(FakeEngine(fails="raise"))
    with caplog.at_level(logging.DEBUG):
        events = [event for batch in run.batches() for event in batch]

    assert isinstance(events[-1], Failed)
    assert events[-1].code == "E500"
    assert "secret" not in events[-1].message
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert request().question not in caplog.text


class Counting:
    """Counts how many runs are in progress at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        self.now += 1
        self.most = max(self.most, self.now)
        yield from FakeEngine(delay=0.002).stream(request, stop)
        self.now -= 1


def test_a_long_run_slows_the_pace_of_its_batches() -> None:
    paces = [pace_of(sent) for sent in range(400)]

    assert paces[0] == paces[39] == 0.125
    assert paces[40] == paces[159] == 0.25
    assert set(paces[160:]) == {0.5}


def test_words_wait_for_the_pace_and_steps_do_not() -> None:
    run, _ = run_of(FakeEngine())
    words = [event for event in events_of(request()) if isinstance(event, TokenStep)][:3]
    crop = next(event for event in events_of(request()) if isinstance(event, Reground))
    for event in words:
        run._events.put(event)
    began = time.monotonic()
    slow, _ = run._drain(began, 0.6)
    waited = time.monotonic() - began
    run._events.put(crop)
    quick, _ = run._drain(time.monotonic() - 0.3, 600.0)

    assert slow == words
    assert waited >= 0.6
    assert quick == [crop]


def test_runs_take_turns() -> None:
    engine, turns = Counting(), Turns()
    runs = [run_of(engine, turns)[0] for _ in range(3)]
    counts: list[int] = []

    def consume(run: LiveRun) -> None:
        counts.append(sum(len(batch) for batch in run.batches()))

    threads = [threading.Thread(target=consume, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert engine.most == 1
    assert len(set(counts)) == 1


def test_a_waiting_run_knows_its_place_and_may_leave() -> None:
    engine, turns = FakeEngine(delay=0.05), Turns()
    first, _ = run_of(engine, turns)
    second, stop = run_of(engine, turns)
    running = first.batches()
    next(running)
    waiting = second.batches()
    next(waiting)

    assert (first.ahead, second.ahead) == (0, 1)
    stop.set()
    assert [event for batch in waiting for event in batch] == []
    assert engine.runs == 1
    running.close()


def test_turns_are_first_come_first_served() -> None:
    turns = Turns()
    tickets = [turns.join() for _ in range(3)]

    assert [turns.ahead(ticket) for ticket in tickets] == [0, 1, 2]
    turns.leave(tickets[0])
    assert [turns.ahead(ticket) for ticket in tickets] == [0, 0, 1]
    assert turns.wait(tickets[1], lambda: False)
    assert not turns.wait(tickets[2], lambda: True)


def test_a_prepared_engine_is_made_once_and_in_the_background() -> None:
    release, made = threading.Event(), []

    def make() -> StreamEngine:
        release.wait(5.0)
        made.append(1)
        return FakeEngine()

    engine = PreparedEngine(make)
    assert not engine.ready
    release.set()

    assert len(list(engine.stream(request()))) == len(list(events_of(request())))
    assert engine.ready
    list(engine.stream(request()))
    assert made == [1]


def test_a_prepared_engine_waits_for_the_first_run_when_told() -> None:
    made = []

    def make() -> StreamEngine:
        made.append(1)
        return FakeEngine()

    engine = PreparedEngine(make, start=False)
    assert made == []
    next(engine.stream(request()))

    assert made == [1]


def test_a_run_can_be_given_up_while_the_engine_loads() -> None:
    release, stop = threading.Event(), threading.Event()
    engine = PreparedEngine(lambda: (release.wait(5.0), FakeEngine())[1])
    stop.set()

    assert list(engine.stream(request(), stop)) == []
    release.set()
