"""What the child says is checked before it is believed."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.imaging.errors import ERRORS_BY_CODE, DamagedImageError, ImagingError
from engine.imaging.limits import Limits
from engine.imaging.source import SourceImage
from engine.imaging.wire import read_source, write_error, write_source
from tests.unit.imaging.dicom_files import open_here, to_file
from tests.unit.imaging.test_dicom_values import lut_item

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)
LIMITS = Limits()


def sample_sources() -> list[SourceImage]:
    color = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    table = lut_item([64, 0, 12], list(range(64)))
    return [
        open_here(to_file(RAMP, PixelSpacing=[0.5, 0.25], Modality="CT", RescaleSlope=1)),
        open_here(
            to_file(
                RAMP,
                PatientOrientation=["R", "F"],
                RescaleSlope=0.1,
                WindowCenter=[1, 2],
                WindowWidth=[3, 4],
            )
        ),
        open_here(to_file(RAMP, VOILUTSequence=[table])),
        open_here(to_file(color)),
    ]


def written(source: SourceImage) -> bytes:
    stream = io.BytesIO()
    write_source(stream, source)
    return stream.getvalue()


@pytest.mark.parametrize("index", range(4))
def test_what_is_written_is_read(index: int) -> None:
    source = sample_sources()[index]
    back = read_source(io.BytesIO(written(source)), LIMITS)
    for field in dataclasses.fields(source):
        one, other = getattr(source, field.name), getattr(back, field.name)
        if field.name == "pixels":
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
            assert not other.flags.writeable
        elif field.name == "voi_lut" and one is not None:
            assert (one.first, one.bits) == (other.first, other.bits)
            np.testing.assert_array_equal(one.entries, other.entries)
        else:
            assert one == other


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
def test_errors_keep_their_type(code: str) -> None:
    stream = io.BytesIO()
    write_error(stream, ERRORS_BY_CODE[code]("What is wrong."))
    stream.seek(0)
    with pytest.raises(ERRORS_BY_CODE[code], match=r"What is wrong\."):
        read_source(stream, LIMITS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "object"),
        ("dtype", "float64"),
        ("shape", [100_000, 100_000]),
        ("shape", [8, 8, 4]),
        ("shape", [0, 8]),
        ("shape", [-8, -8]),
        ("shape", [8, 9]),
        ("window_source", "<b>"),
        ("spacing_kind", "other"),
        ("left_edge", "<b>"),
        ("left_edge", ["left"]),
        ("spacing_mm", [1]),
        ("windows", [[1, 2, "eval"]]),
        ("windows", [[1, 0, "LINEAR"]]),
        ("table", [0, 99, 5]),
        ("extra", 1),
        ("spacing_mm", [float("nan"), 1.0]),
        ("spacing_mm", [-3.0, 1.0]),
        ("modality", "<img src=x onerror=alert(1)>" * 1000),
        ("modality", "D\x1bX"),
        ("units", {"a": 1}),
        ("format", "EXE"),
        ("frame", True),
        ("frame_count", -1),
        ("is_color", True),
    ],
)
def test_lies_are_damage(name: str, value: object) -> None:
    header, pixels = written(sample_sources()[0]).split(b"\n", 1)
    facts = json.loads(header)
    facts[name] = value
    with pytest.raises(DamagedImageError):
        read_source(io.BytesIO(json.dumps(facts).encode() + b"\n" + pixels), LIMITS)


@pytest.mark.parametrize("answer", [b'"x"\n', b"[" * 200_000 + b"\n", b"7\n", b"null\n"])
def test_answers_that_hold_no_facts_are_damage(answer: bytes) -> None:
    with pytest.raises(DamagedImageError):
        read_source(io.BytesIO(answer), LIMITS)


@given(st.binary(max_size=400), st.integers(0, 2000))
def test_cut_and_random_answers_are_typed_errors(noise: bytes, cut: int) -> None:
    whole = written(sample_sources()[0])
    for answer in (noise, whole[: min(cut, len(whole) - 1)]):
        with pytest.raises(ImagingError):
            read_source(io.BytesIO(answer), LIMITS)
