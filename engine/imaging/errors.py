"""What can be wrong with an image file: one typed error, one code and one sentence each.

Messages never hold a file name or the content of a tag, so they can be shown and logged.
"""

from __future__ import annotations

from typing import ClassVar


class ImagingError(Exception):
    """An image cannot be opened.

    Attributes:
        code: `E1xx`, stable, for programs.
        message: one sentence (or two) for people: what is wrong and what to do.
    """

    code: ClassVar[str] = "E100"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class NotAnImageError(ImagingError):
    """The content is neither DICOM nor PNG nor JPEG."""

    code = "E101"


class DamagedImageError(ImagingError):
    """The format is right, but the pixels are missing, truncated or damaged."""

    code = "E102"


class TooLargeError(ImagingError):
    """The file, or what it claims to unpack to, passes a limit."""

    code = "E103"


class UnusableImageError(ImagingError):
    """The pixels can be read but show nothing: constant, a single row, an extreme shape."""

    code = "E104"


class ParseTimeoutError(ImagingError):
    """Reading took longer than the limit and was ended."""

    code = "E105"


class MissingCodecError(ImagingError):
    """The pixels are compressed in a way that needs a package which is not installed."""

    code = "E106"


class UnsupportedImageError(ImagingError):
    """A valid file of a kind that is refused on purpose (deflated DICOM, video)."""

    code = "E107"


class FrameRangeError(ImagingError):
    """The requested frame does not exist."""

    code = "E108"


class UnreadableFileError(ImagingError):
    """The path is not a regular file that can be read."""

    code = "E109"


ERRORS_BY_CODE: dict[str, type[ImagingError]] = {
    kind.code: kind
    for kind in (
        NotAnImageError,
        DamagedImageError,
        TooLargeError,
        UnusableImageError,
        ParseTimeoutError,
        MissingCodecError,
        UnsupportedImageError,
        FrameRangeError,
        UnreadableFileError,
    )
}

DAMAGED_MESSAGE = (
    "The image part of this file is missing or damaged. Export it again from its source."
)
MEMORY_MESSAGE = "This image needs more memory than is allowed. Export it at a smaller size."
