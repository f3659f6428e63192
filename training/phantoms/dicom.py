"""Phantoms as DICOM files and as the 8-bit image that a viewer shows."""

from __future__ import annotations

import hashlib
import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
)

from training.phantoms.film import BITS, MAX_STORED
from training.phantoms.phantom import CHEST, Phantom, modality_of
from training.phantoms.section import SectionTruth
from training.phantoms.truth import Truth

WINDOW_CENTER: Final = (MAX_STORED + 1) / 2
WINDOW_WIDTH: Final = float(MAX_STORED + 1)
BRAIN_CENTER: Final = 40.0
BRAIN_WIDTH: Final = 80.0
"""Window of a CT slice in Hounsfield units."""

_INTERCEPT: Final = -1024
_UID_ROOT: Final = "2.25"
_STORAGE: Final = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "CT": CTImageStorage,
    "US": UltrasoundImageStorage,
}


def to_view8(phantom: Phantom) -> NDArray[np.uint8]:
    """The displayed image, uint8 (rows, columns): window applied, MONOCHROME1 turned over.

    Windows are linear (PS3.3 C.11.2.1.2.1): over all stored values of a radiograph, so that
    nothing is clipped, and the brain window over a CT slice. Ultrasound is shown as it is.
    """
    shown = phantom.pixels.astype(np.float32)
    truth = phantom.truth
    if isinstance(truth, SectionTruth):
        if truth.modality == "CT":
            shown -= np.float32(BRAIN_CENTER - BRAIN_WIDTH / 2)
            shown *= np.float32(255 / (BRAIN_WIDTH - 1))
        return (np.clip(shown, 0, 255) + np.float32(0.5)).astype(np.uint8)
    if truth.photometric == "MONOCHROME1":
        np.subtract(MAX_STORED, shown, out=shown)
    shown *= 255 / MAX_STORED
    shown += 0.5
    return shown.astype(np.uint8)


def to_dicom(phantom: Phantom) -> bytes:
    """A DICOM part 10 file, explicit VR little endian.

    Radiographs have 12 bits stored in 16, CT slices 16 bits with a sign that are rescaled to
    Hounsfield units, ultrasound images 8 bits. Identity is artificial: the patient is ``PHANTOM``
    and every UID is derived from the seed.
    """
    truth = phantom.truth
    study = modality_of(truth)
    meta = _file_meta(truth.seed, truth.modality, study)
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _identify(data, truth.seed, truth.modality, study)
    if isinstance(truth, Truth):
        _describe_radiograph(data, truth)
        data.PixelData = np.ascontiguousarray(phantom.pixels, dtype="<u2").tobytes()
    elif truth.modality == "CT":
        _describe_slice(data, truth)
        stored = phantom.pixels.astype("<i2") - np.int16(_INTERCEPT)
        data.PixelData = stored.astype("<i2").tobytes()
    else:
        _describe_ultrasound(data, truth)
        data.PixelData = phantom.pixels.astype(np.uint8).tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def phantom_id(seed: int, study: str = CHEST) -> str:
    """Short name of a phantom, 12 hexadecimal digits derived from its modality and its seed."""
    return hashlib.sha256(f"{_role('phantom', study)} {seed}".encode()).hexdigest()[:12]


def _role(name: str, study: str) -> str:
    """What tells identifiers of equal seeds apart."""
    return name if study == CHEST else f"{study} {name}"


def _uid(seed: int, role: str) -> UID:
    """UID under 2.25 from a hash (PS3.5 B.2)."""
    digest = hashlib.sha256(f"{role} {seed}".encode()).digest()[:15]
    return UID(f"{_UID_ROOT}.{int.from_bytes(digest, 'big')}")


def _file_meta(seed: int, modality: str, study: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _STORAGE[modality]
    meta.MediaStorageSOPInstanceUID = _uid(seed, _role("instance", study))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid(0, "implementation")
    return meta


def _identify(data: Dataset, seed: int, modality: str, study: str) -> None:
    data.SOPClassUID = _STORAGE[modality]
    data.SOPInstanceUID = _uid(seed, _role("instance", study))
    data.StudyInstanceUID = _uid(seed, _role("study", study))
    data.SeriesInstanceUID = _uid(seed, _role("series", study))
    data.PatientName = "PHANTOM"
    data.PatientID = phantom_id(seed, study)
    data.PatientBirthDate = ""
    data.PatientSex = ""
    data.StudyID = ""
    data.StudyDate = ""
    data.StudyTime = ""
    data.AccessionNumber = ""
    data.ReferringPhysicianName = ""
    data.SeriesNumber = 1
    data.InstanceNumber = 1
    data.Modality = modality
    data.Manufacturer = "Lightbox phantom generator"
    data.BurnedInAnnotation = "NO"


def _describe_radiograph(data: Dataset, truth: Truth) -> None:
    data.PatientOrientation = ["L", "F"]
    data.BodyPartExamined = "CHEST"
    data.ViewPosition = "PA"
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.PresentationIntentType = "FOR PRESENTATION"
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = truth.photometric
    data.PresentationLUTShape = "INVERSE" if truth.photometric == "MONOCHROME1" else "IDENTITY"
    data.Rows, data.Columns = truth.height, truth.width
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, BITS, BITS - 1
    data.PixelRepresentation = 0
    data.PixelSpacing = [truth.pixel_spacing, truth.pixel_spacing]
    data.ImagerPixelSpacing = [truth.pixel_spacing, truth.pixel_spacing]
    data.WindowCenter, data.WindowWidth = WINDOW_CENTER, WINDOW_WIDTH
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"


def _describe_slice(data: Dataset, truth: SectionTruth) -> None:
    data.PatientOrientation = ["L", "P"]
    data.PatientPosition = "HFS"
    data.BodyPartExamined = "HEAD"
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    data.FrameOfReferenceUID = _uid(truth.seed, _role("frame", truth.study))
    data.PositionReferenceIndicator = ""
    middle = truth.width * truth.pixel_spacing / 2
    data.ImagePositionPatient = [round(-middle, 3), round(-middle, 3), 0]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.SliceThickness = 5
    data.KVP = 120
    data.AcquisitionNumber = 1
    _describe_grey(data, truth, bits=16, signed=True)
    data.PixelSpacing = [truth.pixel_spacing, truth.pixel_spacing]
    data.WindowCenter, data.WindowWidth = BRAIN_CENTER, BRAIN_WIDTH
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = _INTERCEPT, 1, "HU"


def _describe_ultrasound(data: Dataset, truth: SectionTruth) -> None:
    data.PatientOrientation = ""
    data.BodyPartExamined = "BREAST"
    data.ImageType = ["DERIVED", "PRIMARY", "BREAST"]
    _describe_grey(data, truth, bits=8, signed=False)
    data.WindowCenter, data.WindowWidth = 128, 256
    # PS3.3 C.8.5.5: one two-dimensional region of tissue over the whole image, in centimetres
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = truth.width - 1, truth.height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = truth.pixel_spacing / 10
    data.SequenceOfUltrasoundRegions = [region]


def _describe_grey(data: Dataset, truth: SectionTruth, *, bits: int, signed: bool) -> None:
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = truth.height, truth.width
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(signed)
