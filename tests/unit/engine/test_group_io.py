"""Saved groups: what is written reads back equal, and nothing else is believed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import group_io, trace_io
from engine.group import Group, Member
from engine.group_io import (
    GROUP_VERSION,
    group_to_zip,
    is_group_file,
    member_start,
    read_group,
    write_group,
)
from engine.trace import Reground, Trace
from engine.trace_io import TraceFileError, read_trace, to_zip
from tests.factories import events_of, group, request, started, trace
from tests.unit.engine.test_trace_io import members_of, nested, packed


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A good file whose tree was changed, with checksums that match."""
    files = members_of(group_to_zip(group()))
    tree = json.loads(files["group.json"])
    change(tree)
    files["group.json"] = json.dumps(tree).encode()
    return packed(files)


def refused(data: bytes, says: str) -> None:
    with pytest.raises(TraceFileError, match=says) as caught:
        read_group(data)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


def test_a_group_comes_back_equal_and_every_member_is_a_trace() -> None:
    tree = group()

    again = read_group(group_to_zip(tree))

    assert again == tree
    for member in again.members:
        assert read_trace(to_zip(member.trace)) == member.trace


def test_groups_of_plain_runs_and_of_open_questions_come_back_equal() -> None:
    open_question = group(options=())
    runs = tuple(
        Member(trace=Trace((member_start(started(request(), "run"), number), *events[1:])))
        for number in range(2)
        if (events := tuple(events_of(request(method="direct"))))
    )

    for tree in (open_question, Group(members=runs), Group(members=runs[:1])):
        assert read_group(group_to_zip(tree)) == tree
    assert {member.correct for member in read_group(group_to_zip(Group(members=runs))).members} == {
        None
    }


def test_equal_groups_give_equal_bytes() -> None:
    assert group_to_zip(group()) == group_to_zip(group())


def test_image_and_beginnings_are_stored_once(tmp_path: Path) -> None:
    tree = group()
    file = tmp_path / "tree.radgroup.zip"

    write_group(file, tree, app_version="1.2.3")

    assert list(tmp_path.iterdir()) == [file]
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == sorted(
            ["manifest.json", "group.json", "start.json", "display.png", "seen.png"]
            + [f"members/{number}.jsonl" for number in range(6)]
            + [f"crops/{number}-1.png" for number in range(6)]
        )
        own = archive.read("members/3.jsonl").splitlines()
        table = json.loads(archive.read("group.json"))
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert json.loads(own[0])["index"] == tree.members[3].shared_tokens
    assert len(own) < len(tree.members[3].trace) / 2
    assert table["version"] == GROUP_VERSION
    assert table["members"][3] == {
        "parent": 0,
        "shared_tokens": tree.members[3].shared_tokens,
        "decisions": [
            {
                "token_index": tree.members[3].shared_tokens,
                "baseline_nats": 0.31,
                "coordinates_nats": 0.31 + 0.9,
                "probability": 0.9,
            }
        ],
        "boxes": [[0.22, 0.5, 0.5, 0.78]],
        "answer": "Spiculated",
        "correct": True,
    }
    assert str(tmp_path).encode() not in content


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "tree.radgroup.zip"
    write_group(file, group())
    before = file.read_bytes()
    other = replace(group().members[1], trace=trace())

    with pytest.raises(TraceFileError, match="several prompts"):
        write_group(file, Group(members=(group().members[0], other)))

    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_group_is_told_from_a_trace_by_its_directory_alone() -> None:
    assert is_group_file(group_to_zip(group()))
    assert not is_group_file(to_zip(trace()))
    assert not is_group_file(b"PK\x03\x04 and nothing else")


def test_one_kind_of_file_given_for_the_other_is_named() -> None:
    refused(
        to_zip(trace()), r"^This is a saved trace \(\*\.radtrace\.zip\), not a group .*: open it "
    )
    with pytest.raises(TraceFileError) as caught:
        read_trace(group_to_zip(group()))
    assert str(caught.value) == (
        "This is a saved group (*.radgroup.zip), not a trace (*.radtrace.zip): open it on the "
        "page, where each of its runs can be saved as a trace."
    )


# --- files that nobody should trust ------------------------------------------------------------


def flipped() -> bytes:
    """A group with one byte of a stored picture changed, so that its CRC does not match."""
    good = group_to_zip(group())
    place = good.index(members_of(good)["seen.png"]) + 50
    return good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]


