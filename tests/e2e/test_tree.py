"""Many attempts at one question: the tree, an attempt as a run, and the way back."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from engine.group_io import group_to_zip, member_start
from engine.trace import Trace
from tests.e2e.conftest import OpenPage, Served, sixteen_bit_png
from tests.e2e.test_access import CONTRAST
from tests.e2e.test_read import OPTIONS, QUESTION, open_image, upload, wait_for
from tests.factories import group, request, started

pytestmark = pytest.mark.e2e

HOSTILE = '<img src=x onerror="window.ran = true">${window.ran = true}'
TEXTS = (
    ".lb-tree-intro", ".lb-tree-legend", ".lb-tree-words", ".lb-tree-text > .lb-quiet",
    ".lb-tree-verdict", ".lb-tree-about", ".lb-tree-votes .lb-bar-label",
)  # fmt: skip
# Whether two snapshots of the canvas differ where the browser can read them.
PICTURE = "document.querySelector('.lb-canvas').toDataURL()"


def open_group(page: Page, **changes: object) -> None:
    """Drops a group on the page and waits for its tree."""
    upload(page, group_to_zip(group(**changes)), "DOE_JANE.radgroup.zip")
    wait_for(page, "tree")
    expect(page.locator(".lb-stage")).to_have_attribute("data-busy", "false")


def test_a_group_opens_as_a_tree_and_a_member_as_a_run_and_back(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_group(page)

    expect(page.locator("#lb-question")).to_have_value(QUESTION)
    expect(page.locator("#lb-options")).to_have_value(OPTIONS)
    expect(page.locator(".lb-tree-intro")).to_contain_text("3 attempts branched off another one")
    expect(page.locator(".lb-tree-intro")).to_contain_text("The right answer is “Spiculated”")
    expect(page.locator(".lb-tree-votes .lb-bar-value")).to_have_text(
        ["3 of 6", "2 of 6", "1 of 6"]
    )
    # Every parent stands before its children.
    numbers = page.locator(".lb-tree-row .lb-tree-dot")
    expect(numbers).to_have_text(["1", "4", "6", "2", "3", "5"])
    fork = page.locator('[data-member="3"]')
    expect(fork).to_contain_text(re.compile(r"Branched off 1 at step \d+: 0\.96 nats"))
    expect(fork).to_contain_text("Chance 65%")
    expect(page.locator(".lb-tree-lines path")).to_have_count(6)
    expect(page.locator(".lb-tree-fork")).to_have_count(3)
    expect(page.locator(".lb-tree-call")).to_have_count(1)
    expect(page.locator(".lb-tree-lines text")).to_have_text(["65%", "90%", "30%"])
    expect(page.locator(".lb-inspector")).to_be_hidden()

    plain = page.evaluate(PICTURE)
    fork.hover()
    expect(page.locator(".lb-tree-about")).to_contain_text("looked closer at 22% to 50%")
    expect(page.locator(".lb-tree-about")).to_contain_text("attempt 6 did")
    page.wait_for_function(f"(plain) => {PICTURE} !== plain", arg=plain)

    fork.click()
    wait_for(page, "done")
    expect(page.locator(".lb-answer")).to_have_text("Spiculated")
    expect(page.locator(".lb-tree-bar")).to_contain_text("Attempt 4: Spiculated ✓ right")
    expect(page.locator(".lb-tree")).to_be_hidden()
    expect(page.locator(".lb-card-crop")).to_have_count(1)
    expect(page.locator("#lb-save")).to_be_enabled()

    page.click("#lb-back")
    wait_for(page, "tree")
    expect(fork).to_be_focused()
    expect(page.locator(".lb-answer")).to_have_count(0)
    expect(page.locator("#lb-chart .js-plotly-plot")).to_have_count(0)


def test_the_tree_by_keyboard_alone(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_group(page)
    page.locator(".lb-tree-row").first.focus()

    page.keyboard.press("ArrowDown")
    expect(page.locator('[data-member="3"]')).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator('[data-member="4"]')).to_be_focused()
    expect(page.locator(".lb-tree-about")).to_contain_text("Attempt 5 looked closer")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    wait_for(page, "done")
    expect(page.locator("#lb-back")).to_be_focused()
    expect(page.locator(".lb-answer")).to_have_text("Lobulated")
    page.keyboard.press("Enter")
    wait_for(page, "tree")
    expect(page.locator('[data-member="2"]')).to_be_focused()


def test_another_image_takes_the_place_of_the_tree(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_group(page)
    open_image(page, sixteen_bit_png())
    wait_for(page, "ready")

    expect(page.locator(".lb-tree")).to_be_hidden()
    expect(page.locator(".lb-inspector")).to_be_visible()


def test_a_damaged_group_is_refused_beside_the_one_that_is_open(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_group(page)
    damaged = bytearray(group_to_zip(group()))
    damaged[len(damaged) // 2] ^= 0xFF
    upload(page, bytes(damaged), "x.radgroup.zip")

    expect(page.locator(".lb-status")).to_have_attribute("data-kind", "error")
    expect(page.locator(".lb-tree-row")).to_have_count(6)


def test_texts_of_a_group_are_texts(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_group(page, question=HOSTILE, options=(HOSTILE, "Smooth", "`${window.ran = true}`"))

    expect(page.locator(".lb-tree-words").first).to_have_text(HOSTILE)
    page.locator(".lb-tree-row").first.click()
    wait_for(page, "done")
    assert page.evaluate("window.ran") is None


def test_a_strange_image_is_named_above_the_tree(page_server: Served, open_page: OpenPage) -> None:
    tree = group()
    start = started(request(method="zoom"), "run", flagged=True)
    flagged = tuple(
        replace(member, trace=Trace((member_start(start, number), *member.trace.events[1:])))
        for number, member in enumerate(tree.members)
    )
    page = open_page(page_server)
    upload(page, group_to_zip(replace(tree, members=flagged)), "x.radgroup.zip")
    wait_for(page, "tree")

    expect(page.locator(".lb-banner-warn")).to_contain_text("unlike what the model")


@pytest.mark.parametrize("width", [390, 1440])
def test_the_tree_fits_and_can_be_read_in_both_colours(
    page_server: Served, open_page: OpenPage, width: int
) -> None:
    page = open_page(page_server, width=width, height=844)
    open_group(page)

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for _ in range(2):
        assert page.evaluate(CONTRAST, list(TEXTS)) == []
        page.click("#lb-theme")
