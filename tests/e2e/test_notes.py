"""What the page says beside the picture, and what it asks before a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import expect

from engine.trace import RunStarted
from engine.trace_io import to_zip
from tests.e2e.conftest import OpenPage, Served
from tests.e2e.test_read import OPTIONS, QUESTION, open_image, upload, wait_for
from tests.factories import chest, events_of, request
from tests.unit.imaging.dicom_files import to_file

pytestmark = pytest.mark.e2e

NOTICES = (
    "This small model knows drawn chest radiographs and where the lungs lie on real ones. What it "
    "says of anything else is a guess.",
    "This image is unlike what the model was trained on. Expect a meaningless answer: watch how "
    "it reasons, not what it says.",
)


def test_a_picture_with_burned_in_text_waits_for_a_tick(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    values = chest(64).astype(np.uint16)
    open_image(page, to_file(values, Modality="US", BurnedInAnnotation="NO"))
    page.fill("#lb-question", QUESTION)
    page.fill("#lb-options", OPTIONS)
    tick = page.get_by_label("shows no name, date or number of a patient")
    explain = page.locator("#lb-explain")
    expect(tick).not_to_be_checked()
    expect(explain).to_be_disabled()
    page.locator("body").press("Control+Enter")
    expect(page.locator(".lb")).to_have_attribute("data-state", "ready")

    tick.check()
    expect(page.locator(".lb-status")).to_have_text("Ready: press Explain.")
    explain.click()
    wait_for(page, "done")

    # Another picture has to be looked at again, and one without the risk asks for nothing.
    open_image(page, to_file(values + 1, Modality="US"))
    expect(tick).not_to_be_checked()
    expect(explain).to_be_disabled()
    open_image(page, to_file(values, Modality="CR"))
    expect(tick).to_be_hidden()
    expect(explain).to_be_enabled()


def test_notes_leave_the_picture_its_room_on_a_telephone(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server, 390, 844)
    start, *rest = events_of(request(), flagged=True)
    assert isinstance(start, RunStarted)
    upload(page, to_zip([replace(start, notices=NOTICES), *rest]), "x.radtrace.zip")
    wait_for(page, "done")
    notes = page.locator(".lb-banners .lb-banner")
    expect(notes).to_have_count(2)
    height = "document.querySelector('.lb-banners').offsetHeight"
    assert page.evaluate(height) <= 844 / 8

    more = notes.first.get_by_role("button", name="More")
    text = notes.first.locator(".lb-banner-text")
    cut = "(n) => n.scrollHeight > n.clientHeight"
    assert text.evaluate(cut)
    more.click()
    assert not text.evaluate(cut)
    notes.first.get_by_role("button", name="Less").click()
    assert text.evaluate(cut)
    page.set_viewport_size({"width": 1440, "height": 900})
    expect(more).to_be_hidden()
    assert not text.evaluate(cut)