def with_manifest(**changes: object) -> bytes:
    files = members_of(group_to_zip(group()))
    manifest = json.loads(files["manifest.json"]) | changes
    return packed(files | {"manifest.json": json.dumps(manifest).encode()}, sealed=False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(flipped(), "^The saved group is damaged .*: copy", id="a byte"),
        pytest.param(
            with_manifest(sha256={}), "^The saved group was changed .*: copy", id="hashes"
        ),
        pytest.param(
            with_manifest(schema_version=0), "of the saved group is damaged", id="version"
        ),
        pytest.param(with_manifest(schema_version=99), "^The group .* newer version", id="newer"),
        pytest.param(
            packed(members_of(group_to_zip(group())) | {"a.txt": b"x"}),
            "does not belong in a saved group",
            id="entry",
        ),
    ],
)
def test_a_bad_group_is_called_a_group(data: bytes, says: str) -> None:
    refused(data, says)
    with pytest.raises(TraceFileError) as caught:
        read_group(data)
    assert "trace" not in str(caught.value)


def test_the_part_of_a_group_that_is_damaged_is_named() -> None:
    first = changed_lines("members/3.jsonl", lambda lines: lines[0].pop("index"))
    order = changed_lines("members/2.jsonl", lambda lines: lines.append(lines[-1]))
    start = changed_lines("start.json", lambda lines: lines[0].update(seconds=-1.0))

    refused(first, "^Member 3 of the saved group: the trace has a damaged TokenStep event")
    refused(order, "^Member 2 of the saved group: the trace goes on after the end")
    refused(start, "^The start of the saved group: the trace has an event from before the run")


def put(path: list[Any], value: object) -> Callable[[dict[str, Any]], object]:
    def change(tree: dict[str, Any]) -> None:
        target: Any = tree
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value

    return change


FORK = ["members", 3]
CALL = ["members", 0, "decisions", 0]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        pytest.param(["version"], 99, "newer version", id="newer"),
        pytest.param(["version"], "1", "damaged", id="version as text"),
        pytest.param(["version"], True, "damaged", id="version as truth value"),
        pytest.param(["truth"], None, "damaged", id="no truth"),
        pytest.param(["truth"], "\ud800", "damaged", id="half a character"),
        pytest.param(["onload"], "alert(1)", "damaged", id="key too many"),
        pytest.param(["members"], [], "1 to 64 members", id="no members"),
        pytest.param(["members"], [{}] * 65, "1 to 64 members", id="too many members"),
        pytest.param(["members"], {}, "1 to 64 members", id="members that are no list"),
        pytest.param(["members", 0], 7, "damaged", id="member that is no object"),
        pytest.param([*FORK, "parent"], 3, "not before it", id="its own parent"),
        pytest.param([*FORK, "parent"], 5, "not before it", id="circle"),
        pytest.param([*FORK, "parent"], -1, "not before it", id="negative parent"),
        pytest.param([*FORK, "parent"], 0.0, "damaged", id="fraction for a parent"),
        pytest.param([*FORK, "parent"], None, "wrote nothing", id="no parent"),
        pytest.param([*FORK, "shared_tokens"], 10**30, "too large", id="huge index"),
        pytest.param([*FORK, "shared_tokens"], 0, "wrote nothing", id="other place"),
        pytest.param([*FORK, "shared_tokens"], 4000, "after the end", id="whole parent"),
        pytest.param([*FORK, "boxes"], [], "something else", id="hidden box"),
        pytest.param([*FORK, "answer"], "Smooth", "something else", id="another answer"),
        pytest.param([*FORK, "correct"], "yes", "damaged", id="text for a truth value"),
        pytest.param([*CALL, "token_index"], 4, "nothing was decided", id="call elsewhere"),
        pytest.param([*CALL, "probability"], 2, "probability", id="probability"),
        pytest.param([*CALL, "probability"], "1", "damaged", id="probability as text"),
        pytest.param([*CALL, "baseline_nats"], -1, "entropy", id="entropy"),
        pytest.param(["members", 1, "decisions"], None, "damaged", id="no decisions"),
    ],
)
def test_trees_that_cannot_be_are_refused(path: list[Any], value: object, says: str) -> None:
    refused(edited(put(path, value)), says)


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"[" * 50_000, b"\xff", b'{"version": NaN}'])
def test_a_tree_that_is_no_object_is_refused(text: bytes) -> None:
    files = members_of(group_to_zip(group())) | {"group.json": text}

    refused(packed(files, method=zipfile.ZIP_STORED), "damaged|not finite")


@pytest.mark.parametrize("name", ["members/5.jsonl", "start.json", "group.json"])
@pytest.mark.parametrize("depth", [300, 500, 700, 900, 1000, 5000])
def test_deep_nesting_is_refused(name: str, depth: int) -> None:
    files = members_of(group_to_zip(group()))
    first, *others = files[name].splitlines() if name.endswith("l") else [files[name]]
    files[name] = b"\n".join([nested(first, depth), *others])

    refused(packed(files, method=zipfile.ZIP_STORED), "damaged|not valid JSON")


@pytest.mark.parametrize("name", ["members/5.jsonl", "start.json"])
def test_missing_parts_are_refused(name: str) -> None:
    files = members_of(group_to_zip(group()))
    del files[name]

    refused(packed(files), "lacks a member")


