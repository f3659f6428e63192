"""The command line as its users call it: what it prints, and one line for bad input."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from engine.cli import main
from engine.geometry import Box
from engine.group import readable_rows
from engine.group_io import group_to_zip, write_group
from engine.imaging import Window, open_image, render
from engine.imaging.window import WindowFunction
from engine.tiny import tiny_model
from engine.trace import EVENT_TYPES, Finished, LatentStep, RunStarted, Trace
from engine.trace_io import loads, read_trace, to_zip, write_trace
from tests import factories
from tests.integration.test_loading import save
from tests.unit.imaging.dicom_files import make_dataset, png_file, to_file
from tests.unit.imaging.dicom_files import save as save_dicom

Run = Callable[..., tuple[int, str, str]]

RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tiny_model(), tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "DOE_JOHN_1960.dcm"
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    path.write_bytes(to_file(RAMP, PatientName="DOE^JOHN", PatientOrientation=["R", "F"], **window))
    return str(path)


@pytest.fixture(scope="module")
def other_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "other.dcm"
    path.write_bytes(to_file(RAMP.T, WindowCenter=2000, WindowWidth=3000))
    return str(path)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command here; status, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def refused(result: tuple[int, str, str], says: str = "") -> str:
    status, out, err = result
    assert status == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert len(err) > 20
    assert "Traceback" not in err
    assert says in err
    return err


# --- trace and show -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["direct", "latent", "zoom", "auto"])
def test_events_are_printed_as_json_lines_and_saved(
    call: Run, checkpoint: str, image: str, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "run.radtrace.zip"
    status, text, err = call(
        *("trace", image, "Where is it?", "--option", "left", "--option", "right"),
        *("--method", method, "--checkpoint", checkpoint, "--max-new-tokens", "6"),
        *("--entropy-threshold", "1", "--max-crops", "1", "--out", out, "--jsonl"),
    )
    lines = [json.loads(line) for line in text.splitlines()]

    assert (status, err) == (0, "")
    assert all(list(line)[:2] == ["type", "seconds"] for line in lines)
    assert {line["type"] for line in lines} <= {kind.__name__ for kind in EVENT_TYPES}
    assert lines[0]["type"] == "RunStarted"
    assert lines[-1]["type"] == "Finished"
    assert tuple(loads(line) for line in text.splitlines()) == read_trace(out).events
    # Neither the name of the file nor a tag of it leaves with the trace.
    for part in (text.encode(), out.read_bytes(), *members(out)):
        assert b"DOE" not in part


def members(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist()]


def test_a_saved_trace_is_shown_as_a_table(call: Run, tmp_path: Path) -> None:
    trace = factories.trace()
    write_trace(tmp_path / "a.radtrace.zip", trace)
    status, text, err = call("show", tmp_path / "a.radtrace.zip")

    assert (status, err) == (0, "")
    assert len(text.splitlines()) == len(trace)
    assert "entropy" in text


def test_a_saved_group_is_shown_with_its_members_and_branches(call: Run, tmp_path: Path) -> None:
    group = factories.group()
    write_group(tmp_path / "a.radgroup.zip", group)
    status, text, err = call("show", tmp_path / "a.radgroup.zip")

    assert (status, err) == (0, "")
    assert "question  'What is the margin of the nodule?'" in text
    assert "votes     'Spiculated' 3, 'Smooth' 2, 'Lobulated' 1" in text
    at = group.members[3].shared_tokens
    fork = next(line for line in text.splitlines() if line.startswith("     4"))
    assert f"off 1 at token {at}" in fork
    assert "'Spiculated'  right  (0.220, 0.500, 0.500, 0.780)" in fork
    assert (
        f"zoom at token {at}: entropy 0.310 nats in the opening, 0.960 in the coordinates, "
        "chance 0.650: member 4\n"
    ) in text
    assert "chance 0.000: no branch\n" in text


def test_a_group_is_no_donor_and_the_line_says_what_it_is(
    call: Run, image: str, tmp_path: Path
) -> None:
    write_group(tmp_path / "a.radgroup.zip", factories.group())

    refused(
        call("trace", image, "Q", "--latent-donor", tmp_path / "a.radgroup.zip"),
        "This is a saved group (*.radgroup.zip), not a trace",
    )


def test_a_damaged_group_is_called_a_group(call: Run, tmp_path: Path) -> None:
    data = bytearray(group_to_zip(factories.group()))
    data[data.index(b"\x89PNG") + 50] ^= 0xFF
    (tmp_path / "a.radgroup.zip").write_bytes(data)

    refused(call("show", tmp_path / "a.radgroup.zip"), "The saved group is damaged")


def test_the_same_seed_gives_the_same_tokens(call: Run, checkpoint: str, image: str) -> None:
    command = ("trace", image, "Q?", "--checkpoint", checkpoint, "--max-new-tokens", "5")
    sampled = (*command, "--temperature", "1", "--jsonl", "--seed")

    def tokens(seed: str) -> list[int]:
        lines = [json.loads(line) for line in call(*sampled, seed)[1].splitlines()]
        return [line["token_id"] for line in lines if line["type"] == "TokenStep"]

    assert tokens("1") == tokens("1") != tokens("2")


def test_the_window_of_the_run_is_in_its_facts(call: Run, checkpoint: str, image: str) -> None:
    command = ("trace", image, "Q?", "--checkpoint", checkpoint, "--max-new-tokens", "1")
    own = loads(call(*command, "--jsonl")[1].splitlines()[0])
    other = loads(call(*command, "--jsonl", "--window", "100", "50")[1].splitlines()[0])

    assert isinstance(own, RunStarted)
    assert isinstance(other, RunStarted)
    facts = [(i.window_center, i.window_width, i.window_source) for i in (own.image, other.image)]
    assert facts == [(2000.0, 3000.0, "file"), (100.0, 50.0, "request")]
    assert own.image.left_edge == "left"


def test_text_of_a_saved_trace_cannot_drive_the_terminal(call: Run, tmp_path: Path) -> None:
    options = ("\x1b]0;owned\x07", "\x1b[2J\nForged line", "ok")
    tree = factories.group(options=options, question="\x1b[2J?")
    write_trace(tmp_path / "a.radtrace.zip", factories.trace(options=options))
    write_group(tmp_path / "a.radgroup.zip", tree)
    status, text, _ = call("show", tmp_path / "a.radtrace.zip")
    status_of_group, table, _ = call("show", tmp_path / "a.radgroup.zip")

    assert status == status_of_group == 0
    assert all(letter.isprintable() or letter == "\n" for letter in text + table)
    assert len(text.splitlines()) == len(factories.trace(options=options))
    assert len(table.splitlines()) == len(readable_rows(tree))


# --- render -------------------------------------------------------------------------------


def test_the_image_is_rendered_as_the_viewer_shows_it(
    call: Run, image: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    assert call("render", image, "--out", out) == (0, "", "")
    np.testing.assert_array_equal(np.asarray(Image.open(out)), render(open_image(Path(image))))

    assert call("render", image, "--out", out, "--window", "-10.5", "99") == (0, "", "")
    windowed = render(open_image(Path(image)), Window(-10.5, 99.0))
    np.testing.assert_array_equal(np.asarray(Image.open(out)), windowed)


@pytest.mark.parametrize(
    ("elements", "function"),
    [
        ({"VOILUTFunction": "SIGMOID"}, "SIGMOID"),
        ({"VOILUTFunction": "LINEAR_EXACT"}, "LINEAR_EXACT"),
        ({"VOILUTFunction": "LINEAR"}, "LINEAR"),
        ({}, "LINEAR"),
        ({"WindowCenter": None, "WindowWidth": None}, "LINEAR_EXACT"),
    ],
)
def test_an_own_window_has_the_function_that_dragging_keeps(
    call: Run, tmp_path: Path, elements: dict[str, object], function: WindowFunction
) -> None:
    path, out = tmp_path / "a.dcm", tmp_path / "a.png"
    path.write_bytes(to_file(RAMP, **{"WindowCenter": 9, "WindowWidth": 99, **elements}))

    assert call("render", path, "--out", out, "--window", "2000", "40") == (0, "", "")
    windowed = render(open_image(path), Window(2000.0, 40.0, function))
    np.testing.assert_array_equal(np.asarray(Image.open(out)), windowed)


def test_one_frame_is_rendered(call: Run, tmp_path: Path) -> None:
    frames = np.stack([RAMP, RAMP[::-1], RAMP.T])
    (tmp_path / "many.dcm").write_bytes(to_file(frames))
    for frame in range(3):
        out = tmp_path / f"{frame}.png"
        assert call("render", tmp_path / "many.dcm", "--frame", str(frame), "--out", out)[0] == 0
        expected = render(open_image(tmp_path / "many.dcm", frame=frame))
        np.testing.assert_array_equal(np.asarray(Image.open(out)), expected)


# --- bad input ----------------------------------------------------------------------------


def grey_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    side = 13_000
    return png_file(side, side, 1, 0, bytes(1 + (side + 7) // 8) * side)


BAD_IMAGES: dict[str, Callable[[], bytes]] = {
    "empty.dcm": lambda: b"",
    "text.dcm": lambda: b"a report\n" * 99,
    "cut in the header.dcm": lambda: to_file(RAMP)[:160],
    "cut in the pixels.dcm": lambda: to_file(RAMP)[:-1],
    "no pixels.dcm": lambda: save_dicom(make_dataset(RAMP)),
    "absurd.dcm": lambda: to_file(RAMP, Rows=65535, Columns=65535),
    "deflated.dcm": lambda: save_dicom(make_dataset(RAMP), DeflatedExplicitVRLittleEndian),
    "bomb.png": bomb,
    "cut.png": lambda: grey_png(RAMP)[:60],
    "blank.png": lambda: grey_png(np.full((64, 64), 7)),
    "line.png": lambda: grey_png(np.arange(3000)[None]),
    "pixel.png": lambda: grey_png(np.zeros((1, 1))),
    "cut.jpg": lambda: b"\xff\xd8\xff\xe0" + bytes(50),
    "archive.zip": lambda: b"PK\x03\x04" + bytes(50),
    "picture.gif": lambda: b"GIF89a" + bytes(50),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_one_line_and_status_two(call: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"DOE_JOHN.{name.rpartition('.')[2]}"
    path.write_bytes(BAD_IMAGES[name]())

    for result in (
        call("trace", path, "What is it?"),
        call("render", path, "--out", tmp_path / "o.png"),
    ):
        assert "DOE_JOHN" not in refused(result)
    assert not (tmp_path / "o.png").exists()


def test_a_file_that_ends_before_its_pixels_is_called_damaged(call: Run, tmp_path: Path) -> None:
    data = to_file(RAMP)
    (tmp_path / "a.dcm").write_bytes(data[: data.index(b"\x28\x00\x10\x00US")])

    refused(call("render", tmp_path / "a.dcm", "--out", tmp_path / "o.png"), "damaged")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "required"),
        (("paint",), "invalid choice"),
        (("trace", "IMAGE"), "question"),
        (("trace", "IMAGE", " "), "empty"),
        (("trace", "IMAGE", "Q" * 1001), "1000"),
        (("trace", "IMAGE", "Q", "--option", "one"), "options"),
        (("trace", "IMAGE", "Q", "--method", "guess"), "--method"),
        (("trace", "IMAGE", "Q", "--latents", "shuffle"), "--latent-donor"),
        (("trace", "IMAGE", "Q", "--latent-donor", "IMAGE"), "not a saved trace"),
        (("trace", "IMAGE", "Q", "--latent-donor", "FOLDER/no.radtrace.zip"), "cannot be read"),
        (
            ("trace", "IMAGE", "Q", "--method", "direct", "--latents", "zero"),
            "--latents changes nothing under --method direct: use latent or auto.",
        ),
        (("trace", "IMAGE", "Q", "--method", "latent", "--skip-crop", "1"), "use zoom or auto"),
        (("trace", "IMAGE", "Q", "--skip-crop", "0"), "--skip-crop"),
        (("trace", "IMAGE", "Q", "--move-crop", "0", "0", "0", "1", "1"), "--move-crop"),
        (("trace", "IMAGE", "Q", "--move-crop", "1.5", "0", "0", "1", "1"), "--move-crop"),
        (("trace", "IMAGE", "Q", "--move-crop", "1", "0", "0", "2", "1"), "outside"),
        (("trace", "IMAGE", "Q", "--occlude", "0", "0", "0", "1"), "empty"),
        (("trace", "IMAGE", "Q", "--occlude", "0", "0", "nan", "1"), "finite"),
        (("trace", "IMAGE", "Q", "--seed", "-1"), "seed"),
        (("trace", "IMAGE", "Q", "--seed", "1.5"), "--seed"),
        (("trace", "IMAGE", "Q", "--temperature", "nan"), "temperature"),
        (("trace", "IMAGE", "Q", "--entropy-threshold", "nan"), "entropy_threshold"),
        (("trace", "IMAGE", "Q", "--max-new-tokens", "0"), "max_new_tokens"),
        (("trace", "IMAGE", "Q", "--max-crops", "99"), "max_crops"),
        (("trace", "IMAGE", "Q", "--latent-steps", "-1"), "latent_steps"),
        (("trace", "IMAGE", "Q", "--frame", "1"), "Frame 1"),
        (("trace", "IMAGE", "Q", "--window", "lung"), "--window"),
        (("trace", "IMAGE", "Q", "--window", "lung", "wide"), "--window"),
        (("trace", "IMAGE", "Q", "--window", "1", "0"), "width"),
        (("trace", "IMAGE", "Q", "--window", "nan", "1"), "finite"),
        (("trace", "IMAGE", "Q", "--checkpoint", "./nowhere"), "no checkpoint"),
        (("trace", "IMAGE", "Q", "--checkpoint", "no-one/nothing"), "no-one/nothing"),
        (("trace", "IMAGE", "Q", "--checkpoint", "CHECKPOINT", "--device", "x"), "device"),
        (("trace", "IMAGE", "Q", "--out", "FOLDER/none/a.radtrace.zip"), "folder"),
        (("trace", "IMAGE", "Q", "--out", "FOLDER"), "folder"),
        (("trace", "nowhere.dcm", "Q"), "opened"),
        (("trace", "FOLDER", "Q"), "opened"),
        (("render", "IMAGE"), "--out"),
        (("render", "IMAGE", "--out", "FOLDER"), "folder"),
        (("render", "IMAGE", "--out", "FOLDER/none/a.png"), "folder"),
        (("render", "IMAGE", "--out", "FOLDER/a.png", "--window", "5", "-5"), "width"),
        (("render", "IMAGE", "--out", "FOLDER/a.jpg"), "must end in .png"),
        (("show", "FOLDER/nowhere.radtrace.zip"), "cannot be read"),
        (("show", "FOLDER"), "cannot be read"),
        (("show", "IMAGE"), "not a saved trace"),
        (("bench", "--repeats", "0"), "--repeats"),
        (("bench", "--group", "embedded", "--checkpoint", "FOLDER"), "checkpoint"),
        (("bench", "--group", "embedded", "--checkpoint", "./nowhere"), "checkpoint"),
    ],
)
def test_bad_arguments_are_one_line_and_status_two(
    call: Run,
    checkpoint: str,
    image: str,
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    for name, value in (("IMAGE", image), ("CHECKPOINT", checkpoint), ("FOLDER", str(tmp_path))):
        arguments = tuple(argument.replace(name, value) for argument in arguments)

    refused(call(*arguments), says)


def test_every_intervention_can_be_asked_for(
    call: Run, checkpoint: str, image: str, other_image: str, tmp_path: Path
) -> None:
    donor = tmp_path / "donor.radtrace.zip"
    how = ("--checkpoint", checkpoint, "--max-new-tokens", "4")
    latent = (*how, "--method", "latent", "--latent-steps", "3")
    assert call("trace", other_image, "Q", *latent, "--out", donor)[0] == 0

    out = tmp_path / "changed.radtrace.zip"
    changes = ("--latents", "shuffle", "--latent-donor", donor, "--occlude", "0", "0", "0.5", "1")
    status, said, err = call("trace", image, "Q", *latent, *changes, "--out", out)

    assert (status, err) == (0, "")
    assert ", CHANGED: latents shuffle, regions occluded: 1" in said.splitlines()[0]
    assert call("show", out)[1].splitlines()[0] == said.splitlines()[0]
    assert "CHANGED" not in call("show", donor)[1]
    fed = [e.vector for e in read_trace(donor) if isinstance(e, LatentStep)]
    assert [e.vector for e in read_trace(out) if isinstance(e, LatentStep)] == fed
    started = read_trace(out).started
    assert started is not None
    asked = started.request.interventions
    assert asked.latent_donor == tuple(fed)
    assert asked.occlude == (Box(0.0, 0.0, 0.5, 1.0),)

    crops = ("--skip-crop", "1", "--move-crop", "2", "0.25", "0.25", "0.5", "0.5")
    status, said, err = call("trace", image, "Q", *how, "--method", "zoom", *crops, "--out", out)
    assert (status, err) == (0, "")
    assert ", CHANGED: crop 1 skipped, crop 2 moved" in said.splitlines()[0]
    started = read_trace(out).started
    assert started is not None
    assert started.request.interventions.skip_crops == (1,)
    assert started.request.interventions.move_crops == ((2, Box(0.25, 0.25, 0.5, 0.5)),)


def test_a_donor_without_latents_is_refused(
    call: Run, checkpoint: str, image: str, tmp_path: Path
) -> None:
    donor = tmp_path / "donor.radtrace.zip"
    shared = ("trace", image, "Q", "--checkpoint", checkpoint, "--max-new-tokens", "2")
    assert call(*shared, "--out", donor)[0] == 0

    refused(call(*shared, "--latents", "shuffle", "--latent-donor", donor), "no latent steps")


def test_a_donor_that_tells_nothing_is_refused(
    call: Run, checkpoint: str, image: str, other_image: str, tmp_path: Path
) -> None:
    """The image's own latents, and those of another model."""
    own, other = tmp_path / "own.radtrace.zip", tmp_path / "other.radtrace.zip"
    how = ("--method", "latent", "--latent-steps", "2", "--max-new-tokens", "2")
    for where, out, model in (
        (image, own, ("--checkpoint", checkpoint)),
        (other_image, other, ("--checkpoint", "assets/checkpoints/medlvr")),
    ):
        assert call("trace", where, "Q", *how, *model, "--out", out)[0] == 0

    shared = ("trace", image, "Q", *how, "--checkpoint", checkpoint, "--latents", "shuffle")
    refused(call(*shared, "--latent-donor", own), "own.radtrace.zip is a run on this very file")
    refused(call(*shared, "--latent-donor", other), "was made by a model called Lightbox MedLVR")

    changed = tmp_path / "changed.radtrace.zip"
    zeroed = (*how, "--checkpoint", checkpoint, "--latents", "zero", "--out", changed)
    assert call("trace", other_image, "Q", *zeroed)[0] == 0
    refused(call(*shared, "--latent-donor", changed), "changed.radtrace.zip were changed")

    # A saved run is anybody's text.
    run = read_trace(other)
    assert run.started is not None
    evil = replace(run.started.model, id="evil\x1b[31mRED\nsecond line")
    started = replace(run.started, model=evil)
    write_trace(other, Trace((started, *run.events[1:])))
    status, out, err = call(*shared, "--latent-donor", other)
    assert (status, out) == (2, "")
    assert "\x1b" not in err
    assert err.count("\n") == 1
    assert "called evil" in err


