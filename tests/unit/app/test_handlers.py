"""What the page asks for, and what it gets back."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from app import handlers as handlers_module
from app import session as session_module
from app import tabs as tabs_module
from app.handlers import Handlers
from app.live import StreamEngine, Turns
from app.samples import Sample
from app.session import Sessions
from app.tabs import Tabs
from app.texts import CROWDED, IMAGE_GONE, LOOK_FIRST, NO_DONOR, NO_TAB, OTHER_IMAGE
from engine.group_io import group_to_zip, is_group_file
from engine.request import Request
from engine.trace import Event, LatentStep, RunStarted
from engine.trace_io import read_trace, to_zip
from tests.factories import FakeEngine, chest, group, offered, png, trace
from tests.unit.imaging.dicom_files import to_file

FORM = {
    "question": "A secret question?",
    "options": ["yes", "no"],
    "method": "auto",
    "threshold": 1.5,
}


class Page:
    """One tab: calls the handlers as Gradio would, and counts what it asks for as the page does."""

    def __init__(self, handlers: Handlers, upload_root: Path, key: str) -> None:
        self.handlers = handlers
        self.upload_root = upload_root
        self.request = gr.Request(session_hash=key)
        self.turn = 0
        self.shown: str | None = None

    def event(self, **payload: object) -> gr.EventData:
        return gr.EventData(None, payload)

    def next(self) -> int:
        self.turn += 1
        return self.turn

    def upload(self, data: bytes, turn: int | None = None) -> dict[str, Any]:
        turn = turn or self.next()
        folder = self.upload_root / f"abcdef{turn}"
        folder.mkdir(exist_ok=True)
        file = folder / "0011.bin"
        file.write_bytes(data)
        state = self.handlers.open_image(self.event(turn=turn, path=str(file)), self.request)
        self.shown = state["image"] and state["image"]["id"]
        return state

    def stream(self, **changes: object) -> Iterator[dict[str, Any]]:
        asked = self.event(turn=self.next(), image=self.shown, form={**FORM, **changes})
        return self.handlers.explain(asked, self.request)

    def explain(self, **changes: object) -> list[dict[str, Any]]:
        return list(self.stream(**changes))

    def frame(self, frame: int, turn: int | None = None) -> dict[str, Any]:
        asked = self.event(turn=turn or self.next(), frame=frame)
        return self.handlers.set_frame(asked, self.request)


class Bench:
    """All listeners around an engine, in a folder of their own."""

    def __init__(self, folder: Path, *engines: StreamEngine, more: tuple[Sample, ...] = ()) -> None:
        self.upload_root = folder / "gradio"
        self.upload_root.mkdir()
        served = self.upload_root / "served"
        sample = folder / "sample.png"
        sample.write_bytes(png(chest(64)))
        recorded = folder / "sample.radtrace.zip"
        recorded.write_bytes(to_zip(trace()))
        self.sessions = Sessions(folder / "private", served)
        self.tabs = Tabs(offered(*engines), self.sessions)
        self.turns = Turns()
        self.handlers = Handlers(
            self.tabs,
            (
                Sample(path=sample, title="Drawn", kind="phantom", question="Where?", truth="left"),
                Sample(path=recorded, title="Recorded", kind="recorded"),
                *more,
            ),
            self.turns,
            upload_root=self.upload_root,
            served_root=served,
            version="9.9",
        )

    def page(self, key: str = "tab") -> Page:
        return Page(self.handlers, self.upload_root, f"session-{key}")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, FakeEngine())


def test_an_image_opens_with_its_facts_and_files(bench: Bench) -> None:
    state = bench.page().upload(png(chest(64)))

    facts = state["image"]
    assert (facts["width"], facts["height"], facts["kind"]) == (64, 64, "grey16")
    assert len((Path(facts["folder"]) / "image.raw").read_bytes()) == 64 * 64 * 2
    assert [file for file in bench.upload_root.rglob("*") if file.suffix == ".bin"] == []


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


@pytest.mark.parametrize("tag", ["YES", "NO"])
def test_a_picture_with_burned_in_text_is_run_once_somebody_has_looked(
    bench: Bench, tag: str
) -> None:
    page = bench.page()
    ultrasound = to_file(chest(64).astype(np.uint16), Modality="US", BurnedInAnnotation=tag)
    assert page.upload(ultrasound)["image"]["burned_in"] is True

    for looked in (None, False, "yes", 1):
        (refused,) = page.explain(looked=looked)
        assert refused["error"]["message"] == LOOK_FIRST
    assert page.explain(looked=True)[-1]["run"]["status"] == "answered"


def test_a_sample_whose_burned_in_text_is_known_says_so_and_asks_for_no_tick(
    tmp_path: Path,
) -> None:
    file = tmp_path / "sample.dcm"
    file.write_bytes(to_file(chest(64).astype(np.uint16), Modality="US"))
    known = Sample(path=file, title="Ultrasound", kind="real", burned_in="A hospital is named.")
    page = Bench(tmp_path, FakeEngine(), more=(known,)).page()

    state = page.handlers.open_sample(page.event(turn=page.next(), index=2), page.request)
    page.shown = state["image"]["id"]

    assert state["image"]["burned_in"] is False
    assert "A hospital is named." in state["image"]["warnings"]
    assert page.explain()[-1]["run"]["status"] == "answered"
    assert page.frame(0)["image"]["burned_in"] is False
    assert page.upload(file.read_bytes())["image"]["burned_in"] is True


def test_without_an_engine_runs_are_refused_and_replays_work(tmp_path: Path) -> None:
    page = Bench(tmp_path).page()
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


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"question": "Is it large?"}, ["the question"]),
        ({"options": ["no", "yes"]}, ["the answer options"]),
        ({"method": "zoom"}, ["the method"]),
        ({"seed": 3, "temperature": 0.7}, ["the seed", "the temperature"]),
        ({"max_crops": 1}, ["the number of closer looks"]),
        ({"latent_steps": 2}, ["the number of inner steps"]),
        ({"threshold": 0.9}, ["the limit from which it looks again"]),
        ({"window": [100.0, 50.0, "LINEAR", "request"]}, ["the window"]),
    ],
)
def test_only_the_same_request_is_compared(
    bench: Bench, changes: dict[str, Any], differs: list[str]
) -> None:
    page = bench.page()
    page.upload(png(chest(96)))
    page.explain()

    last = page.explain(compare=True, **{"changes": {"latents": "zero"}, **changes})[-1]

    assert last["before"] == {"differs": differs}


def test_every_what_if_is_compared_with_the_run_without_a_change(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(96)))
    unchanged = page.explain(changes={})[-1]["run"]
    page.explain(compare=True, changes={"skip_crops": [1]})

    second = page.explain(compare=True, changes={"latents": "zero"})[-1]

    answer = next(json.loads(line) for line in unchanged["items"].splitlines() if '["a"' in line)
    assert second["before"] == {"answer": answer[1], "probabilities": answer[4]}
    assert second["before"]["probabilities"][0] == pytest.approx(0.91)


def test_what_is_covered_is_a_change_alone_and_none_beside_another(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(96)))
    left, right = {"occlude": [[0.0, 0.0, 0.5, 1.0]]}, {"occlude": [[0.5, 0.0, 1.0, 1.0]]}
    other = {"differs": ["what is covered"]}
    # Covered from the first run on: another change has that run to stand beside, the cover none.
    page.explain(changes=left)
    assert page.explain(compare=True, changes={**left, "latents": "zero"})[-1]["before"]["answer"]
    assert page.explain(compare=True, changes=left)[-1]["before"] == other
    assert page.explain(compare=True, changes={**right, "latents": "zero"})[-1]["before"] == other
    assert page.explain(compare=True, changes={"latents": "zero"})[-1]["before"] == other
    # Once there is one with nothing covered, the cover stands beside that.
    page.explain(changes={})
    assert page.explain(compare=True, changes=right)[-1]["before"]["answer"] == "yes"
    assert page.explain(compare=True, changes={"latents": "zero"})[-1]["before"]["answer"] == "yes"


def test_without_a_run_without_a_change_nothing_is_compared(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(96)))
    page.explain(changes={"latents": "zero"})

    assert page.explain(compare=True, changes={"skip_crops": [1]})[-1]["before"] is None
    page.explain()
    page.upload(png(chest(64)))
    assert page.explain(compare=True, changes={"skip_crops": [1]})[-1]["before"] is None


class Asked(FakeEngine):
    """Keeps what it was asked."""

    def __init__(self, name: str = "synthetic") -> None:
        super().__init__(name=name)
        self.requests: list[Request] = []

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        self.requests.append(request)
        return super().stream(request, stop)


SHUFFLED = {"changes": {"latents": "shuffle"}}


def steps_taken(bench: Bench, page: Page) -> tuple[bytes, ...]:
    """What the inner steps of the tab's run were fed."""
    session = bench.tabs.session(page.request)
    assert session is not None
    return tuple(event.vector for event in session.events if isinstance(event, LatentStep))


