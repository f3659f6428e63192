"""The child process that parses one untrusted file: limits first, then standard input.

It reads the job as one line of JSON, then the file, and writes what `engine.imaging.wire`
says to standard output. It is started by `engine.imaging.sandbox`, never by hand.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

from engine.imaging.errors import (
    DAMAGED_MESSAGE,
    MEMORY_MESSAGE,
    DamagedImageError,
    ImagingError,
    TooLargeError,
)
from engine.imaging.limits import Limits
from engine.imaging.loading import load_image
from engine.imaging.wire import write_error, write_source

if sys.platform != "win32":  # Windows has no limits of this kind; the wall clock still holds
    import resource

_PR_SET_PDEATHSIG = 1
_BYTES_PER_PIXEL = 4
_RESULT_SLACK = 4 << 20


def main() -> None:
    """Serve one job and leave. Exit status 0 whenever an answer was written."""
    job = json.loads(sys.stdin.buffer.readline())
    limits = Limits(**job["limits"])
    _die_with_parent(job["parent"])
    _limit_process(limits)
    output = sys.stdout.buffer
    try:
        data = sys.stdin.buffer.read()
        source = load_image(data, frame=job["frame"], limits=limits, sha256=job["sha256"])
        del data
        write_source(output, source)
    except ImagingError as error:
        write_error(output, error)
    except MemoryError:
        write_error(output, TooLargeError(MEMORY_MESSAGE))
    except Exception:  # noqa: BLE001 (the parent must get an answer whatever happened)
        write_error(output, DamagedImageError(DAMAGED_MESSAGE))
    output.flush()


def _die_with_parent(parent: int) -> None:
    """On Linux, have the kernel end this process when the parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(1)


def _limit_process(limits: Limits) -> None:
    """Bound memory, processor time, written bytes and core dumps of this process."""
    if sys.platform == "win32":
        return
    result_bytes = limits.frame_pixels * _BYTES_PER_PIXEL + _RESULT_SLACK
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, result_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue  # a lower hard limit already holds, or this system has none of the kind


if __name__ == "__main__":
    main()
