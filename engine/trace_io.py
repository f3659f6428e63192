"""Traces as JSON lines and as `*.radtrace.zip` files.

A saved trace is a zip of `manifest.json`, `trace.jsonl` (one event a line), `display.png`,
`seen.png` and `crops/N.png`. It holds what the events carry and nothing else: no file name,
no tag of the original. Reading treats the file as hostile: sizes are checked before anything
is unpacked or decoded, nothing is executed, and every value is decoded against the declared
type of its field. A file that fails any of this raises `TraceFileError` with one sentence.
Writing holds the same limits, so that whatever was saved can be opened.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ConfigDict, TypeAdapter, ValidationError

from engine.request import MAX_OPTION_CHARACTERS, MAX_OPTIONS, MAX_QUESTION_CHARACTERS
from engine.trace import (
    EVENT_TYPES,
    SCHEMA_VERSION,
    Event,
    EvidenceMap,
    Failed,
    Finished,
    LatentStep,
    Reground,
    RequestFacts,
    RunStarted,
    TokenStep,
    Trace,
)

NOTICE: Final = "Research and teaching only. Not for diagnosis."
SUFFIX: Final = ".radtrace.zip"

MAX_FILE_BYTES: Final = 50 * 2**20
MAX_UNPACKED_BYTES: Final = 256 * 2**20
MAX_ENTRIES: Final = 500
# An entry in the directory of an archive: 46 bytes, and then its name, extra fields and comment.
MAX_ENTRY_BYTES: Final = 512
MAX_RATIO: Final = 100
MAX_EVENTS: Final = 100_000
# Beside their pictures, a file holds a manifest, the events, and two views of the image.
MAX_CROPS: Final = MAX_ENTRIES - 4
MAX_LINE_BYTES: Final = 64 * 2**20
MAX_MANIFEST_BYTES: Final = 2**20
# Of one JSON document: maps and latents are a text each, and a list of empty lists takes two
# hundred times its length to read.
MAX_JSON_VALUES: Final = 100_000
MAX_GRID_CELLS: Final = 65_536
# Long enough for what a model sees of an image of 200 to 1, and no more pixels than a view.
MAX_PNG_SIDE: Final = 16_384
MAX_PNG_PIXELS: Final = 4096 * 4096
MAX_SOURCE_SIDE: Final = 65_535
MAX_INTEGER_DIGITS: Final = 20

_EVENT_BY_NAME: Final[Mapping[str, type[Event]]] = {cls.__name__: cls for cls in EVENT_TYPES}
_PNG_FIELDS: Final = ("display_png", "seen_png", "crop_png")
_TRACE, _MANIFEST = "trace.jsonl", "manifest.json"
VIEWS: Final[Mapping[str, str]] = {"display_png": "display.png", "seen_png": "seen.png"}
_CONFIG: Final = ConfigDict(
    strict=True, extra="forbid", val_json_bytes="base64", allow_inf_nan=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of file that runs are saved in.

    Attributes:
        noun: what it is called in a sentence.
        suffix: of its name.
        needed: an entry that every file of this kind has, and none of the other.
        use: what to do with it, said to those who open it as the other kind.
    """

    noun: str
    suffix: str
    needed: str
    use: str


TRACE_FILE: Final = FileKind(
    noun="trace",
    suffix=SUFFIX,
    needed=_TRACE,
    use="open it on the page or with `python -m engine show`",
)
GROUP_FILE: Final = FileKind(
    noun="group",
    suffix=".radgroup.zip",
    needed="group.json",
    use="open it on the page, where each of its runs can be saved as a trace",
)
_NO_RUNS: Final = (
    f"This is not a saved trace (*{SUFFIX}) or group (*{GROUP_FILE.suffix}), or a part of it is "
    "missing: choose another file, or copy it again."
)

BlobName = Callable[[str, bytes], str | None]
"""Given a field's name and its bytes, the member that holds them, or None for base64."""


class TraceFileError(ValueError):
    """A trace that cannot be read or written; the message is one sentence for the user."""


