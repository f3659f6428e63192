"""Parse an untrusted file in a child process with limits on memory and time.

The child gets the bytes through standard input and answers through an unnamed temporary
file, so that no path and no file name crosses. It is waited for or killed before this
module returns or raises.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from engine.imaging.errors import (
    MEMORY_MESSAGE,
    DamagedImageError,
    ImagingError,
    ParseTimeoutError,
    TooLargeError,
)
from engine.imaging.limits import Limits
from engine.imaging.source import SourceImage
from engine.imaging.wire import read_source

_REPOSITORY = str(Path(__file__).resolve().parents[2])

# -I keeps the environment and the current folder out; -S skips what the path already holds.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from engine.imaging.child import main; main()"
)
# One thread per library: every thread of a linear algebra package reserves address space.
_CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
_INHERITED = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LD_LIBRARY_PATH")


def load_sandboxed(data: bytes, *, frame: int, limits: Limits, sha256: str) -> SourceImage:
    """As `engine.imaging.loading.load_image`, in a child process.

    Args:
        data: the whole file.
        frame: index from 0.
        limits: of sizes, and of the child's memory and time.
        sha256: of `data`, passed through.

    Raises:
        ImagingError: what the child found; E105 when it ran out of time; E103 or E102 when
            it ended without an answer.
    """
    job = {
        "frame": frame,
        "sha256": sha256,
        "limits": dataclasses.asdict(limits),
        "parent": os.getpid(),
    }
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as answer:
        request.write(json.dumps(job).encode() + b"\n")
        request.write(data)
        request.seek(0)
        status = _run_child(request, answer, limits)
        if status != 0:
            raise explain_status(status, limits)
        answer.seek(0)
        source = read_source(answer, limits)
    # These come from here, not from the child.
    return dataclasses.replace(source, sha256=sha256, frame=frame)


def _run_child(request: IO[bytes], answer: IO[bytes], limits: Limits) -> int:
    """Exit status of the child; it is gone when this returns or raises.

    Raises:
        ParseTimeoutError: the wall clock limit was reached.
    """
    places = [_REPOSITORY, *(os.path.abspath(place) for place in sys.path)]
    command = [sys.executable, "-I", "-S", "-c", _START, json.dumps(places)]
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    with subprocess.Popen(
        command,
        stdin=request,
        stdout=answer,
        stderr=subprocess.DEVNULL,
        env={**environment, **_CHILD_ENVIRONMENT},
        cwd=tempfile.gettempdir(),
        close_fds=True,
    ) as child:
        try:
            return child.wait(timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired as error:
            raise _timeout(limits.wall_seconds) from error
        finally:
            child.kill()


def _timeout(seconds: float) -> ParseTimeoutError:
    return ParseTimeoutError(
        f"Reading this image took longer than {seconds:g} seconds and was stopped. "
        "Export it uncompressed or at a smaller size."
    )


def explain_status(status: int, limits: Limits) -> ImagingError:
    """The error for a child that ended without an answer (negative: by that signal)."""
    if status in (-getattr(signal, "SIGXCPU", 24), -getattr(signal, "SIGKILL", 9)):
        # At the hard limit of processor time the kernel sends SIGKILL.
        return _timeout(limits.cpu_seconds)
    if status in (-getattr(signal, "SIGXFSZ", 25), -getattr(signal, "SIGABRT", 6)):
        return TooLargeError(MEMORY_MESSAGE)
    return DamagedImageError(
        "The image part of this file made its decoder fail, so it is probably damaged. "
        "Export it again from its source."
    )