def test_an_adapter_without_weights_is_one_line(call: Run, image: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")

    refused(call("trace", image, "Q?", "--checkpoint", tmp_path), "adapter")


def altered(change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    """A saved trace with other events, its checksums made right again."""
    return rebuilt(change, lambda archive: None)


def rebuilt(
    change: Callable[[list[dict[str, Any]]], object],
    extra: Callable[[zipfile.ZipFile], object],
) -> bytes:
    """As `altered`, and with more entries in the archive."""
    with zipfile.ZipFile(io.BytesIO(to_zip(factories.trace()))) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    events = [json.loads(line) for line in parts["trace.jsonl"].splitlines()]
    change(events)
    parts["trace.jsonl"] = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    manifest = json.loads(parts.pop("manifest.json"))
    manifest["sha256"] = {n: hashlib.sha256(data).hexdigest() for n, data in parts.items()}
    parts["manifest.json"] = json.dumps(manifest).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        extra(archive)
    return buffer.getvalue()


def first(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(event for event in events if event["type"] == kind)


def set_map(events: list[dict[str, Any]], **values: Any) -> None:
    first(events, "TokenStep")["attention"][0].update(values)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "huge integer": lambda: altered(lambda e: first(e, "TokenStep").update(index=10**400)),
    "integer of 64 bits and more": lambda: altered(
        lambda e: first(e, "RunStarted")["image"].update(source_width=10**19)
    ),
    "not a number": lambda: altered(lambda e: first(e, "TokenStep").update(logprob=float("nan"))),
    "infinity": lambda: altered(lambda e: first(e, "TokenStep").update(entropy_nats=float("inf"))),
    "text for a number": lambda: altered(lambda e: first(e, "TokenStep").update(index="3")),
    "a field too many": lambda: altered(lambda e: first(e, "TokenStep").update(__class__="x")),
    "a field too few": lambda: altered(lambda e: first(e, "TokenStep").pop("index")),
    "grid of another size": lambda: altered(lambda e: set_map(e, rows=4)),
    "grid of another shape": lambda: altered(lambda e: set_map(e, rows=4, columns=16)),
    "negative grid": lambda: altered(lambda e: set_map(e, rows=-8, columns=-8)),
    "map of no image": lambda: altered(lambda e: set_map(e, image=7)),
    "grid without end": lambda: altered(
        lambda e: first(e, "RunStarted")["image"].update(rows=10**9, columns=10**9)
    ),
    "box outside": lambda: altered(lambda e: first(e, "Reground").update(box=[0, 0, 2, 2])),
    "inner step that is cut off": lambda: altered(
        lambda e: first(e, "LatentStep").update(vector=base64.b64encode(b"\0" * 7).decode())
    ),
    "picture that is none": lambda: altered(
        lambda e: first(e, "Reground").update(crop_png=base64.b64encode(b"<svg/>").decode())
    ),
    "picture elsewhere": lambda: altered(
        lambda e: first(e, "Reground").update(crop_png={"file": "../../etc/passwd"})
    ),
    "two entries of one name": lambda: rebuilt(
        lambda e: None, lambda z: z.writestr("trace.jsonl", b"")
    ),
    "traversal": lambda: rebuilt(lambda e: None, lambda z: z.writestr("../evil.txt", b"x")),
    "absolute path": lambda: rebuilt(lambda e: None, lambda z: z.writestr("/etc/evil", b"x")),
    "unknown event": lambda: altered(lambda e: e[1].update(type="Pwned")),
    "two runs": lambda: altered(lambda e: e.append(e[0])),
    "no start": lambda: altered(lambda e: e.pop(0)),
    "bomb": lambda: rebuilt(
        lambda e: None,
        lambda z: z.writestr("crops/9.png", bytes(10**7), zipfile.ZIP_DEFLATED),
    ),
    "cut": lambda: altered(lambda e: None)[:-30],
}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_traces_are_one_line_and_status_two(call: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.radtrace.zip"
    path.write_bytes(HOSTILE[name]())

    refused(call("show", path))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.radtrace.zip"]


def test_what_altered_makes_is_a_trace(call: Run, tmp_path: Path) -> None:
    """So the cases above are refused for what was changed in them."""
    path = tmp_path / "a.radtrace.zip"
    path.write_bytes(altered(lambda e: None))

    assert call("show", path)[0] == 0


@pytest.mark.parametrize(("kind", "says"), [("trace", "Finished"), ("group", "members   6")])
def test_what_is_saved_is_shown_where_torch_is_not_installed(
    tmp_path: Path, kind: str, says: str
) -> None:
    data = to_zip(factories.trace()) if kind == "trace" else group_to_zip(factories.group())
    (tmp_path / "a.zip").write_bytes(data)
    blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
    program = "from engine.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", blocked + program, "show", str(tmp_path / "a.zip")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def command(*arguments: str, output: int) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, whose stdout is a file descriptor of ours."""
    return subprocess.run(
        [sys.executable, "-m", "engine", *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def unread() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("form", [[], ["--jsonl"]])
def test_a_run_is_saved_though_nobody_reads_its_output(tmp_path: Path, form: list[str]) -> None:
    image, out = tmp_path / "a.png", tmp_path / "a.radtrace.zip"
    image.write_bytes(factories.png(factories.chest(256)))
    output = unread()

    done = command(
        "trace", str(image), "Is there a nodule?", *form, "--out", str(out), output=output
    )

    os.close(output)
    assert (done.returncode, done.stderr) == (0, "")
    assert isinstance(list(read_trace(out.read_bytes()))[-1], Finished)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.radtrace.zip"
    path.write_bytes(to_zip(factories.trace()))
    with Path("/dev/full").open("w") as full:
        done = command("show", str(path), output=full.fileno())

    assert done.returncode == 2
    assert done.stderr == "The output cannot be written: No space left on device.\n"


def test_a_window_for_a_colour_image_is_refused(call: Run, tmp_path: Path) -> None:
    """It changes nothing there, and a trace would say that it had."""
    path, out = tmp_path / "colour.png", tmp_path / "out.png"
    Image.new("RGB", (32, 32), (200, 10, 10)).save(path)
    status, _, error = call("render", path, "--out", out, "--window", "40", "80")
    assert (status, error.count("\n")) == (2, 1)
    assert "this one is in colour" in error
    assert not out.exists()
    assert call("render", path, "--out", out)[0] == 0


def test_what_is_no_plain_file_is_not_written_over(call: Run, image: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    status, _, error = call("render", image, "--out", pipe)
    assert (status, error) == (2, "pipe is not a plain file: name one to write.\n")
    assert pipe.is_fifo()


def test_a_saved_trace_is_as_any_other_file_and_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "run.radtrace.zip", tmp_path / "link.radtrace.zip"
    before = os.umask(0o027)
    try:
        write_trace(target, factories.trace())
        assert target.stat().st_mode & 0o777 == 0o640
        target.chmod(0o600)
        link.symlink_to(target)
        write_trace(link, factories.trace())
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2
