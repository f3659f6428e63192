"""Which model reads the image: offered, chosen, run, and asked again."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import OpenPage, Served, served
from tests.e2e.test_read import OPTIONS, QUESTION, open_image, saved_trace, upload, wait_for

pytestmark = pytest.mark.e2e

OTHER = "Lightbox <b>other</b>"


def settings(page: Page) -> None:
    """Opens the settings."""
    page.locator(".lb-composer summary", has_text="Settings").click()
    expect(page.get_by_role("spinbutton", name="Seed")).to_be_visible()


def inside(page: Page, selector: str) -> bool:
    """Whether nothing of an element reaches out of the window on either side."""
    box = page.locator(selector).bounding_box()
    width = page.viewport_size
    assert box is not None
    assert width is not None
    return box["x"] >= 0 and box["x"] + box["width"] <= width["width"]


def test_one_model_leaves_nothing_to_choose(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    settings(page)

    expect(page.locator("#lb-model")).to_be_hidden()
    page.locator('.lb-method[data-method="latent"]').click()
    expect(page.locator(".lb-method-text")).to_contain_text("synthetic was not trained for this")


def test_the_chosen_model_runs_compares_and_is_chosen_again(
    open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "page", "--other", OTHER) as server:
        page = open_page(server)
        open_image(page)
        page.fill("#lb-question", QUESTION)
        page.fill("#lb-options", OPTIONS)
        settings(page)
        model = page.get_by_role("combobox", name="Model")
        expect(model).to_have_value("base")
        assert model.locator("option").all_inner_texts() == ["synthetic", OTHER]
        expect(page.locator("#lb-model-text")).to_have_text(
            "Trained for: Just answer, Look closer."
        )
        page.locator('.lb-method[data-method="zoom"]').click()
        expect(page.locator(".lb-not-trained")).to_have_count(0)
        model.select_option("other-1")
        page.click("#lb-explain")
        wait_for(page, "done")
        expect(page.locator(".lb-ran")).to_have_text(f"by {OTHER}")

        # A change is asked of the model that made the run, whatever was chosen since.
        settings(page)
        model.select_option("base")
        page.locator(".lb-composer summary", has_text="What if").click()
        page.locator('[aria-label="Withhold crops"] [data-crop="1"]').click()
        page.click("#lb-again")
        expect(page.locator(".lb-compare")).to_be_visible()
        expect(page.locator(".lb-ran")).to_have_text(f"by {OTHER}")
        expect(page.locator("#lb-model")).to_have_value("other-1")
        wait_for(page, "done")
        file = saved_trace(page, tmp_path)

        page.click("#lb-ways-start")
        expect(page.locator(".lb-ways-now")).to_have_text("Done: 5 runs.")
        expect(page.locator(".lb-ways-ran")).to_have_text(f"Model: {OTHER}")

        fresh = open_page(server)
        expect(fresh.locator("#lb-model")).to_have_value("base")
        upload(fresh, file.read_bytes(), "x.radtrace.zip")
        wait_for(fresh, "done")
        expect(fresh.locator("#lb-model")).to_have_value("other-1")

        narrow = open_page(server, width=390, height=844)
        settings(narrow)
        assert inside(narrow, "#lb-model")
        assert inside(narrow, "#lb-model-text")


def test_models_of_one_name_are_told_apart_once_they_run(
    open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "page", "--other", "synthetic") as server:
        page = open_page(server)
        open_image(page)
        page.fill("#lb-question", QUESTION)
        page.fill("#lb-options", OPTIONS)
        settings(page)
        page.locator("#lb-model").select_option("other-1")
        page.click("#lb-explain")
        wait_for(page, "done")
        expect(page.locator(".lb-ran")).to_have_text("by synthetic (other-1)")

        page.locator(".lb-composer summary", has_text="What if").click()
        page.click("#lb-ways-start")
        expect(page.locator(".lb-ways-ran")).to_have_text("Model: synthetic (other-1)")
        expect(page.locator(".lb-ways-now")).to_have_text("Done: 5 runs.")


def test_the_page_says_that_another_model_became_the_default(
    page_server: Served, open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "page", "--without-base") as server:
        page = open_page(server)
        expect(page.locator(".lb-banner-text")).to_have_text(
            "The usual model cannot be used here: synthetic reads the images in its place."
        )
        # It has learned inner steps only, which is said before it is asked to look closer.
        open_image(page)
        expect(page.locator("#lb-ways-warning")).to_contain_text(
            "synthetic was not trained to look closer: in a comparison"
        )
        expect(page.locator("#lb-ways-start")).to_have_attribute(
            "aria-describedby", "lb-ways-warning"
        )
    expect(open_page(page_server).locator(".lb-banner")).to_have_count(0)
