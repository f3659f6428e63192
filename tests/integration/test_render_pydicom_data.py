"""Every image of pydicom-data and of pydicom's own tests, against independent renderers.

1. DCMTK's `dcmj2pnm` and `dcml2pnm` (Debian package `dcmtk`): its own decoders, its own
   windowing. Skipped where it is not installed.
2. Stored values as GDCM decodes them, through a naive twin of the pipeline, written here.
3. Files that hold the same picture in two transfer syntaxes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import shutil
import subprocess
import warnings
from pathlib import Path

import gdcm
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image

from engine.imaging import ImagingError, SourceImage, Window, open_image, render
from engine.imaging.sniff import detect_format

# What DCMTK 3.6.7 cannot serve as a reference for.
NOT_IN_DCMTK = {
    "JPEG 2000": "Debian's DCMTK has no JPEG 2000 decoder",
    "32 bit": "DCMTK refuses 32-bit colour and swaps 32-bit big endian greyscale wrongly",
    "segmented": "DCMTK does not expand segmented palettes",
    "enhanced": "DCMTK does not look for windows in functional groups",
    "old": "DCMTK does not read this damaged file",
}
SEGMENTED = ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm")


# Files with pixels in their header that nobody can show, and with which code.
UNREADABLE = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "E102",
    "MR_truncated.dcm": "E102",
    "badVR.dcm": "E102",
    "chrJapMulti.dcm": "E102",
    "chrJapMultiExplicitIR6.dcm": "E102",
    "chrKoreanMulti.dcm": "E102",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "E102",
    "image_dfl.dcm": "E107",
}


@functools.cache
def data_files() -> tuple[Path, ...]:
    """All DICOM files that come with pydicom-data and pydicom."""
    found: list[Path] = []
    for package in ("data_store", "pydicom"):
        root = Path(str(importlib.resources.files(package))) / "data"
        found.extend(path for path in root.rglob("*") if path.is_file() and is_dicom(path))
    return tuple(sorted(found, key=lambda path: (path.name, str(path))))


def is_dicom(path: Path) -> bool:
    with contextlib.suppress(ImagingError):
        return detect_format(path.read_bytes()) == "DICOM"
    return False


@functools.cache
def images() -> tuple[Path, ...]:
    """The files that hold an image; nothing is decoded to find them."""
    return tuple(
        path for path in data_files() if "Rows" in header(path) and path.name not in UNREADABLE
    )


@functools.cache
def header(path: Path) -> pydicom.Dataset:
    return elements(path, stop_before_pixels=True)


def elements(path: Path, *, stop_before_pixels: bool = False) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True, stop_before_pixels=stop_before_pixels)


def opened(path: Path, frame: int = 0) -> SourceImage:
    return open_image(path, frame=frame, sandboxed=False)


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


def path_of(name: str) -> Path:
    return next(path for path in images() if path.name == name)


def by_name(name: str) -> SourceImage:
    return opened(path_of(name))


# 1. DCMTK


def why_not_in_dcmtk(path: Path) -> str | None:
    dataset = header(path)
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    if syntax in pydicom.uid.JPEG2000TransferSyntaxes:
        return NOT_IN_DCMTK["JPEG 2000"]
    if dataset.BitsAllocated == 32 and (
        dataset.SamplesPerPixel == 3 or syntax == pydicom.uid.ExplicitVRBigEndian
    ):
        return NOT_IN_DCMTK["32 bit"]
    if path.name in SEGMENTED:
        return NOT_IN_DCMTK["segmented"]
    if path.name == "eCT_Supplemental.dcm":
        return NOT_IN_DCMTK["enhanced"]
    return NOT_IN_DCMTK["old"] if path.name == "SC_rgb_jpeg.dcm" else None


def window_options(source: SourceImage) -> list[str]:
    """DCMTK reads the window or the table from the file itself where there is one."""
    if source.voi_lut is not None:
        return ["+Wl", "1"]
    if source.windows:
        return ["+Wi", "1"]
    if source.default_window is None:
        return []
    # DCMTK's windows are LINEAR: half a value up and one wider is LINEAR_EXACT.
    window = source.default_window
    return ["+Ww", repr(window.center + 0.5), repr(window.width + 1)]


def render_with_dcmtk(path: Path, source: SourceImage, folder: Path) -> npt.NDArray[np.uint8]:
    tool = "dcml2pnm" if "JPEG-LS" in source.transfer_syntax else "dcmj2pnm"
    if shutil.which(tool) is None:
        pytest.skip("DCMTK is not installed (apt-get install dcmtk).")
    target = folder / "out.pnm"
    frame = ["+F", str(source.frame + 1)]
    command = [tool, *window_options(source), *frame, "-O", "+op", str(path), str(target)]
    done = subprocess.run(command, capture_output=True, check=False, text=True, errors="replace")
    assert target.exists(), done.stderr[-300:]
    with Image.open(target) as image:
        return np.asarray(image)


@pytest.mark.parametrize("path", images(), ids=name_of)
def test_equals_dcmtk(path: Path, tmp_path: Path) -> None:
    reason = why_not_in_dcmtk(path)
    if reason is not None:
        pytest.skip(reason)
    for frame in {0, opened(path).frame_count - 1}:
        shown = opened(path, frame)
        theirs = render_with_dcmtk(path, shown, tmp_path)
        ours = render(shown)
        assert theirs.shape == ours.shape
        # DCMTK truncates where we round, and converts YBR in integers.
        tolerance = 2 if "YBR" in str(header(path).PhotometricInterpretation) else 1
        assert np.abs(theirs.astype(int) - ours).max() <= tolerance


def test_dcmtk_is_a_reference_for_at_least_sixty_files() -> None:
    """Where it is installed: elsewhere the other two references stand alone."""
    if shutil.which("dcmj2pnm") is None:
        pytest.skip("DCMTK is not installed (apt-get install dcmtk).")
    compared = [path for path in images() if why_not_in_dcmtk(path) is None]
    assert len(compared) >= 100
    assert sum("data_store" in path.parts for path in compared) >= 40


# 2. GDCM's values through a naive twin


def values_of_gdcm(path: Path) -> npt.NDArray[np.int64] | None:
    """Stored values of the first frame, or None where GDCM cannot read them."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        return None
    image = reader.GetImage()
    kind = image.GetPixelFormat()
    if kind.GetBitsAllocated() not in (8, 16, 32) or kind.GetSamplesPerPixel() != 1:
        return None
    code = "i" if kind.GetPixelRepresentation() else "u"
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    values = np.frombuffer(data, dtype=f"{code}{kind.GetBitsAllocated() // 8}").astype(np.int64)
    columns, rows = image.GetDimension(0), image.GetDimension(1)
    return values[: rows * columns].reshape(rows, columns)


