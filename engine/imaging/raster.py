"""PNG and JPEG files, through Pillow, with their sizes checked before they are unpacked."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from engine.imaging.arrays import Bytes, Pixels
from engine.imaging.completeness import is_jpeg_cut_short, is_png_cut_short
from engine.imaging.errors import (
    DAMAGED_MESSAGE,
    MEMORY_MESSAGE,
    DamagedImageError,
    FrameRangeError,
    ImagingError,
    TooLargeError,
)
from engine.imaging.limits import Limits, check_frame_size
from engine.imaging.sniff import ImageFormat
from engine.imaging.source import SourceImage
from engine.imaging.window import (
    IDENTITY_8_BIT,
    Window,
    full_range_window,
    percentile_window,
)

_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I")
_PNG_DEPTH_OFFSET = 24  # signature 8, chunk header 8, width 4, height 4 (PNG, section 11.2.2)


def load_raster(
    data: bytes, image_format: ImageFormat, *, frame: int, limits: Limits, sha256: str
) -> SourceImage:
    """Read a PNG or JPEG file.

    EXIF rotation is applied, transparency put on black, palettes and CMYK become RGB, and
    colour files whose channels are equal everywhere become greyscale. 16-bit greyscale PNG
    keeps its 16 bits and is shown through a percentile window. Of an animation the first
    frame is read.

    Args:
        data: the whole file.
        image_format: 'PNG' or 'JPEG', as sniffed.
        frame: 0.
        limits: sizes that are refused.
        sha256: of `data`, passed through.

    Raises:
        ImagingError: see `engine.imaging.errors`.
    """
    if frame != 0:
        raise FrameRangeError(f"Frame {frame} does not exist: this file has 1 frame(s).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they echo chunk contents
            pixels, warned = _read(data, image_format, limits)
    except ImagingError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise TooLargeError(MEMORY_MESSAGE) from error
    except Exception as error:  # Pillow raises nearly anything on damaged data
        raise DamagedImageError(DAMAGED_MESSAGE) from error
    return _describe(pixels, warned, image_format, sha256)


def _read(data: bytes, image_format: ImageFormat, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Pixels as `_to_pixels` makes them, and what had to be left off."""
    with Image.open(io.BytesIO(data), formats=(image_format,)) as image:
        check_frame_size(image.height, image.width, limits)
        warned = []
        if getattr(image, "n_frames", 1) > 1:
            warned.append("This file is animated or holds several images: the first is shown.")
        if _drops_bits(data, image_format, image.mode):
            warned.append("This PNG has 16 bits per channel: the upper 8 bits are shown.")
        is_cut_short = is_png_cut_short if image_format == "PNG" else is_jpeg_cut_short
        if is_cut_short(data):
            raise DamagedImageError(DAMAGED_MESSAGE)
        image.load()
        # A damaged orientation must not cost the picture.
        upright = ImageOps.exif_transpose(image)
        check_frame_size(upright.height, upright.width, limits)
        return _to_pixels(upright), tuple(warned)


def _drops_bits(data: bytes, image_format: ImageFormat, mode: str) -> bool:
    """Pillow reads 16-bit greyscale in full, but 16-bit colour and alpha with 8 bits."""
    deep = image_format == "PNG" and data[_PNG_DEPTH_OFFSET : _PNG_DEPTH_OFFSET + 1] == b"\x10"
    return deep and mode not in _WIDE_MODES


def _to_pixels(image: Image.Image) -> Pixels:
    """int32 `(H, W)` for 16-bit greyscale, else uint8 `(H, W)` or `(H, W, 3)`."""
    if image.mode in _WIDE_MODES:
        return np.asarray(image).astype(np.int32)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, layer)
    return _grey_if_equal(np.asarray(image.convert("RGB")))


def _grey_if_equal(pixels: Bytes) -> Bytes:
    """Most radiographs in teaching files are grey pictures saved as RGB."""
    red = pixels[..., 0]
    if np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2]):
        return np.ascontiguousarray(red)
    return pixels


def _describe(
    pixels: Pixels,
    warned: tuple[str, ...],
    image_format: ImageFormat,
    sha256: str,
) -> SourceImage:
    full = full_range_window(pixels)  # raises when the image is blank
    is_color = pixels.ndim == 3
    is_wide = pixels.dtype != np.uint8
    default: Window | None = None if is_color else IDENTITY_8_BIT
    if is_wide:
        default = percentile_window(pixels)
        warned += (
            "This file has no window: values from the 1st to the 99th percentile are shown.",
        )
    return SourceImage(
        pixels=pixels,
        is_color=is_color,
        inverted=False,
        bits_stored=16 if is_wide else 8,
        modality="",
        spacing_mm=None,
        spacing_kind="",
        left_edge="",
        units="",
        frame=0,
        frame_count=1,
        windows=(),
        default_window=default,
        window_source="percentile" if is_wide else "identity",
        voi_lut=None,
        percentile_window=None if is_color else percentile_window(pixels),
        full_window=None if is_color else full,
        sha256=sha256,
        format=image_format,
        transfer_syntax="",
        hidden_tag_count=0,
        burned_in_risk=False,
        warnings=warned,
    )
