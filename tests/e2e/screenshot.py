"""Takes the picture of the README from the real page: `python -m tests.e2e.screenshot`.

It starts the app with the shipped model, opens a sample, runs it and selects the first
coordinate of the crop.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.conftest import BROWSERS
from tests.e2e.conftest import ARGUMENTS, ROOT

TARGET = ROOT / "docs" / "images" / "read-tab.png"
PATIENCE_SECONDS = 600.0


@contextmanager
def app(port: int) -> Iterator[str]:
    """The address of the app, which runs until the block ends."""
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT)
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url, timeout=30):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait()


def take(page: Page, url: str, sample: int, target: Path) -> None:
    """Runs a sample, counted from 1, and saves what the page shows."""
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    page.goto(url)
    page.click("#lb-accept")
    page.locator(".lb-sample").nth(sample - 1).click()
    expect(page.locator("#lb-question")).not_to_have_value("")
    expect(page.locator(".lb-stage")).to_have_attribute("data-busy", "false")
    page.click("#lb-explain")
    expect(page.locator(".lb")).to_have_attribute("data-state", "done")
    page.locator(".lb-raw summary").first.click()
    # A coordinate of the crop: while it is written, the model attends to where it will look.
    page.locator(".lb-token", has_text=re.compile(r"^\s*[0-9]{2,3}$")).first.click()
    expect(page.locator(".lb-inspect .lb-bar").first).to_be_visible()
    page.locator(".lb-strip").focus()
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    target.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=target)


def main() -> None:
    """Takes the picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.screenshot")
    parser.add_argument("--port", type=int, default=7899)
    parser.add_argument("--sample", type=int, default=1, help="its number, from 1")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    chromium = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with app(options.port) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        take(page, url, options.sample, options.out)
        browser.close()
    sys.stdout.write(f"{options.out}\n")


if __name__ == "__main__":
    main()
