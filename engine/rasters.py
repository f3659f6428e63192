"""8-bit pictures as PNG bytes, quickly and within a size."""

from __future__ import annotations

import io
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

DISPLAY_SIDE: Final = 2048


def encoded_png(pixels: npt.NDArray[np.uint8], most_side: int | None = None) -> bytes:
    """A PNG of `(H, W)` or `(H, W, 3)`; scaled down so that no side passes `most_side`.

    RGB whose channels are equal is stored as grey: a third of the bytes, the same picture.
    """
    if pixels.ndim == 3 and _is_grey(pixels):
        pixels = pixels[..., 0]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if most_side is not None and max(image.size) > most_side:
        image.thumbnail((most_side, most_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # The picture is on the way to the first event. Noise repeats nothing but runs of one value:
    # looking for those alone is faster than level 1, and the file of a radiograph is smaller.
    image.save(buffer, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _is_grey(pixels: npt.NDArray[np.uint8]) -> bool:
    return bool(
        np.array_equal(pixels[..., 0], pixels[..., 1])
        and np.array_equal(pixels[..., 0], pixels[..., 2])
    )
