"""The front door: open an image from bytes or from a path."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from engine.imaging.errors import UnreadableFileError
from engine.imaging.limits import Limits, check_file_size
from engine.imaging.sandbox import load_sandboxed
from engine.imaging.sniff import detect_format
from engine.imaging.source import SourceImage

_DEFAULT_LIMITS = Limits()
_UNREADABLE = "This file cannot be opened. Check that it exists, is a file and may be read."


def open_image(
    data: bytes | Path,
    *,
    frame: int = 0,
    limits: Limits = _DEFAULT_LIMITS,
    sandboxed: bool = True,
) -> SourceImage:
    """Open a DICOM, PNG or JPEG file; the format is told from its content.

    Args:
        data: the bytes of the file, or its path. The name is used for opening only.
        frame: index from 0; one frame is decoded and no other.
        limits: what the file may ask for.
        sandboxed: parse in a child process under `limits` of memory and time. Turn it off
            for files of your own only (phantoms, training).

    Returns:
        The frame in full resolution, see `SourceImage`.

    Raises:
        ImagingError: with a code E101 to E109 and one sentence for the user.
    """
    content = data if isinstance(data, bytes) else read_bytes(data, limits)
    check_file_size(len(content), limits)
    detect_format(content)
    sha256 = hashlib.sha256(content).hexdigest()
    if sandboxed:
        return load_sandboxed(content, frame=frame, limits=limits, sha256=sha256)
    # The parsers are imported only where they run: a parent that sandboxes never loads them.
    from engine.imaging.loading import load_image

    return load_image(content, frame=frame, limits=limits, sha256=sha256)


def read_bytes(path: Path, limits: Limits) -> bytes:
    """The content of a regular file; pipes, devices and folders are refused, not waited for.

    Raises:
        UnreadableFileError: not a regular file, or not readable.
        TooLargeError: larger than the limit.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as stream:
            check_file_size(os.fstat(stream.fileno()).st_size, limits)
            return stream.read(limits.file_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UnreadableFileError(_UNREADABLE) from error


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a regular file; a pipe would otherwise wait for a writer.

    Raises:
        OSError: it is something else, or cannot be opened.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor
