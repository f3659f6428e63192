"""The endpoints for programs: the same checks as the page, and nothing kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from app.api import Api
from app.live import StreamEngine, Turns
from app.texts import NO_ENGINE
from engine.group_io import group_to_zip
from engine.request import Request
from engine.trace import Event, Trace
from engine.trace_io import from_json, to_zip
from tests.factories import FakeEngine, chest, events_of, group, offered, png, trace
from tests.unit.imaging.dicom_files import to_file


class Caller:
    """An API in a folder of its own, and uploads as Gradio would put them."""

    def __init__(self, folder: Path, *engines: StreamEngine) -> None:
        self.root = folder / "gradio"
        served = self.root / "served"
        served.mkdir(parents=True)
        self.turns = Turns()
        self.api = Api(offered(*engines), self.turns, upload_root=self.root, served_root=served)

    def uploaded(self, data: bytes) -> Any:
        file = self.root / "0123abcd" / "image.bin"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        return {"path": str(file), "meta": {"_type": "gradio.FileData"}}

    def explain(self, question: Any = "Where?", **others: Any) -> list[dict[str, Any]]:
        image = others.pop("image", None) or self.uploaded(png(chest(64)))
        return list(self.api.explain(image, question, **others))


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    return Caller(tmp_path, FakeEngine())


def test_a_run_comes_event_by_event_and_leaves_no_file(caller: Caller) -> None:
    lines = caller.explain("Is it round?", options=["yes", "no"], settings={"seed": 7})

    run = Trace.from_events(from_json(json.loads(json.dumps(line))) for line in lines)
    assert run.started is not None
    assert run.started.request.question == "Is it round?"
    assert run.started.request.seed == 7
    assert run.answered is not None
    assert run.answered.text == "yes"
    assert [file for file in caller.root.rglob("*") if file.is_file()] == []


def test_a_saved_run_is_checked_and_returned(caller: Caller) -> None:
    lines = caller.api.load_trace(caller.uploaded(to_zip(trace())))

    assert Trace.from_events(from_json(line) for line in lines) == trace()
    assert [file for file in caller.root.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"question": ""}, "empty"),
        ({"question": 7}, "text"),
        ({"options": "yes"}, "list"),
        ({"method": "guess"}, "method"),
        ({"settings": {"seed": "x"}}, "number"),
        ({"settings": {"frame": "x"}}, "frame"),
        ({"settings": {"frame": 3}}, "frame"),
        ({"settings": {"window": [1]}}, "window"),
        ({"image": {"path": "/etc/passwd"}}, "did not arrive"),
        ({"image": "/etc/passwd"}, "did not arrive"),
        ({"image": {"url": "http://example.org/x.png"}}, "did not arrive"),
    ],
)
def test_bad_input_gets_one_sentence(caller: Caller, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(gr.Error, match=says):
        caller.explain(**arguments)


def test_inner_steps_of_another_image_are_for_the_page(caller: Caller) -> None:
    """A call keeps nothing of the one before: to be told to ask first would not help."""
    with pytest.raises(gr.Error, match=r"keeps nothing of the one before.*--latent-donor"):
        caller.explain(settings={"changes": {"latents": "shuffle"}})


def test_a_kind_of_image_with_burned_in_text_must_have_been_looked_at(caller: Caller) -> None:
    picture = chest(64).astype(np.uint16)
    capture = to_file(picture, Modality="OT", BurnedInAnnotation="YES")

    with pytest.raises(gr.Error, match="burned-in text"):
        caller.explain(image=caller.uploaded(capture))
    assert caller.explain(image=caller.uploaded(capture), settings={"looked": True})


@pytest.mark.parametrize("data", [b"no image", b"PK\x03\x04 no archive"])
def test_files_of_the_wrong_kind_are_refused(caller: Caller, data: bytes) -> None:
    with pytest.raises(gr.Error):
        caller.explain(image=caller.uploaded(data))
    with pytest.raises(gr.Error, match="saved trace"):
        caller.api.load_trace(caller.uploaded(data))


def test_a_group_is_refused_with_what_it_is_and_what_to_do(caller: Caller) -> None:
    with pytest.raises(gr.Error) as caught:
        caller.api.load_trace(caller.uploaded(group_to_zip(group())))

    message = str(caught.value)
    assert "This is a saved group (*.radgroup.zip), not a trace" in message
    assert "open it on the page" in message


def test_without_an_engine_only_saved_runs_are_read(tmp_path: Path) -> None:
    caller = Caller(tmp_path)

    with pytest.raises(gr.Error, match=NO_ENGINE):
        caller.explain()
    assert caller.api.load_trace(caller.uploaded(to_zip(trace())))


class Waiting:
    """An engine that says when it was stopped."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        yield next(events_of(request))
        assert stop is not None
        if stop.wait(60.0):
            self.ended.set()


def test_a_caller_that_goes_away_ends_its_run(tmp_path: Path) -> None:
    engine = Waiting()
    caller = Caller(tmp_path, engine)
    stream = caller.api.explain(caller.uploaded(png(chest(64))), "Where?")
    assert next(stream)["type"] == "RunStarted"

    stream.close()  # type: ignore[attr-defined]

    assert engine.ended.wait(60.0)


def test_runs_of_programs_wait_in_the_line_of_the_page(caller: Caller) -> None:
    ahead = caller.turns.join()
    results: list[list[dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: results.append(caller.explain()))
    thread.start()
    thread.join(0.3)
    waited = not results
    caller.turns.leave(ahead)
    thread.join()

    assert waited
    assert results[0][-1]["type"] == "Finished"
