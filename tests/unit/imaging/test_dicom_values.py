"""What stored numbers mean: rescale, tables, windows, padding, spacing, by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from engine.imaging.source import list_presets, render
from engine.imaging.window import CT_PRESETS, Window
from tests.unit.imaging.dicom_files import make_dataset, open_here, save, to_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


def item(**elements: object) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def lut_item(descriptor: list[int], values: list[int], vr: str = "OW") -> Dataset:
    made = Dataset()
    made.add_new(0x00283002, "US" if descriptor[1] >= 0 else "SS", descriptor)
    data = np.array(values, dtype="<u2").tobytes() if vr == "OW" else values
    made.add_new(0x00283006, vr, data)
    return made


def test_integer_rescale_stays_integer() -> None:
    source = open_here(to_file(RAMP, RescaleSlope=2, RescaleIntercept=-1024))
    assert source.pixels.dtype == np.int32
    np.testing.assert_array_equal(source.pixels, RAMP.astype(int) * 2 - 1024)


def test_fractional_rescale_is_float() -> None:
    source = open_here(to_file(RAMP, RescaleSlope=0.5, RescaleIntercept=0.25))
    assert source.pixels.dtype == np.float32
    np.testing.assert_allclose(source.pixels, RAMP * 0.5 + 0.25)


def test_rescale_that_leaves_32_bits_is_float() -> None:
    wide = np.array([[0, 2**32 - 1], [5, 7]], dtype=np.uint32)
    assert open_here(to_file(wide)).pixels.dtype == np.float32
    source = open_here(to_file(RAMP, RescaleSlope=2_000_000_000))
    np.testing.assert_allclose(source.pixels, RAMP * 2e9)


def test_a_slope_of_zero_does_not_blank_the_image() -> None:
    np.testing.assert_array_equal(open_here(to_file(RAMP, RescaleSlope=0)).pixels, RAMP)


def test_signed_values() -> None:
    signed = (RAMP.astype(np.int16) - 32).astype(np.int16)
    np.testing.assert_array_equal(open_here(to_file(signed)).pixels, signed)


@pytest.mark.parametrize("bits", [12, 15])
def test_bits_above_the_stored_ones_are_cleared(bits: int) -> None:
    overlay = RAMP | np.uint16(1 << 15)
    source = open_here(to_file(overlay, BitsStored=bits))
    np.testing.assert_array_equal(source.pixels, RAMP)
    assert source.bits_stored == bits


def test_signed_12_bits_are_extended() -> None:
    stored = (np.arange(64) - 32).astype(np.int16).reshape(8, 8)
    masked = (stored.view(np.uint16) & 0x0FFF).view(np.int16)
    source = open_here(to_file(masked, BitsStored=12))
    np.testing.assert_array_equal(source.pixels, stored)


def test_values_stored_in_the_upper_bits_are_shifted_down() -> None:
    high = (RAMP << 4).astype(np.uint16)
    source = open_here(to_file(high, BitsStored=12, HighBit=15))
    np.testing.assert_array_equal(source.pixels, RAMP)


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_modality_table(vr: str) -> None:
    table = lut_item([4, 10, 16], [5, 50, 500, 5000], vr)
    data = to_file(RAMP, ModalityLUTSequence=[table])
    pixels = open_here(data).pixels
    assert pixels[0].tolist() == [5] * 8
    assert pixels[1].tolist() == [5, 5, 5, 50, 500, 5000, 5000, 5000]
    dataset = make_dataset(RAMP, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(pixels, apply_modality_lut(RAMP, dataset))


def test_voi_table_comes_before_a_window_and_gives_way_to_a_request() -> None:
    table = lut_item([64, 0, 12], [4095 - 65 * n for n in range(64)])
    data = to_file(RAMP, VOILUTSequence=[table], WindowCenter=32, WindowWidth=64)
    source = open_here(data)
    expected = np.rint(np.array([4095 - 65 * n for n in range(64)]) / 4095 * 255)
    np.testing.assert_array_equal(render(source).reshape(-1), expected)
    assert source.window_source == "file"
    assert source.windows == (Window(32, 64),)
    assert render(source, source.windows[0])[0, 0] == 0


def test_voi_table_equals_pydicom() -> None:
    table = lut_item([32, 16, 10], list(range(0, 1024, 32)))
    data = to_file(RAMP, VOILUTSequence=[table])
    theirs = apply_voi_lut(RAMP, make_dataset(RAMP, VOILUTSequence=[table]))
    np.testing.assert_array_equal(render(open_here(data)), np.rint(theirs / 1023 * 255))


def test_voi_table_with_a_negative_start_written_unsigned() -> None:
    table = lut_item([64, 65536 - 32, 8], list(range(0, 256, 4)))
    source = open_here(to_file(RAMP, RescaleIntercept=-32, RescaleSlope=1, VOILUTSequence=[table]))
    np.testing.assert_array_equal(render(source).reshape(-1), np.arange(0, 256, 4))


def test_several_windows_first_used_others_listed() -> None:
    elements = {"WindowCenter": [40, -600], "WindowWidth": [400, 1500]}
    source = open_here(to_file(RAMP, **elements))
    assert source.windows == (Window(40, 400), Window(-600, 1500))
    assert source.default_window == Window(40, 400)
    names = [preset.name for preset in list_presets(source)]
    assert names == ["File window 1", "File window 2", "Full range", "Percentile 1 to 99"]


def test_names_of_windows_are_not_taken_from_the_file() -> None:
    elements = {"WindowCenter": 40, "WindowWidth": 400}
    data = to_file(RAMP, **elements, WindowCenterWidthExplanation="JANE DOE")
    source = open_here(data)
    assert "JANE" not in repr([preset.name for preset in list_presets(source)]) + repr(source)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_function_of_the_file(function: str) -> None:
    data = to_file(RAMP, WindowCenter=32, WindowWidth=20, VOILUTFunction=function)
    source = open_here(data)
    assert source.default_window == Window(32, 20, function)  # type: ignore[arg-type]
    dataset = make_dataset(
        RAMP.astype(np.float64), WindowCenter=32, WindowWidth=20, VOILUTFunction=function,
        BitsStored=16, BitsAllocated=16, PixelRepresentation=0,
    )  # fmt: skip
    theirs = apply_voi_lut(RAMP.astype(np.float64), dataset) / 65535 * 255
    assert np.abs(render(source) - theirs).max() <= 0.5 + 1e-6


def test_unknown_functions_are_linear() -> None:
    data = to_file(RAMP, WindowCenter=32, WindowWidth=20, VOILUTFunction="CUBIC")
    assert open_here(data).default_window == Window(32, 20, "LINEAR")


@pytest.mark.parametrize("width", [0, -5, 0.5])
def test_impossible_widths_fall_back_to_percentiles_and_say_so(width: float) -> None:
    source = open_here(to_file(RAMP, WindowCenter=32, WindowWidth=width))
    assert source.window_source == "percentile"
    assert any("unusable" in text for text in source.warnings)
    assert any("no window" in text for text in source.warnings)


def test_percentiles_leave_the_padding_out() -> None:
    padded = RAMP.astype(np.int16)
    padded[0] = -2000
    source = open_here(to_file(padded, PixelPaddingValue=-2000))
    assert source.full_window is not None
    assert source.full_window.bounds == pytest.approx((8, 63))
    assert source.pixels[0, 0] == -2000


def test_padding_range_and_padding_with_the_wrong_sign() -> None:
    padded = RAMP.astype(np.int16)
    padded[0], padded[1] = -2000, -1990
    data = to_file(padded, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    full = open_here(data).full_window
    assert full is not None
    assert full.bounds == pytest.approx((16, 63))
    unsigned = RAMP.copy()
    unsigned[0] = 65535
    dataset = make_dataset(unsigned)
    dataset.PixelData = unsigned.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.add_new(0x00280120, "SS", -1)
    full = open_here(save(dataset)).full_window
    assert full is not None
    assert full.bounds == pytest.approx((8, 63))


def test_an_image_that_is_all_padding_is_still_shown() -> None:
    data = to_file(RAMP, PixelPaddingValue=0, PixelPaddingRangeLimit=1000)
    full = open_here(data).full_window
    assert full is not None
    assert full.bounds == pytest.approx((0, 63))


@pytest.mark.parametrize(
    ("keyword", "kind"),
    [
        ("PixelSpacing", "patient"),
        ("ImagerPixelSpacing", "detector"),
        ("NominalScannedPixelSpacing", "nominal"),
    ],
)
def test_spacing_says_which_plane(keyword: str, kind: str) -> None:
    source = open_here(to_file(RAMP, **{keyword: [0.5, 0.25]}))
    assert source.spacing_mm == (0.5, 0.25)
    assert source.spacing_kind == kind


@pytest.mark.parametrize(
    ("keyword", "kind"),
    [("ImagerPixelSpacing", "detector"), ("NominalScannedPixelSpacing", "nominal")],
)
def test_spacing_that_was_not_calibrated_is_not_the_patients(keyword: str, kind: str) -> None:
    """PS3.3 10.7.1.1: Pixel Spacing then repeats the other values."""
    source = open_here(to_file(RAMP, PixelSpacing=[0.139, 0.139], **{keyword: [0.139, 0.139]}))
    assert (source.spacing_mm, source.spacing_kind) == ((0.139, 0.139), kind)


def test_calibrated_spacing_comes_first_and_nonsense_is_dropped() -> None:
    both = open_here(to_file(RAMP, PixelSpacing=[0.5, 0.5], ImagerPixelSpacing=[0.6, 0.6]))
    assert (both.spacing_mm, both.spacing_kind) == ((0.5, 0.5), "patient")
    for nonsense in ([0, 0], [-1, 1], [1]):
        source = open_here(to_file(RAMP, PixelSpacing=nonsense))
        assert (source.spacing_mm, source.spacing_kind) == (None, "")


@pytest.mark.parametrize(
    ("elements", "units"),
    [
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}, "HU"),
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleType": "HU"}, "HU"),
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleType": "US"}, ""),
        ({"Modality": "CT"}, ""),
        ({"Modality": "MR", "RescaleSlope": 1}, ""),
    ],
)
def test_units(elements: dict[str, object], units: str) -> None:
    source = open_here(to_file(RAMP, **elements))
    assert source.units == units
    assert (CT_PRESETS[0] in list_presets(source)) == (units == "HU")


def enhanced_elements() -> dict[str, object]:
    frames = [
        item(
            PixelValueTransformationSequence=[item(RescaleSlope=n + 1, RescaleIntercept=-10 * n)],
            FrameVOILUTSequence=[item(WindowCenter=10 * (n + 1), WindowWidth=20)],
        )
        for n in range(2)
    ]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.7])],
        FrameVOILUTSequence=[item(WindowCenter=999, WindowWidth=999)],
    )
    return {
        "PerFrameFunctionalGroupsSequence": frames,
        "SharedFunctionalGroupsSequence": [shared],
    }


@pytest.mark.parametrize("frame", [0, 1])
def test_enhanced_files_have_values_and_windows_per_frame(frame: int) -> None:
    stack = np.stack([RAMP, RAMP + 5])
    source = open_here(to_file(stack, **enhanced_elements()), frame=frame)
    expected = stack[frame].astype(int) * (frame + 1) - 10 * frame
    np.testing.assert_array_equal(source.pixels, expected)
    assert source.default_window == Window(10 * (frame + 1), 20)
    assert source.spacing_mm == (0.5, 0.7)


def test_shared_groups_hold_where_a_frame_says_nothing() -> None:
    stack = np.stack([RAMP, RAMP + 5])
    elements = enhanced_elements()
    elements["PerFrameFunctionalGroupsSequence"] = [item(), item()]
    source = open_here(to_file(stack, **elements), frame=1)
    assert source.default_window == Window(999, 999)
    np.testing.assert_array_equal(source.pixels, stack[1])


@given(
    st.integers(-3, 3).filter(bool),
    st.integers(-2000, 2000),
    st.integers(1, 500),
    st.booleans(),
)
def test_rendering_equals_a_naive_twin(
    slope: int, intercept: int, width: int, inverted: bool
) -> None:
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    center = slope * 30 + intercept
    source = open_here(
        to_file(
            RAMP,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
            WindowCenter=center,
            WindowWidth=width,
            PhotometricInterpretation=photometric,
        )
    )
    shown = render(source)
    for row, column in ((0, 0), (3, 6), (3, 7), (7, 7), (5, 1)):
        value = int(RAMP[row, column]) * slope + intercept
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
        unit = 0.0 if value <= low else 1.0 if value > high else (value - low) / (high - low)
        expected = (1 - unit if inverted else unit) * 255
        assert abs(int(shown[row, column]) - expected) <= 0.5 + 1e-9


AXIAL = [1, 0, 0, 0, 1, 0]
SAGITTAL = [0, 1, 0, 0, 0, -1]
OBLIQUE = [0.569486, 0.822001, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("elements", "side"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"PatientOrientation": ["L", "F"]}, "right", id="as radiographs hang"),
        pytest.param({"PatientOrientation": ["R", "F"]}, "left", id="the other way round"),
        pytest.param({"PatientOrientation": ["LP", "F"]}, "right", id="compound"),
        pytest.param({"PatientOrientation": ["L", "FP"]}, "right", id="compound columns"),
        pytest.param({"PatientOrientation": ["A", "F"]}, "", id="lateral"),
        pytest.param({"PatientOrientation": ["AL", "F"]}, "", id="mainly lateral"),
        pytest.param({"PatientOrientation": "L"}, "", id="one value"),
        pytest.param({"PatientOrientation": ["L", "F", "P"]}, "", id="three values"),
        pytest.param({"PatientOrientation": ["L", "R"]}, "", id="one axis twice"),
        pytest.param({"PatientOrientation": ["LR", "F"]}, "", id="left and right"),
        pytest.param({"PatientOrientation": ["LEFT", "F"]}, "", id="no direction"),
        pytest.param({"PatientOrientation": ["L", "<b>"]}, "", id="no code"),
        pytest.param({"PatientOrientation": ""}, "", id="empty"),
        pytest.param({"ImageOrientationPatient": AXIAL}, "right", id="axial"),
        pytest.param({"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, "left", id="mirrored"),
        pytest.param({"ImageOrientationPatient": SAGITTAL}, "", id="sagittal"),
        pytest.param({"ImageOrientationPatient": OBLIQUE}, "", id="oblique sagittal"),
        pytest.param({"ImageOrientationPatient": [0.75, 0.6614378, 0, 0, 0, -1]}, "", id="oblique"),
        pytest.param(
            {"ImageOrientationPatient": [0.9, 0.4358899, 0, 0, 0, -1]}, "right", id="near"
        ),
        pytest.param({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "", id="parallel"),
        pytest.param({"ImageOrientationPatient": [9, 0, 0, 0, 9, 0]}, "", id="no unit vectors"),
        pytest.param({"ImageOrientationPatient": [1e300] * 6}, "", id="huge"),
        pytest.param({"ImageOrientationPatient": [0] * 6}, "", id="zeros"),
        pytest.param({"ImageOrientationPatient": [1, 0, 0]}, "", id="three numbers"),
        pytest.param(
            {"PatientOrientation": ["L", "P"], "ImageOrientationPatient": AXIAL}, "right", id="both"
        ),
        pytest.param(
            {"PatientOrientation": ["R", "P"], "ImageOrientationPatient": AXIAL},
            "",
            id="contradiction",
        ),
        pytest.param(
            {"PatientOrientation": ["L", "F"], "ImageOrientationPatient": SAGITTAL},
            "",
            id="letters against cosines",
        ),
        pytest.param(
            {"PatientOrientation": ["L", "F"], "AnatomicalOrientationType": "BIPED"},
            "right",
            id="biped",
        ),
        pytest.param(
            {"PatientOrientation": ["R", "F"], "AnatomicalOrientationType": "QUADRUPED"},
            "",
            id="R is rostral",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_the_side_at_the_left_edge(elements: dict[str, object], side: str) -> None:
    assert open_here(to_file(RAMP, **elements)).left_edge == side


@pytest.mark.parametrize("vr", [b"FD", b"XX"])
def test_a_damaged_orientation_costs_neither_the_picture_nor_a_wrong_mark(vr: bytes) -> None:
    data = to_file(RAMP, PatientOrientation=["L", "F"], ImageOrientationPatient=AXIAL)
    assert open_here(data).left_edge == "right"
    element = b"\x20\x00\x20\x00"
    assert data.count(element + b"CS") == 1

    source = open_here(data.replace(element + b"CS", element + vr))

    assert source.left_edge == ""
    np.testing.assert_array_equal(source.pixels, RAMP)


def test_the_orientation_of_single_frames_gives_no_side() -> None:
    group = item(PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)])
    frames = np.stack([RAMP, RAMP + 1])

    source = open_here(to_file(frames, SharedFunctionalGroupsSequence=[group]))

    assert source.left_edge == ""


def test_a_mirrored_image_is_shown_as_it_is_stored() -> None:
    mirrored = open_here(to_file(RAMP, PatientOrientation=["R", "H"]))

    np.testing.assert_array_equal(mirrored.pixels, RAMP)
    np.testing.assert_array_equal(render(mirrored), render(open_here(to_file(RAMP))))


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [(b"0 ", b"-1024 "), (b"xx", b"5 "), (b"2 ", b"-1,0"), (b"1e999 ", b"0 ")],
)
def test_a_rescale_that_makes_no_sense_is_left_out_and_said(slope: bytes, intercept: bytes) -> None:
    stored = np.arange(100, 164, dtype=np.int16).reshape(8, 8)
    data = to_file(stored, Modality="CT", RescaleSlope="7", RescaleIntercept="8", RescaleType="HU")
    sound = open_here(data)
    assert (sound.pixels.min(), sound.units) == (708, "HU")
    for tag, value in ((b"\x28\x00\x53\x10DS", slope), (b"\x28\x00\x52\x10DS", intercept)):
        place = data.index(tag)
        data = data[: place + 6] + struct.pack("<H", len(value)) + value + data[place + 10 :]

    source = open_here(data)

    np.testing.assert_array_equal(source.pixels, stored)
    assert source.units == ""
    assert "The rescale of this file is unusable: values are shown as they are stored." in (
        source.warnings
    )
