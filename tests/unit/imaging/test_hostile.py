"""Files broken on purpose: each gets a typed error with one clear sentence, fast."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from engine.imaging import ImagingError, SourceImage, open_image
from engine.imaging.errors import (
    DamagedImageError,
    NotAnImageError,
    TooLargeError,
    UnsupportedImageError,
    UnusableImageError,
)
from tests.unit.imaging.dicom_files import make_dataset, open_here, png_file, save, to_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)
BOTH = pytest.mark.parametrize("sandboxed", [True, False])


def check_sentence(error: ImagingError) -> None:
    """One or two sentences for people: no trace, no path, no markup."""
    assert error.message.endswith((".", "gdcm", "openjpeg"))
    assert 20 < len(error.message) < 250
    assert not any(word in error.message for word in ("Traceback", "Error", "/", "<", "0x"))


def refuse(data: bytes, kind: type[ImagingError], *, sandboxed: bool = False) -> ImagingError:
    with pytest.raises(kind) as caught:
        open_image(data, sandboxed=sandboxed)
    check_sentence(caught.value)
    return caught.value


@BOTH
def test_1_text_named_dcm(sandboxed: bool) -> None:
    refuse(b"This is a report, not an image.\n" * 40, NotAnImageError, sandboxed=sandboxed)


def test_1_random_bytes_behind_the_dicom_magic() -> None:
    noise = np.random.default_rng(0).bytes(4000)
    refuse(bytes(128) + b"DICM" + noise, DamagedImageError)


@BOTH
@pytest.mark.parametrize("cut", [1, 60, 140])
def test_2_truncated_pixels(sandboxed: bool, cut: int) -> None:
    refuse(to_file(RAMP)[:-cut], DamagedImageError, sandboxed=sandboxed)


def test_2_no_pixel_data() -> None:
    refuse(save(make_dataset(RAMP)), DamagedImageError)


def test_2_a_report_holds_no_image() -> None:
    report = Dataset()
    report.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.88.11")
    report.SOPInstanceUID = UID("1.2.3")
    report.Modality = "SR"
    assert "no image" in refuse(save(report), DamagedImageError).message


@BOTH
def test_3_absurd_size(sandboxed: bool) -> None:
    data = to_file(RAMP, Rows=65535, Columns=65535, PixelData=bytes(8192))
    refuse(data, TooLargeError, sandboxed=sandboxed)


def test_3_absurd_size_inside_a_compressed_frame() -> None:
    """The header says 8 x 8, the codestream says 60,000 x 60,000."""
    dataset = make_dataset(RAMP)
    size = struct.pack(">HIIIIIIIIH", 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1) + b"\x0f\1\1"
    stream = b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + bytes(200)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    with pytest.raises((DamagedImageError, TooLargeError)):
        open_image(save(dataset, JPEG2000Lossless))


def test_4_a_deflated_bomb_is_refused_before_it_is_inflated() -> None:
    meta_end = save(make_dataset(RAMP), DeflatedExplicitVRLittleEndian)
    start = 132 + 12 + struct.unpack_from("<I", meta_end, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    data = meta_end[:start] + bomb
    tracemalloc.start()
    error = refuse(data, UnsupportedImageError)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "deflated" in error.message
    assert peak < len(data) + (8 << 20)


def test_4_a_deflated_file_that_hides_its_syntax_is_damage() -> None:
    deflated = save(make_dataset(RAMP), DeflatedExplicitVRLittleEndian)
    lying = deflated.replace(b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0")
    refuse(lying, DamagedImageError)


def test_4_a_second_transfer_syntax_in_the_data_set_is_not_followed() -> None:
    data = to_file(RAMP)
    start = data.index(b"\x08\x00\x16\x00UI")
    extra = b"\x02\x00\x10\x00UI" + struct.pack("<H", 22) + b"1.2.840.10008.1.2.1.99"
    with pytest.raises(ImagingError):
        open_here(data[:start] + extra + data[start:])


def test_5_of_many_rle_frames_one_is_decoded() -> None:
    frames = np.zeros((100, 256, 256), dtype=np.uint16)
    frames[:, :, 0] = np.arange(100)[:, None]
    dataset = make_dataset(frames)
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    data = save(dataset, RLELossless)
    tracemalloc.start()
    source = open_here(data, frame=99)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(source.pixels, frames[99])
    assert source.frame_count == 100
    assert peak < frames.nbytes / 2


@BOTH
def test_6_png_bomb(sandboxed: bool) -> None:
    side = 13_000
    row = bytes(1 + (side + 7) // 8)
    refuse(png_file(side, side, 1, 0, row * side), TooLargeError, sandboxed=sandboxed)


@pytest.mark.parametrize("side", [60_000, 2_000_000_000])
def test_6_png_with_an_absurd_header(side: int) -> None:
    refuse(png_file(side, side, 8, 0, b"\0\0"), TooLargeError)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"icc\0\0")],
)
def test_6_text_chunk_bombs_do_not_unpack(name: bytes, prefix: bytes) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in RAMP.astype(np.uint8))
    bomb = (name, prefix + zlib.compress(bytes(100 << 20), 9))
    data = png_file(8, 8, 8, 0, rows, bomb)
    tracemalloc.start()
    with pytest.raises(DamagedImageError):
        open_here(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("image_format", ["TIFF", "GIF", "BMP", "WEBP"])
def test_7_other_formats_are_refused_by_name(image_format: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).save(stream, image_format)
    error = refuse(stream.getvalue(), NotAnImageError)
    assert image_format.lower() in error.message.lower()


def test_7_a_gif_behind_a_png_signature_is_damage() -> None:
    stream = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).save(stream, "GIF")
    refuse(b"\x89PNG\r\n\x1a\n" + stream.getvalue(), DamagedImageError)


def test_8_a_missing_window_is_replaced_and_said() -> None:
    source = open_here(to_file(RAMP))
    assert source.window_source == "percentile"
    assert any("1st to the 99th" in text for text in source.warnings)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (4, 4)])
def test_9_images_that_show_nothing(sandboxed: bool, shape: tuple[int, int]) -> None:
    pixels = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    flat = pixels * 0 + 7 if shape == (4, 4) else pixels
    error = refuse(to_file(flat), UnusableImageError, sandboxed=sandboxed)
    assert error.code == "E104"


def test_9_all_nan() -> None:
    dataset = make_dataset(RAMP)
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = np.full((8, 8), np.nan, dtype=np.float32).tobytes()
    refuse(save(dataset), UnusableImageError)


def float_file(values: np.ndarray) -> bytes:
    """A file of Float Pixel Data `(H, W)` or `(N, H, W)`."""
    dataset = make_dataset(values, BitsAllocated=32)
    del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.FloatPixelData = values.astype("<f4").tobytes()
    return save(dataset)


def test_infinities_cost_nothing_of_what_is_finite() -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, :3] = np.nan, np.inf, -np.inf
    source = open_here(float_file(values))
    assert np.isnan(source.pixels[0, 0])
    assert source.pixels[0, 1:3].tolist() == [1.0, source.pixels[0, 3]]
    assert np.array_equal(source.pixels[1:], values[1:])


@pytest.mark.parametrize(("slope", "largest"), [("1e35", 63), ("1e38", 3)])
def test_a_slope_beyond_32_bits_keeps_what_fits(slope: str, largest: int) -> None:
    pixels = open_here(to_file(RAMP, RescaleSlope=slope, RescaleIntercept="0")).pixels
    assert pixels.max() == np.float32(largest * float(slope))
    assert pixels.tolist()[0][:4] == [np.float32(n * float(slope)) for n in range(4)]


def test_a_slope_beyond_every_number_leaves_a_blank_image() -> None:
    refuse(to_file(RAMP, RescaleSlope="1e308", RescaleIntercept="0"), UnusableImageError)


def test_a_frame_without_a_number_is_dark_among_others() -> None:
    frames = np.stack([np.full((8, 8), np.nan), np.eye(8)]).astype(np.float32)
    assert open_here(float_file(frames)).pixels.tolist() == np.zeros((8, 8)).tolist()


def test_sequences_nested_without_end_are_a_typed_error() -> None:
    data = to_file(RAMP)
    start = data.index(b"\x28\x00\x02\x00US")
    level = b"\x18\x00\x01\x90SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(ImagingError):
        open_image(data[:start] + level * 20_000 + data[start:])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutations_are_images_or_typed_errors(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from(BASES))
    broken = bytearray(base)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(broken) - 1)) :]
    try:
        source = open_here(bytes(broken))
    except ImagingError as error:
        check_sentence(error)
    else:
        assert isinstance(source, SourceImage)
        assert source.render().dtype == np.uint8


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=500), st.sampled_from([b"", bytes(128) + b"DICM", b"\xff\xd8\xff"]))
def test_random_bytes_are_typed_errors(noise: bytes, start: bytes) -> None:
    with pytest.raises(ImagingError) as caught:
        open_here(start + noise)
    check_sentence(caught.value)


COMPRESSED = (
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPGExtended.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "MR_small_RLE.dcm",
)


@pytest.mark.parametrize("name", COMPRESSED)
def test_damaged_codestreams_cannot_hurt_this_process(name: str) -> None:
    """Codecs in C may crash on these; in the child process that is one more typed error."""
    data = bytearray(Path(str(get_testdata_file(name, download=False))).read_bytes())
    rng = np.random.default_rng(len(data))
    start = data.rindex(b"\xe0\x7f\x10\x00")
    for at in rng.integers(start + 40, len(data), size=30):
        data[at] = rng.integers(256)
    try:
        source = open_image(bytes(data))
    except ImagingError as error:
        check_sentence(error)
    else:
        assert source.render().dtype == np.uint8


def raster_bases() -> list[bytes]:
    colors = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    made = []
    for image_format in ("PNG", "JPEG"):
        stream = io.BytesIO()
        Image.fromarray(colors).save(stream, image_format)
        made.append(stream.getvalue())
    return made


BASES = [
    to_file(RAMP, WindowCenter=[3, 4], WindowWidth=[5, 6], PixelSpacing=[1, 1]),
    to_file(np.stack([RAMP, RAMP]), RescaleSlope=1.5, RescaleIntercept=-3),
    to_file(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)),
    *raster_bases(),
]
