"""What holds for every test: no network, fixed seeds, and the paths of shared data."""

from __future__ import annotations

import ipaddress
import os
import random
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
SEED = 20_260
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Read by the libraries when they are imported, so they are set before any test module is.
# Child processes inherit them: the guard below does not reach into those.
os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
)

# Without a deadline, because machines that run tests are shared; the same examples every time,
# so that a failure on one machine is a failure on all.
hypothesis.settings.register_profile(
    "lightbox", deadline=None, derandomize=True, print_blob=True, max_examples=60
)
hypothesis.settings.load_profile("lightbox")


class NetworkBlockedError(RuntimeError):
    """A test tried to reach another machine."""


def is_local(address: object) -> bool:
    """Whether a socket address is on this machine: a Unix path, or a loopback host."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    if host in {"", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Let sockets connect to this machine only, and resolve no foreign name."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def check(address: object) -> None:
        if not is_local(address):
            message = f"tests are offline: a connection to {address!r} was refused"
            raise NetworkBlockedError(message)

    def checked_connect(self: socket.socket, address: Any) -> None:
        check(address)
        connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        check(address)
        return connect_ex(self, address)

    def checked_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        check((name or "",))
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked_connect)
        patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
        patch.setattr(socket, "getaddrinfo", checked_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same global random states."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 -- the global state is what libraries draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the project; the test skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the public data sets in ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def chromium_executable() -> str | None:
    """The system's Chromium for Playwright's `executable_path`; None means Playwright's own."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)