@pytest.mark.parametrize("name", ["group.json", "manifest.json"])
def test_a_file_without_its_tree_is_no_group(name: str) -> None:
    files = members_of(group_to_zip(group()))
    del files[name]

    refused(packed(files, sealed=name != "manifest.json"), "missing")


@pytest.mark.parametrize(
    "name",
    ["../group.json", "/etc/passwd", "members/../x.jsonl", "members/01.jsonl", "members/100.jsonl",
     "members/6.png", "crops/1.png", "crops/0-0.png", "crops/0-1.svg", "trace.jsonl", "a.zip",
     "members/٣.jsonl", "crops/0-1.png\n"],
)  # fmt: skip
def test_entries_that_do_not_belong_are_refused(name: str) -> None:
    refused(packed(members_of(group_to_zip(group())) | {name: b"x"}), "does not belong")


def test_a_member_too_many_is_refused() -> None:
    files = members_of(group_to_zip(group()))

    refused(packed(files | {"members/6.jsonl": files["members/5.jsonl"]}), "one too many")


def changed_lines(name: str, change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    files = members_of(group_to_zip(group()))
    lines = [json.loads(line) for line in files[name].splitlines()]
    change(lines)
    files[name] = "\n".join(json.dumps(line) for line in lines).encode()
    return packed(files)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        pytest.param("start.json", list.clear, "no start", id="empty start"),
        pytest.param("start.json", lambda ls: ls.append(ls[0]), "or twice", id="two starts"),
        pytest.param(
            "start.json", lambda ls: ls[0].update(seconds=-1.0), "before the run", id="bad start"
        ),
        pytest.param(
            "members/3.jsonl", lambda ls: ls.insert(0, ls[0] | {"type": "X"}), "kind", id="unknown"
        ),
        pytest.param("members/3.jsonl", lambda ls: ls.append(ls[-1]), "after the end", id="ends"),
        pytest.param(
            "members/3.jsonl",
            lambda ls: next(x for x in ls if x["type"] == "Reground").update(
                crop_png={"file": "crops/0-1.png"}
            ),
            "or twice",
            id="another's picture",
        ),
        pytest.param(
            "members/3.jsonl",
            lambda ls: next(x for x in ls if x["type"] == "Reground").update(box=[0, 0, 2, 1]),
            "outside the image",
            id="box outside",
        ),
    ],
)
def test_runs_that_cannot_be_are_refused(
    name: str, change: Callable[[list[dict[str, Any]]], object], says: str
) -> None:
    refused(changed_lines(name, change), says)


def test_limits_hold_for_reading_and_for_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    good = group_to_zip(group())
    for module, limit, value, says in (
        (trace_io, "MAX_ENTRIES", 5, "entries"),
        (trace_io, "MAX_FILE_BYTES", 100, "larger"),
        (trace_io, "MAX_UNPACKED_BYTES", 100, "unpacks"),
        (trace_io, "MAX_LINE_BYTES", 10, "too long"),
        (group_io, "MAX_EVENTS", 100, "more than 100 events"),
        (group_io, "MAX_TREE_BYTES", 10, "too large"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            refused(good, says)
    for module, limit, value, says in (
        (trace_io, "MAX_FILE_BYTES", 100, "takes more than"),
        (trace_io, "MAX_LINE_BYTES", 10, "too long"),
        (group_io, "MAX_EVENTS", 100, "more than 100 events"),
        (group_io, "MAX_TREE_BYTES", 10, "too large"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            with pytest.raises(TraceFileError, match=says):
                group_to_zip(group())
    # Of six crops one has room beside six members, the tree, the start, its views, the manifest.
    for module in (trace_io, group_io):
        monkeypatch.setattr(module, "MAX_ENTRIES", 12)
    full = group_to_zip(group())
    assert sum(name.startswith("crops/") for name in members_of(full)) == 1
    assert len(members_of(full)) == 12
    assert read_group(full) == group()


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    files = members_of(group_to_zip(group())) | {"crops/9-9.png": bytes(30 * 2**20)}

    refused(packed(files), "compressed more")


@given(cut=st.integers(0, 4000), noise=st.binary(min_size=1, max_size=20))
@settings(max_examples=15)
def test_random_damage_ends_in_one_error_or_in_nothing(cut: int, noise: bytes) -> None:
    good = group_to_zip(group())
    damaged = good[:cut] + noise + good[cut + len(noise) + 1 :]

    with pytest.raises(TraceFileError):
        read_group(damaged)


def test_a_crop_without_a_name_of_its_own_stays_in_its_event() -> None:
    first = group().members[0]
    events = tuple(
        replace(event, number=10**6) if isinstance(event, Reground) else event
        for event in first.trace
        if not getattr(event, "attention", ())
    )
    tree = Group(members=(replace(first, trace=Trace(events), decisions=()),))

    data = group_to_zip(tree)

    assert read_group(data) == tree
    assert not any(name.startswith("crops/") for name in members_of(data))
