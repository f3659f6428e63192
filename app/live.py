"""One live run: the engine in a thread of its own, its events in batches for the page."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from typing import Final, Protocol

from app.texts import FAULT
from engine.request import Request
from engine.trace import Event, Failed, TokenStep

# Seconds from one batch to the next, and how many batches keep that pace. Every message has a
# fixed cost, so a slow run would send far more bytes for the same words than a quick one.
PACES: Final = ((0.125, 40), (0.25, 120), (0.5, None))
BATCH_SECONDS: Final = PACES[0][0]
_IDLE_SECONDS: Final = 0.05

logger = logging.getLogger(__name__)


class StreamEngine(Protocol):
    """Whatever can run a request and yield events."""

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        """The events of one run; ends within a token of `stop` being set."""


class PreparedEngine:
    """An engine that is made in the background, so that the page opens at once.

    Args:
        make: makes the engine; called once, in a thread of its own.
        start: whether to begin now, or with the first run.
    """

    def __init__(self, make: Callable[[], StreamEngine], *, start: bool = True) -> None:
        self._make = make
        self._engine: Future[StreamEngine] = Future()
        self._begun = threading.Lock()
        if start:
            self._begin()

    @property
    def ready(self) -> bool:
        """Whether the engine has been made."""
        return self._engine.done()

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        """The events of one run, once the engine is there."""
        self._begin()
        while not self._engine.done():
            if stop is not None and stop.is_set():
                return
            wait([self._engine], timeout=_IDLE_SECONDS)
        yield from self._engine.result().stream(request, stop)

    def _begin(self) -> None:
        if self._begun.acquire(blocking=False):
            threading.Thread(target=self._work, name="load", daemon=True).start()

    def _work(self) -> None:
        try:
            self._engine.set_result(self._make())
        except BaseException as error:  # noqa: BLE001 -- the run that waits for it gets it
            self._engine.set_exception(error)


class Turns:
    """First come, first served: one run at a time on the device."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: list[object] = []

    def join(self) -> object:
        """A place in the line."""
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
        return ticket

    def ahead(self, ticket: object) -> int:
        """How many runs are before this one; 0 when it is its turn (or it has left)."""
        with self._condition:
            return self._waiting.index(ticket) if ticket in self._waiting else 0

    def leave(self, ticket: object) -> None:
        """Gives the place up."""
        with self._condition:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._condition.notify_all()

    def wait(self, ticket: object, given_up: Callable[[], bool]) -> bool:
        """Blocks until it is the ticket's turn; False when `given_up()` came first."""
        with self._condition:
            while self._waiting[0] is not ticket:
                if given_up():
                    return False
                self._condition.wait(_IDLE_SECONDS)
            return not given_up()


def pace_of(sent: int) -> float:
    """Seconds to the next batch after `sent` batches."""
    for seconds, count in PACES:
        if count is None or sent < count:
            return seconds
        sent -= count
    return PACES[-1][0]


class LiveRun:
    """Runs one request in a thread and hands its events over in batches.

    The engine never waits for the page, and the page never waits for more than one batch.
    """

    def __init__(
        self, engine: StreamEngine, request: Request, turns: Turns, stop: threading.Event
    ) -> None:
        self._engine = engine
        self._request = request
        self._turns = turns
        self._stop = stop
        self._ticket: object = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="run", daemon=True)

    @property
    def ahead(self) -> int:
        """How many runs come first."""
        return self._turns.ahead(self._ticket)

    @property
    def loading(self) -> bool:
        """Whether it is its turn and its engine has yet to be made."""
        return not self.ahead and not getattr(self._engine, "ready", True)

    def batches(self) -> Generator[list[Event], None, None]:
        """Batches of new events, at the pace of `PACES`; [] at first and while it waits.

        Whatever is not a token (a crop, a latent step, the end) comes within `BATCH_SECONDS`.

        Closing the iterator stops the run; one that has ended leaves `stop` as it is, so that
        runs that belong together may share it.
        """
        self._ticket = self._turns.join()
        self._thread.start()
        done = False
        try:
            yield []
            last, sent = 0.0, 0
            while not done:
                batch, done = self._drain(last, pace_of(sent))
                last = time.monotonic()
                if batch or ((self.ahead or self.loading) and not done):
                    sent += bool(batch)
                    yield batch
        finally:
            if not done:
                self._stop.set()

    def _drain(self, last: float, pace: float) -> tuple[list[Event], bool]:
        """What has come until `pace` seconds after `last`, or a shorter time if it is no token."""
        batch: list[Event] = []
        now = time.monotonic()
        due, soon = max(now, last + pace), max(now, last + BATCH_SECONDS)
        while True:
            # With nothing to hand over yet, the first event is waited for beyond the pace.
            wait = due - time.monotonic() if batch else max(due - now, BATCH_SECONDS)
            try:
                event = self._events.get(timeout=wait) if wait > 0 else self._events.get_nowait()
            except queue.Empty:
                return batch, False
            if event is None:
                return batch, True
            batch.append(event)
            if not isinstance(event, TokenStep):
                due = min(due, soon)

    def _work(self) -> None:
        try:
            if self._turns.wait(self._ticket, self._stop.is_set):
                for event in self._engine.stream(self._request, self._stop):
                    self._events.put(event)
        except Exception as error:  # noqa: BLE001 -- whatever it was, the page must hear of an end
            # The page gets a sentence, the log the kind of error: no text of either may hold
            # what the user typed.
            logger.error("run failed: %s", type(error).__name__)
            self._events.put(Failed(seconds=0.0, code="E500", message=FAULT))
        finally:
            self._turns.leave(self._ticket)
            self._events.put(None)
