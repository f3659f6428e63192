"""A page around an engine without a model, and browsers that look at it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.factories import chest, png
from tests.turns import turn

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

# Generous, because machines that run tests are shared; a wait ends as soon as it may.
PATIENCE = 40_000
ATTEMPTS = 3
sync_api.expect.set_options(timeout=PATIENCE)

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"http://[\w.:]+")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@dataclass(frozen=True)
class Served:
    """A running page and the folder that it works in."""

    url: str
    folder: Path


def sixteen_bit_png(seed: int = 0, side: int = 384) -> bytes:
    """A 16-bit grey PNG of a chest."""
    values = chest(side, seed).astype(np.uint16) * 16
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def started(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server and the address that it prints, or an empty one when it ended instead."""
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=ROOT,
        env={**os.environ, "GRADIO_TEMP_DIR": str(folder / "gradio"), "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = (ADDRESS.search(line) for line in process.stdout)
    return process, next((address[0] for address in found if address), "")


@contextmanager
def served(folder: Path, *options: str, program: str = "-mtests.e2e.serve") -> Iterator[Served]:
    """Serves a page from a process of its own until the block ends.

    A process, because the server's threads and sockets outlive it in this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Gradio gives up when its own page does not answer within seconds, as on a busy machine.
    for _ in range(ATTEMPTS):
        process, url = started(folder, program, *options)
        if url.startswith("http"):
            break
        process.communicate()
    try:
        assert url.startswith("http"), "the page did not start"
        yield Served(url, folder)
    finally:
        process.terminate()
        process.communicate()


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lets page tests run beside each other, and those that measure time (`timed`) alone.

    Around everything that belongs to a test: the servers and browsers that it starts, and outside
    of its time limit.
    """
    folder = item.config.cache.mkdir("page-tests")
    with turn(folder, alone=item.get_closest_marker("timed") is not None):
        yield


@pytest.fixture(scope="session")
def browser(chromium_executable: str | None) -> Iterator[sync_api.Browser]:
    """A Chromium; the test skips where none is installed."""
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=chromium_executable, args=ARGUMENTS
            )
        except sync_api.Error as error:
            pytest.skip(f"needs a Chromium that starts: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page around a quick engine, shared by tests that do not change it."""
    folder = tmp_path_factory.mktemp("served")
    sample = folder / "chest.png"
    sample.write_bytes(png(chest(320)))
    with served(folder / "page", "--sample", str(sample)) as running:
        yield running


def note_error(error: sync_api.Error, problems: list[str]) -> None:
    """Adds a script error; a server that has ended before the chart came is none."""
    if "Failed to fetch dynamically imported module" not in str(error):
        problems.append(str(error))


def note_refusal(line: sync_api.ConsoleMessage, problems: list[str]) -> None:
    """Adds what the page's own security policy turned away."""
    if "Content Security Policy" in line.text:
        problems.append(line.text)


OpenPage = Callable[..., sync_api.Page]


@pytest.fixture
def open_page(browser: sync_api.Browser) -> Iterator[OpenPage]:
    """Opens pages, each in a browser profile of its own; any script error, and anything
    that the page's security policy refuses, fails the test."""
    contexts: list[sync_api.BrowserContext] = []
    problems: list[str] = []

    def opened(server: Served, width: int = 1440, height: int = 900) -> sync_api.Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: note_error(error, problems))
        page.on("console", lambda line: note_refusal(line, problems))
        page.goto(server.url)
        page.locator("#lb-accept").click()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
