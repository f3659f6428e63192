"""The listeners of the page with those for comparing ways to look again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import gradio as gr

from app.comparison import Comparison
from app.handlers import Handlers, Json, field_sent, turn_sent
from app.live import LiveRun, StreamEngine
from app.session import Session
from app.texts import CROWDED, NO_ENGINE
from engine.request import RequestError

logger = logging.getLogger(__name__)


class CompareHandlers(Handlers):
    """All listeners; the page state has `comparison` where there is one."""

    def page(self, session: Session | None = None, more: Json | None = None) -> Json:
        """The page state, see `Handlers.page`."""
        state = super().page(session, more)
        if session is not None:
            with session.lock:
                comparison = session.comparison
                state["comparison"] = None if comparison is None else comparison.to_json()
        return state

    def compare(self, data: gr.EventData, request: gr.Request) -> Iterator[Json]:
        """Runs the question in every way and streams what has come of it so far."""
        session = self._session(request)
        if session is None:
            yield self._failed(None, "E110", CROWDED)
            return
        if self._engine is None:
            yield self._failed(session, "E300", NO_ENGINE)
            return
        try:
            image, _, wanted = self._asked(session, data)
            with session.lock:
                self._check_shown(session, data, image)
                landed = session.lands(turn_sent(data))
                comparison = session.new_comparison(wanted) if landed else None
                stop = session.stop
        except RequestError as error:
            yield self._failed(session, "E200", str(error))
            return
        if comparison is None:
            yield self._overtaken(session)
            return
        yield from self._compared(session, comparison, self._engine, stop)

    def open_compared(self, data: gr.EventData, request: gr.Request) -> Json:
        """One run of the comparison, in the usual view."""
        session = self._session(request)
        if session is None:
            return self._failed(None, "E110", CROWDED)
        with session.lock:
            comparison = session.comparison
            trace = None if comparison is None else comparison.trace_named(field_sent(data, "name"))
            if comparison is None or trace is None:
                return self._failed(session, "E403", "This run is not there any more.")
            if not comparison.over:
                return self._failed(
                    session, "E404", "Wait until the comparison is done, or stop it."
                )
            if not session.lands(turn_sent(data)):
                return self._overtaken(session)
            session.before = None
            view = session.new_run(replay=False)
            session.take(view, trace)
            session.end_open_run(view)
            return self.page(session)

    def _compared(
        self,
        session: Session,
        comparison: Comparison,
        engine: StreamEngine,
        stop: threading.Event,
    ) -> Iterator[Json]:
        try:
            while (wanted := comparison.begin()) is not None:
                run = LiveRun(engine, wanted, self._turns, stop)
                yield from self._one_run(session, comparison, run)
                with session.lock:
                    goes_on = comparison.end_run()
                if not goes_on or stop.is_set() or session.comparison is not comparison:
                    break
            comparison.end()
            yield self.page(session) if not session.closed else self._overtaken(session)
        finally:
            stop.set()
            comparison.end()
            logger.info("comparison over: %d runs", len(comparison.traces))

    def _one_run(self, session: Session, comparison: Comparison, run: LiveRun) -> Iterator[Json]:
        batches = run.batches()
        try:
            for batch in batches:
                with session.lock:
                    if session.comparison is not comparison:
                        return
                    comparison.take(batch)
                    session.touch()
                    loading = not getattr(self._engine, "ready", True)
                    state = self.page(session, {"queued": run.ahead, "loading": loading})
                yield state
        finally:
            batches.close()
