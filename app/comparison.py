"""A comparison of ways to look at one image, as it grows run by run.

What the runs are and what they say is in `engine.comparison`; here are the traces of one tab's
comparison, the pictures that the page fetches, and the state that the page draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.comparison import RunKey, next_run, planned_runs, progress, report_json, request_of
from engine.request import Request
from engine.trace import (
    Event,
    Failed,
    Finished,
    ImageFacts,
    Reground,
    RunStarted,
    TokenStep,
    Trace,
)

Json = dict[str, Any]


class Comparison:
    """The runs of one comparison, made one after the other.

    Attributes:
        folder: served to the page: `display.png` and `NAME-crop-N.png` for the run `NAME`.
        image: id of the open image that it is about.
        model: key of the model that makes the runs.
        traces: of every run that has ended, failed ones included.
        over: whether no further run will be made.
    """

    def __init__(self, request: Request, folder: Path, image: str | None, model: str = "") -> None:
        self.folder = folder
        self.image = image
        self.model = model
        self.traces: dict[RunKey, Trace] = {}
        self.over = False
        self._request = request
        self._current: RunKey | None = None
        self._events: list[Event] = []
        self._words = 0
        self._image: ImageFacts | None = None
        self._report: Json | None = None

    def begin(self) -> Request | None:
        """Begins the run that comes next; returns what it is asked, None when all are made."""
        self._current = next_run(self.traces)
        self._events = []
        self._words = 0
        return None if self._current is None else request_of(self._request, self._current)

    def take(self, events: Iterable[Event]) -> None:
        """Takes events of the run in progress and keeps its pictures for the page."""
        for event in events:
            self._events.append(event)
            if isinstance(event, TokenStep):
                self._words += 1
            elif isinstance(event, RunStarted):
                (self.folder / "display.png").write_bytes(event.image.display_png)
            elif isinstance(event, Reground) and self._current and not self._current.withheld:
                name = f"{self._current.name}-crop-{event.number}.png"
                (self.folder / name).write_bytes(event.crop_png)

    def end_run(self) -> bool:
        """Keeps the run in progress; False, with nothing kept, when it was stopped."""
        last = self._events[-1] if self._events else None
        whole = isinstance(last, Failed) or (
            isinstance(last, Finished) and last.reason != "stopped"
        )
        if whole and self._current is not None:
            self.traces[self._current] = Trace.from_events(map(self._shared, self._events))
            self._report = None
        self._current, self._events = None, []
        return whole

    def _shared(self, event: Event) -> Event:
        """The event, with pictures that the first run has as well held once for all of them."""
        if not isinstance(event, RunStarted):
            return event
        if self._image is None:
            self._image = event.image
        first, image = self._image, event.image
        if (image.display_png, image.seen_png) != (first.display_png, first.seen_png):
            return event
        own = replace(image, display_png=first.display_png, seen_png=first.seen_png)
        return replace(event, image=own)

    def end(self) -> None:
        """No further run will be made."""
        self.over = True
        self._current, self._events = None, []

    def trace_named(self, name: object) -> Trace | None:
        """The trace of a run by its `RunKey.name`."""
        return next((trace for key, trace in self.traces.items() if key.name == name), None)

    def to_json(self) -> Json:
        """What the page draws; the report changes only when a run has ended."""
        if self._report is None:
            self._report = report_json(self.traces)
        total, done = len(planned_runs(self.traces)), len(self.traces)
        return {
            "key": self.folder.name,
            "folder": str(self.folder),
            "image": self.image,
            "model": self.model,
            "running": not self.over,
            "stopped": self.over and done < total,
            "done": done,
            "total": total,
            "now": progress(self.traces, self._current) if self._current else "",
            "words": self._words,
            "current": self._current.name if self._current else "",
            "report": self._report,
            "runs": sorted(key.name for key in self.traces),
            # The question before the first run has said it.
            "question": self._request.question,
        }