def naive_render(path: Path, stored: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Rescale, first window or percentiles, MONOCHROME1; display values from 0 to 255."""
    dataset = header(path)
    slope = float(dataset.get("RescaleSlope", 1))
    values = stored * slope + float(dataset.get("RescaleIntercept", 0))
    if "WindowCenter" in dataset:
        center = float(np.atleast_1d(dataset.WindowCenter)[0])
        width = float(np.atleast_1d(dataset.WindowWidth)[0])
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        kept = values
        if "PixelPaddingValue" in dataset:
            kept = values[stored != int(dataset.PixelPaddingValue)]
        low, high = np.percentile(kept, 1), np.percentile(kept, 99)
        if low == high:
            low, high = kept.min(), kept.max()
    unit: npt.NDArray[np.float64] = np.clip((values - low) / (high - low), 0, 1)
    return (1 - unit if dataset.PhotometricInterpretation == "MONOCHROME1" else unit) * 255


def twin_files() -> list[Path]:
    """Greyscale without tables and functional groups, which the twin knows nothing of."""
    tables = ("ModalityLUTSequence", "VOILUTSequence", "SharedFunctionalGroupsSequence")
    kept = []
    for path in images():
        dataset = header(path)
        grey = str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
        plain = dataset.BitsAllocated <= 16  # GDCM aborts on 32-bit dose files
        if grey and plain and not any(name in dataset for name in tables):
            kept.append(path)
    return kept


# The codestream is unsigned where the header says signed: GDCM shows it unsigned, pydicom,
# DCMTK and we follow the header.
SIGN_MISMATCH = "J2K_pixelrep_mismatch.dcm"


@pytest.mark.parametrize("path", twin_files(), ids=name_of)
def test_equals_gdcm_and_a_naive_twin(path: Path) -> None:
    if path.name == SIGN_MISMATCH:
        pytest.skip("GDCM ignores the sign in the header of this file.")
    stored = values_of_gdcm(path)
    if stored is None:
        pytest.skip("GDCM does not read this file.")
    source = opened(path)
    assert np.abs(render(source) - naive_render(path, stored)).max() <= 0.5 + 1e-3


def test_the_twin_covers_at_least_sixty_files() -> None:
    assert len(twin_files()) >= 60


# 3. The same picture twice

TWINS = [
    ("RG1_UNCR.dcm", "RG1_J2KR.dcm"),
    ("RG3_UNCR.dcm", "RG3_J2KR.dcm"),
    ("MR2_UNCR.dcm", "MR2_J2KR.dcm"),
    ("693_UNCR.dcm", "693_J2KR.dcm"),
    ("US1_UNCR.dcm", "US1_J2KR.dcm"),
    ("RG1_UNCI.dcm", "RG1_J2KI.dcm"),
    ("JPEG2000_UNC.dcm", "JPEG2000.dcm"),
    ("MR_small.dcm", "MR_small_jp2klossless.dcm"),
    ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm"),
    ("MR_small.dcm", "MR_small_bigendian.dcm"),
    ("emri_small.dcm", "emri_small_jpeg_2k_lossless.dcm"),
    ("emri_small.dcm", "emri_small_RLE.dcm"),
    ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm"),
    ("OBXXXX1A.dcm", "OBXXXX1A_rle.dcm"),
    ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"),
    ("rtdose.dcm", "rtdose_expb.dcm"),
    ("rtdose.dcm", "rtdose_rle.dcm"),
    ("SC_rgb.dcm", "SC_rgb_32bit.dcm"),
    ("SC_rgb.dcm", "SC_rgb_expb_32bit.dcm"),
    ("SC_rgb.dcm", "SC_rgb_gdcm_KY.dcm"),
    ("SC_rgb_jpeg_dcmd.dcm", "SC_rgb_jpeg.dcm"),
]


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_the_transfer_syntax_does_not_matter(one: str, other: str) -> None:
    np.testing.assert_array_equal(render(by_name(one)), render(by_name(other)))


# Single files, told in full


def test_the_chest_radiograph() -> None:
    source = open_image(path_of("RG1_J2KR.dcm"))
    assert source.size == (1841, 1955)
    assert (source.bits_stored, source.inverted, source.modality) == (15, True, "CR")
    assert source.default_window == Window(15000.0, 30000.0)
    assert (source.window_source, source.warnings) == ("file", ())
    raw = by_name("RG1_UNCR.dcm")
    np.testing.assert_array_equal(render(source), render(raw))
    np.testing.assert_array_equal(source.pixels, elements(path_of("RG1_UNCR.dcm")).pixel_array)


def test_overlays_are_left_off() -> None:
    source = by_name("MR-SIEMENS-DICOM-WithOverlays.dcm")
    assert int(source.pixels.max()) < 4096
    assert source.windows == (Window(450.0, 790.0), Window(200.0, 443.0))


def test_of_a_long_cine_one_frame_is_decoded() -> None:
    last = opened(path_of("color3d_jpeg_baseline.dcm"), 119)
    assert (last.frame_count, last.pixels.shape) == (120, (480, 640, 3))
    assert not np.array_equal(last.pixels, by_name("color3d_jpeg_baseline.dcm").pixels)


def test_files_without_an_image_are_typed_errors() -> None:
    without = [path for path in data_files() if path not in images()]
    codes = {}
    for path in without:
        with pytest.raises(ImagingError) as caught:
            opened(path)
        codes[path.name] = caught.value.code
    assert {name: codes[name] for name in UNREADABLE} == UNREADABLE
    assert {code for name, code in codes.items() if name not in UNREADABLE} == {"E102"}
