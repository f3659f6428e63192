"""What the page asks for, and what it gets back."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from app.handlers import Handlers
from app.live import StreamEngine
from app.samples import Sample
from app.session import Sessions
from engine.trace_io import read_trace, to_zip
from tests.factories import FakeEngine, chest, png, trace

FORM = {
    "question": "A secret question?",
    "options": ["yes", "no"],
    "method": "auto",
    "threshold": 1.5,
}


class Page:
    """One tab: calls the handlers as Gradio would."""

    def __init__(self, handlers: Handlers, upload_root: Path, key: str) -> None:
        self.handlers = handlers
        self.upload_root = upload_root
        self.request = gr.Request(session_hash=key)

    def event(self, **payload: object) -> gr.EventData:
        return gr.EventData(None, payload)

    def upload(self, data: bytes) -> dict[str, Any]:
        folder = self.upload_root / "abcdef"
        folder.mkdir(exist_ok=True)
        file = folder / "0011.bin"
        file.write_bytes(data)
        return self.handlers.open_image(self.event(path=str(file)), self.request)

    def explain(self, **changes: object) -> list[dict[str, Any]]:
        form = {**FORM, **changes}
        return list(self.handlers.explain(self.event(form=form), self.request))


class Bench:
    """Handlers around an engine, in a folder of their own."""

    def __init__(self, folder: Path, engine: StreamEngine | None) -> None:
        self.upload_root = folder / "gradio"
        self.upload_root.mkdir()
        served = self.upload_root / "served"
        sample = folder / "sample.png"
        sample.write_bytes(png(chest(64)))
        recorded = folder / "sample.radtrace.zip"
        recorded.write_bytes(to_zip(trace()))
        self.sessions = Sessions(folder / "private", served)
        self.handlers = Handlers(
            engine,
            self.sessions,
            (
                Sample(path=sample, title="Drawn", kind="phantom", question="Where?", truth="left"),
                Sample(path=recorded, title="Recorded", kind="recorded"),
            ),
            upload_root=self.upload_root,
            served_root=served,
            version="9.9",
        )

    def page(self, key: str = "tab") -> Page:
        return Page(self.handlers, self.upload_root, key)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, FakeEngine())


def test_an_image_opens_with_its_facts_and_files(bench: Bench) -> None:
    state = bench.page().upload(png(chest(64)))

    facts = state["image"]
    assert (facts["width"], facts["height"], facts["kind"]) == (64, 64, "grey16")
    assert len((Path(facts["folder"]) / "image.raw").read_bytes()) == 64 * 64 * 2
    assert not (bench.upload_root / "abcdef").exists()


def test_every_state_is_json_without_paths_of_the_private_folder(bench: Bench) -> None:
    page = bench.page()
    states = [page.upload(png(chest(64))), *page.explain()]

    for state in states:
        text = json.dumps(state, allow_nan=False)
        assert "private" not in text


def test_a_run_streams_to_its_answer(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))

    states = page.explain()

    assert states[0]["run"]["items"] == ""
    assert states[-1]["run"]["status"] == "answered"
    items = [json.loads(line) for line in states[-1]["run"]["items"].splitlines()]
    assert any(item[0] == "a" and item[1] == "yes" for item in items)


def test_a_run_needs_an_image_and_a_question(bench: Bench) -> None:
    page = bench.page()
    assert page.explain()[0]["error"]["message"] == "Open an image first."
    page.upload(png(chest(64)))

    (state,) = page.explain(question=" ")

    assert state["error"]["code"] == "E200"
    assert state["run"] is None
    assert state["image"] is not None


def test_without_an_engine_runs_are_refused_and_replays_work(tmp_path: Path) -> None:
    page = Bench(tmp_path, None).page()
    page.upload(png(chest(64)))

    (refused,) = page.explain()
    replayed = page.upload(to_zip(trace()))

    assert refused["error"]["code"] == "E300"
    assert refused["live"] is False
    assert replayed["run"]["replay"] is True
    assert replayed["run"]["status"] == "answered"
    assert replayed["form"]["options"] == ["Spiculated", "Smooth", "Lobulated"]


def test_what_is_saved_is_what_was_streamed(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    page.explain()
    state = page.handlers.save_trace(page.request)

    name = state["download"]["name"]
    saved = read_trace(Path(state["run"]["folder"]) / name)

    assert re.fullmatch(r"lightbox-[0-9a-f]{8}\.radtrace\.zip", name)
    assert saved.answered is not None
    assert saved.answered.text == "yes"


def test_there_is_nothing_to_save_before_a_run(bench: Bench) -> None:
    page = bench.page()

    assert page.handlers.save_trace(page.request)["error"]["code"] == "E400"


def test_replay_and_live_run_have_the_same_items(bench: Bench) -> None:
    live, replay = bench.page("live"), bench.page("replay")
    live.upload(png(chest(64)))
    last = live.explain()[-1]
    saved = live.handlers.save_trace(live.request)
    file = Path(saved["run"]["folder"]) / saved["download"]["name"]

    shown = replay.upload(file.read_bytes())

    for part in ("facts", "items", "cards", "scale"):
        assert shown["run"][part] == last["run"][part]


def test_tabs_never_share_anything(bench: Bench) -> None:
    first, second = bench.page("1"), bench.page("2")
    one = first.upload(png(chest(64, 1)))
    two = second.upload(png(chest(64, 2)))
    first.explain()

    state = second.handlers.save_trace(second.request)

    assert state["run"] is None
    assert one["image"]["folder"] != two["image"]["folder"]
    assert state["image"]["id"] == two["image"]["id"]


def test_a_what_if_remembers_the_run_before(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    page.explain()

    changed = page.explain(compare=True, changes={"latents": "zero"})[-1]
    plain = page.explain()[-1]

    assert changed["before"]["answer"] == "yes"
    assert changed["before"]["probabilities"][0] == pytest.approx(0.91)
    assert changed["run"]["facts"]["changes"]["latents"] == "zero"
    assert plain["before"] is None


@pytest.mark.parametrize("changes", [{"question": "Is it large?"}, {"options": ["no", "yes"]}])
def test_only_the_same_question_is_compared(bench: Bench, changes: dict[str, Any]) -> None:
    page = bench.page()
    page.upload(png(chest(96)))
    page.explain()

    assert page.explain(compare=True, **changes)[-1]["before"] is None


def test_opening_an_image_ends_the_run_in_progress(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    stream = page.handlers.explain(page.event(form=FORM), page.request)
    next(stream)

    opened = page.upload(png(chest(64, 2)))
    rest = list(stream)

    assert rest[-1]["run"] is None
    assert rest[-1]["image"]["id"] == opened["image"]["id"]


def test_closing_the_tab_in_a_run_ends_it_quietly(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    stream = page.handlers.explain(page.event(form=FORM), page.request)
    next(stream)

    page.handlers.close(page.request)

    assert list(stream)[-1]["run"] is None
    assert len(bench.sessions) == 0


def test_samples_open_with_their_question_or_as_a_replay(bench: Bench) -> None:
    page = bench.page()

    drawn = page.handlers.open_sample(page.event(index=0), page.request)
    recorded = page.handlers.open_sample(page.event(index=1), page.request)

    assert drawn["form"]["question"] == "Where?"
    assert drawn["form"]["truth"] == "left"
    assert recorded["run"]["replay"] is True


@pytest.mark.parametrize("index", [-1, 2, "0", None, True, 0.0])
def test_samples_that_do_not_exist_are_refused(bench: Bench, index: object) -> None:
    page = bench.page()

    state = page.handlers.open_sample(page.event(index=index), page.request)

    assert state["error"]["message"] == "There is no such sample."


@pytest.mark.parametrize(
    "payload", [None, [], "x", {"path": None}, {"path": "/etc/passwd"}, {"other": 1}]
)
def test_paths_that_are_no_upload_are_refused(bench: Bench, payload: object) -> None:
    page = bench.page()

    state = page.handlers.open_image(gr.EventData(None, payload), page.request)

    assert state["error"]["code"] == "E100"


def test_a_frame_replaces_the_one_before(bench: Bench) -> None:
    page = bench.page()
    first = page.upload(png(chest(64)))

    same = page.handlers.set_frame(page.event(frame=0), page.request)
    beyond = page.handlers.set_frame(page.event(frame=5), page.request)

    assert same["image"]["id"] != first["image"]["id"]
    assert not Path(first["image"]["folder"]).exists()
    assert beyond["error"]["code"] == "E108"
    assert beyond["image"]["id"] == same["image"]["id"]


def test_the_window_of_the_viewer_is_the_window_of_the_run(bench: Bench) -> None:
    values = (np.arange(64 * 64, dtype=np.uint16) * 8).reshape(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    page = bench.page()
    page.upload(buffer.getvalue())

    state = page.explain(window=[5000.0, 800.0, "LINEAR", "request"])[-1]

    assert state["run"]["facts"]["image"]["window"] == [5000.0, 800.0, "request"]


def test_the_chart_is_drawn_for_finished_runs_only(bench: Bench) -> None:
    page = bench.page()
    nothing, _ = page.handlers.chart(page.request)
    page.upload(png(chest(64)))
    page.explain()

    figure, panel = page.handlers.chart(page.request)

    assert nothing == gr.skip()
    assert len(figure.data) == 3
    assert panel["visible"] is True


def test_logs_hold_no_question_answer_or_option(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    page = bench.page()
    with caplog.at_level(logging.DEBUG):
        page.upload(b"not an image")
        page.upload(png(chest(64)))
        page.explain(options=["Hidden one", "Hidden two"])
        page.explain(question="")

    assert "run over: answered" in caplog.text
    assert "secret" not in caplog.text
    assert "Hidden" not in caplog.text
