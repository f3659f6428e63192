"""The listeners of the page for comparing ways to look again."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import gradio as gr

from app.comparison import Comparison
from app.live import LiveRun, Turns
from app.session import Session
from app.tabs import Asked, Begun, Json, NotBegunError, Tabs, field_sent, turn_sent
from app.texts import CROWDED

logger = logging.getLogger(__name__)


class CompareHandlers:
    """Listeners that make a comparison and open its runs.

    Args:
        tabs: what they share with all other listeners.
        turns: the line in which runs wait.
    """

    def __init__(self, tabs: Tabs, turns: Turns) -> None:
        self._tabs = tabs
        self._turns = turns

    def compare(self, data: gr.EventData, request: gr.Request) -> Iterator[Json]:
        """Runs the question in every way and streams what has come of it so far."""
        try:
            begun = self._tabs.begin(data, request, _new_comparison)
        except NotBegunError as refusal:
            yield refusal.state
            return
        yield from self._compared(begun)

    def open_compared(self, data: gr.EventData, request: gr.Request) -> Json:
        """One run of the comparison, in the usual view."""
        session = self._tabs.session(request)
        if session is None:
            return self._tabs.failed(None, "E110", CROWDED)
        with session.lock:
            comparison = session.comparison
            trace = None if comparison is None else comparison.trace_named(field_sent(data, "name"))
            if comparison is None or trace is None:
                return self._tabs.failed(session, "E403", "This run is not there any more.")
            if not comparison.over:
                return self._tabs.failed(
                    session, "E404", "Wait until the comparison is done, or stop it."
                )
            if not session.lands(turn_sent(data)):
                return self._tabs.overtaken(session)
            view = session.new_run(replay=False, model=comparison.model)
            session.take(view, trace)
            session.end_open_run(view)
            return self._tabs.page(session)

    def _compared(self, begun: Begun[Comparison]) -> Iterator[Json]:
        session, comparison, stop = begun.session, begun.work, begun.stop
        try:
            while (wanted := comparison.begin()) is not None:
                run = LiveRun(begun.asked.model.engine, wanted, self._turns, stop)
                yield from self._one_run(session, comparison, run)
                with session.lock:
                    goes_on = comparison.end_run()
                if not goes_on or stop.is_set() or session.comparison is not comparison:
                    break
            comparison.end()
            yield self._tabs.overtaken(session)
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
                    state = self._tabs.underway(session, run)
                yield state
        finally:
            batches.close()


def _new_comparison(session: Session, asked: Asked) -> Comparison:
    return session.new_comparison(asked.request, asked.model.key)
