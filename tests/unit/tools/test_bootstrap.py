"""Setting a machine up: when packages are installed, which ones, and what is said on failure.

Interpreters are shell scripts that write down what they were asked, so nothing is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.test_packaging import pins
from tools import bootstrap
from tools.bootstrap import SetupError

RECORDER = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  {fails}) exit 1 ;;
esac
"""
NOTHING = "'no such command'"


class Machine:
    """A project in a folder of its own, with an interpreter in `.venv` that only takes notes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "asked"
        self.python = root / ".venv" / "bin" / "python"
        (root / ".venv" / "pyvenv.cfg").parent.mkdir()
        (root / ".venv" / "pyvenv.cfg").write_text("version = 3.11.7\n")
        (root / "requirements.txt").write_text("numpy==1.0\nopencv-python==5.0.0.93\n")
        (root / "requirements-dev.txt").write_text("-r requirements.txt\nruff==1.0\n")
        (root / "packages.txt").write_text("libgl1\n")
        self.makes(self.python)

    def makes(self, program: Path, fails: str = NOTHING) -> Path:
        """An interpreter that fails where its arguments match a pattern of the shell."""
        program.parent.mkdir(exist_ok=True)
        program.write_text(RECORDER.format(log=self.log, fails=fails))
        program.chmod(0o755)
        return program

    def asked(self, word: str) -> list[str]:
        """The commands with the word, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if word in line]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "VENV_PYTHON", made.python)
    monkeypatch.setattr(bootstrap, "can_use_apt", lambda: False)
    return made


# --- whether to install ------------------------------------------------------------------------


def test_packages_are_installed_once(machine: Machine) -> None:
    bootstrap.ensure_packages("runtime")
    bootstrap.ensure_packages("runtime")

    (installed,) = machine.asked("pip install")
    assert installed.endswith(f"-r {machine.root / 'requirements.txt'}")
    assert bootstrap.is_current("runtime")
    assert not bootstrap.is_current("dev")


@pytest.mark.parametrize(
    ("profile", "file", "again"),
    [
        ("runtime", "requirements.txt", True),
        ("runtime", "requirements-dev.txt", False),
        ("runtime", "packages.txt", False),
        ("runtime", ".venv/pyvenv.cfg", True),
        ("dev", "requirements.txt", True),
        ("dev", "requirements-dev.txt", True),
        ("dev", ".venv/pyvenv.cfg", True),
    ],
)
def test_only_what_a_profile_rests_on_makes_it_install_again(
    machine: Machine, profile: str, file: str, again: bool
) -> None:
    bootstrap.ensure_packages(profile)
    changed = machine.root / file
    changed.write_text(changed.read_text() + "# changed\n")

    bootstrap.ensure_packages(profile)

    assert len(machine.asked("pip install")) == (2 if again else 1)


def test_a_file_that_was_only_touched_changes_nothing(machine: Machine) -> None:
    before = bootstrap.digest("dev")
    file = machine.root / "requirements.txt"
    file.write_bytes(file.read_bytes())

    assert bootstrap.digest("dev") == before
    assert bootstrap.digest("runtime") != before


def test_a_line_that_moves_from_one_file_to_the_next_is_a_change(machine: Machine) -> None:
    before = bootstrap.digest("dev")
    (machine.root / "requirements-dev.txt").write_text("-r requirements.txt\n")
    (machine.root / "requirements.txt").write_text(
        "ruff==1.0\nnumpy==1.0\nopencv-python==5.0.0.93\n"
    )

    assert bootstrap.digest("dev") != before


def test_the_development_packages_hold_those_of_the_program(machine: Machine) -> None:
    bootstrap.ensure_packages("dev")
    bootstrap.ensure_packages("runtime")

    assert len(machine.asked("pip install")) == 1


def test_an_installation_that_broke_off_starts_again(machine: Machine) -> None:
    machine.makes(machine.python, fails="*pip\\ install*")
    with pytest.raises(SetupError, match="check the network and the disk space"):
        bootstrap.ensure_packages("runtime")
    assert not bootstrap.is_current("runtime")

    machine.makes(machine.python)
    bootstrap.ensure_packages("runtime")

    assert len(machine.asked("pip install")) == 2
    assert bootstrap.is_current("runtime")


