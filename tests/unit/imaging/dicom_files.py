"""Small DICOM and PNG files for the tests, written by pydicom or by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from engine.imaging import SourceImage, open_image


def make_dataset(pixels: npt.NDArray[np.generic], **elements: object) -> Dataset:
    """A data set around `(H, W)`, `(N, H, W)` or `(H, W, 3)` pixels; `elements` are added.

    16-bit greyscale by default: BitsStored is that of the pixel type.
    """
    color = pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8
    dataset = Dataset()
    dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "MR"
    dataset.SamplesPerPixel = 3 if color else 1
    dataset.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        dataset.PlanarConfiguration = 0
    frames = pixels.ndim == 3 and not color
    dataset.Rows, dataset.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    if frames:
        dataset.NumberOfFrames = pixels.shape[0]
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.HighBit = elements.get("HighBit", max(dataset.BitsStored - 1, 0))
    dataset.file_meta = make_meta(ExplicitVRLittleEndian)
    return dataset


def to_file(
    pixels: npt.NDArray[np.generic], syntax: UID = ExplicitVRLittleEndian, /, **elements: object
) -> bytes:
    """`make_dataset` as the bytes of a DICOM file."""
    dataset = make_dataset(pixels, **elements)
    big = syntax == ExplicitVRBigEndian
    data = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    if "PixelData" not in elements:
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return save(dataset, syntax)


def make_meta(syntax: UID) -> FileMetaDataset:
    """File Meta with nothing but a transfer syntax."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    return meta


def save(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """A data set as the bytes of a DICOM file, with preamble and File Meta."""
    dataset.file_meta = make_meta(syntax)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def open_here(data: bytes, frame: int = 0) -> SourceImage:
    """`open_image` in this process: faster, and errors keep their cause."""
    return open_image(data, frame=frame, sandboxed=False)


def png_file(
    width: int, height: int, depth: int, color_type: int, raw: bytes, *extra: tuple[bytes, bytes]
) -> bytes:
    """A PNG written by hand; `raw` are the filtered rows, `extra` chunks before the data."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check
