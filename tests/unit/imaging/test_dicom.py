"""Whole DICOM files: colour models, identity, warnings."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from engine.imaging.dicom import scale_to_bytes
from engine.imaging.errors import DamagedImageError, UnsupportedImageError, UnusableImageError
from engine.imaging.source import SourceImage, render
from tests.unit.imaging.dicom_files import make_dataset, open_here, save, to_file

# Files that break the rules are what is tested; pydicom warns as it writes them.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)
COLORS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SECRETS = ("DOE^JANE", "MRN-4711", "19700101", "ST ELSEWHERE")


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_raw_syntaxes(syntax: UID) -> None:
    source = open_here(to_file(RAMP, syntax))
    np.testing.assert_array_equal(source.pixels, RAMP)
    assert source.transfer_syntax == syntax.name


def test_rle() -> None:
    dataset = make_dataset(RAMP)
    dataset.PixelData = RAMP.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    np.testing.assert_array_equal(open_here(save(dataset, RLELossless)).pixels, RAMP)


def test_monochrome1_is_inverted_on_screen_only() -> None:
    elements = {"WindowCenter": 32, "WindowWidth": 64}
    plain = open_here(to_file(RAMP, **elements))
    film = open_here(to_file(RAMP, PhotometricInterpretation="MONOCHROME1", **elements))
    assert film.inverted
    np.testing.assert_array_equal(film.pixels, RAMP)
    np.testing.assert_array_equal(render(film), 255 - render(plain))


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "OTHER", True),
    ],
)
def test_presentation_lut_shape_decides(photometric: str, shape: str, inverted: bool) -> None:
    data = to_file(RAMP, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert open_here(data).inverted is inverted


def test_rgb_is_shown_as_it_is() -> None:
    source = open_here(to_file(COLORS))
    np.testing.assert_array_equal(render(source), COLORS)
    assert source.default_window is None


def test_rgb_by_plane() -> None:
    planes = np.ascontiguousarray(COLORS.transpose(2, 0, 1)).tobytes()
    source = open_here(to_file(COLORS, PlanarConfiguration=1, PixelData=planes))
    np.testing.assert_array_equal(source.pixels, COLORS)


def test_ybr_full_by_hand() -> None:
    ybr = np.zeros((2, 2, 3), dtype=np.uint8)
    ybr[..., 1:] = 128
    ybr[0, 0] = (76, 85, 255)  # red
    ybr[1, 1, 0] = 200  # grey
    source = open_here(to_file(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(source.pixels[0, 0].astype(int) - (254, 0, 0)).max() <= 1
    assert source.pixels[1, 1].tolist() == [200, 200, 200]
    assert source.pixels[0, 1].tolist() == [0, 0, 0]


def test_signed_colour_is_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="Signed"):
        open_here(to_file(COLORS, PixelRepresentation=1))


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (16, 65535)])
def test_colour_of_more_bits_keeps_full_scale(bits: int, top: int) -> None:
    values = np.array([0, top // 2, top], dtype=np.uint16)
    assert scale_to_bytes(values, bits).tolist() == [0, 127, 255]


def test_colour_of_32_bits() -> None:
    values = np.array([0, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32)
    assert scale_to_bytes(values, 32).tolist() == [0, 127, 255]


def test_float_pixels_with_nan_are_shown() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0], values[0, 1] = np.nan, np.inf
    dataset = make_dataset(RAMP)
    dataset.BitsAllocated = 32
    del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.FloatPixelData = values.tobytes()
    source = open_here(save(dataset))
    shown = render(source)
    assert source.pixels.dtype == np.float32
    assert (shown[0, 0], shown[0, 1], shown[7, 7]) == (0, 255, 255)


def test_constant_images_are_refused_unless_they_are_one_of_a_series() -> None:
    flat = np.full((8, 8), 7, dtype=np.uint16)
    with pytest.raises(UnusableImageError, match="same value"):
        open_here(to_file(flat))
    source = open_here(to_file(np.stack([flat, RAMP])))
    assert render(source).max() == 0
    with pytest.raises(UnusableImageError, match="same value"):
        open_here(to_file(np.full((4, 4, 3), 9, dtype=np.uint8)))


def test_overlays_are_left_off() -> None:
    overlay = {"OverlayRows": 8, "OverlayColumns": 8}
    dataset = make_dataset(RAMP)
    dataset.PixelData = RAMP.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.add_new(0x60000010, "US", overlay["OverlayRows"])
    dataset.add_new(0x60000011, "US", overlay["OverlayColumns"])
    dataset.add_new(0x60003000, "OW", b"\xff" * 8)
    np.testing.assert_array_equal(open_here(save(dataset)).pixels, RAMP)


def identified_file() -> bytes:
    name, number, birth, place = SECRETS
    return to_file(
        RAMP,
        PatientName=name,
        PatientID=number,
        PatientBirthDate=birth,
        InstitutionName=place,
        WindowCenterWidthExplanation=name,
        WindowCenter=30,
        WindowWidth=60,
        RescaleSlope=1,
        RescaleIntercept=0,
        RescaleType=name,
        VOILUTFunction=name,
        BurnedInAnnotation=name,
    )


def all_text(source: SourceImage) -> str:
    return repr([getattr(source, field.name) for field in dataclasses.fields(source)])


def test_nothing_of_a_person_leaves_the_file() -> None:
    data = identified_file()
    source = open_here(data)
    assert not any(secret in all_text(source) for secret in SECRETS)
    assert source.hidden_tag_count >= 5
    assert source.sha256 == hashlib.sha256(data).hexdigest()


def test_errors_and_logs_do_not_echo_tags(caplog: pytest.LogCaptureFixture) -> None:
    data = identified_file()
    caplog.clear()
    with caplog.at_level("DEBUG"), pytest.raises(DamagedImageError) as caught:
        open_here(data[:-40])
    text = str(caught.value) + caplog.text
    assert not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("modality", ["DOE^JANE", "a" * 40, "x y"])
def test_a_modality_that_is_no_code_is_dropped(modality: str) -> None:
    dataset = make_dataset(RAMP)
    dataset.PixelData = RAMP.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.add_new(0x00080060, "LO", modality)
    assert open_here(save(dataset)).modality == ""


@pytest.mark.parametrize(
    ("elements", "risk"),
    [
        ({"Modality": "CR"}, False),
        ({"Modality": "US"}, True),
        ({"Modality": "CR", "BurnedInAnnotation": "YES"}, True),
        ({"Modality": "CR", "BurnedInAnnotation": "NO"}, False),
        # No tag proves absence: what is usually written into such pictures is still looked for.
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, True),
        ({"Modality": "CR", "ConversionType": "WSD"}, True),
        ({"Modality": "CT", "SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.7")}, True),
        ({"Modality": "CT", "SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.77.1")}, False),
    ],
)
def test_burned_in_risk(elements: dict[str, object], risk: bool) -> None:
    assert open_here(to_file(RAMP, **elements)).burned_in_risk is risk