def test_inner_steps_of_another_image_are_fed_in(tmp_path: Path) -> None:
    engine, other = Asked(), Asked("another")
    bench = Bench(tmp_path, engine, other)
    page = bench.page()
    first, second = (key["key"] for key in bench.tabs.models.to_json())
    assert page.upload(png(chest(64)))["donors"] == {}
    page.explain(model=first)
    steps = steps_taken(bench, page)
    assert steps

    assert page.upload(png(chest(64, 2)))["donors"] == {
        first: {"title": "", "question": FORM["question"]}
    }
    changed = page.explain(model=first, **SHUFFLED)[-1]

    assert engine.requests[-1].interventions.latent_donor == steps
    assert changed["run"]["facts"]["changes"]["latents"] == "shuffle"
    assert changed["run"]["donor"] == {"title": "", "question": FORM["question"]}
    refused = page.explain(model=second, **SHUFFLED)[0]
    assert refused["error"]["message"] == NO_DONOR
    assert other.requests == []
    assert page.explain(model=first)[-1]["run"]["donor"] is None
    assert engine.requests[-1].interventions.latent_donor == ()


def test_a_changed_run_lends_no_inner_steps(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    page.explain(changes={"latents": "zero"})

    assert page.upload(png(chest(64, 2)))["donors"] == {}
    assert page.explain(**SHUFFLED)[0]["error"]["message"] == NO_DONOR


def test_an_image_never_gets_its_own_inner_steps(tmp_path: Path) -> None:
    """Not after a run on it, and not when its file is opened again."""
    engine = Asked()
    bench = Bench(tmp_path, engine)
    page = bench.page()
    page.upload(png(chest(64)))
    page.explain()
    own = steps_taken(bench, page)
    assert page.explain()[-1]["donors"] == {}
    assert page.upload(png(chest(64)))["donors"] == {}
    assert page.explain(**SHUFFLED)[0]["error"]["message"] == NO_DONOR

    page.upload(png(chest(64, 2)))
    page.explain()
    lent = steps_taken(bench, page)
    assert lent != own
    # Its own are the newer ones.
    page.explain(**SHUFFLED)
    assert engine.requests[-1].interventions.latent_donor == own
    page.upload(png(chest(64)))
    page.explain(**SHUFFLED)
    assert engine.requests[-1].interventions.latent_donor == lent

    session = bench.tabs.session(page.request)
    assert session is not None
    assert len(session.donors) == 2
    session.close()
    assert session.donors == []


def test_a_run_without_a_change_is_compared_with_nothing(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    page.explain()
    assert page.explain(compare=True, changes={"latents": "none"})[-1]["before"] is None


def test_a_frame_of_an_image_that_is_gone_is_refused_in_words(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    bench.sessions.drop(page.request.session_hash or "")
    assert page.frame(1)["error"]["message"] == IMAGE_GONE


def test_opening_an_image_ends_the_run_in_progress(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    stream = page.stream()
    next(stream)

    opened = page.upload(png(chest(64, 2)))
    rest = list(stream)

    assert rest[-1]["run"] is None
    assert rest[-1]["image"]["id"] == opened["image"]["id"]


def test_closing_the_tab_in_a_run_ends_it_quietly(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    stream = page.stream()
    next(stream)

    bench.tabs.close(page.request)

    (last,) = list(stream)
    assert last["run"] is None
    assert last["error"]["code"] == "E111"
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

    same = page.frame(0)
    beyond = page.frame(5)

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
    page.upload(png(chest(64, 2)))
    assert page.handlers.chart(page.request) == (gr.skip(), gr.update(visible=False))


def member(page: Page, number: object) -> dict[str, Any]:
    asked = page.event(turn=page.next(), member=number)
    return page.handlers.open_member(asked, page.request)


def test_a_group_opens_as_a_tree_and_its_members_as_runs(bench: Bench) -> None:
    page = bench.page()
    tree = group()

    state = page.upload(group_to_zip(tree))

    assert (state["image"], state["run"]) == (None, None)
    assert state["group"]["member"] is None
    assert len(state["group"]["members"]) == 6
    assert state["form"]["question"] == "What is the margin of the nodule?"
    folder = Path(state["group"]["folder"])
    assert (folder / "display.png").read_bytes() == tree.started.image.display_png
    assert page.handlers.chart(page.request) == (gr.skip(), gr.update(visible=False))

    opened = member(page, 3)
    assert opened["group"]["member"] == 3
    assert opened["run"]["replay"] is True
    assert opened["run"]["status"] == "answered"
    assert opened["run"]["facts"]["seed"] == 3
    saved = page.handlers.save_trace(page.request)
    file = Path(saved["run"]["folder"]) / saved["download"]["name"]
    assert read_trace(file) == tree.members[3].trace

    back = member(page, None)
    assert back["run"] is None
    assert back["group"]["member"] is None
    assert not Path(opened["run"]["folder"]).exists()
    assert folder.exists()


@pytest.mark.parametrize("number", [-1, 6, 1.0, True, "1", [1], None])
def test_a_member_that_is_none_leads_back_to_the_tree(bench: Bench, number: object) -> None:
    page = bench.page()
    page.upload(group_to_zip(group()))

    assert member(page, number)["group"]["member"] is None


def test_without_a_group_there_is_no_member(bench: Bench) -> None:
    assert member(bench.page(), 0)["error"]["code"] == "E403"


@pytest.mark.parametrize("content", [png(chest(64)), to_zip(trace())])
def test_whatever_is_opened_next_takes_the_place_of_the_group(bench: Bench, content: bytes) -> None:
    page = bench.page()
    folder = Path(page.upload(group_to_zip(group()))["group"]["folder"])
    member(page, 1)

    state = page.upload(content)

    assert "group" not in state
    assert not folder.exists()


def flipped_group() -> bytes:
    """A group with one byte of a stored picture changed, so that its CRC does not match."""
    data = group_to_zip(group())
    place = data.index(b"\x89PNG") + 50
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def test_a_damaged_group_leaves_what_is_open(bench: Bench) -> None:
    page = bench.page()
    page.upload(group_to_zip(group()))
    opened = member(page, 2)

    assert is_group_file(flipped_group())
    state = page.upload(flipped_group())

    assert state["error"]["code"] == "E402"
    assert state["error"]["message"].startswith("The saved group is damaged")
    assert state["group"] == opened["group"]
    assert state["run"] == opened["run"]
    assert Path(state["group"]["folder"], "display.png").exists()


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


# --- two things at once ------------------------------------------------------------------------


class Gate:
    """Holds the calls of a function whose first argument it was given, until it is opened."""

    def __init__(self, function: Callable[..., Any], held: Callable[[object], bool]) -> None:
        self._function = function
        self._held = held
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, first: object, *others: object, **named: object) -> Any:
        if self._held(first):
            self.reached.set()
            assert self.opened.wait(60.0)
        return self._function(first, *others, **named)


class Background:
    """Calls a function in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result: Any = None
        self._thread = threading.Thread(target=self._work, args=(function,))
        self._thread.start()

    def _work(self, function: Callable[[], Any]) -> None:
        self.result = function()

    def join(self) -> Any:
        self._thread.join()
        return self.result


def folders_of(page: Page, bench: Bench) -> set[str]:
    """The folders that the tab can fetch from."""
    session = bench.sessions.get(page.request.session_hash or "")
    return {folder.name for folder in session.served.iterdir()}


def test_a_second_run_takes_the_place_of_the_first(tmp_path: Path) -> None:
    # Slow enough to be still going on when the second begins, on a busy machine as well.
    page = Bench(tmp_path, FakeEngine(delay=0.02)).page()
    page.upload(png(chest(64)))
    first = page.stream()
    for _ in range(2):
        began = next(first)

    second = page.explain(question="Another question?")
    rest = list(first)

    assert second[-1]["run"]["key"] != began["run"]["key"]
    assert [state["run"]["key"] for state in rest] == [second[-1]["run"]["key"]]
    saved = page.handlers.save_trace(page.request)
    kept = read_trace(Path(saved["run"]["folder"]) / saved["download"]["name"])
    assert kept.started is not None
    assert kept.started.request.question == "Another question?"
    assert len([event for event in kept if isinstance(event, RunStarted)]) == 1


def test_a_slow_image_does_not_land_after_a_later_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = png(chest(64, 1)), png(chest(96, 2))
    gate = Gate(handlers_module.open_image, lambda content: content == slow)
    monkeypatch.setattr(handlers_module, "open_image", gate)
    page = bench.page()
    late = Background(lambda: page.upload(slow))
    assert gate.reached.wait(60.0)

    shown = page.upload(quick)
    gate.opened.set()
    after = late.join()

    assert shown["image"]["width"] == after["image"]["width"] == 96
    assert shown["image"]["id"] == after["image"]["id"]
    assert folders_of(page, bench) == {shown["image"]["id"]}


def test_an_upload_that_took_long_to_arrive_does_not_land_after_a_later_sample(
    bench: Bench,
) -> None:
    page = bench.page()
    page.handlers.open_sample(page.event(turn=2, index=0), page.request)

    state = page.upload(png(chest(96)), turn=1)
    trace_state = page.upload(to_zip(trace()), turn=1)

    assert state["image"]["width"] == trace_state["image"]["width"] == 64
    assert trace_state["run"] is None


def test_a_file_that_failed_too_late_says_nothing(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)), turn=2)

    state = page.upload(b"not an image", turn=1)

    assert "error" not in state
    assert state["image"]["width"] == 64


def test_a_frame_of_an_image_that_is_gone_does_not_land(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    gate = Gate(handlers_module.open_image, lambda content: isinstance(content, Path))
    monkeypatch.setattr(handlers_module, "open_image", gate)
    late = Background(lambda: page.frame(0, turn=9))
    assert gate.reached.wait(60.0)

    shown = page.upload(png(chest(96)), turn=8)
    gate.opened.set()
    after = late.join()

    assert after["image"]["id"] == shown["image"]["id"]
    assert after["turn"] == 9
    assert "error" not in after
    assert folders_of(page, bench) == {shown["image"]["id"]}


def test_only_the_image_that_the_page_shows_is_explained(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64, 1)))
    shown = page.shown
    page.upload(png(chest(64, 2)))
    page.shown = shown

    (old,) = page.explain()
    page.shown = None
    (none,) = page.explain()

    assert old["error"]["message"] == none["error"]["message"] == OTHER_IMAGE
    assert old["run"] is None


def test_an_image_that_opens_while_a_run_is_prepared_is_not_explained_unseen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = bench.page()
    page.upload(png(chest(64, 1)))
    gate = Gate(tabs_module.display_image, lambda _: True)
    monkeypatch.setattr(tabs_module, "display_image", gate)
    asked = Background(page.explain)
    assert gate.reached.wait(60.0)

    shown = page.upload(png(chest(96, 2)), turn=1_000)
    gate.opened.set()
    (refused,) = asked.join()

    assert refused["error"]["message"] == OTHER_IMAGE
    assert refused["image"]["id"] == shown["image"]["id"]
    assert refused["run"] is None


def test_an_image_that_was_deleted_meanwhile_is_asked_for_again(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    bench.tabs.close(page.request)

    (state,) = page.explain()

    assert state["error"]["message"] == IMAGE_GONE


def test_a_stop_that_comes_before_its_run_is_not_lost(tmp_path: Path) -> None:
    engine = FakeEngine()
    bench = Bench(tmp_path, engine)
    page = bench.page()
    page.upload(png(chest(64)))
    page.handlers.stop(page.event(turn=2), page.request)

    stopped = page.explain()[-1]
    saved = page.handlers.save_trace(page.request)
    again = page.explain()[-1]

    assert stopped["turn"] == 2
    assert stopped["run"]["status"] == "stopped"
    assert stopped["run"]["items"] == ""
    assert saved["error"]["code"] == "E400"
    assert again["run"]["status"] == "answered"
    assert engine.runs == 1


def test_a_stop_that_comes_too_late_spares_the_next_run(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    page.explain()
    stream = page.stream()
    next(stream)

    page.handlers.stop(page.event(turn=2), page.request)

    assert list(stream)[-1]["run"]["status"] == "answered"


def test_a_run_that_was_stopped_before_its_first_event_cannot_be_saved(tmp_path: Path) -> None:
    # With a pause before each event, this engine ends without having said what it runs.
    bench = Bench(tmp_path, FakeEngine(delay=60.0))
    page = bench.page()
    page.upload(png(chest(64)))
    stream = page.stream()
    next(stream)
    page.handlers.stop(page.event(turn=page.turn), page.request)

    last = list(stream)[-1]
    saved = page.handlers.save_trace(page.request)

    assert last["run"]["status"] == "stopped"
    assert last["run"]["facts"] is None
    assert saved["error"]["message"] == "There is no run to save yet."
    assert "download" not in saved


def test_a_stream_that_is_given_up_is_no_longer_running(bench: Bench) -> None:
    page = bench.page()
    page.upload(png(chest(64)))
    stream = page.stream()
    next(stream)
    session = bench.sessions.get(page.request.session_hash or "")
    assert session.running

    stream.close()  # type: ignore[attr-defined]

    assert not session.running


def test_a_trace_without_an_end_replays_as_stopped(bench: Bench) -> None:
    events = trace().events[:9]

    state = bench.page().upload(to_zip(events))

    assert state["run"]["status"] == "stopped"


# --- whose session it is -------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "none", "null"])
def test_a_caller_without_a_tab_is_refused(bench: Bench, key: str | None) -> None:
    page = bench.page()
    page.request = gr.Request(session_hash=key)

    for call in (page.explain, lambda: page.upload(png(chest(64))), lambda: page.frame(0)):
        with pytest.raises(gr.Error, match=NO_TAB):
            call()
    assert len(bench.sessions) == 0


def test_a_tab_without_room_gets_one_sentence(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_SESSIONS", 1)
    busy, new = bench.page("busy"), bench.page("new")
    busy.upload(png(chest(64)))
    stream = busy.stream()
    next(stream)

    states = [
        new.upload(png(chest(64))),
        new.handlers.open_sample(new.event(turn=1, index=0), new.request),
        new.frame(1),
        *new.explain(),
        new.handlers.save_trace(new.request),
    ]
    new.handlers.stop(new.event(turn=9), new.request)

    assert {state["error"]["message"] for state in states} == {CROWDED}
    assert {state["error"]["code"] for state in states} == {"E110"}
    assert new.handlers.chart(new.request) == (gr.skip(), gr.skip())
    assert list(stream)[-1]["run"]["status"] == "answered"
    assert new.upload(png(chest(64)))["image"]["width"] == 64
