"""The models on offer: what their folders say, which one runs, and what is refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from app.live import PreparedEngine, StreamEngine
from app.models import (
    FIRST,
    Checkpoint,
    Models,
    embedded_checkpoints,
    given_checkpoint,
    models_of,
)
from app.startup import CHECKPOINTS
from engine.manifest import Manifest
from engine.request import Request, RequestError
from engine.trace import Event
from tests.factories import FakeEngine, chest, offered, png, trace
from tests.unit.app.test_api import Caller
from tests.unit.app.test_compare_handlers import compared, opened, ready
from tests.unit.app.test_handlers import Bench

WHOLE = ("config.json", "model.safetensors", "ood.safetensors")


def put(root: Path, key: str, text: str | None = None, files: tuple[str, ...] = WHOLE) -> Path:
    """A folder of a checkpoint that was trained for zooming, or with that text as its manifest."""
    folder = root / key
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"")
    manifest = Manifest(name=f"Lightbox {key}", stage=key, trained_methods=("direct", "zoom"))
    (folder / "lightbox.json").write_text(manifest.to_json() if text is None else text)
    return folder


def both(names: tuple[str, str] = ("Lightbox base", "Lightbox other")) -> tuple[FakeEngine, ...]:
    return tuple(FakeEngine(name=name) for name in names)


# ---- folders ---------------------------------------------------------------------------------


def test_every_folder_is_offered_and_base_comes_first(tmp_path: Path) -> None:
    for key in ("medvr", "base", "cold-start"):
        put(tmp_path, key)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("no checkpoint")

    found = embedded_checkpoints(tmp_path)

    assert [one.key for one in found] == ["base", "cold-start", "medvr"]
    assert found[0] == Checkpoint(
        "base", str(tmp_path / "base"), "Lightbox base", "base", ("direct", "zoom")
    )


def test_each_model_that_comes_with_the_program_is_described() -> None:
    shipped = embedded_checkpoints(CHECKPOINTS)
    texts = [one["text"] for one in models_of(shipped, lambda _: FakeEngine()).to_json()]

    assert len(set(texts)) == len(shipped) > 1
    assert all(text.endswith(".") for text in texts)
    foreign = (replace(one, embedded=False) for one in shipped)
    assert {one["text"] for one in models_of(foreign, lambda _: FakeEngine()).to_json()} == {""}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"nmae": 1}', "unknown key 'nmae'"),
        (b"{", "not valid JSON"),
        (b"\xff", "cannot be read"),
        (None, "no lightbox.json"),
    ],
)
def test_a_folder_with_a_bad_manifest_is_left_out_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None, says: str
) -> None:
    put(tmp_path, "base")
    bad = put(tmp_path, "broken") / "lightbox.json"
    if content is None:
        bad.unlink()
    else:
        bad.write_bytes(content)

    with caplog.at_level(logging.INFO, logger="app"):
        found = embedded_checkpoints(tmp_path)

    assert [one.key for one in found] == ["base"]
    (line,) = caplog.messages
    assert line.startswith("checkpoint broken left out: ")
    assert says in line
    assert str(tmp_path) not in line


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        (WHOLE, True),
        (("config.json", "model-00001-of-00002.safetensors"), True),
        (("adapter_config.json", "adapter_model.safetensors"), True),
        (("config.json",), False),
        (("config.json", "ood.safetensors"), False),
        (("config.json", "pytorch_model.bin"), False),
        (("model.safetensors",), False),
        (("adapter_config.json",), False),
        ((), False),
    ],
)
def test_a_folder_without_weights_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, files: tuple[str, ...], usable: bool
) -> None:
    put(tmp_path, "base")
    put(tmp_path, "medvr", files=files)

    found = embedded_checkpoints(tmp_path)

    assert [one.key for one in found] == ["base", *(["medvr"] if usable else [])]
    said = [] if usable else ["checkpoint medvr left out: it has no weights."]
    assert caplog.messages == said


def test_where_base_cannot_be_used_the_log_and_the_page_name_what_runs_instead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "base", files=())
    put(tmp_path, "cold-start")

    found = embedded_checkpoints(tmp_path)
    models = models_of(found, lambda _: FakeEngine(), FIRST)

    assert caplog.messages == [
        "checkpoint base left out: it has no weights.",
        "checkpoint base is not there: cold-start is the default",
    ]
    assert models.chosen(None).key == "cold-start"
    assert models.notice == (
        "The usual model cannot be used here: Lightbox cold-start reads the images in its place."
    )
    # Where it can be, where another was asked for, and where there is none, nothing is said.
    assert models_of([Checkpoint("base", "", "A")], lambda _: FakeEngine(), FIRST).notice == ""
    assert models_of(found, lambda _: FakeEngine()).notice == ""
    assert Models((), FIRST).notice == ""


def test_without_a_folder_nothing_is_offered(tmp_path: Path) -> None:
    assert embedded_checkpoints(tmp_path / "nowhere") == ()


def test_a_given_checkpoint_is_called_as_its_manifest_says(tmp_path: Path) -> None:
    folder = put(tmp_path, "mine")

    assert given_checkpoint(str(folder)).name == "Lightbox mine"
    assert given_checkpoint("org/model") == Checkpoint("model", "org/model", "org/model")
    (folder / "lightbox.json").write_text("{")
    assert given_checkpoint(str(folder)) == Checkpoint("mine", str(folder), "mine")


# ---- choosing --------------------------------------------------------------------------------


def test_the_first_is_the_default_and_an_unknown_name_is_refused() -> None:
    models = offered(*both())

    assert [models.chosen(key).key for key in (None, "", "base")] == ["base"] * 3
    assert models.chosen("other-1").key == "other-1"
    for key in ("medvr", 3, ["base"]):
        with pytest.raises(
            RequestError, match=r"^There is no such model here: .* base, other-1\.$"
        ):
            models.chosen(key)


def test_the_page_tells_models_of_the_same_name_apart() -> None:
    same, apart = offered(*both(("Same", "Same"))), offered(*both())

    assert [one["name"] for one in same.to_json()] == ["Same (base)", "Same (other-1)"]
    assert apart.to_json()[1] == {
        "key": "other-1",
        "name": "Lightbox other",
        "methods": ["direct", "zoom"],
        "text": "",
    }


def test_the_model_of_a_saved_run_is_found_where_it_is_on_offer() -> None:
    started = trace().started
    assert started is not None

    assert offered(*both(("Lightbox base", "synthetic"))).key_of(started.model) == "other-1"
    assert offered(*both(("synthetic", "synthetic"))).key_of(started.model) == ""
    assert offered(*both()).key_of(started.model) == ""
    assert Models().key_of(started.model) == ""


def test_the_models_of_a_hub_id_and_of_an_adapter_are_found_by_their_names(
    tmp_path: Path,
) -> None:
    """As the engine names them: a hub id as a whole, an adapter by its folder."""
    started = trace().started
    assert started is not None
    hub = "Qwen/Qwen2.5-VL-7B-Instruct"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    given = [given_checkpoint(hub), given_checkpoint(str(adapter))]
    models = models_of(given, lambda _: FakeEngine())

    def key_of(name: str, stage: str) -> str:
        return models.key_of(replace(started.model, id=name, stage=stage))

    # The stage is that of a manifest on the hub, or of the adapter's base.
    for stage in ("unknown", "cold-start"):
        assert key_of(hub, stage) == "Qwen2.5-VL-7B-Instruct"
        assert key_of("adapter", stage) == "adapter"
    assert key_of("Qwen2.5-VL-7B-Instruct", "unknown") == ""


# ---- running ---------------------------------------------------------------------------------


def test_the_chosen_model_runs_and_the_page_hears_which(tmp_path: Path) -> None:
    base, other = both()
    page = Bench(tmp_path, base, other).page()
    page.upload(png(chest(64)))

    first, second = page.explain()[-1], page.explain(model="other-1")[-1]

    assert (first["run"]["model"], first["run"]["facts"]["model"]["id"]) == (
        "base",
        "Lightbox base",
    )
    assert (second["run"]["model"], second["run"]["facts"]["model"]["id"]) == (
        "other-1",
        "Lightbox other",
    )
    assert (base.runs, other.runs) == (1, 1)


def test_an_unknown_model_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    base, other = both()
    page = Bench(tmp_path, base, other).page()
    page.upload(png(chest(64)))
    before = page.explain()[-1]

    (state,) = page.explain(model="medvr")

    assert state["error"]["code"] == "E200"
    assert "base, other-1" in state["error"]["message"]
    assert (state["run"], state["image"]) == (before["run"], before["image"])
    assert (base.runs, other.runs) == (1, 0)


def test_answers_are_compared_only_where_the_same_model_gave_them(tmp_path: Path) -> None:
    page = Bench(tmp_path, *both()).page()
    page.upload(png(chest(64)))
    page.explain()

    changed = {"compare": True, "changes": {"latents": "zero"}}

    other = page.explain(model="other-1", **changed)[-1]
    page.explain(model="other-1")
    again = page.explain(model="other-1", **changed)[-1]

    assert other["before"] == {"differs": ["the model"]}
    assert again["before"]["answer"] == "yes"


def test_a_saved_run_fills_its_model_in_where_it_is_on_offer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, *both(("Lightbox base", "synthetic")))
    page = bench.page()

    state = bench.handlers.open_sample(page.event(turn=page.next(), index=1), page.request)

    assert (state["form"]["model"], state["run"]["model"]) == ("other-1", "other-1")


def test_a_comparison_runs_the_chosen_model(tmp_path: Path) -> None:
    base, other = both()
    page = ready(Bench(tmp_path, base, other))

    *_, last = compared(page, model="other-1")
    run = opened(page, "own-calls")["run"]

    assert base.runs == 0
    assert other.runs == len(last["comparison"]["runs"]) > 1
    assert last["comparison"]["model"] == run["model"] == "other-1"
    assert last["comparison"]["report"]["model"] == "Lightbox other"


def test_a_program_chooses_a_model_too(tmp_path: Path) -> None:
    base, other = both()
    caller = Caller(tmp_path, base, other)

    caller.explain()
    caller.explain(model="other-1")

    assert (base.runs, other.runs) == (1, 1)
    with pytest.raises(gr.Error, match="There is no such model here"):
        caller.explain(model="medvr")
    assert [file for file in caller.root.rglob("*") if file.is_file()] == []


class Held(FakeEngine):
    """Runs until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.release = threading.Event(), threading.Event()

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        self.began.set()
        assert self.release.wait(20.0)
        yield from super().stream(request, stop)


