"""A comparison as the page asks for it, run by run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app import session as session_module
from app.compare_handlers import CompareHandlers
from app.comparison import Comparison
from engine.request import Request
from engine.trace import Event, RunStarted
from tests.factories import FakeEngine, chest, events_of, png, request
from tests.unit.app.test_handlers import FORM, Bench, Page


class ComparePage(Page):
    """A tab that compares."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.handlers, bench.upload_root, "session-tab")
        self.comparing = CompareHandlers(bench.tabs, bench.turns)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, FakeEngine())


def ready(bench: Bench) -> ComparePage:
    page = ComparePage(bench)
    page.upload(png(chest(64)))
    return page


def compared(page: ComparePage, **changes: object) -> Iterator[dict[str, Any]]:
    asked = page.event(turn=page.next(), image=page.shown, form={**FORM, **changes})
    return page.comparing.compare(asked, page.request)


def opened(page: ComparePage, name: object) -> dict[str, Any]:
    return page.comparing.open_compared(page.event(turn=page.next(), name=name), page.request)


def test_every_way_is_run_and_once_more_without_each_crop(bench: Bench) -> None:
    page = ready(bench)

    states = list(compared(page))

    comparison = states[-1]["comparison"]
    assert comparison["runs"] == [
        *("direct", "entropy-rule", "entropy-rule-without-1"),
        *("own-calls", "own-calls-without-1"),
    ]
    assert not comparison["running"]
    assert not comparison["stopped"]
    (zoom,) = comparison["report"]["ways"][1]["zooms"]
    assert zoom["effect"] == "surer"
    assert zoom["gain"] == pytest.approx(0.36)
    files = {file.name for file in Path(comparison["folder"]).iterdir()}
    assert files == {"display.png", "own-calls-crop-1.png", "entropy-rule-crop-1.png"}
    told = [state["comparison"]["now"] for state in states]
    assert any(text.startswith("Run 2 of at least 3: ") for text in told)
    assert all(json.dumps(state, allow_nan=False) for state in states)


def test_a_run_opens_in_the_usual_view_and_the_comparison_stays(bench: Bench) -> None:
    page = ready(bench)
    list(compared(page))

    state = opened(page, "own-calls-without-1")
    gone = opened(page, "own-calls-without-9")

    assert state["run"]["facts"]["changes"]["skip_crops"] == [1]
    assert (state["run"]["status"], state["run"]["replay"]) == ("answered", False)
    assert state["run"]["image"] == state["image"]["id"]
    assert len(state["comparison"]["runs"]) == 5
    assert gone["error"]["code"] == "E403"
    assert "download" in page.handlers.save_trace(page.request)


class Breaks(FakeEngine):
    """Raises in the run by the entropy rule."""

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        if request.entropy_threshold is not None:
            raise RuntimeError("secret detail")
        return super().stream(request, stop)


def test_a_run_that_breaks_off_leaves_the_others(tmp_path: Path) -> None:
    page = ready(Bench(tmp_path, Breaks()))

    *_, last = compared(page)

    ways = {way["way"]: way["failure"] for way in last["comparison"]["report"]["ways"]}
    assert ways["direct"] == ways["own_calls"] == ""
    assert "fault in the program" in ways["entropy_rule"]
    assert "secret detail" not in json.dumps(last)
    assert "own-calls-without-1" in last["comparison"]["runs"]


def test_stopping_keeps_what_is_done(bench: Bench) -> None:
    page = ready(bench)
    states = []
    for state in compared(page):
        states.append(state)
        if state["comparison"]["done"] == 1 and state["comparison"]["words"]:
            page.handlers.stop(page.event(turn=page.turn), page.request)

    comparison = states[-1]["comparison"]
    assert comparison["stopped"]
    assert comparison["runs"][0] == "direct"
    assert len(comparison["runs"]) < 3


def test_a_stop_that_arrives_first_holds(bench: Bench) -> None:
    page = ready(bench)
    page.handlers.stop(page.event(turn=page.turn + 1), page.request)

    *_, last = compared(page)

    assert (last["comparison"]["runs"], last["comparison"]["stopped"]) == ([], True)


def test_another_image_or_run_takes_the_place_of_a_comparison(bench: Bench) -> None:
    page = ready(bench)
    stream = compared(page)
    folder = Path(next(stream)["comparison"]["folder"])
    page.upload(png(chest(64, 2)))

    *_, last = stream

    assert last["comparison"] is None
    assert not folder.exists()

    stream = compared(page)
    next(stream)
    explained = page.explain()[-1]
    *_, last = stream
    assert explained["run"]["status"] == "answered"
    assert last["comparison"]["stopped"]


def test_a_comparison_waits_in_the_line_of_all_runs(bench: Bench) -> None:
    page = ready(bench)
    before = bench.turns.join()
    stream = compared(page)
    waiting = [next(stream), next(stream)]
    bench.turns.leave(before)
    *_, last = stream

    assert waiting[1]["queued"] == 1
    assert len(last["comparison"]["runs"]) == 5


@pytest.mark.parametrize("changes", [{"question": " "}, {"options": ["one"]}, {"threshold": "x"}])
def test_what_cannot_be_run_is_refused(bench: Bench, changes: dict[str, Any]) -> None:
    page = ready(bench)

    (state,) = compared(page, **changes)

    assert state["error"]["code"] == "E200"
    assert state["comparison"] is None


def test_the_picture_of_all_runs_is_held_once(bench: Bench) -> None:
    page = ready(bench)
    list(compared(page))
    comparison = bench.sessions.get(page.request.session_hash or "").comparison
    assert comparison is not None
    images = [trace.started.image for trace in comparison.traces.values() if trace.started]

    assert len(images) == 5
    assert len({id(image.display_png) for image in images}) == 1
    assert len({id(image.seen_png) for image in images}) == 1


def test_a_picture_of_its_own_stays(bench: Bench) -> None:
    asked = request(method="direct")
    comparison = Comparison(asked, bench.upload_root, None)
    for number in range(2):
        comparison.begin()
        start, *others = events_of(asked, f"run-{number}")
        assert isinstance(start, RunStarted)
        picture = png(chest(32, number))
        comparison.take([replace(start, image=replace(start.image, seen_png=picture)), *others])
        comparison.end_run()

    seen = [trace.started.image.seen_png for trace in comparison.traces.values() if trace.started]
    assert seen == [png(chest(32, number)) for number in range(2)]


def test_a_session_that_compares_is_not_taken_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_SESSIONS", 2)
    page, idle = ready(bench), bench.page("idle")
    stream = compared(page)
    next(stream)
    idle.upload(png(chest(64)))
    # Of the two, the one that compares has been without use for longer.
    bench.page("new").upload(png(chest(64)))
    session = bench.sessions.get(page.request.session_hash or "")

    assert session.comparison is not None
    assert session.running
    assert opened(page, "direct")["error"]["code"] == "E403"
    *_, last = stream
    assert len(last["comparison"]["runs"]) == 5
    assert not session.running
