"""The page without a mouse, for the ear, and in a bright room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import OpenPage, Served, served
from tests.e2e.test_read import QUESTION, ask, open_image, wait_for

pytestmark = pytest.mark.e2e

LISTEN = """
window.heard = [];
new MutationObserver(() => {
  window.heard.push(document.querySelector('.lb-voice').textContent);
}).observe(document.querySelector('.lb-voice'), { childList: true, characterData: true,
  subtree: true });
"""
# Relative luminance as WCAG 2.2 defines it, of text against the first opaque ground below it.
CONTRAST = """(selectors) => {
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const ground = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const color = parts(getComputedStyle(n).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const selector of selectors) {
    for (const node of document.querySelectorAll(selector)) {
      if (!node.offsetParent || node.disabled) continue;
      const [a, b] = [light(parts(getComputedStyle(node).color)), light(ground(node))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) bad.push(selector + ' ' + node.textContent.slice(0, 20) + ' '
        + ratio.toFixed(2));
    }
  }
  return bad;
}"""
TEXTS = (
    ".lb-brand", ".lb-badge", ".lb-title", ".lb-quiet", ".lb-card-title", ".lb-card-meta",
    ".lb-token", ".lb-tag", ".lb-foot", ".lb-answer", ".lb-bar-label", ".lb-bar-value",
    ".lb-small", ".lb-tool", ".lb-primary", ".lb-method", ".lb-facts dt", ".lb-facts dd",
    ".lb-status", ".lb-picked-word", ".lb-strip-name", ".lb-strip-value", ".lb-key-legend span",
    ".lb-where", ".lb-fold > summary", ".lb-raw > summary",
)  # fmt: skip


def focus_is_visible(page: Page) -> bool:
    """Whether the focused element shows an outline or a ring."""
    return bool(
        page.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement);"
            " return s.boxShadow !== 'none' || s.outlineStyle !== 'none'; })()"
        )
    )


def tab_to(page: Page, selector: str) -> None:
    """Presses Tab until the element has the focus, which must show."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            assert focus_is_visible(page), selector
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_a_run_by_keyboard_alone(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    tab_to(page, ".lb-sample")
    page.keyboard.press("Enter")
    expect(page.locator("#lb-question")).to_have_value(QUESTION)
    page.locator("body").press("Control+Enter")
    wait_for(page, "done")

    tab_to(page, ".lb-strip")
    page.keyboard.press("Home")
    page.keyboard.press("1")
    expect(page.locator(".lb-picked-word")).to_have_text("Crop 1")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".lb-strip")).to_have_attribute("aria-valuetext", re.compile("step"))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_have_count(0)
    expect(page.locator(".lb-strip")).to_be_focused()
    tab_to(page, "#lb-theme")


def test_a_screen_reader_hears_steps_and_no_words(open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path, "--delay", "0.03") as server:
        page = open_page(server)
        open_image(page)
        page.evaluate(LISTEN)
        ask(page)
        wait_for(page, "done")
        heard = page.evaluate("window.heard")

        assert page.locator(".lb [aria-live]:not(.lb-voice):not([aria-live=off])").count() == 0
        assert heard[-1] == "Done."
        assert "Reading" not in " ".join(heard)
        assert len(heard) <= 10


def test_single_letters_can_be_switched_off(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_image(page)
    page.click("#lb-keys")
    page.get_by_label("Single letters, digits and signs act as keys").uncheck()
    page.keyboard.press("Escape")
    canvas = page.locator(".lb-canvas")
    before = page.locator(".lb-readout").inner_text()
    canvas.press("+")
    page.keyboard.press("?")
    page.keyboard.press("/")

    expect(page.get_by_role("dialog", name="Keys")).to_have_count(0)
    expect(canvas).to_be_focused()
    assert page.locator(".lb-readout").inner_text() == before


def test_both_themes_are_legible_and_the_picture_stays_dark(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_image(page)
    ask(page)
    wait_for(page, "done")
    page.locator(".lb-inspector summary", has_text="About this run").click()
    assert page.evaluate(CONTRAST, list(TEXTS)) == []

    page.click("#lb-theme")
    assert page.evaluate(CONTRAST, list(TEXTS)) == []
    ground = "getComputedStyle(document.querySelector('{}')).backgroundColor"
    assert page.evaluate(ground.format(".lb-stage")) == "rgb(0, 0, 0)"
    assert page.evaluate(ground.format(".lb-reasoning")) == "rgb(246, 247, 248)"
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-lb-theme", "light")
