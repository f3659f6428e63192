"""Groups as `*.radgroup.zip`: one file with the tree, every member's run, and one image.

A file holds `group.json` (the tree and what came of it, readable by itself), `start.json` (the
start of the run, which all members share but for their ids and seeds), `display.png`, `seen.png`,
`members/N.jsonl` (what member N wrote after it branched off, in the events of `engine.trace_io`)
and `crops/N-M.png`. A fork's beginning is its parent's, so that it is stored once and cannot
differ. Reading treats a file as hostile, under the same limits as a saved trace, and raises the
same `TraceFileError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from engine.group import MAX_MEMBERS, ForkDecision, Group, GroupError, Member, shared_events
from engine.trace import Event, Reground, RunStarted, Trace
from engine.trace_io import (
    GROUP_FILE,
    MAX_ENTRIES,
    MAX_EVENTS,
    VIEWS,
    TraceFileError,
    check_archive,
    check_order,
    event_lines,
    events_of_lines,
    parsed,
    sealed,
    unsealed,
    write_whole,
)

GROUP_VERSION: Final = 1
GROUP_SUFFIX: Final = GROUP_FILE.suffix
MAX_TREE_BYTES: Final = 2**20

_TREE, _START = GROUP_FILE.needed, "start.json"
# Two digits of a member, from 0, and of a crop as in a saved trace.
_MEMBER: Final = re.compile(r"members/(0|[1-9]\d?)\.jsonl", re.ASCII)
_CROP: Final = re.compile(r"crops/(0|[1-9]\d?)-[1-9]\d{0,5}\.png", re.ASCII)
_CONFIG: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_NO_START: Final = "The saved group has no start of a run."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A `Member` in `group.json`: all but its events, and of them the boxes and the answer."""

    parent: int | None
    shared_tokens: int
    decisions: tuple[ForkDecision, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    answer: str
    correct: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    """`group.json`."""

    version: int
    truth: str
    members: tuple[_Row, ...]


def is_group_file(data: bytes) -> bool:
    """Whether the directory of an archive lists a tree; nothing is unpacked.

    An archive that is too large to be opened is none.
    """
    try:
        check_archive(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _TREE in archive.namelist()
    except Exception:  # noqa: BLE001 - what zipfile raises on damaged input has no base class
        return False


def write_group(path: str | Path, group: Group, *, app_version: str = "") -> None:
    """Writes a group as `*.radgroup.zip`, whole or not at all.

    Raises:
        TraceFileError: as `group_to_zip` does.
        OSError: when the folder cannot be written.
    """
    write_whole(Path(path), group_to_zip(group, app_version=app_version))


def group_to_zip(group: Group, *, app_version: str = "") -> bytes:
    """The bytes of a `*.radgroup.zip`; equal groups give equal bytes.

    Raises:
        TraceFileError: for what `read_group` would refuse.
    """
    _check_size([len(member.trace) for member in group.members])
    members: dict[str, bytes] = {_TREE: _tree_bytes(group)}
    members |= {_member_name(number): b"" for number in range(len(group.members))}
    members[_START] = event_lines([group.started], functools.partial(_store, members, 0))
    for number, member in enumerate(group.members):
        if member.trace.events[0] != member_start(group.started, number):
            raise TraceFileError("The group holds runs of several prompts: it cannot be saved.")
        check_order(member.trace)
        store = functools.partial(_store, members, number)
        members[_member_name(number)] = event_lines(_own_events(group, number), store)
    return sealed(members, {"app_version": app_version, "members": len(group.members)}, GROUP_FILE)


def read_group(source: str | Path | bytes) -> Group:
    """The group of a `*.radgroup.zip`, checked from end to end.

    Args:
        source: a path, or the bytes of the file.

    Raises:
        TraceFileError: when the file is too large, is no group, is damaged, contradicts itself,
            or was written by a newer version.
        OSError: when the path cannot be read.
    """
    files = unsealed(source, GROUP_FILE, _is_member)
    tree = _tree_of(files[_TREE])
    wanted = {_member_name(number) for number in range(len(tree.members))}
    found = {name for name in files if _MEMBER.fullmatch(name)}
    if _START not in files or found != wanted:
        raise TraceFileError("The saved group lacks a member, or holds one too many.")
    pictures = {name: data for name, data in files.items() if name.endswith(".png")}
    with _named("The start"):
        start = list(events_of_lines(files[_START], pictures))
    if len(start) != 1 or not isinstance(start[0], RunStarted):
        raise TraceFileError(_NO_START)
    members: list[Member] = []
    for number, row in enumerate(tree.members):
        with _named(f"Member {number}"):
            own = tuple(events_of_lines(files[_member_name(number)], pictures))
        members.append(_member_of(row, number, start[0], own, members))
    try:
        group = Group(members=tuple(members), truth=tree.truth)
    except GroupError as error:
        raise TraceFileError(str(error)) from error
    if _rows(group) != tree.members:
        raise TraceFileError("The saved group says something else than the runs of its members.")
    return group


@contextlib.contextmanager
def _named(part: str) -> Iterator[None]:
    """Says of what is wrong with events in which part of the group it is."""
    try:
        yield
    except TraceFileError as error:
        complaint = str(error)
        raise TraceFileError(
            f"{part} of the saved group: {complaint[0].lower()}{complaint[1:]}"
        ) from error


def _member_of(
    row: _Row, number: int, start: RunStarted, own: tuple[Event, ...], before: list[Member]
) -> Member:
    """A member put together from its parent's beginning and its own events."""
    shared: tuple[Event, ...] = ()
    if row.parent is not None:
        if not 0 <= row.parent < number:
            raise TraceFileError("A member of the group branches off one that is not before it.")
        parent = before[row.parent].trace
        shared = parent.events[1 : shared_events(parent, row.shared_tokens)]
    _check_size([*(len(member.trace) for member in before), 1 + len(shared) + len(own)])
    trace = Trace((member_start(start, number), *shared, *own))
    with _named(f"Member {number}"):
        check_order(trace)
    return Member(
        trace=trace,
        parent=row.parent,
        shared_tokens=row.shared_tokens,
        decisions=row.decisions,
        correct=row.correct,
    )


def member_start(start: RunStarted, number: int) -> RunStarted:
    """The start of a member's run, from that of member 0: with an id and a seed of its own.

    The seed is the one that the member draws its own tokens from (`engine.branch`).
    """
    if number == 0:
        return start
    seed = (start.request.seed + number) % 2**63
    return replace(
        start, run_id=f"{start.run_id}-{number}", request=replace(start.request, seed=seed)
    )


def _own_events(group: Group, number: int) -> tuple[Event, ...]:
    """What a member did after it branched off, its start left out."""
    member = group.members[number]
    if member.parent is None:
        return member.trace.events[1:]
    parent = group.members[member.parent].trace
    return member.trace.events[shared_events(parent, member.shared_tokens) :]


def _store(
    members: dict[str, bytes], number: int, event: Event, field: str, data: bytes
) -> str | None:
    name = f"crops/{number}-{event.number}.png" if isinstance(event, Reground) else VIEWS[field]
    # What has no name of its own stays inline, and so does what the file has no room for beside
    # its manifest.
    if name in members or not _is_member(name) or len(members) + 1 >= MAX_ENTRIES:
        return None
    members[name] = data
    return name


def _is_member(name: str) -> bool:
    return name in (_TREE, _START, *VIEWS.values()) or bool(
        _MEMBER.fullmatch(name) or _CROP.fullmatch(name)
    )


def _member_name(number: int) -> str:
    return f"members/{number}.jsonl"


def _check_size(lengths: list[int]) -> None:
    # Counted with what forks share: a chain of forks would otherwise be put together to any
    # length out of a small file.
    if sum(lengths) > MAX_EVENTS:
        raise TraceFileError(f"The group has more than {MAX_EVENTS} events.")


def _rows(group: Group) -> tuple[_Row, ...]:
    names = [field.name for field in dataclasses.fields(_Row)]
    return tuple(
        _Row(**{name: getattr(member, name) for name in names}) for member in group.members
    )


def _tree_bytes(group: Group) -> bytes:
    tree = _Tree(version=GROUP_VERSION, truth=group.truth, members=_rows(group))
    data = json.dumps(dataclasses.asdict(tree), allow_nan=False, indent=1).encode()
    if len(data) > MAX_TREE_BYTES:
        raise TraceFileError("The tree of the group is too large: it cannot be saved.")
    return data


def _tree_of(data: bytes) -> _Tree:
    complaint = "The tree of the saved group is damaged."
    if len(data) > MAX_TREE_BYTES:
        raise TraceFileError("The tree of the saved group is too large.")
    raw: Any = parsed(data, complaint)
    if not isinstance(raw, Mapping):
        raise TraceFileError(complaint)
    version = raw.get("version")
    if type(version) is not int or version < 1:
        raise TraceFileError(complaint)
    if version > GROUP_VERSION:
        raise TraceFileError(
            f"The group was saved by a newer version (format {version}; this one reads up to "
            f"{GROUP_VERSION}): update the program."
        )
    rows = raw.get("members")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_MEMBERS:
        raise TraceFileError(f"A saved group has 1 to {MAX_MEMBERS} members.")
    try:
        (tree,) = _adapter().validate_json(json.dumps([raw]))
    except (ValidationError, ValueError, RecursionError) as error:
        raise TraceFileError(complaint) from error
    return tree


@functools.cache
def _adapter() -> TypeAdapter[tuple[_Tree]]:
    # A bare dataclass cannot be given a config; its one-tuple can, and passes it on.
    one_tree: Any = tuple.__class_getitem__((_Tree,))
    return TypeAdapter(one_tree, config=_CONFIG)
