"""The child process: same result, hard limits, nothing left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engine.imaging import Limits, open_image, render
from engine.imaging.errors import DamagedImageError, ParseTimeoutError, TooLargeError
from engine.imaging.sandbox import explain_status, load_sandboxed
from tests.unit.imaging.dicom_files import make_dataset, png_file, save, to_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)
ROOT = Path(__file__).parents[3]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def element_bomb(megabytes: int) -> bytes:
    """A valid file with so many tiny elements that listing them takes very long."""
    dataset = make_dataset(RAMP)
    dataset.PixelData = RAMP.tobytes()
    dataset["PixelData"].VR = "OW"
    whole = save(dataset)
    start = whole.index(struct.pack("<HH", 0x0028, 0x0002))
    return whole[:start] + b"\x10\x00\x00\x40LT\x00\x00" * (megabytes << 17) + whole[start:]


def children_of(parent: int) -> list[int]:
    """Process ids of imaging children, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            command = (entry / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if int(status[1]) == parent and b"engine.imaging.child" in command and status[0] != "Z":
            found.append(int(entry.name))
    return found


def test_the_sandbox_changes_nothing() -> None:
    data = to_file(RAMP, WindowCenter=[30, 5], WindowWidth=[60, 7], PixelSpacing=[1, 2])
    inside, outside = open_image(data), open_image(data, sandboxed=False)
    for field in dataclasses.fields(inside):
        if field.name != "pixels":
            assert getattr(inside, field.name) == getattr(outside, field.name)
    np.testing.assert_array_equal(render(inside), render(outside))


def test_the_environment_does_not_reach_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    assert open_image(to_file(RAMP)).size == (8, 8)


def test_processor_time_is_bounded() -> None:
    with pytest.raises(ParseTimeoutError, match="longer than 1 seconds") as caught:
        open_image(element_bomb(40), limits=Limits(cpu_seconds=1))
    assert caught.value.code == "E105"


@linux_only
def test_wall_time_is_bounded_and_the_child_is_gone() -> None:
    with pytest.raises(ParseTimeoutError):
        open_image(element_bomb(40), limits=Limits(wall_seconds=0.5))
    assert children_of(os.getpid()) == []


def test_memory_is_bounded() -> None:
    rows = (b"\0" + bytes(range(250)) * 12) * 3000
    data = png_file(3000, 3000, 8, 0, rows)
    assert open_image(data).size == (3000, 3000)
    with pytest.raises(TooLargeError) as caught:
        open_image(data, limits=Limits(memory_bytes=130 << 20))
    assert caught.value.code == "E103"


@linux_only
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(element_bomb(60))
    code = "import sys; from pathlib import Path; from engine.imaging import open_image; "
    code += "open_image(Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) as parent:
        child = wait_for_child(parent.pid)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60  # a busy machine; an idle one needs milliseconds
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for_child(parent: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := children_of(parent):
            return found[0]
        time.sleep(0.02)
    raise TimeoutError("No child appeared.")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (-signal.SIGXCPU, ParseTimeoutError),
        (-signal.SIGKILL, ParseTimeoutError),
        (-signal.SIGXFSZ, TooLargeError),
        (-signal.SIGABRT, TooLargeError),
        (-signal.SIGSEGV, DamagedImageError),
        (1, DamagedImageError),
    ],
)
def test_how_a_child_ended_is_explained(status: int, error: type[Exception]) -> None:
    assert isinstance(explain_status(status, Limits()), error)


def test_threads_do_not_mix_images() -> None:
    files = [to_file(RAMP + 100 * n) for n in range(4)]
    results: dict[int, int] = {}

    def work(n: int) -> None:
        results[n] = int(open_image(files[n]).pixels.min())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: 100 * n for n in range(4)}


def test_identity_of_the_result_comes_from_the_parent() -> None:
    source = load_sandboxed(to_file(RAMP), frame=0, limits=Limits(), sha256="ab" * 32)
    assert source.sha256 == "ab" * 32
