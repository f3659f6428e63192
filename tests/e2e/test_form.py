"""The form: what it says before a run begins, and what stays in it when something is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from engine.trace_io import to_zip
from tests.e2e.conftest import OpenPage, Served, served
from tests.e2e.test_read import OPTIONS, QUESTION, open_image, upload, wait_for
from tests.factories import trace

pytestmark = pytest.mark.e2e


def open_sample(page: Page) -> None:
    """Opens the first sample and waits for its question."""
    page.locator(".lb-sample").first.click()
    expect(page.locator("#lb-question")).to_have_value(QUESTION)
    wait_for(page, "ready")


def test_what_cannot_be_asked_is_said_before_it_is(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_sample(page)
    explain, why = page.locator("#lb-explain"), page.locator("#lb-why")
    expect(why).to_be_hidden()
    for options, says in (
        ("yes", "Give at least two answer options, or none."),
        ("\n".join("abcdefghijk"), "Give at most 10 answer options."),
        ("yes\nno\n yes", "Two answer options are the same."),
    ):
        page.fill("#lb-options", options)
        expect(why).to_have_text(says)
        expect(explain).to_be_disabled()
    page.fill("#lb-options", OPTIONS)
    expect(explain).to_be_enabled()

    page.locator(".lb-composer summary", has_text="Settings").click()
    # Whether a label takes one line or two, the inputs stand in one row.
    boxes = [field.bounding_box() for field in page.locator(".lb-fields input").all()]
    assert len({round(box["y"]) for box in boxes if box}) == 1
    temperature = page.get_by_label("Temperature")
    temperature.fill("2.5")
    expect(why).to_have_text("Temperature: a number from 0 to 2.")
    expect(explain).to_be_disabled()
    temperature.fill("0.5")
    page.get_by_label("Closer looks, at most").fill("1.5")
    expect(why).to_have_text("Closer looks, at most: a whole number from 0 to 8.")
    page.get_by_label("Closer looks, at most").fill("")
    expect(why).to_be_hidden()
    expect(explain).to_be_enabled()


def test_what_a_run_will_do_is_said_of_the_method_that_is_chosen(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    steps = page.locator(".lb-ghosts b")
    expect(steps).to_have_text(["Look", "A closer look", "Answer"])
    for method, said in (
        ("Think in pictures", ["Inner steps", "Look", "Answer"]),
        ("Just answer", ["Look", "No closer look", "Answer"]),
    ):
        page.get_by_role("radio", name=method).click()
        expect(steps).to_have_text(said)


def test_a_limit_that_does_not_count_keeps_nothing_from_running(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_sample(page)
    explain = page.locator("#lb-explain")
    page.locator(".lb-composer summary", has_text="Settings").click()
    page.get_by_label("Look again above").fill("99")
    expect(explain).to_be_disabled()
    page.check("#lb-own-limit")
    expect(explain).to_be_enabled()
    page.uncheck("#lb-own-limit")
    expect(explain).to_be_disabled()


def test_a_way_leads_back_to_the_samples_and_an_upload_drops_their_question(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    samples, empty = page.locator("#lb-samples"), page.locator(".lb-empty")
    expect(samples).to_be_hidden()
    open_sample(page)
    page.locator(".lb-composer summary", has_text="Settings").click()
    page.get_by_role("spinbutton", name="Seed").fill("5")
    page.get_by_role("radio", name="Just answer").click()
    samples.click()
    expect(empty).to_be_visible()
    page.keyboard.press("Escape")
    expect(empty).to_be_hidden()
    samples.click()
    open_sample(page)
    expect(empty).to_be_hidden()
    expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("5")
    expect(page.get_by_role("radio", name="Just answer")).to_be_checked()

    open_image(page)
    expect(page.locator("#lb-question")).to_have_value("")
    expect(page.locator("#lb-options")).to_have_value("")
    samples.click()
    open_sample(page)
    page.fill("#lb-question", "My own question?")
    open_image(page)
    expect(page.locator("#lb-question")).to_have_value("My own question?")


def test_a_recorded_run_says_why_nothing_can_be_asked(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    upload(page, to_zip(trace()), "x.radtrace.zip")
    wait_for(page, "done")
    says = "This is a recorded run: open an image to ask again."

    expect(page.locator("#lb-why")).to_have_text(says)
    for name in ("explain", "ways-start", "again"):
        expect(page.locator(f"#lb-{name}")).to_be_disabled()
        expect(page.locator(f"#lb-{name}")).to_have_attribute("title", says)
    open_image(page)
    expect(page.locator("#lb-why")).to_be_hidden()
    expect(page.locator("#lb-question")).to_have_value(QUESTION)


def test_a_model_that_is_chosen_brings_a_method_that_it_learned(
    open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "page", "--other", "second") as server:
        page = open_page(server)
        page.locator(".lb-composer summary", has_text="Settings").click()
        expect(page.get_by_role("radio", name="Model decides")).to_be_checked()
        page.select_option("#lb-model", "other-1")

        expect(page.get_by_role("radio", name="Look closer")).to_be_checked()
        expect(page.locator(".lb-not-trained")).to_have_count(0)
