"""Prepare `.venv` for `make`: packages, and what tests need beside them. Standard library only.

Runs under any Python from 3.11 on, before anything is installed. Everything is idempotent: a
stamp in `.venv` holds the digest of the requirements that were installed last, so a second
call takes a fraction of a second, and an interrupted one starts again where it must.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
OLDEST_PYTHON = (3, 11)
REQUIREMENTS = {
    "runtime": ("requirements.txt",),
    "dev": ("requirements-dev.txt", "requirements.txt"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RENDERERS = ("dcmj2pnm", "dcml2pnm")
USAGE_ERROR = 2


class SetupError(Exception):
    """Set-up cannot go on; the message is one sentence that says what to do."""


def main(arguments: list[str]) -> int:
    """Prepare the profile named by the only argument, `runtime` or `dev`."""
    if len(arguments) != 1 or arguments[0] not in REQUIREMENTS:
        say(f"name one profile of: {', '.join(REQUIREMENTS)}.")
        return USAGE_ERROR
    profile = arguments[0]
    directory = os.open(ROOT, os.O_RDONLY)
    try:
        # Two `make` at once would install into the same folder: the second one waits.
        fcntl.flock(directory, fcntl.LOCK_EX)
        ensure_venv()
        ensure_packages(profile)
        if profile == "dev":
            ensure_browser()
            ensure_reference_renderer()
    except SetupError as error:
        say(str(error))
        return 1
    finally:
        os.close(directory)
    return 0


def ensure_venv() -> None:
    """Create `.venv`, or create it anew where its interpreter no longer starts."""
    if VENV_PYTHON.exists() and succeeds(VENV_PYTHON, "-c", "import pip"):
        return
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise SetupError("Python 3.11 or newer is needed: install it, or name it with PYTHON=.")
    if not succeeds(sys.executable, "-c", "import ensurepip, venv"):
        apt_install(f"python3.{sys.version_info.minor}-venv")
    if not succeeds(sys.executable, "-c", "import ensurepip, venv"):
        package = f"python3.{sys.version_info.minor}-venv"
        raise SetupError(f"this Python cannot make environments: run `apt install {package}`.")
    say(f"creating .venv with Python {sys.version.split()[0]}.")
    run("cannot create .venv (see above).", sys.executable, "-m", "venv", "--clear", VENV)


def ensure_packages(profile: str) -> None:
    """Install the pinned packages of the profile unless exactly these are installed."""
    if any(is_current(name) for name in {profile, "dev"}):
        return
    say(f"installing the {profile} packages (minutes the first time) ...")
    run(
        "pip could not install the packages (see above): check the network and the disk space.",
        VENV_PYTHON,
        *("-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"),
        *("-r", ROOT / REQUIREMENTS[profile][0]),
    )
    ensure_opencv()
    stamp(profile).write_text(digest(profile), encoding="utf-8")


def ensure_opencv() -> None:
    """Bring the system libraries of opencv-python, or its build that needs none.

    The wheel of opencv-python links libGL and glib, which servers and slim containers lack.
    """
    if succeeds(VENV_PYTHON, "-c", "import cv2"):
        return
    apt_install(*(ROOT / "packages.txt").read_text(encoding="utf-8").split())
    if succeeds(VENV_PYTHON, "-c", "import cv2"):
        return
    say("libGL is missing and cannot be installed here: using the headless build of OpenCV.")
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    pin = next(line for line in requirements if line.startswith("opencv-python=="))
    pip = (VENV_PYTHON, "-m", "pip", "-qq", "--disable-pip-version-check")
    run("cannot replace OpenCV (see above).", *pip, "uninstall", "--yes", "opencv-python")
    headless = pin.replace("opencv-python", "opencv-python-headless")
    failure = "OpenCV cannot be imported: run `apt install libgl1 libglib2.0-0`."
    run(failure, *pip, "install", "--force-reinstall", "--no-deps", headless)
    run(failure, VENV_PYTHON, "-c", "import cv2")


def ensure_browser() -> None:
    """Bring a Chromium for the page tests: the system's, Debian's package, or Playwright's."""
    if has_browser():
        return
    say("installing a browser for the page tests ...")
    apt_install("chromium", "fonts-dejavu-core")
    if has_browser():
        return
    # Only root may add the libraries that Playwright's build links.
    system_libraries = ("--with-deps",) if can_use_apt() else ()
    run(
        "no browser for the page tests: install chromium, or run `make test-unit` without one.",
        *(VENV_PYTHON, "-m", "playwright", "install", *system_libraries, "chromium"),
    )


def ensure_reference_renderer() -> None:
    """Bring DCMTK, which tests render DICOM files with, where Debian's package can be had.

    Without it, those tests are skipped; others compare with two more references.
    """
    if not all(shutil.which(tool) for tool in RENDERERS):
        apt_install("dcmtk")


def has_browser() -> bool:
    """Whether a Chromium on PATH starts (Ubuntu's package is an empty hull without snap)."""
    return any(succeeds(name, "--version") for name in BROWSERS if shutil.which(name))


def can_use_apt() -> bool:
    """Whether Debian packages can be installed without asking anybody."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(*packages: str) -> None:
    """Install Debian packages where that is possible; the caller checks what it needed."""
    if not can_use_apt():
        return
    say(f"installing {', '.join(packages)} with apt-get ...")
    apt_get = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120")
    succeeds(*apt_get, "update")
    succeeds(*apt_get, "install", "--yes", "--no-install-recommends", *packages)


def stamp(profile: str) -> Path:
    """The file that remembers which requirements of the profile were installed."""
    return VENV / f"lightbox-{profile}.sha256"


def digest(profile: str) -> str:
    """SHA-256 over the requirement files of the profile and the interpreter of `.venv`."""
    config = (VENV / "pyvenv.cfg").read_bytes()
    parts = [(ROOT / name).read_bytes() for name in REQUIREMENTS[profile]]
    return hashlib.sha256(b"\0".join([config, *parts])).hexdigest()


def is_current(profile: str) -> bool:
    """Whether the packages in `.venv` are those of the requirement files."""
    path = stamp(profile)
    return path.is_file() and path.read_text(encoding="utf-8") == digest(profile)


def succeeds(*command: str | Path) -> bool:
    """Run a command silently and tell whether it worked."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def run(failure: str, *command: str | Path) -> None:
    """Run a command that shows its output.

    Raises:
        SetupError: with the given sentence, when the command fails.
    """
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(failure)


def say(message: str) -> None:
    """Write one line about the set-up."""
    sys.stderr.write(f"lightbox: {message}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
