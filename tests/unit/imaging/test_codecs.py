"""Which syntaxes are read, and what is said where a codec is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders.base import get_decoder

from engine.imaging.codecs import CODECS, check_syntax, choose_plugin
from engine.imaging.errors import MissingCodecError, UnsupportedImageError
from tests.unit.imaging.dicom_files import open_here


@pytest.mark.parametrize("syntax", sorted(CODECS))
def test_every_known_syntax_has_a_decoder_here(syntax: str) -> None:
    codec = check_syntax(syntax)
    plugin = choose_plugin(codec, tuple(get_decoder(uid.UID(syntax)).available_plugins))
    assert plugin in codec.plugins or not codec.plugins


@pytest.mark.parametrize(
    ("syntax", "word"),
    [
        ("1.2.840.10008.1.2.1.99", "deflated"),
        ("1.2.840.10008.1.2.8.1", "deflated"),
        ("1.2.840.10008.1.2.4.95", "deflated"),
        (str(uid.MPEG2MPML), "video"),
        ("1.2.3.4", "not supported"),
    ],
)
def test_refused_syntaxes(syntax: str, word: str) -> None:
    with pytest.raises(UnsupportedImageError, match=word):
        check_syntax(syntax)


@pytest.mark.parametrize("syntax", [s for s in sorted(CODECS) if CODECS[s].plugins])
def test_a_missing_codec_is_named_with_what_to_install(syntax: str) -> None:
    codec = CODECS[syntax]
    with pytest.raises(MissingCodecError) as caught:
        choose_plugin(codec, ())
    assert codec.name in caught.value.message
    assert f"pip install {codec.install}" in caught.value.message
    assert caught.value.code == "E106"


def read_testdata(name: str) -> bytes:
    """A file of pydicom's own tests."""
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def test_a_missing_codec_is_reported_for_a_real_file() -> None:
    decoder = get_decoder(uid.JPEGLSLossless)
    data = read_testdata("MR_small_jpeg_ls_lossless.dcm")
    assert open_here(data).transfer_syntax == "JPEG-LS Lossless"
    decoder.remove_plugin("gdcm")
    try:
        with pytest.raises(MissingCodecError, match="JPEG-LS Lossless"):
            open_here(data)
    finally:
        decoder.add_plugin("gdcm", ("pydicom.pixels.decoders.gdcm", "_decode_frame"))


def test_jpeg_of_12_bits() -> None:
    source = open_here(read_testdata("JPGExtended.dcm"))
    # As DCMTK decodes it: 0 to 264.
    assert (int(source.pixels.min()), int(source.pixels.max())) == (0, 264)
    assert float(np.mean(source.pixels)) == pytest.approx(14.37, abs=0.01)
