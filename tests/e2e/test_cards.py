"""What the cards say of a run, and what they show of it while one steps back."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from engine.geometry import Box
from engine.request import Interventions
from engine.trace import Belief, Event, TokenStep, Trace
from engine.trace_io import to_zip
from tests.e2e.conftest import OpenPage, Served
from tests.e2e.test_read import upload, wait_for
from tests.factories import trace

pytestmark = pytest.mark.e2e


def replayed(page: Page, shown: Trace) -> Page:
    """The page with a saved run."""
    upload(page, to_zip(shown), "x.radtrace.zip")
    wait_for(page, "done")
    return page


def test_a_crop_is_credited_only_with_what_it_can_have_done(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    card = page.locator(".lb-card-crop")
    replayed(page, trace())
    expect(card).to_contain_text("Right after the crop, before it is described, it is surer.")
    expect(card).to_contain_text("Because it was unsure")

    replayed(page, trace(interventions=Interventions(skip_crops=(1,))))
    expect(card).to_contain_text("Withheld on purpose")
    expect(card).to_contain_text("is not due to the crop")
    expect(card).not_to_contain_text("surer")
    expect(card).not_to_contain_text("You")

    moved = Interventions(move_crops=((1, Box(0.1, 0.1, 0.4, 0.4)),))
    replayed(page, trace(interventions=moved, entropy_threshold=None))
    expect(card).to_contain_text("cut at this place on purpose, not where the model chose")


def test_the_end_of_the_timeline_is_the_end_of_the_run(
    page_server: Served, open_page: OpenPage
) -> None:
    page = replayed(open_page(page_server), trace())
    strip, dim = page.locator(".lb-strip"), page.locator(".lb-later, .lb-future")
    # It opens at the answer, and comes back to it when it is played.
    answer = page.locator(".lb-card-answer .lb-card-head")
    expect(answer).to_be_in_viewport(ratio=1)
    legend = page.locator(".lb-strip-value").first
    strip.focus()
    strip.press("Home")
    expect(legend).to_have_text("42%")
    # What came later is dim: the crop with its words and bars, and the answer.
    for later in (".lb-crop-row", ".lb-card-crop .lb-belief", ".lb-card-answer .lb-result"):
        expect(page.locator(later).first).to_have_class(re.compile("lb-later"))

    strip.press("End")
    expect(dim).to_have_count(0)
    expect(legend).to_have_text("91%")
    expect(page.locator(".lb-picked-word")).to_have_text("Spiculated")
    expect(strip).to_have_attribute("aria-valuetext", "step 76, answer")

    strip.press("ArrowLeft")
    page.select_option(".lb-controls select", "4")
    page.locator(".lb-scroll").evaluate("(box) => { box.scrollTop = 0; }")
    strip.press(" ")
    expect(dim).to_have_count(0)
    expect(page.locator(".lb-picked-word")).to_have_text("Spiculated")
    expect(answer).to_be_in_viewport(ratio=1)


def test_tags_are_no_prose(page_server: Served, open_page: OpenPage) -> None:
    texts = iter(["<think>", "There", " is one].</", "think", ">\n", ""])

    def tagged(event: Event) -> Event:
        if isinstance(event, TokenStep) and event.segment == "reasoning":
            return replace(event, text=next(texts, event.text))
        return event

    page = replayed(open_page(page_server), Trace(tuple(tagged(event) for event in trace())))
    words = page.locator(".lb-card-look .lb-words").first
    assert words.inner_text().startswith("There is one].")
    assert "think" not in words.inner_text()
    assert "</think>" in (words.text_content() or "")
    strip = page.locator(".lb-strip")
    strip.press("Home")
    for _ in range(9):
        strip.press("ArrowRight")
    expect(page.locator(".lb-picked-word")).to_have_text("(end of the text)")


def test_what_entropy_and_belief_leave_out_is_said(
    page_server: Served, open_page: OpenPage
) -> None:
    page = replayed(open_page(page_server), trace())
    help_of = {
        ".lb-key-legend": "Only words of the reasoning can be unsure steps",
        ".lb-strip-side": "behind inner steps it is no gauge of what these hold",
    }
    for part, says in help_of.items():
        mark = page.locator(f"{part} .lb-hint")
        mark.hover()
        expect(mark.locator(".lb-hint-text")).to_contain_text(says)
        expect(mark.locator(".lb-hint-text")).to_be_in_viewport(ratio=1)
    expect(page.locator(".lb-card-latent .lb-belief")).to_contain_text("no gauge of what the steps")
    # What the numbers of the inspector are is said beside them.
    page.locator(".lb-thumb").nth(1).click()
    for says in (
        "A likeness of 1 is the same direction",
        "how much of the whole map lies in the outermost",
    ):
        expect(page.locator(".lb-inspect")).to_contain_text(says)
    expect(page.locator(".lb-saw")).to_contain_text("in 8 by 8 patches of 28 × 28 pixels.")


def test_the_shares_of_two_options_add_up(page_server: Served, open_page: OpenPage) -> None:
    def half(event: Event) -> Event:
        if isinstance(event, Belief) and event.moment == "prefill":
            return replace(event, probabilities=(0.455, 0.545))
        return event

    run = Trace(tuple(half(event) for event in trace(options=("left", "right"))))
    page = replayed(open_page(page_server), run)
    page.locator(".lb-strip").press("Home")

    # Each by itself, they would be rounded to 46% and 55%.
    for shown in (".lb-card-first .lb-bar-value", ".lb-strip-value"):
        expect(page.locator(shown)).to_have_text(["46%", "54%"])
