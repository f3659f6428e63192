"""Saved traces: what is written reads back equal, and nothing else is believed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import trace_io
from engine.geometry import Box, SpacingKind
from engine.group_io import is_group_file
from engine.request import Interventions, Sampling
from engine.trace import (
    EVENT_TYPES,
    SCHEMA_VERSION,
    Alternative,
    Answered,
    Belief,
    Event,
    EvidenceMap,
    Failed,
    Finished,
    ImageFacts,
    LatentStep,
    ModelFacts,
    OutOfDistribution,
    Reground,
    RequestFacts,
    RunStarted,
    TokenCounts,
    TokenStep,
    Trace,
    Trigger,
)
from engine.trace_io import (
    NOTICE,
    TraceFileError,
    check_png,
    dumps,
    from_json,
    loads,
    read_trace,
    to_json,
    to_zip,
    write_trace,
)
from tests.factories import png, trace

# --- any events ----------------------------------------------------------------------------

SMALL_PNGS = [png(np.full((side, side), side, dtype=np.uint8)) for side in (1, 2, 3)]
GRIDS = {0: (2, 3), 1: (1, 2)}

text = st.text(max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
seconds = st.floats(0, 1e6)
share = st.floats(0, 1)
count = st.integers(0, 2**40)
pictures = st.sampled_from(SMALL_PNGS)


def tuples(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=3).map(tuple)


def unit_boxes() -> st.SearchStrategy[tuple[float, float, float, float]]:
    edges = st.tuples(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.5, 1), st.floats(0.5, 1))
    return edges.map(lambda e: e)


def maps(image: int) -> st.SearchStrategy[EvidenceMap]:
    rows, columns = GRIDS[image]
    size = rows * columns
    return st.builds(
        EvidenceMap,
        image=st.just(image),
        rows=st.just(rows),
        columns=st.just(columns),
        values=st.binary(min_size=size, max_size=size),
        peak=finite,
        total=finite,
    )


interventions = st.builds(
    Interventions,
    latents=st.sampled_from(["none", "zero", "noise", "blind", "skip"]),
    latent_donor=tuples(st.binary(max_size=8)),
    skip_crops=tuples(count),
    move_crops=tuples(st.tuples(count, unit_boxes().map(lambda e: Box(*e)))),
    occlude=tuples(unit_boxes().map(lambda e: Box(*e))),
)
starts = st.builds(
    RunStarted,
    seconds=seconds,
    run_id=text,
    model=st.builds(
        ModelFacts,
        id=text,
        revision=text,
        stage=text,
        dtype=text,
        device=text,
        parameters=count,
        layers=count,
        embedded=st.booleans(),
        trained_methods=tuples(text),
    ),
    request=st.builds(
        RequestFacts,
        question=text,
        options=tuples(text),
        method=st.sampled_from(["direct", "latent", "zoom", "auto"]),
        seed=count,
        sampling=st.builds(Sampling, temperature=st.floats(0, 10), top_p=st.floats(0.01, 1)),
        max_new_tokens=count,
        max_crops=count,
        latent_steps=count,
        entropy_threshold=st.none() | finite,
        interventions=interventions,
    ),
    image=st.builds(
        ImageFacts,
        sha256=text,
        source_width=st.integers(1, 65_535),
        source_height=st.integers(1, 65_535),
        modality=text,
        window_center=st.none() | finite,
        window_width=st.none() | finite,
        window_source=text,
        left_edge=st.sampled_from(["left", "right", ""]),
        spacing_mm=st.none() | st.tuples(finite, finite),
        spacing_kind=st.sampled_from(get_args(SpacingKind)),
        seen_width=count,
        seen_height=count,
        rows=st.just(GRIDS[0][0]),
        columns=st.just(GRIDS[0][1]),
        display_png=pictures,
        seen_png=pictures,
    ),
    out_of_distribution=st.none()
    | st.builds(OutOfDistribution, score=finite, threshold=finite, flagged=st.booleans()),
    notices=tuples(text),
)
tokens = st.builds(
    TokenStep,
    seconds=seconds,
    index=count,
    token_id=count,
    text=text,
    logprob=finite,
    entropy_nats=finite,
    alternatives=tuples(st.builds(Alternative, token_id=count, text=text, logprob=finite)),
    segment=st.sampled_from(["reasoning", "tool", "answer"]),
    forced=st.booleans(),
    attention=tuples(st.one_of(maps(0), maps(1))),
)
latents = st.builds(
    LatentStep,
    seconds=seconds,
    step=count,
    steps=count,
    attention=tuples(maps(0)),
    similarity=maps(0),
    norm=finite,
    cosine_to_previous=st.none() | finite,
    vector=st.binary(max_size=16).map(lambda raw: raw[: len(raw) // 4 * 4]),
)
crops = st.builds(
    Reground,
    seconds=seconds,
    number=st.just(1),
    box=unit_boxes(),
    box_source_px=st.tuples(count, count, count, count),
    box_seen_px=st.tuples(finite, finite, finite, finite),
    clamped=st.booleans(),
    skipped=st.booleans(),
    trigger=st.builds(
        Trigger,
        kind=st.sampled_from(["tool_call", "entropy", "request"]),
        token_index=count,
        entropy_nats=st.none() | finite,
        threshold=st.none() | finite,
    ),
    rows=st.just(GRIDS[1][0]),
    columns=st.just(GRIDS[1][1]),
    crop_width=count,
    crop_height=count,
    crop_png=pictures,
)
beliefs = st.builds(
    Belief,
    seconds=seconds,
    moment=st.sampled_from(["prefill", "latent", "before_crop", "after_crop", "end"]),
    token_index=count,
    crop=st.none() | count,
    options=tuples(text),
    probabilities=tuples(share),
    outside=share,
)
answers = st.builds(
    Answered,
    seconds=seconds,
    text=text,
    option=st.none() | count,
    valid=st.booleans(),
    options=tuples(text),
    probabilities=tuples(share),
)
ends = st.one_of(
    st.builds(Failed, seconds=seconds, code=text, message=text),
    st.builds(
        Finished,
        seconds=seconds,
        reason=st.sampled_from(["answered", "stopped", "token_budget", "no_answer"]),
        prefill_seconds=finite,
        decode_seconds=finite,
        counts=st.builds(
            TokenCounts,
            prompt=count,
            image=count,
            generated=count,
            latent=count,
            crop=count,
            forwarded=count,
        ),
        peak_memory_bytes=count,
        failed_calls=count,
    ),
)
middles = st.lists(st.one_of(tokens, latents, beliefs, answers), max_size=4)
runs = st.builds(
    lambda start, crop, middle, end: (start, crop, *middle, end), starts, crops, middles, ends
)


@given(events=runs)
@settings(max_examples=40)
def test_any_events_come_back_equal_from_a_file(events: tuple[Event, ...]) -> None:
    assert read_trace(to_zip(events)).events == events


@given(events=runs)
@settings(max_examples=25)
def test_any_event_comes_back_equal_from_its_line(events: tuple[Event, ...]) -> None:
    assert tuple(loads(dumps(event)) for event in events) == events


def test_every_kind_of_event_is_covered_here() -> None:
    assert {type(event) for event in trace()} | {Failed} == set(EVENT_TYPES)


# --- what a line looks like ------------------------------------------------------------------


def test_a_start_from_before_sides_were_kept_has_none() -> None:
    start = trace().events[0]
    assert isinstance(start, RunStarted)
    assert start.image.left_edge == "right"
    old = to_json(start)
    del old["image"]["left_edge"]

    assert from_json(old) == replace(start, image=replace(start.image, left_edge=""))
    with pytest.raises(TraceFileError, match=r"field image\.left_edge"):
        from_json({**old, "image": {**old["image"], "left_edge": "<b>"}})


def test_an_end_from_before_failed_calls_were_kept_has_none() -> None:
    end = trace().events[-1]
    assert isinstance(end, Finished)
    failed = replace(end, failed_calls=2)
    old = to_json(failed)
    assert old.pop("failed_calls") == 2

    assert from_json(old) == replace(end, failed_calls=0)
    assert from_json(to_json(failed)) == failed


@pytest.mark.parametrize(
    ("field", "most", "over", "says"),
    [
        ("question", "q" * 1000, "q" * 1001, "question that is longer"),
        ("options", ("a",) * 10, ("a",) * 11, "more answer options"),
        ("options", ("a" * 200, "b"), ("a", "b" * 201), "answer option that is longer"),
    ],
)
def test_what_could_not_be_asked_is_refused(field: str, most: Any, over: Any, says: str) -> None:
    start = trace().started
    assert start is not None
    longest = replace(start, request=replace(start.request, **{field: most}))
    longer = to_json(replace(start, request=replace(start.request, **{field: over})))

    assert loads(dumps(longest)) == longest
    with pytest.raises(TraceFileError, match=says):
        from_json(longer)


def test_an_event_names_its_type_and_its_seconds_first() -> None:
    for event in trace():
        keys = list(to_json(event))
        assert keys[:2] == ["type", "seconds"]
        assert to_json(event)["type"] == type(event).__name__


def test_pictures_are_inline_unless_a_member_is_named() -> None:
    crop = trace().regrounds[0]

    inline = to_json(crop)
    named = to_json(crop, lambda field, _: f"crops/{field}")

    assert base64.b64decode(inline["crop_png"]) == crop.crop_png
    assert named["crop_png"] == {"file": "crops/crop_png"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_written(value: float) -> None:
    event = replace(trace().tokens[0], entropy_nats=value)

    with pytest.raises(TraceFileError, match="not finite"):
        dumps(event)


# --- the file --------------------------------------------------------------------------------


def test_a_file_is_written_whole_and_can_be_opened_anywhere(tmp_path: Path) -> None:
    events = trace()
    file = tmp_path / "run.radtrace.zip"

    write_trace(file, events, app_version="1.2.3")

    assert read_trace(file) == events
    assert list(tmp_path.iterdir()) == [file]
    with zipfile.ZipFile(file) as archive:
        assert set(archive.namelist()) == {
            "manifest.json",
            "trace.jsonl",
            "display.png",
            "seen.png",
            "crops/1.png",
        }
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest["notice"] == NOTICE
        assert manifest["schema_version"] == SCHEMA_VERSION
        assert manifest["app_version"] == "1.2.3"
        assert (
            manifest["sha256"]["seen.png"] == hashlib.sha256(archive.read("seen.png")).hexdigest()
        )
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_equal_events_give_equal_bytes() -> None:
    assert to_zip(trace()) == to_zip(trace())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "run.radtrace.zip"
    write_trace(file, trace())
    before = file.read_bytes()
    broken = [trace().events[0], replace(trace().tokens[0], logprob=float("nan"))]

    with pytest.raises(TraceFileError):
        write_trace(file, broken)

    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_empty_maps_by_the_thousand_still_read_back() -> None:
    events = trace()
    dark = EvidenceMap(image=0, rows=8, columns=8, values=bytes(64), peak=0.0, total=0.0)
    token = replace(events.tokens[0], attention=(dark,), alternatives=())
    many = Trace((events.events[0], *([token] * 4000)))

    assert read_trace(to_zip(many)) == many


@pytest.mark.parametrize("mark", ["[],", "{},", "0,"])
def test_a_line_of_many_values_is_refused_before_it_is_read(mark: str) -> None:
    """Its lists take two hundred times its length in memory."""
    line = '{"type":"Failed","code":[' + mark * 100_000 + "0]}"
    with pytest.raises(TraceFileError, match="more values in one place"):
        loads(line)


def test_what_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    events = trace().events
    for limit, value, says in (
        ("MAX_CROPS", 0, "more than 0 crops"),
        ("MAX_FILE_BYTES", 100, "takes more than 0 MB"),
        ("MAX_UNPACKED_BYTES", 100, "takes more than 0 MB"),
        ("MAX_EVENTS", 3, "more than 3 events"),
        ("MAX_LINE_BYTES", 10, "too long"),
        ("MAX_PNG_SIDE", 10, "larger than this version accepts"),
        ("MAX_GRID_CELLS", 10, "patch grid"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(trace_io, limit, value)
            with pytest.raises(TraceFileError, match=says) as caught:
                to_zip(events)
        assert str(caught.value).count(".") == 1


@pytest.mark.parametrize(
    ("events", "says"),
    [
        pytest.param((), "empty", id="nothing"),
        pytest.param(trace().events[-1:], "begin with the start", id="stopped before its start"),
        pytest.param(trace().events[1:], "begin with the start", id="no start"),
        pytest.param((*trace().events, trace().events[-1]), "after the end", id="two ends"),
        pytest.param((trace().events[0],) * 2, "more than one run", id="two runs"),
    ],
)
def test_events_that_are_no_run_are_not_written(events: tuple[Event, ...], says: str) -> None:
    with pytest.raises(TraceFileError, match=says):
        to_zip(events)


def test_a_failure_before_the_start_is_kept() -> None:
    failed = Failed(seconds=0.0, code="checkpoint", message="There is no such checkpoint.")

    assert list(read_trace(to_zip([failed]))) == [failed]


@pytest.mark.parametrize("numbers", [(1, 1), (1_000_000, 2)])
def test_crops_that_cannot_be_entries_stay_in_their_events(numbers: tuple[int, int]) -> None:
    start, crop = trace().events[0], trace().regrounds[0]
    run = Trace((start, *(replace(crop, number=number) for number in numbers)))

    data = to_zip(run)

    assert read_trace(data) == run
    assert sum(name.startswith("crops/") for name in members_of(data)) == 1


# --- files that nobody should trust ------------------------------------------------------------


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(
    members: dict[str, bytes], *, sealed: bool = True, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """A zip of the members; sealed ones get a manifest whose checksums match."""
    if sealed:
        manifest = json.loads(members["manifest.json"])
        manifest["sha256"] = {
            name: hashlib.sha256(data).hexdigest()
            for name, data in members.items()
            if name != "manifest.json"
        }
        members = {**members, "manifest.json": json.dumps(manifest).encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def edited(change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    """A good file whose events were changed, with checksums that match."""
    members = members_of(to_zip(trace()))
    lines = [json.loads(line) for line in members["trace.jsonl"].splitlines()]
    change(lines)
    members["trace.jsonl"] = "\n".join(json.dumps(line) for line in lines).encode()
    return packed(members)


def refused(data: bytes, says: str) -> None:
    with pytest.raises(TraceFileError, match=says) as caught:
        read_trace(data)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


def first_token(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line for line in lines if line["type"] == "TokenStep")


def put(index: int, path: list[Any], value: object) -> Callable[[list[dict[str, Any]]], object]:
    def change(lines: list[dict[str, Any]]) -> None:
        target: Any = lines[index] if index >= 0 else first_token(lines)
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("index", "path", "value", "says"),
    [
        pytest.param(-1, ["entropy_nats"], "high", "damaged TokenStep", id="text for a number"),
        pytest.param(-1, ["token_id"], True, "damaged TokenStep", id="truth value for a number"),
        pytest.param(-1, ["token_id"], 1.5, "damaged TokenStep", id="fraction for an integer"),
        pytest.param(-1, ["token_id"], 10**30, "too large", id="huge integer"),
        pytest.param(-1, ["text"], None, "damaged TokenStep", id="missing text"),
        pytest.param(-1, ["segment"], "script", "damaged TokenStep", id="unknown segment"),
        pytest.param(-1, ["onload"], "alert(1)", "damaged TokenStep", id="field too many"),
        pytest.param(-1, ["type"], "Exploit", "kind", id="unknown type"),
        pytest.param(-1, ["type"], ["TokenStep"], "kind", id="type that is a list"),
        pytest.param(-1, ["attention", 0, "values"], "!!", "damaged", id="no base64"),
        pytest.param(-1, ["attention", 0, "rows"], 9, "damaged", id="grid and bytes differ"),
        pytest.param(-1, ["attention", 0, "image"], 7, "map", id="map of an unknown crop"),
        pytest.param(-1, ["seconds"], -1.0, "before the run", id="negative time"),
        pytest.param(0, ["image", "rows"], 10**6, "grid", id="absurd grid"),
        pytest.param(0, ["image", "source_width"], 0, "size", id="no width"),
        pytest.param(0, ["image", "seen_png"], {"file": "../x"}, "not in the file", id="file"),
        pytest.param(0, ["image", "seen_png"], {"file": 3}, "not in the file", id="file number"),
        pytest.param(0, ["image", "seen_png"], "PHN2Zz4=", "not a PNG", id="SVG for a PNG"),
        pytest.param(0, ["request", "sampling", "temperature"], -3, "damaged", id="temperature"),
    ],
)
def test_events_that_cannot_be_are_refused(
    index: int, path: list[Any], value: object, says: str
) -> None:
    refused(edited(put(index, path, value)), says)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_outside_of_json_are_refused(literal: str) -> None:
    members = members_of(to_zip(trace()))
    lines = members["trace.jsonl"].decode().splitlines()
    token = json.loads(lines[2]) | {"norm": 0}
    lines[2] = json.dumps(token).replace('"seconds": ', f'"seconds": {literal}, "x": ', 1)
    members["trace.jsonl"] = "\n".join(lines).encode()

    refused(packed(members), "not finite")


def test_one_picture_cannot_stand_in_many_events() -> None:
    def repeat(lines: list[dict[str, Any]]) -> None:
        crop = next(line for line in lines if line["type"] == "Reground")
        lines.insert(lines.index(crop), crop)

    refused(edited(repeat), "or twice")


def test_a_picture_is_not_put_where_a_text_belongs() -> None:
    refused(edited(put(-1, ["text"], {"file": "display.png"})), "damaged TokenStep")
    refused(edited(put(0, ["image", "sha256"], {"file": "display.png"})), "damaged RunStarted")


def test_the_events_are_no_picture() -> None:
    refused(edited(put(0, ["image", "seen_png"], {"file": "trace.jsonl"})), "not in the file")


def test_more_crops_than_a_file_has_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    start, crop = trace().events[0], trace().regrounds[0]
    good = to_zip([start, *(replace(crop, number=number) for number in range(1, 4))])

    assert len(read_trace(good).regrounds) == 3
    monkeypatch.setattr(trace_io, "MAX_CROPS", 2)
    refused(good, "more than 2 crops")


def swap_start(lines: list[dict[str, Any]]) -> None:
    lines[0], lines[1] = lines[1], lines[0]


def start_again(lines: list[dict[str, Any]]) -> None:
    lines.insert(1, to_json(trace().events[0]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(swap_start, "begin", id="start second"),
        pytest.param(start_again, "more than one run", id="two runs"),
        pytest.param(lambda lines: lines.append(lines[-1]), "after the end", id="two ends"),
        pytest.param(lambda lines: lines.clear(), "empty", id="no events"),
    ],
)
def test_events_out_of_order_are_refused(
    change: Callable[[list[dict[str, Any]]], object], says: str
) -> None:
    refused(edited(change), says)


def test_lines_that_are_no_objects_are_refused() -> None:
    for line in (b"[]", b"7", b"{", b"[" * 50_000, b"\xff\xfe"):
        members = members_of(to_zip(trace())) | {"trace.jsonl": line}
        refused(packed(members, method=zipfile.ZIP_STORED), "line")


def nested(line: bytes, depth: int) -> bytes:
    """A line of JSON with one more field, of as many objects as that in each other."""
    return line.rstrip()[:-1] + b',"a":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


@pytest.mark.parametrize("depth", [300, 500, 700, 900, 1000, 5000])
def test_deep_nesting_is_refused(depth: int) -> None:
    members = members_of(to_zip(trace()))
    first, *others = members["trace.jsonl"].splitlines()
    members["trace.jsonl"] = b"\n".join([first, nested(others[0], depth), *others[1:]])

    refused(packed(members, method=zipfile.ZIP_STORED), "damaged|not valid JSON")


def with_manifest(**changes: object) -> bytes:
    members = members_of(to_zip(trace()))
    manifest = json.loads(members["manifest.json"]) | changes
    return packed(members | {"manifest.json": json.dumps(manifest).encode()}, sealed=False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "not a saved trace", id="empty"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "not a saved trace", id="PNG"),
        pytest.param(to_zip(trace())[:-200], "a part of it is missing", id="truncated"),
        pytest.param(
            packed({"word/document.xml": b"<x/>"}, sealed=False),
            "not a saved trace",
            id="other zip",
        ),
        pytest.param(with_manifest(schema_version=99), "newer version", id="newer"),
        pytest.param(with_manifest(schema_version="1"), "damaged", id="version as text"),
        pytest.param(with_manifest(sha256={}), "checksums", id="no checksums"),
        pytest.param(packed({}, sealed=False), "missing", id="empty zip"),
    ],
)
def test_files_that_are_no_traces_are_refused(data: bytes, says: str) -> None:
    refused(data, says)


@pytest.mark.parametrize(
    "name",
    ["../trace.jsonl", "/etc/passwd", "crops/../x.png", "crops/0.png", "crops/1.svg", "a.zip",
     "crops\\1.png", "crops/", "C:/x.png", "crops/1/2.png"],
)  # fmt: skip
def test_entries_that_do_not_belong_are_refused(name: str) -> None:
    members = members_of(to_zip(trace())) | {name: b"x"}

    refused(packed(members), "does not belong")


def rezipped(prepare: Callable[[zipfile.ZipInfo], object]) -> bytes:
    """A good file whose directory entry for `seen.png` was changed."""
    members = members_of(to_zip(trace()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if name == "seen.png":
                prepare(info)
            archive.writestr(info, data)
    return buffer.getvalue()


def test_links_are_refused() -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    refused(rezipped(link), "plain file")


def test_two_entries_of_one_name_are_refused() -> None:
    good = to_zip(trace())
    buffer = io.BytesIO(good)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("seen.png", SMALL_PNGS[0])

    refused(buffer.getvalue(), "same name")


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    members = members_of(to_zip(trace())) | {"crops/9.png": bytes(30 * 2**20)}

    refused(packed(members), "compressed more")


def test_too_many_entries_and_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    good = to_zip(trace())
    for limit, value, says in (
        ("MAX_ENTRIES", 2, "entries"),
        ("MAX_FILE_BYTES", 100, "larger"),
        ("MAX_UNPACKED_BYTES", 100, "unpacks"),
        ("MAX_EVENTS", 3, "events"),
        ("MAX_LINE_BYTES", 10, "too long"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(trace_io, limit, value)
            refused(good, says)


def crowded(change: Callable[[bytearray, int], object]) -> bytes:
    """An archive of a few thousand names, with a change at the record that ends its directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(6000):
            archive.writestr(f"crops/{number}.png", b"")
    data = bytearray(buffer.getvalue())
    change(data, len(data) - 22)
    return bytes(data)


