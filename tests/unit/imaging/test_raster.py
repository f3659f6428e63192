"""PNG and JPEG: every mode, rotation, transparency, depth, by hand."""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engine.imaging.errors import DamagedImageError, FrameRangeError, UnusableImageError
from engine.imaging.source import list_presets, render
from engine.imaging.window import IDENTITY_8_BIT
from tests.unit.imaging.dicom_files import open_here, png_file

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLORS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def test_grey_bytes_are_shown_as_they_are() -> None:
    source = open_here(encode(Image.fromarray(GREY)))
    np.testing.assert_array_equal(render(source), GREY)
    assert (source.default_window, source.window_source) == (IDENTITY_8_BIT, "identity")
    assert source.format == "PNG"
    assert not source.warnings


def test_colour() -> None:
    source = open_here(encode(Image.fromarray(COLORS)))
    np.testing.assert_array_equal(render(source), COLORS)
    assert source.is_color
    assert list_presets(source) == ()


def test_grey_saved_as_colour_is_grey() -> None:
    source = open_here(encode(Image.fromarray(GREY).convert("RGB")))
    assert not source.is_color
    np.testing.assert_array_equal(source.pixels, GREY)


def test_16_bits_are_kept_without_loss() -> None:
    wide = (np.arange(48, dtype=np.uint16) * 1365 + 3).reshape(6, 8)
    source = open_here(encode(Image.fromarray(wide)))
    assert source.pixels.dtype == np.int32
    np.testing.assert_array_equal(source.pixels, wide)
    assert source.bits_stored == 16
    assert source.window_source == "percentile"
    assert any("percentile" in text for text in source.warnings)


def test_16_bit_colour_says_that_bits_are_dropped() -> None:
    wide = (COLORS.astype(">u2") << 8) | 7
    rows = b"".join(b"\0" + row.tobytes() for row in wide.astype(">u2"))
    source = open_here(png_file(8, 6, 16, 2, rows))
    assert np.abs(source.pixels.astype(int) - COLORS).max() <= 1
    assert any("upper 8 bits" in text for text in source.warnings)


def test_one_bit() -> None:
    mask = GREY > 100
    source = open_here(encode(Image.fromarray(mask)))
    np.testing.assert_array_equal(source.pixels, mask * 255)


def test_palette() -> None:
    image = Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(open_here(encode(image)).pixels, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_black(mode: str) -> None:
    alpha = np.full((6, 8), 255, dtype=np.uint8)
    alpha[:, :4] = 0
    alpha[0, 4] = 128
    image = Image.fromarray(COLORS if mode == "RGBA" else GREY)
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    pixels = open_here(encode(image)).pixels
    base = COLORS if mode == "RGBA" else GREY
    assert pixels[:, :4].max() == 0
    np.testing.assert_array_equal(pixels[1:, 4:], base[1:, 4:])
    assert np.abs(pixels[0, 4].astype(int) - base[0, 4] * (128 / 255)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_colour_lies_on_black(mode: str) -> None:
    image = Image.fromarray(GREY).convert(mode)
    key: object = {"L": 200, "P": bytes([0] * 41), "RGB": (200, 200, 200)}[mode]
    pixels = open_here(encode(image, transparency=key)).pixels
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    if mode == "P":
        assert grey.reshape(-1)[:9].max() == 0
    else:
        assert grey[GREY == 200].max() == 0
        np.testing.assert_array_equal(grey[GREY != 200], GREY[GREY != 200])


def test_cmyk_jpeg() -> None:
    flat = np.zeros((16, 16, 3), dtype=np.uint8)
    flat[:, :8] = (200, 40, 40)
    flat[:, 8:] = (20, 60, 220)
    image = Image.fromarray(flat).convert("CMYK")
    source = open_here(encode(image, "JPEG", quality=95))
    assert source.format == "JPEG"
    assert np.abs(source.pixels[:, [2, 13]].astype(int) - flat[:, [2, 13]]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_exif_rotation(orientation: int, image_format: str) -> None:
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :8] = 250  # bright top left corner
    stored = turned(upright, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored), image_format, exif=exif.tobytes())
    pixels = open_here(data).pixels
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() < 10


def turned(upright: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """What a camera stores for an upright picture (EXIF 2.3, table of tag 0x0112)."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


def test_rotation_keeps_16_bits() -> None:
    wide = (np.arange(48, dtype=np.uint16) * 1365).reshape(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    source = open_here(encode(Image.fromarray(wide), exif=exif.tobytes()))
    np.testing.assert_array_equal(source.pixels, np.rot90(wide, -1))


def test_damaged_exif_does_not_cost_the_picture() -> None:
    source = open_here(encode(Image.fromarray(GREY), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    np.testing.assert_array_equal(source.pixels, GREY)


def test_of_an_animation_the_first_frame_is_shown() -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    data = encode(frames[0], save_all=True, append_images=frames[1:])
    source = open_here(data)
    np.testing.assert_array_equal(source.pixels, GREY)
    assert any("animated" in text for text in source.warnings)


def test_other_frames_do_not_exist() -> None:
    with pytest.raises(FrameRangeError):
        open_here(encode(Image.fromarray(GREY)), frame=1)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files(image_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encode(Image.fromarray(noise), image_format)
    with pytest.raises(DamagedImageError) as caught:
        open_here(data[: int(len(data) * share)])
    assert caught.value.code == "E102"


def test_png_with_a_wrong_checksum() -> None:
    data = bytearray(encode(Image.fromarray(GREY)))
    data[data.index(b"IDAT") + 8] ^= 0xFF
    with pytest.raises(DamagedImageError):
        open_here(bytes(data))


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (10_000, 1), (0, 5)], ids=["pixel", "line", "zero"]
)
def test_shapes_that_show_nothing(width: int, height: int) -> None:
    rows = (b"\0" + bytes(range(256)) * 40)[: width + 1] * height
    with pytest.raises((UnusableImageError, DamagedImageError)):
        open_here(png_file(width, height, 8, 0, rows))


def test_constant_images() -> None:
    with pytest.raises(UnusableImageError, match="blank"):
        open_here(encode(Image.fromarray(np.full((6, 8), 7, dtype=np.uint8))))


def test_text_chunks_do_not_leave_the_file() -> None:
    text = (b"tEXt", b"Comment\0DOE^JANE")
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    source = open_here(png_file(8, 6, 8, 0, rows, text))
    np.testing.assert_array_equal(source.pixels, GREY)
    assert "JANE" not in repr(source.warnings)


def test_a_size_that_lies_is_damage() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    data = png_file(8, 6, 8, 0, rows)
    longer = data.replace(struct.pack(">II", 8, 6), struct.pack(">II", 8, 9))
    with pytest.raises(DamagedImageError):
        open_here(longer)
