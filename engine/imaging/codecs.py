"""Transfer syntaxes: which are read, by which package, and the decoding of one frame."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from engine.imaging.arrays import Pixels
from engine.imaging.completeness import jpeg_size, rle_segment_bytes
from engine.imaging.errors import (
    DAMAGED_MESSAGE,
    DamagedImageError,
    MissingCodecError,
    UnsupportedImageError,
)

_GDCM = "python-gdcm"
_OPENJPEG = "pylibjpeg pylibjpeg-openjpeg"


@dataclass(frozen=True, slots=True)
class Codec:
    """How one transfer syntax is decoded.

    Attributes:
        name: for people.
        plugins: pydicom's plugins in the order of preference; empty for raw pixels.
        install: what to `pip install` for them.
    """

    name: str
    plugins: tuple[str, ...] = ()
    install: str = ""


# openjpeg comes before gdcm for JPEG 2000 because it is faster and follows the sign of the
# codestream.
CODECS: dict[str, Codec] = {
    uid.ImplicitVRLittleEndian: Codec("Implicit VR Little Endian"),
    uid.ExplicitVRLittleEndian: Codec("Explicit VR Little Endian"),
    uid.ExplicitVRBigEndian: Codec("Explicit VR Big Endian"),
    uid.JPEGBaseline8Bit: Codec("JPEG Baseline", ("gdcm", "pillow"), _GDCM),
    uid.JPEGExtended12Bit: Codec("JPEG Extended", ("gdcm",), _GDCM),
    uid.JPEGLossless: Codec("JPEG Lossless", ("gdcm",), _GDCM),
    uid.JPEGLosslessSV1: Codec("JPEG Lossless SV1", ("gdcm",), _GDCM),
    uid.JPEGLSLossless: Codec("JPEG-LS Lossless", ("gdcm", "pyjpegls"), _GDCM),
    uid.JPEGLSNearLossless: Codec("JPEG-LS Near-Lossless", ("gdcm", "pyjpegls"), _GDCM),
    uid.JPEG2000Lossless: Codec("JPEG 2000 Lossless", ("pylibjpeg", "gdcm"), _OPENJPEG),
    uid.JPEG2000: Codec("JPEG 2000", ("pylibjpeg", "gdcm"), _OPENJPEG),
    uid.HTJ2KLossless: Codec("High-Throughput JPEG 2000 Lossless", ("pylibjpeg",), _OPENJPEG),
    uid.HTJ2KLosslessRPCL: Codec(
        "High-Throughput JPEG 2000 Lossless RPCL", ("pylibjpeg",), _OPENJPEG
    ),
    uid.HTJ2K: Codec("High-Throughput JPEG 2000", ("pylibjpeg",), _OPENJPEG),
    uid.RLELossless: Codec("RLE Lossless", ("pydicom",), "pydicom"),
}

# A few kilobytes of deflated data can unpack to gigabytes before a single limit applies.
_DEFLATED = frozenset(
    (
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    )
)


def check_syntax(syntax: str) -> Codec:
    """The codec of a transfer syntax UID, before anything behind the File Meta is read.

    Raises:
        UnsupportedImageError: deflated, a video, or a syntax that is not known.
    """
    if syntax in _DEFLATED:
        raise UnsupportedImageError(
            "This DICOM file is deflated, which is refused because it can unpack without "
            "bound. Convert it to Explicit VR Little Endian."
        )
    codec = CODECS.get(syntax)
    if codec is None:
        kind = "a video" if syntax in uid.MPEGTransferSyntaxes else "a compression"
        raise UnsupportedImageError(
            f"This DICOM file holds {kind} that is not supported. "
            "Convert it to Explicit VR Little Endian."
        )
    return codec


def choose_plugin(codec: Codec, available: tuple[str, ...]) -> str:
    """The first preferred plugin that is available; '' for raw pixels.

    Raises:
        MissingCodecError: none is; the message says what to install.
    """
    if not codec.plugins:
        return ""
    for plugin in codec.plugins:
        if plugin in available:
            return plugin
    raise MissingCodecError(
        f"This image is compressed with {codec.name}, and no decoder for it is installed. "
        f"Install one: pip install {codec.install}"
    )


def decode_frame(dataset: Dataset, syntax: str, frame: int) -> Pixels:
    """Decode one frame and no other.

    Args:
        dataset: with its pixel data; YBR is converted to RGB, palettes are left alone.
        syntax: its transfer syntax UID.
        frame: index from 0.

    Returns:
        `(H, W)` or `(H, W, 3)`, the stored values; unused high bits (overlays) are cleared.

    Raises:
        MissingCodecError: no decoder is installed.
        Exception: whatever a decoder raises on damaged data; the caller turns it into E102.
    """
    codec = CODECS[syntax]
    decoder = get_decoder(uid.UID(syntax))
    plugin = choose_plugin(codec, tuple(decoder.available_plugins))
    if syntax == uid.JPEGExtended12Bit and int(dataset.BitsStored) > 8:
        return _decode_jpeg_12_bit(dataset, frame)
    if not codec.plugins and int(dataset.BitsAllocated) == 1 and syntax != uid.ExplicitVRBigEndian:
        return _unpack_bits(dataset, frame)
    decoded: Pixels = pixel_array(dataset, index=frame, decoding_plugin=plugin)
    return decoded


def _unpack_bits(dataset: Dataset, frame: int) -> Pixels:
    """One frame of single bits, which need not begin at a byte (PS3.5 8.1.1).

    pydicom's own way to one frame takes the frames before it to fill whole bytes.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    begin = frame * rows * columns
    end = begin + rows * columns
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)[begin // 8 : -(-end // 8)]
    bits = np.unpackbits(packed, bitorder="little")[begin % 8 :]
    return bits[: end - begin].reshape(rows, columns)


def check_shape(dataset: Dataset, syntax: str, frame: int) -> None:
    """Refuses a frame whose compressed data are of another shape than the header says.

    The decoders of JPEG 2000 do so themselves, those of JPEG-LS and RLE show a sheared picture.

    Raises:
        DamagedImageError: it is.
    """
    whole_bytes = int(dataset.BitsAllocated) >= 8
    if not (CODECS[syntax].plugins and whole_bytes and "PixelData" in dataset):
        return
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    count = int(dataset.get("NumberOfFrames") or 1)
    data = get_frame(dataset.PixelData, frame, number_of_frames=count)
    if syntax == uid.RLELossless:
        # Some writers make the number even before they pack.
        least, most = rows * columns, rows * columns + 1
        sound = all(least <= found <= most for found in rle_segment_bytes(data, most))
    else:
        sound = jpeg_size(data) in (None, (rows, columns))
    if not sound:
        raise DamagedImageError(DAMAGED_MESSAGE)


def _decode_jpeg_12_bit(dataset: Dataset, frame: int) -> Pixels:
    """JPEG Extended with 12 bits through GDCM, which pydicom's own plugin declines.

    Raises:
        DamagedImageError: the codestream cannot be decoded.
    """
    gdcm = importlib.import_module("gdcm")
    count = int(dataset.get("NumberOfFrames") or 1)
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(get_frame(dataset.PixelData, frame, number_of_frames=count))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(dataset.PhotometricInterpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(
        gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(uid.JPEGExtended12Bit)))
    )
    signed = int(dataset.PixelRepresentation)
    bits = int(dataset.BitsStored)
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, signed))
    # GDCM returns char* as str.
    pixels = image.GetBuffer().encode("utf-8", "surrogateescape")
    if len(pixels) != rows * columns * 2:
        raise DamagedImageError("The JPEG data in this file is damaged. Export it again.")
    return np.frombuffer(pixels, dtype="<i2" if signed else "<u2").reshape(rows, columns)