# --- which build of OpenCV -----------------------------------------------------------------------


def test_opencv_that_starts_stays(machine: Machine) -> None:
    bootstrap.ensure_opencv()

    assert machine.asked("pip") == []


def test_opencv_that_does_not_start_becomes_the_headless_build_of_its_version(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.makes(machine.python, fails='"-c import cv2"')
    with pytest.raises(SetupError, match="apt install libgl1"):
        bootstrap.ensure_opencv()

    removed, installed = machine.asked("pip")
    assert removed.endswith("uninstall --yes opencv-python")
    assert installed.endswith("--no-deps opencv-python-headless==5.0.0.93")
    assert "headless build" in capfd.readouterr().err


def test_the_requirements_name_the_opencv_that_is_replaced() -> None:
    assert "opencv-python" in pins("requirements.txt")


# --- the environment -----------------------------------------------------------------------------


def test_an_environment_that_works_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(machine.makes(machine.root / "bin" / "python")))

    bootstrap.ensure_venv()

    assert machine.asked("venv") == []


@pytest.mark.parametrize("state", ["missing", "broken"])
def test_an_environment_that_is_missing_or_broken_is_made_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(sys, "executable", str(machine.makes(machine.root / "bin" / "python")))
    if state == "missing":
        machine.python.unlink()
    else:
        machine.makes(machine.python, fails="*")

    bootstrap.ensure_venv()

    assert machine.asked("-m venv") == [f"-m venv --clear {machine.root / '.venv'}"]


def test_a_python_without_venv_is_named_with_its_package(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = machine.makes(machine.root / "bin" / "python", fails="*ensurepip*")
    monkeypatch.setattr(sys, "executable", str(poor))
    machine.python.unlink()

    with pytest.raises(SetupError) as caught:
        bootstrap.ensure_venv()

    package = f"python3.{sys.version_info.minor}-venv"
    said = f"this Python cannot make environments: run `apt install {package}`."
    assert str(caught.value) == said


def test_a_python_that_is_too_old_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST_PYTHON", (9, 0))
    machine.python.unlink()

    with pytest.raises(SetupError, match=r"^Python 3\.11 or newer is needed"):
        bootstrap.ensure_venv()


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["test"], ["dev", "runtime"]])
def test_an_unknown_profile_is_refused_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bootstrap.main(arguments) == 2
    assert capsys.readouterr().err == "lightbox: name one profile of: runtime, dev.\n"


def test_what_cannot_be_set_up_ends_in_one_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST_PYTHON", (9, 0))
    machine.python.unlink()

    assert bootstrap.main(["runtime"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lightbox: Python 3.11 or newer is needed")


def test_the_program_needs_no_browser(machine: Machine) -> None:
    assert bootstrap.main(["runtime"]) == 0
    assert machine.asked("playwright") == []


def test_the_tests_bring_a_browser_where_there_is_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "BROWSERS", ("no-such-browser",))

    assert bootstrap.main(["dev"]) == 0
    assert machine.asked("playwright") == ["-m playwright install chromium"]


def test_a_browser_that_does_not_start_is_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hull = machine.makes(machine.root / "bin" / "chromium", fails="*")
    monkeypatch.setenv("PATH", str(hull.parent))

    assert not bootstrap.has_browser()
    machine.makes(hull)
    assert bootstrap.has_browser()


@pytest.mark.parametrize("missing", ["dcmj2pnm", "dcml2pnm", ""])
def test_the_reference_renderer_is_installed_unless_it_is_there(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(bootstrap.shutil, "which", lambda tool: None if tool == missing else tool)
    monkeypatch.setattr(bootstrap, "apt_install", lambda *packages: asked.extend(packages))

    bootstrap.ensure_reference_renderer()

    assert asked == (["dcmtk"] if missing else [])
