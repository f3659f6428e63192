"""The front door: bytes and paths, and paths that are no files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.imaging import Limits, open_image
from engine.imaging.errors import FrameRangeError, TooLargeError, UnreadableFileError
from tests.unit.imaging.dicom_files import to_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


def test_bytes_and_path_are_the_same(tmp_path: Path) -> None:
    data = to_file(RAMP)
    path = tmp_path / "no extension"
    path.write_bytes(data)
    one, other = open_image(data), open_image(path, sandboxed=False)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.sha256 == other.sha256


def test_the_name_of_a_file_is_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "DOE_JANE.dcm"
    path.write_bytes(b"no image")
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any error must keep the name out)
        open_image(path)
    assert "JANE" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "null byte"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "null byte":
        path = Path(f"{path}\0")
    with pytest.raises(UnreadableFileError) as caught:
        open_image(path)
    assert caught.value.code == "E109"
    assert "thing" not in str(caught.value)


def test_files_over_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(Limits().file_bytes + 1)
    with pytest.raises(TooLargeError, match="64 MB"):
        open_image(path)


@pytest.mark.parametrize("sandboxed", [True, False])
def test_frames_are_checked_on_both_ways(sandboxed: bool) -> None:
    with pytest.raises(FrameRangeError):
        open_image(to_file(RAMP), frame=3, sandboxed=sandboxed)


def test_importing_the_package_loads_no_parser_and_no_torch() -> None:
    code = (
        "import sys, engine.imaging; "
        "print([m for m in ('torch', 'transformers', 'pydicom', 'PIL', 'gdcm') "
        "if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
