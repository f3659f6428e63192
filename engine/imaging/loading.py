"""Dispatch by format, in this process; the child process of the sandbox runs this."""

from __future__ import annotations

from engine.imaging.dicom import load_dicom
from engine.imaging.limits import Limits, check_file_size
from engine.imaging.raster import load_raster
from engine.imaging.sniff import detect_format
from engine.imaging.source import SourceImage


def load_image(data: bytes, *, frame: int, limits: Limits, sha256: str) -> SourceImage:
    """Read one frame of an image file without a sandbox.

    Args:
        data: the whole file.
        frame: index from 0.
        limits: sizes that are refused; memory and time hold only in the sandbox.
        sha256: of `data`, passed through.

    Raises:
        ImagingError: see `engine.imaging.errors`.
    """
    check_file_size(len(data), limits)
    image_format = detect_format(data)
    if image_format == "DICOM":
        source = load_dicom(data, frame=frame, limits=limits, sha256=sha256)
    else:
        source = load_raster(data, image_format, frame=frame, limits=limits, sha256=sha256)
    source.pixels.setflags(write=False)
    return source
