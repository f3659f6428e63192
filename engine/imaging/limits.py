"""How much an untrusted image file may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from engine.imaging.errors import TooLargeError, UnusableImageError

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one `open_image` call.

    Attributes:
        file_bytes: largest file.
        frame_pixels: most pixels (rows times columns) of one frame.
        listed_frames: most frames that can be asked for; later ones are left off.
        declared_frames: a file that claims more frames than this is refused.
        aspect_ratio: largest ratio of the longer to the shorter side.
        memory_bytes: address space of the child process that parses.
        cpu_seconds: processor time of the child process.
        wall_seconds: time after which the child process is killed; larger than
            `cpu_seconds`, so that a busy machine does not fail good files.
    """

    file_bytes: int = 64 * MEBIBYTE
    frame_pixels: int = 40_000_000
    listed_frames: int = 400
    declared_frames: int = 100_000
    aspect_ratio: float = 200.0
    memory_bytes: int = 2048 * MEBIBYTE
    cpu_seconds: int = 10
    wall_seconds: float = 60.0


def check_file_size(size: int, limits: Limits) -> None:
    """Refuse a file of `size` bytes when it is over the limit.

    Raises:
        TooLargeError: the file is too large.
    """
    if size > limits.file_bytes:
        raise TooLargeError(
            f"This file is larger than {limits.file_bytes // MEBIBYTE} MB. "
            "Use a single image or a shorter series."
        )


def check_frame_size(rows: int, columns: int, limits: Limits) -> None:
    """Refuse a frame whose size is absurd, before anything is decoded.

    Raises:
        UnusableImageError: a side is zero, both are one, or the shape is extreme.
        TooLargeError: more pixels than the limit.
    """
    if rows < 1 or columns < 1:
        raise UnusableImageError("This image has no pixels: its width or height is zero.")
    if rows * columns > limits.frame_pixels:
        raise TooLargeError(
            f"This image is {columns} x {rows} pixels, more than the "
            f"{limits.frame_pixels // 1_000_000} megapixels that can be read. "
            "Export it at a smaller size."
        )
    if rows * columns == 1:
        raise UnusableImageError("This image is a single pixel, so there is nothing to read.")
    if max(rows, columns) > limits.aspect_ratio * min(rows, columns):
        raise UnusableImageError(
            f"This image is {columns} x {rows} pixels; shapes longer than "
            f"{limits.aspect_ratio:.0f} to 1 cannot be read. Crop it first."
        )