def test_runs_of_all_models_wait_in_one_line_and_each_is_made_when_it_runs(tmp_path: Path) -> None:
    first, may_load, made = Held(), threading.Event(), []

    def make() -> StreamEngine:
        made.append("other")
        assert may_load.wait(20.0)
        return FakeEngine()

    bench = Bench(tmp_path, first, PreparedEngine(make, start=False))
    one, two = bench.page("one"), bench.page("two")
    for page in (one, two):
        page.upload(png(chest(64)))
    running = one.stream()
    next(running)
    assert first.began.wait(20.0)

    waiting = two.stream(model="other-1")
    states = [next(waiting), next(waiting)]
    assert [(state["queued"], state["loading"]) for state in states] == [(1, False), (1, False)]
    assert made == []

    first.release.set()
    assert list(running)[-1]["run"]["status"] == "answered"
    may_load.set()
    last = list(waiting)[-1]
    assert (last["run"]["status"], made) == ("answered", ["other"])


def test_loading_is_about_the_engine_that_is_to_run(tmp_path: Path) -> None:
    may_load = threading.Event()

    def make() -> StreamEngine:
        assert may_load.wait(20.0)
        return FakeEngine()

    bench = Bench(tmp_path, FakeEngine(), PreparedEngine(make, start=False))
    page = bench.page()
    page.upload(png(chest(64)))

    assert not any(state.get("loading") for state in page.explain())
    states = page.stream(model="other-1")
    assert next(states)["loading"]
    may_load.set()
    assert list(states)[-1]["run"]["status"] == "answered"


def test_every_checkpoint_gets_an_engine_of_its_own() -> None:
    made: list[str] = []

    def engine_of(checkpoint: Checkpoint) -> StreamEngine:
        made.append(checkpoint.key)
        return FakeEngine()

    models = models_of((Checkpoint("base", "", "A"), Checkpoint("medvr", "", "B")), engine_of)

    assert made == ["base", "medvr"]
    assert models.chosen(None).engine is not models.chosen("medvr").engine