def to_json(event: Event, blob_name: BlobName | None = None) -> dict[str, Any]:
    """One event as a JSON object: `type`, `seconds`, then the other fields.

    Byte fields (map values, latent vectors, pictures) become base64 text; a picture for which
    `blob_name` names a member of the archive becomes `{"file": name}` instead.
    """
    encoded: dict[str, Any] = {"type": type(event).__name__, "seconds": event.seconds}
    for field in dataclasses.fields(event):
        encoded[field.name] = _encoded(getattr(event, field.name), field.name, blob_name)
    return encoded


def _encoded(value: object, name: str, blob_name: BlobName | None) -> object:
    if isinstance(value, bytes):
        member = blob_name(name, value) if blob_name and name in _PNG_FIELDS else None
        return {"file": member} if member else base64.b64encode(value).decode("ascii")
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encoded(getattr(value, field.name), field.name, blob_name)
            for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [_encoded(item, name, blob_name) for item in value]
    return value


def dumps(event: Event, blob_name: BlobName | None = None) -> str:
    """One event as one line of JSON, without the line break.

    Raises:
        TraceFileError: when the event holds a number that is not finite.
    """
    try:
        return json.dumps(to_json(event, blob_name), allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise TraceFileError(
            f"A {type(event).__name__} event holds a number that is not finite."
        ) from error


def from_json(encoded: Mapping[str, Any], blobs: dict[str, bytes] | None = None) -> Event:
    """The event that `to_json` wrote, decoded strictly against its declared types.

    Args:
        encoded: the JSON object.
        blobs: archive members by name, for pictures that were stored as files. Each is taken
            out by the event that names it: a file of many events that all name one large
            picture would otherwise unpack to any size.

    Raises:
        TraceFileError: for an unknown type, a field that is missing, unknown or of the wrong
            type, or a picture that is not in `blobs`.
    """
    found = {} if blobs is None else blobs
    name = encoded.get("type")
    if not isinstance(name, str) or name not in _EVENT_BY_NAME:
        raise TraceFileError("The trace holds an event of a kind that this version does not know.")
    try:
        fields = {key: _inlined(item, key, found) for key, item in encoded.items() if key != "type"}
        (event,) = _adapter(name).validate_json(json.dumps([fields]))
    except TraceFileError:
        raise
    except (ValidationError, ValueError, RecursionError) as error:
        # The parser of JSON takes deeper nesting than what walks over it, or writes it again.
        raise TraceFileError(f"The trace has a damaged {name} event{_where(error)}.") from error
    _check_event(event)
    return event


@functools.cache
def _adapter(name: str) -> TypeAdapter[tuple[Event]]:
    # A bare dataclass cannot be given a config; its one-tuple can, and passes it on.
    one_event: Any = tuple.__class_getitem__((_EVENT_BY_NAME[name],))
    return TypeAdapter(one_event, config=_CONFIG)


def _where(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return ""
    path = [str(part) for part in error.errors()[0]["loc"] if isinstance(part, str)]
    known = [part for part in path if part.isidentifier()][:4]
    return f" (field {'.'.join(known)[:80]})" if known else ""


def _inlined(value: object, name: str, blobs: dict[str, bytes]) -> object:
    if not isinstance(value, dict):
        return value
    if name in _PNG_FIELDS:
        file = value.get("file")
        blob = blobs.pop(file, None) if isinstance(file, str) else None
        if blob is None:
            raise TraceFileError("The trace names a picture that is not in the file, or twice.")
        return base64.b64encode(blob).decode("ascii")
    return {key: _inlined(item, key, blobs) for key, item in value.items()}


def loads(line: str | bytes, blobs: dict[str, bytes] | None = None) -> Event:
    """The event of one line of JSON.

    Raises:
        TraceFileError: when the line is not JSON or not an event.
    """
    encoded = parsed(line, "The trace has a line that is not valid JSON.")
    if not isinstance(encoded, dict):
        raise TraceFileError("The trace has a line that is not a JSON object.")
    return from_json(encoded, blobs)


def parsed(text: str | bytes, complaint: str) -> object:
    """A JSON document of finite numbers and whole numbers of a sane length.

    Raises:
        TraceFileError: with the complaint, when it is none; or it holds too many values.
    """
    raw = text.encode() if isinstance(text, str) else text
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise TraceFileError("The file holds more values in one place than a trace can.")
    try:
        return json.loads(
            text, parse_constant=_not_finite, parse_float=_finite_float, parse_int=_short_int
        )
    except TraceFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise TraceFileError(complaint) from error


def _not_finite(_: str) -> NoReturn:
    raise TraceFileError("The file holds a number that is not finite.")


def _finite_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text)


def _short_int(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise TraceFileError("The file holds a whole number that is too large.")
    return int(text)


def _check_event(event: Event) -> None:
    if event.seconds < 0:
        raise TraceFileError("The trace has an event from before the run began.")
    if isinstance(event, RunStarted):
        _check_request(event.request)
        image = event.image
        _check_grid(image.rows, image.columns)
        for side in (image.source_width, image.source_height):
            if not 1 <= side <= MAX_SOURCE_SIDE:
                raise TraceFileError("The trace names an image size that is out of range.")
        for png in (image.display_png, image.seen_png):
            check_png(png)
    elif isinstance(event, LatentStep) and len(event.vector) % 4:
        raise TraceFileError("The trace has an inner step that is cut off.")
    elif isinstance(event, Reground):
        _check_reground(event)


def _check_reground(event: Reground) -> None:
    _check_grid(event.rows, event.columns)
    check_png(event.crop_png)
    if event.number < 1:
        raise TraceFileError("The trace numbers a crop below 1.")
    x0, y0, x1, y1 = event.box
    if not (0.0 <= x0 < x1 <= 1.0 and 0.0 <= y0 < y1 <= 1.0):
        raise TraceFileError("The trace has a crop that lies outside the image.")


def _check_request(request: RequestFacts) -> None:
    if len(request.question) > MAX_QUESTION_CHARACTERS:
        raise TraceFileError("The trace has a question that is longer than can be asked.")
    if len(request.options) > MAX_OPTIONS:
        raise TraceFileError("The trace has more answer options than can be asked.")
    if any(len(option) > MAX_OPTION_CHARACTERS for option in request.options):
        raise TraceFileError("The trace has an answer option that is longer than can be asked.")


def _check_grid(rows: int, columns: int) -> None:
    if rows < 1 or columns < 1 or rows * columns > MAX_GRID_CELLS:
        raise TraceFileError("The trace has a patch grid whose size is out of range.")


def check_png(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, read from its header; nothing is decoded.

    Raises:
        TraceFileError: when it is no PNG, a side is 0 or longer than `MAX_PNG_SIDE`, or it has
            more than `MAX_PNG_PIXELS`.
    """
    # PNG (ISO/IEC 15948) sections 5.2 and 11.2.1: signature, then IHDR with the size.
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise TraceFileError("A picture in the trace is not a PNG.")
    width, height = struct.unpack(">II", data[16:24])
    sides = min(width, height) >= 1 and max(width, height) <= MAX_PNG_SIDE
    if not sides or width * height > MAX_PNG_PIXELS:
        raise TraceFileError("A picture in the trace is larger than this version accepts.")
    return width, height


def check_order(events: Iterable[Event]) -> None:
    """Whether events can be one run, in order, with maps that fit their images.

    Raises:
        TraceFileError: they cannot.
    """
    grids: dict[int, tuple[int, int]] = {}
    crops = 0
    ended = False
    for position, event in enumerate(events):
        if ended:
            raise TraceFileError("The trace goes on after the end of its run.")
        if isinstance(event, RunStarted):
            if position:
                raise TraceFileError("The trace holds more than one run.")
            grids[0] = (event.image.rows, event.image.columns)
        elif not position and not isinstance(event, Failed):
            raise TraceFileError("The trace does not begin with the start of a run.")
        elif isinstance(event, Reground):
            grids[event.number] = (event.rows, event.columns)
            crops += 1
            if crops > MAX_CROPS:
                raise TraceFileError(f"The trace has more than {MAX_CROPS} crops.")
        elif isinstance(event, TokenStep | LatentStep):
            _check_maps(event, grids)
        ended = isinstance(event, Finished | Failed)


def _check_maps(event: TokenStep | LatentStep, grids: Mapping[int, tuple[int, int]]) -> None:
    maps: tuple[EvidenceMap, ...] = event.attention
    if isinstance(event, LatentStep):
        maps = (*maps, event.similarity)
    for evidence in maps:
        if grids.get(evidence.image) != (evidence.rows, evidence.columns):
            raise TraceFileError("The trace has a map that does not fit the grid of its image.")


def write_trace(path: str | Path, events: Iterable[Event], *, app_version: str = "") -> None:
    """Writes a trace as `*.radtrace.zip`, whole or not at all.

    Raises:
        TraceFileError: as `to_zip` does.
        OSError: when the folder cannot be written.
    """
    write_whole(Path(path), to_zip(events, app_version=app_version))


def write_whole(target: Path, data: bytes) -> None:
    """Writes a file whole or not at all; a link is followed, and a file keeps who may read it.

    Raises:
        OSError: when the folder cannot be written.
    """
    target = target.resolve()
    # Temporary files are for their owner alone; what a user saves is as any other file.
    umask = os.umask(0o077)
    os.umask(umask)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".radtrace-")
    try:
        Path(temporary).chmod(mode)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_zip(events: Iterable[Event], *, app_version: str = "") -> bytes:
    """The bytes of a `*.radtrace.zip`; equal events give equal bytes.

    Raises:
        TraceFileError: for what `read_trace` would refuse: no start of a run, numbers that are
            not finite, or more events, crops or bytes than a file may hold.
    """
    run = tuple(events)
    check_order(run)
    members: dict[str, bytes] = {}
    members[_TRACE] = event_lines(run, functools.partial(_store, members))
    if not members[_TRACE]:
        raise TraceFileError("The trace is empty.")
    return sealed(members, {"app_version": app_version, "events": len(run)}, TRACE_FILE)


def event_lines(events: Iterable[Event], store: Callable[[Event, str, bytes], str | None]) -> bytes:
    """Events as JSON lines, held to the limits of reading.

    Args:
        events: of one run, or a part of one.
        store: given an event, the name of a field and a picture, the member of the archive
            that holds it; None: it stays inline.

    Raises:
        TraceFileError: for what `events_of_lines` would refuse.
    """
    lines: list[bytes] = []
    for event in events:
        _check_event(event)
        lines.append(dumps(event, functools.partial(store, event)).encode() + b"\n")
        _check_line(len(lines), lines[-1])
    return b"".join(lines)


def sealed(members: dict[str, bytes], facts: Mapping[str, object], kind: FileKind) -> bytes:
    """An archive of the members with a manifest of their hashes; equal members, equal bytes.

    Args:
        members: content by name.
        facts: further keys of the manifest.
        kind: of the file.

    Raises:
        TraceFileError: they take more bytes than a file may hold.
    """
    if sum(map(len, members.values())) + MAX_MANIFEST_BYTES > MAX_UNPACKED_BYTES:
        raise TraceFileError(
            f"The {kind.noun} takes more than {MAX_UNPACKED_BYTES // 2**20} MB: it cannot be saved."
        )
    manifest = {
        **facts,
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }
    members = dict(members)
    members[_MANIFEST] = json.dumps(manifest, indent=1, sort_keys=True).encode("utf-8")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(members, key=lambda name: (name != _MANIFEST, name)):
            # ZipInfo's fixed default date keeps the moment of saving out of the file.
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            info.compress_type = _compression(name, members[name])
            archive.writestr(info, members[name])
    if len(buffer.getbuffer()) > MAX_FILE_BYTES:
        raise TraceFileError(
            f"The {kind.noun} takes more than {MAX_FILE_BYTES // 2**20} MB: it cannot be saved."
        )
    return buffer.getvalue()


def _compression(name: str, data: bytes) -> int:
    # PNGs are compressed already, and what shrinks beyond the ratio that reading allows
    # (empty maps by the thousand) is stored as it is, so that every written file reads back.
    if name.endswith(".png") or len(data) > MAX_RATIO // 2 * len(zlib.compress(data)):
        return zipfile.ZIP_STORED
    return zipfile.ZIP_DEFLATED


def _store(members: dict[str, bytes], event: Event, field: str, data: bytes) -> str | None:
    name = f"crops/{event.number}.png" if isinstance(event, Reground) else VIEWS[field]
    if name in members or not _is_member(name):
        return None  # It stays inline.
    members[name] = data
    return name


def read_trace(source: str | Path | bytes) -> Trace:
    """The trace of a `*.radtrace.zip`, checked from end to end.

    Args:
        source: a path, or the bytes of the file.

    Raises:
        TraceFileError: when the file is too large, is no trace, is damaged, or was written by
            a newer version.
        OSError: when the path cannot be read.
    """
    members = unsealed(source, TRACE_FILE, _is_member)
    pictures = {name: data for name, data in members.items() if name.endswith(".png")}
    trace = Trace.from_events(events_of_lines(members[_TRACE], pictures))
    if not trace.events:
        raise TraceFileError("The trace is empty.")
    check_order(trace)
    return trace


def unsealed(
    source: str | Path | bytes, kind: FileKind, is_member: Callable[[str], bool]
) -> dict[str, bytes]:
    """The members of an archive that `sealed` made, by name; nothing about it is trusted.

    Args:
        source: a path, or the bytes of the file.
        kind: that it has to be of.
        is_member: whether an entry of that name belongs there.

    Raises:
        TraceFileError: it is too large, of another kind, damaged, or of a newer version.
        OSError: the path cannot be read.
    """
    data = source if isinstance(source, bytes) else file_bytes(Path(source))
    check_archive(data)
    # What zipfile and its codecs raise on damaged input (BadZipFile, zlib.error, EOFError,
    # RuntimeError, struct.error, ...) shares no base class.
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:
        raise TraceFileError(_NO_RUNS) from error
    with archive:
        _check_kind(archive.namelist(), kind)
        try:
            members = dict(_members(archive, kind, is_member))
        except TraceFileError:
            raise
        except Exception as error:
            raise TraceFileError(
                f"The saved {kind.noun} is damaged and cannot be unpacked: copy the file again."
            ) from error
    _check_manifest(members, kind)
    return members


def file_bytes(path: Path) -> bytes:
    """The content of a file; of one that is too large, no more than shows that it is.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(MAX_FILE_BYTES + 1)


def check_archive(data: bytes) -> None:
    """Whether an archive is small enough to be opened, by its size and that of its directory.

    `zipfile` makes an object of every entry before it can be asked how many there are.

    Raises:
        TraceFileError: it is not.
    """
    if len(data) > MAX_FILE_BYTES:
        raise TraceFileError(f"The file is larger than {MAX_FILE_BYTES // 2**20} MB.")
    place = _end_of_directory(data)
    if place is None:
        return
    entries, size = struct.unpack_from("<HL", data, place + 10)
    # The locator of zip64 stands before it, for more entries than any saved run has. The number of
    # entries may lie; the directory is read to its size.
    zip64 = data[max(0, place - 20) : place].startswith(b"PK\6\7")
    if zip64 or entries > MAX_ENTRIES or size > MAX_ENTRIES * MAX_ENTRY_BYTES:
        raise TraceFileError(f"The file has more than {MAX_ENTRIES} entries.")


def _end_of_directory(data: bytes) -> int | None:
    """Where the record of the end of a zip's directory begins, as `zipfile` looks for it.

    APPNOTE.TXT section 4.3.16: 22 bytes, then a comment of up to 65,535.
    """
    last = len(data) - 22
    if last >= 0 and data.startswith(b"PK\5\6", last) and data.endswith(b"\0\0"):
        return last
    place = data.rfind(b"PK\5\6", max(0, last - 0x10000))
    return place if 0 <= place <= last else None


def _check_kind(names: list[str], kind: FileKind) -> None:
    if _MANIFEST in names and kind.needed in names:
        return
    other = GROUP_FILE if kind is TRACE_FILE else TRACE_FILE
    if other.needed in names and kind.needed not in names:
        raise TraceFileError(
            f"This is a saved {other.noun} (*{other.suffix}), not a {kind.noun} "
            f"(*{kind.suffix}): {other.use}."
        )
    raise TraceFileError(_NO_RUNS)


def _members(
    archive: zipfile.ZipFile, kind: FileKind, is_member: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise TraceFileError(f"The file has more than {MAX_ENTRIES} entries.")
    if len({entry.filename for entry in entries}) != len(entries):
        raise TraceFileError("The file has two entries of the same name.")
    budget = MAX_UNPACKED_BYTES
    for entry in entries:
        _check_entry(entry, kind, is_member)
        if entry.file_size > budget:
            raise TraceFileError("The file unpacks to more than this version accepts.")
        # The size in the directory may lie: never read beyond it, and demand it exactly.
        with archive.open(entry) as stream:
            data = stream.read(entry.file_size + 1)
        if len(data) != entry.file_size:
            raise TraceFileError("The file has an entry whose size is not what it says.")
        budget -= len(data)
        yield entry.filename, data


def _check_entry(entry: zipfile.ZipInfo, kind: FileKind, is_member: Callable[[str], bool]) -> None:
    name = entry.filename
    if not (name == _MANIFEST or is_member(name)) or name != entry.orig_filename:
        raise TraceFileError(f"The file has an entry that does not belong in a saved {kind.noun}.")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise TraceFileError("The file has an entry that is not a plain file.")
    if entry.flag_bits & 0x1:
        raise TraceFileError(f"The file is encrypted: save the {kind.noun} without a password.")
    if entry.file_size > MAX_RATIO * max(entry.compress_size, 1) + 1024:
        raise TraceFileError(f"The file is compressed more than a saved {kind.noun} ever is.")


def _is_member(name: str) -> bool:
    folder, _, file = name.partition("/")
    stem = file.removesuffix(".png")
    return name in (_TRACE, *VIEWS.values()) or (
        folder == "crops"
        and file == f"{stem}.png"
        and stem.isascii()
        and stem.isdigit()
        and not stem.startswith("0")
        and len(stem) <= 6
    )


def _check_manifest(members: Mapping[str, bytes], kind: FileKind) -> None:
    damaged = f"The manifest of the saved {kind.noun} is damaged: copy the file again."
    if len(members[_MANIFEST]) > MAX_MANIFEST_BYTES:
        raise TraceFileError(f"The manifest of the saved {kind.noun} is too large.")
    manifest = parsed(members[_MANIFEST], damaged)
    if not isinstance(manifest, dict):
        raise TraceFileError(damaged)
    version = manifest.get("schema_version")
    if type(version) is not int or version < 1:
        raise TraceFileError(damaged)
    if version > SCHEMA_VERSION:
        raise TraceFileError(
            f"The {kind.noun} was saved by a newer version (format {version}; this one reads up "
            f"to {SCHEMA_VERSION}): update the program."
        )
    listed = manifest.get("sha256")
    actual = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in members.items()
        if name != _MANIFEST
    }
    if listed != actual:
        raise TraceFileError(
            f"The saved {kind.noun} was changed or damaged, as its checksums do not match: "
            "copy the file again."
        )


def events_of_lines(lines: bytes, pictures: dict[str, bytes]) -> Iterator[Event]:
    """The events of JSON lines.

    Args:
        lines: one event each.
        pictures: by name; each is taken out by the event that names it.

    Raises:
        TraceFileError: there are too many, or one is damaged.
    """
    for count, line in enumerate(io.BytesIO(lines), start=1):
        _check_line(count, line)
        yield loads(line, pictures)


def _check_line(count: int, line: bytes) -> None:
    if count > MAX_EVENTS:
        raise TraceFileError(f"The trace has more than {MAX_EVENTS} events.")
    if len(line) > MAX_LINE_BYTES:
        raise TraceFileError("The trace has a line that is too long.")
