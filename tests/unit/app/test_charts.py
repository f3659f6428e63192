"""The chart of a finished run."""

from __future__ import annotations

import pytest

from app.charts import plain, run_chart
from app.view import RunView
from engine.trace import Trace
from tests.factories import request, started, trace


def test_the_chart_shows_every_word_and_every_belief() -> None:
    events = trace()
    bars, *lines = run_chart(events).data

    assert list(bars.y) == [token.entropy_nats for token in events.tokens]
    assert [line.name for line in lines] == ["Spiculated", "Smooth", "Lobulated"]
    assert list(lines[0].y) == [belief.probabilities[0] for belief in events.beliefs]


def test_words_above_the_threshold_stand_out() -> None:
    events = trace()
    colors = run_chart(events).data[0].marker.color

    above = [token.entropy_nats > 1.5 for token in events.tokens]

    assert len(set(colors)) == 2
    assert [color == colors[above.index(True)] for color in colors] == above


@pytest.mark.parametrize("limit", [1.5, None])
def test_crops_and_the_limit_are_marked_where_the_timeline_has_them(limit: float | None) -> None:
    events = trace(entropy_threshold=limit)
    figure = run_chart(events)
    strip = [item[0] for item in RunView.from_events(events).items if item[0] in "tlca"]

    line, pin = figure.layout.shapes
    assert line.y0 == line.y1 == (limit or 0.4)
    assert pin.x0 == pin.x1 == strip.index("c") + 1
    assert any(note.text == "crop 1" for note in figure.layout.annotations)
    bars, *beliefs = figure.data
    assert list(bars.x) == [at + 1 for at, kind in enumerate(strip) if kind == "t"]
    assert list(beliefs[0].x) == sorted(beliefs[0].x)
    assert beliefs[0].x[0] == 0.5


def test_a_run_without_belief_has_one_row() -> None:
    bare = Trace((started(request(options=()), "r"), *trace().tokens))

    figure = run_chart(bare)

    assert len(figure.data) == 1
    assert figure.layout.height == 210


def test_an_empty_run_has_an_empty_chart() -> None:
    assert list(run_chart(Trace(())).data[0].y) == []


@pytest.mark.parametrize("text", ["<b>x</b>", "<a href='javascript:1'>x</a>", "a & b < c"])
def test_no_label_holds_markup(text: str) -> None:
    assert "<" not in plain(text)
    figure = run_chart(trace(options=(text, "other")))

    assert "<" not in figure.data[1].name


def test_long_labels_are_shortened() -> None:
    assert plain("x" * 500).endswith("…")
    assert len(plain("x" * 500)) == 60
