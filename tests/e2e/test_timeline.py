"""The timeline under the mouse."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from engine.trace_io import to_zip
from tests.e2e.conftest import OpenPage, Served
from tests.e2e.test_read import upload, wait_for
from tests.factories import trace

pytestmark = pytest.mark.e2e


def test_dragging_over_the_strip_goes_through_the_run(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    upload(page, to_zip(trace()), "x.radtrace.zip")
    wait_for(page, "done")
    strip = page.locator(".lb-strip")
    expect(strip).not_to_have_attribute("aria-valuemax", "0")
    steps = int(strip.get_attribute("aria-valuemax") or 0)
    assert steps > 40
    expect(strip).to_have_attribute("aria-valuenow", str(steps))
    box = strip.bounding_box()
    assert box is not None

    def move(step: int, y: float) -> None:
        # Columns share the width but for a margin of 8 pixels on either side.
        part = (step - 0.5) / steps
        page.mouse.move(box["x"] + 8 + part * (box["width"] - 16), y, steps=3)

    middle = box["y"] + box["height"] / 2
    move(3, middle)
    expect(strip).to_have_attribute("aria-valuenow", str(steps))
    page.mouse.down()
    expect(strip).to_have_attribute("aria-valuenow", "3")
    expect(page.locator(".lb-picked-word")).to_have_text("Inner step 3")
    move(20, middle)
    expect(strip).to_have_attribute("aria-valuenow", "20")
    # Held, it follows outside of the strip as well, forwards and backwards.
    move(30, 5.0)
    expect(strip).to_have_attribute("aria-valuenow", "30")
    move(10, 5.0)
    expect(strip).to_have_attribute("aria-valuenow", "10")
    page.mouse.up()
    move(25, middle)
    # Only the tooltip goes with the mouse now.
    expect(strip).to_have_attribute("title", re.compile("step “a”"))
    expect(strip).to_have_attribute("aria-valuenow", "10")
