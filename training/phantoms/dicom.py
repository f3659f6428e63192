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
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

from training.phantoms.film import BITS, MAX_STORED
from training.phantoms.phantom import Phantom

WINDOW_CENTER: Final = (MAX_STORED + 1) / 2
WINDOW_WIDTH: Final = float(MAX_STORED + 1)
_UID_ROOT: Final = "2.25"
_STORAGE: Final = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
}


def to_view8(phantom: Phantom) -> NDArray[np.uint8]:
    """The displayed image, uint8 (rows, columns): window applied, MONOCHROME1 turned over.

    The window is linear over all stored values (PS3.3 C.11.2.1.2.1), so it clips nothing.
    """
    shown = phantom.pixels.astype(np.float32)
    if phantom.truth.photometric == "MONOCHROME1":
        np.subtract(MAX_STORED, shown, out=shown)
    shown *= 255 / MAX_STORED
    shown += 0.5
    return shown.astype(np.uint8)


def to_dicom(phantom: Phantom) -> bytes:
    """A DICOM part 10 file, explicit VR little endian, 12 bits stored in 16.

    Identity is artificial: the patient is ``PHANTOM`` and every UID is derived from the seed.
    """
    truth = phantom.truth
    meta = _file_meta(truth.seed, truth.modality)
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _identify(data, truth.seed, truth.modality)
    _describe_pixels(data, phantom)
    data.PixelData = np.ascontiguousarray(phantom.pixels, dtype="<u2").tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def phantom_id(seed: int) -> str:
    """Short name of a phantom, 12 hexadecimal digits derived from its seed."""
    return hashlib.sha256(f"phantom {seed}".encode()).hexdigest()[:12]


def _uid(seed: int, role: str) -> UID:
    """UID under 2.25 from a hash (PS3.5 B.2)."""
    digest = hashlib.sha256(f"{role} {seed}".encode()).digest()[:15]
    return UID(f"{_UID_ROOT}.{int.from_bytes(digest, 'big')}")


def _file_meta(seed: int, modality: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _STORAGE[modality]
    meta.MediaStorageSOPInstanceUID = _uid(seed, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid(0, "implementation")
    return meta


def _identify(data: Dataset, seed: int, modality: str) -> None:
    data.SOPClassUID = _STORAGE[modality]
    data.SOPInstanceUID = _uid(seed, "instance")
    data.StudyInstanceUID = _uid(seed, "study")
    data.SeriesInstanceUID = _uid(seed, "series")
    data.PatientName = "PHANTOM"
    data.PatientID = phantom_id(seed)
    data.PatientBirthDate = ""
    data.PatientSex = ""
    data.PatientOrientation = ["L", "F"]
    data.StudyID = ""
    data.StudyDate = ""
    data.StudyTime = ""
    data.AccessionNumber = ""
    data.ReferringPhysicianName = ""
    data.SeriesNumber = 1
    data.InstanceNumber = 1
    data.Modality = modality
    data.Manufacturer = "Lightbox phantom generator"
    data.BodyPartExamined = "CHEST"
    data.ViewPosition = "PA"
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.BurnedInAnnotation = "NO"
    data.PresentationIntentType = "FOR PRESENTATION"


def _describe_pixels(data: Dataset, phantom: Phantom) -> None:
    truth = phantom.truth
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