def count_one(data: bytearray, place: int) -> None:
    data[place + 8 : place + 12] = struct.pack("<HH", 1, 1)


def comment(data: bytearray, place: int) -> None:
    count_one(data, place)
    data[place + 20 :] = struct.pack("<H", 7) + b"comment"


def zip64(data: bytearray, place: int) -> None:
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, place, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    end = data[place : place + 8] + struct.pack("<HHLLH", 1, 1, 0, 0, 0)
    data[place:] = record + locator + end


@pytest.mark.parametrize("change", [lambda *_: None, count_one, comment, zip64])
def test_a_directory_that_is_too_long_is_not_opened(
    change: Callable[[bytearray, int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = crowded(change)
    opened: list[object] = []
    monkeypatch.setattr(zipfile, "ZipFile", opened.append)

    refused(data, "more than 500 entries")
    assert not is_group_file(data)
    monkeypatch.setattr(trace_io, "MAX_FILE_BYTES", 100)
    refused(data, "larger than")
    assert not is_group_file(data)
    assert opened == []


def test_a_comment_does_not_keep_a_file_from_being_read() -> None:
    data = to_zip(trace())

    assert read_trace(data[:-2] + struct.pack("<H", 3) + b"abc") == trace()


def test_a_flipped_byte_is_noticed() -> None:
    good = bytearray(to_zip(trace()))
    good[len(good) // 2] ^= 0xFF

    with pytest.raises(TraceFileError):
        read_trace(bytes(good))


@given(cut=st.integers(0, 400), noise=st.binary(max_size=20))
@settings(max_examples=25)
def test_random_damage_ends_in_one_error(cut: int, noise: bytes) -> None:
    good = to_zip(trace())

    with pytest.raises(TraceFileError):
        read_trace(good[:cut] + noise + good[cut + len(noise) + 1 :])


def test_a_png_is_measured_without_being_decoded() -> None:
    assert check_png(SMALL_PNGS[2]) == (3, 3)
    huge = bytearray(SMALL_PNGS[0])
    huge[16:24] = b"\x00\x01\x00\x00" * 2

    with pytest.raises(TraceFileError, match="larger"):
        check_png(bytes(huge))
    with pytest.raises(TraceFileError, match="not a PNG"):
        check_png(b"\x89PNG")


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        (14_140, 71, True),
        (71, 14_140, True),
        (4096, 4096, True),
        (4097, 4096, False),
        (16_385, 1, False),
        (0, 9, False),
        (9, 0, False),
        (2**31, 2**31, False),
    ],
)
def test_long_pictures_fit_and_large_ones_do_not(width: int, height: int, fits: bool) -> None:
    picture = bytearray(SMALL_PNGS[0])
    picture[16:24] = struct.pack(">II", width, height)

    if fits:
        assert check_png(bytes(picture)) == (width, height)
    else:
        with pytest.raises(TraceFileError, match="larger"):
            check_png(bytes(picture))


def test_an_object_without_a_type_is_refused() -> None:
    with pytest.raises(TraceFileError, match="kind"):
        from_json({"seconds": 0.0})
