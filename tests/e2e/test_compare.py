"""Ways to look again, side by side: asked for, watched, opened and stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import OpenPage, Served, served
from tests.e2e.test_read import OPTIONS, QUESTION, open_image, wait_for

pytestmark = pytest.mark.e2e


def begin(page: Page, options: str = OPTIONS) -> None:
    """Opens an image, asks, and starts a comparison by keyboard."""
    open_image(page)
    page.fill("#lb-question", QUESTION)
    page.fill("#lb-options", options)
    page.locator("#lb-ways-start").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".lb-ways")).to_be_visible()


def lefts(page: Page) -> set[int]:
    """Where the columns begin, in pixels from the left."""
    boxes = [column.bounding_box() for column in page.locator(".lb-way").all()]
    return {round(box["x"]) for box in boxes if box}


def test_every_way_is_run_shown_and_opened(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    begin(page)
    wait_for(page, "ready")

    expect(page.locator(".lb-ways-now")).to_have_text("Done: 5 runs.")
    assert len(lefts(page)) == 3
    expect(page.locator(".lb-way-answer b")).to_have_text(["Spiculated"] * 3)
    expect(page.locator(".lb-way-box")).to_have_count(2)
    asked, unsure = page.locator(".lb-way-zoom").all()
    expect(asked).to_contain_text("Its own decision.")
    expect(unsure).to_contain_text("Because it was unsure (1.9 nats, above 0.4).")
    expect(asked.locator(".lb-bar-value")).to_have_text(["48%", "83%", "91%", "55%"])
    expect(asked.locator(".lb-way-verdict")).to_contain_text("36 percentage points higher")
    expect(asked.locator(".lb-way-cost")).to_contain_text(
        re.compile(r"14 more tokens written, 64 read from the crop, \d")
    )

    without = asked.get_by_role("button", name="Open the run without it")
    without.focus()
    without.press("Enter")
    wait_for(page, "done")
    expect(page.locator(".lb-ways")).to_be_hidden()
    expect(page.locator(".lb-banner-change")).to_contain_text("crop 1 withheld")
    expect(page.locator("#lb-save")).to_be_enabled()
    page.click("#lb-ways-show")
    expect(page.locator(".lb-way-answer")).to_have_count(3)

    page.set_viewport_size({"width": 390, "height": 844})
    assert len(lefts(page)) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#lb-ways-back")
    open_image(page)
    expect(page.locator("#lb-ways-show")).to_be_hidden()


def test_a_difference_is_that_of_the_numbers_beside_it(browser: Browser) -> None:
    page = browser.new_page()
    # What the page has from app/ui.py.
    page.add_script_tag(content="const LB = { option_colors: [], text: {} };")
    for script in ("dom.js", "compare.js"):
        page.add_script_tag(path=Path("assets/js") / script)
    ways = [(4, 0.16), (19, 0.24), (20, 0.16), (21, 12.4), (4, 9.96)]
    asked = [{"tokens": tokens, "seconds": seconds} for tokens, seconds in ways]
    found = page.evaluate("(all) => all.map((way) => moreText(way, all[2]))", asked)
    assert found == [
        ": 16 fewer tokens than one look",
        ": 1 fewer token than one look",
        "",
        ": 1 more token and 12 s more than one look",
        ": 16 fewer tokens and 9.8 s more than one look",
    ]
    same = page.evaluate("(way) => moreText(way, { ...way })", asked[0])
    assert same == ": as much as one look"
    page.close()


def test_stopping_keeps_what_is_done(open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path / "page", "--delay", "0.03") as server:
        page = open_page(server)
        begin(page, "<img src=x onerror=alert(1)>\nSmooth")
        expect(page.locator(".lb-ways-now")).to_contain_text("Run 2 of at least 3: zooms where")
        page.keyboard.press("Escape")
        wait_for(page, "ready")

        expect(page.locator(".lb-ways-now")).to_contain_text("Stopped after 1 of 3 runs.")
        expect(page.locator('[data-way="direct"] .lb-way-answer b')).to_have_text(
            "<img src=x onerror=alert(1)>"
        )
        expect(page.locator('[data-way="entropy_rule"]')).to_contain_text("Not run.")


def test_behind_the_image_the_status_tells_how_far_it_is(
    open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "page", "--delay", "0.03") as server:
        page = open_page(server)
        begin(page)
        expect(page.locator(".lb-ways-now")).to_contain_text("Run 1 of at least 3")
        page.click("#lb-ways-back")

        expect(page.locator(".lb-status")).to_contain_text("Run 2 of at least 3: zooms where")
        page.keyboard.press("Escape")
        wait_for(page, "ready")
        expect(page.locator(".lb-status")).to_have_text("Ready: press Explain.")


def test_a_strange_image_is_named_above_the_ways(open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path / "page", "--flagged") as server:
        page = open_page(server)
        begin(page)
        wait_for(page, "ready")

        expect(page.locator(".lb-ways-note")).to_contain_text("unlike what")
        # Said once, and not again by the notes above.
        expect(page.locator(".lb-banner", has_text="unlike what")).to_have_count(0)
