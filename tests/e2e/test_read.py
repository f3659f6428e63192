"""The Read tab in a real browser: from an upload to a replay."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Response, Route, expect

from app.pictures import raw_grey
from engine.imaging import open_image as open_source
from engine.imaging import render
from engine.trace_io import read_trace, to_zip
from tests.e2e.conftest import PATIENCE, OpenPage, Served, served, sixteen_bit_png
from tests.factories import trace

pytestmark = pytest.mark.e2e

QUESTION = "What is the margin of the nodule?"
OPTIONS = "Spiculated\nSmooth\nLobulated"


def upload(page: Page, data: bytes, name: str = "DOE_JANE_1960.png") -> None:
    """Opens bytes as the user would, under a telling file name."""
    page.set_input_files(
        "#lb-file", {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )


def open_image(page: Page, data: bytes | None = None) -> None:
    """Opens an image and waits until it is drawn."""
    upload(page, data or sixteen_bit_png())
    expect(page.locator(".lb-stage")).to_have_attribute("data-busy", "false")
    expect(page.locator(".lb-stage")).not_to_have_attribute("data-image", "")


def ask(page: Page, question: str = QUESTION, options: str = OPTIONS) -> None:
    """Fills the form and runs."""
    page.fill("#lb-question", question)
    page.fill("#lb-options", options)
    page.locator(".lb-composer summary", has_text="Settings").click()
    page.get_by_label("Look again above").fill("1.5")
    page.click("#lb-explain")


def wait_for(page: Page, state: str) -> None:
    """Waits for a state of the page."""
    expect(page.locator(".lb")).to_have_attribute("data-state", state, timeout=60_000)


def saved_trace(page: Page, folder: Path) -> Path:
    """Saves the run through the page."""
    with page.expect_download() as download:
        page.click("#lb-save")
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    return target


def appears(file: Path, within: float) -> bool:
    """Whether a file that another process writes is there before the time is over."""
    end = time.monotonic() + within
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return file.exists()


def test_from_an_upload_to_a_replay(
    page_server: Served, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(page_server)
    open_image(page)
    ask(page)
    wait_for(page, "done")

    expect(page.locator(".lb-answer")).to_have_text("Spiculated")
    expect(page.locator(".lb-card-unsure")).to_be_visible()
    expect(page.locator(".lb-card-crop .lb-bar-value").first).to_have_text("48% → 83%")
    page.locator(".lb-token", has_text="margin").first.click()
    expect(page.locator(".lb-picked-word")).to_have_text("margin")
    expect(page.locator(".lb-inspect .lb-bar")).to_have_count(7)
    expect(page.locator(".lb-legend")).to_be_visible()

    strip = page.locator(".lb-strip")
    strip.focus()
    strip.press("Home")
    expect(strip).to_have_attribute("aria-valuenow", "1")
    expect(page.locator(".lb-picked-word")).to_have_text("Inner step 1")
    strip.press("ArrowRight")
    expect(page.locator(".lb-picked-word")).to_have_text("Inner step 2")
    strip.press("n")
    expect(page.locator(".lb-picked-word")).to_have_text("margin")
    strip.press("1")
    expect(page.locator(".lb-inspect-picture")).to_be_visible()

    file = saved_trace(page, tmp_path)
    assert "DOE" not in file.name
    assert read_trace(file).answered is not None

    second = open_page(page_server)
    upload(second, file.read_bytes(), "x.radtrace.zip")
    wait_for(second, "done")
    expect(second.locator(".lb-answer")).to_have_text("Spiculated")
    expect(second.locator("#lb-question")).to_have_value(QUESTION)
    expect(second.locator(".lb-stage")).not_to_have_attribute("data-image", "")
    assert (
        second.locator(".lb-words").all_inner_texts() == page.locator(".lb-words").all_inner_texts()
    )


def test_the_chart_appears_when_the_run_is_done(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    expect(page.locator("#lb-chart")).to_have_count(0)
    page.locator(".lb-sample").first.click()
    expect(page.locator("#lb-question")).to_have_value(QUESTION)
    page.click("#lb-explain")
    wait_for(page, "done")

    expect(page.locator("#lb-chart .js-plotly-plot")).to_be_visible(timeout=20_000)
    expect(page.locator(".lb-truth")).to_contain_text("a spiculated nodule")


@pytest.mark.timed
def test_stop_ends_the_run_at_once_and_keeps_the_partial_trace(
    open_page: OpenPage, tmp_path: Path
) -> None:
    marker = tmp_path / "stopped"
    with served(tmp_path / "page", "--delay", "0.08", "--stopped", str(marker)) as server:
        page = open_page(server)
        open_image(page)
        ask(page)
        expect(page.locator(".lb-token").nth(3)).to_be_visible()
        page.keyboard.press("Escape")
        wait_for(page, "stopped")

        assert appears(marker, within=1.0)
        expect(page.locator(".lb-status")).to_have_text(
            re.compile(r"Stopped at step \d+\. The partial trace is kept\.")
        )
        expect(page.locator("#lb-save")).to_be_enabled()
        kept = read_trace(saved_trace(page, tmp_path))
        assert 0 < len(kept.tokens) < len(trace().tokens)


class Delay:
    """Keeps the first request of the page that holds a word from the server until it is let go."""

    def __init__(self, page: Page, word: str) -> None:
        self.page = page
        self.word = word
        self.held: list[Route] = []
        page.route("**/queue/join*", self._handle)

    def _handle(self, route: Route) -> None:
        if self.word in (route.request.post_data or "") and not self.held:
            self.held.append(route)
        else:
            route.continue_()

    def wait(self) -> None:
        """Waits until the request has been sent."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.held and time.monotonic() < end:
            self.page.wait_for_timeout(20)
        assert self.held

    def let_go(self) -> None:
        """Lets the server have it."""
        self.held[0].continue_()


def test_a_stop_that_overtakes_its_run_still_ends_it(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_image(page)
    slow = Delay(page, '"question"')
    ask(page)
    slow.wait()
    with page.expect_response("**/run/**"):
        page.keyboard.press("Escape")
    slow.let_go()
    wait_for(page, "stopped")

    expect(page.locator(".lb-status")).to_have_text("Stopped before it began.")
    expect(page.locator(".lb-token")).to_have_count(0)
    expect(page.locator("#lb-save")).to_be_disabled()
    page.click("#lb-explain")
    wait_for(page, "done")
    expect(page.locator("#lb-save")).to_be_enabled()


def test_an_image_that_arrives_late_does_not_replace_a_later_one(
    page_server: Served, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(page_server)
    slow = Delay(page, '"path"')
    upload(page, sixteen_bit_png(1))
    slow.wait()
    page.evaluate("document.querySelector('.lb-sample').click()")
    stage = page.locator(".lb-stage")
    expect(stage).to_have_attribute("data-busy", "false")
    shown = stage.get_attribute("data-image")
    slow.let_go()
    ask(page)
    wait_for(page, "done")

    assert shown
    assert stage.get_attribute("data-image") == shown
    started = read_trace(saved_trace(page, tmp_path)).started
    assert started is not None
    assert (started.image.source_width, started.image.source_height) == (320, 320)


# In which states of the page it moves to something.
SPY = """() => {
  window.moved = [];
  Element.prototype.scrollIntoView = () => {
    window.moved.push(document.querySelector('.lb').dataset.state);
  };
}"""


def test_closing_the_tab_stops_the_run(open_page: OpenPage, tmp_path: Path) -> None:
    marker = tmp_path / "stopped"
    with served(tmp_path / "page", "--delay", "0.2", "--stopped", str(marker)) as server:
        page = open_page(server, 390, 844)
        open_image(page)
        ask(page)
        expect(page.locator(".lb-token").first).to_be_visible()
        # On a small screen a press moves nobody who follows a run.
        page.evaluate(SPY)
        page.locator(".lb-token").first.click()
        expect(page.locator(".lb-inspect .lb-bar").first).to_be_visible()
        assert "running" not in page.evaluate("window.moved")
        page.close()

        assert appears(marker, within=10.0)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"hello, this is text", "E101", id="text"),
        pytest.param(b"PK\x03\x04 not a real archive", "E402", id="broken trace"),
        pytest.param(sixteen_bit_png()[:400], "E102", id="truncated PNG"),
    ],
)
def test_a_bad_file_gets_one_sentence_and_the_page_lives(
    page_server: Served, open_page: OpenPage, data: bytes, code: str
) -> None:
    page = open_page(page_server)
    upload(page, data)

    expect(page.locator(".lb-status")).to_contain_text(code)
    assert "Traceback" not in page.locator(".lb").inner_text()
    open_image(page)
    wait_for(page, "ready")


@pytest.mark.parametrize(
    ("fails", "code"),
    [pytest.param("raise", "E500", id="fault"), pytest.param("memory", "E301", id="memory")],
)
def test_a_run_that_fails_shows_a_card_and_keeps_the_image(
    open_page: OpenPage, tmp_path: Path, fails: str, code: str
) -> None:
    with served(tmp_path, "--fails", fails) as server:
        page = open_page(server)
        open_image(page)
        ask(page)
        wait_for(page, "error")

        card = page.locator(".lb-card-failed")
        expect(card).to_contain_text(code)
        expect(card).to_contain_text("Your image is still loaded.")
        assert "secret detail" not in page.content()
        expect(page.locator("#lb-explain")).to_be_enabled()


def test_a_changed_window_marks_the_run_as_stale(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_image(page)
    ask(page)
    wait_for(page, "done")
    expect(page.locator(".lb-stale")).to_be_hidden()
    box = page.locator(".lb-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 290, box["y"] + 260, steps=5)
    page.mouse.up()

    expect(page.locator(".lb-stale")).to_contain_text("Window changed since this run.")
    page.locator(".lb-canvas").press(" ")
    expect(page.locator(".lb-stale")).to_be_hidden()


def test_a_what_if_stands_beside_the_run_before(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_image(page)
    ask(page)
    wait_for(page, "done")
    page.locator(".lb-composer summary", has_text="What if").click()
    page.select_option("#lb-latents", "zero")
    page.click("#lb-again")

    expect(page.locator(".lb-compare")).to_contain_text(
        "Without the change: Spiculated", timeout=60_000
    )
    expect(page.locator(".lb-banner-change")).to_contain_text("inner steps fed with zeros")


def test_inner_steps_of_another_image_can_be_fed_in(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    page.locator(".lb-sample").first.click()
    expect(page.locator("#lb-question")).to_have_value(QUESTION)
    wait_for(page, "ready")
    page.locator(".lb-composer summary", has_text="What if").click()
    expect(page.locator("#lb-no-donor")).to_contain_text("There is no run on this image yet")
    expect(page.locator('#lb-latents option[value="zero"]')).to_be_disabled()
    page.locator(".lb-composer summary", has_text="What if").click()
    ask(page)
    wait_for(page, "done")
    page.locator(".lb-composer summary", has_text="What if").click()
    expect(page.locator("#lb-no-donor")).to_contain_text("ask this model about one first")
    expect(page.locator('#lb-latents option[value="zero"]')).to_be_enabled()
    expect(page.locator('#lb-latents option[value="shuffle"]')).to_be_disabled()
    page.locator(".lb-composer summary", has_text="What if").click()

    open_image(page, sixteen_bit_png(5))
    # The question of the sample goes when the image comes.
    expect(page.locator("#lb-question")).to_have_value("")
    ask(page)
    wait_for(page, "done")
    page.locator(".lb-composer summary", has_text="What if").click()
    expect(page.locator("#lb-no-donor")).to_be_hidden()
    page.select_option("#lb-latents", "shuffle")
    donor = f"They come from “Drawn chest”, asked “{QUESTION}”."
    expect(page.locator("#lb-no-donor")).to_have_text(
        f"{donor} Steps of another kind of question mostly change nothing."
    )
    page.click("#lb-again")

    expect(page.locator(".lb-compare")).to_contain_text("Without the change", timeout=60_000)
    expect(page.locator(".lb-banner-change")).to_contain_text(
        f"inner steps taken from another image. {donor}"
    )
    expect(page.locator(".lb-compare")).to_contain_text("of another kind of question mostly")

    # What was left out was taken by the run without the change: it can be changed otherwise.
    page.locator(".lb-composer summary", has_text="What if").click()
    page.select_option("#lb-latents", "skip")
    page.click("#lb-again")
    expect(page.locator(".lb-banner-change")).to_contain_text("inner steps left out")
    wait_for(page, "done")
    expect(page.locator(".lb-card-latent .lb-card-title")).to_have_text("Inner steps: left out")
    page.locator(".lb-composer summary", has_text="What if").click()
    page.select_option("#lb-latents", "zero")
    expect(page.locator("#lb-again")).to_be_enabled()


class User:
    """A browser of its own, and what only its user opens and asks."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.fetched: list[Response] = []
        self.image = ""
        page.on("response", self._note)

    def _note(self, response: Response) -> None:
        if response.url.endswith("/image.raw"):
            self.fetched.append(response)

    def takes(self, seed: int) -> None:
        """Chooses the next image, without waiting for it."""
        data = sixteen_bit_png(seed, side=320 + 32 * seed)
        self.source = open_source(data)
        self.fetched.clear()
        upload(self.page, data)

    def sees_own_image(self) -> None:
        """Waits for the image, and checks the pixels that came for it."""
        stage = self.page.locator(".lb-stage")
        expect(stage).not_to_have_attribute("data-image", self.image)
        expect(stage).to_have_attribute("data-busy", "false")
        self.image = stage.get_attribute("data-image") or ""
        (response,) = self.fetched
        assert self.image in response.url
        assert response.body() == raw_grey(self.source.pixels).data

    def fills_the_form(self, round_number: int) -> None:
        """Asks what nobody else asks, with answers that nobody else offers."""
        self.question = f"Only {self.name} asks this, round {round_number}?"
        self.options = [f"{self.name} {round_number} {word}" for word in ("left", "right")]
        self.page.fill("#lb-question", self.question)
        self.page.fill("#lb-options", "\n".join(self.options))

    def has_own_run(self, folder: Path) -> None:
        """Waits for the answer; the page and the saved run hold the user's own, and no more."""
        expect(self.page.locator(".lb-answer")).to_have_text(self.options[0], timeout=60_000)
        wait_for(self.page, "done")
        assert self.page.locator(".lb-stage").get_attribute("data-image") == self.image
        kept = read_trace(saved_trace(self.page, folder))
        assert kept.started is not None
        assert kept.answered is not None
        assert kept.started.request.question == self.question
        assert kept.answered.options == tuple(self.options)
        assert kept.started.image.sha256 == self.source.sha256
        facts = kept.started.image
        assert (facts.source_width, facts.source_height) == self.source.size
        seen = np.asarray(Image.open(io.BytesIO(facts.seen_png)))
        assert np.array_equal(seen, Image.fromarray(render(self.source)).resize(seen.shape))


@pytest.mark.timeout(900)
def test_two_browsers_at_once_never_see_each_other(
    page_server: Served, open_page: OpenPage, tmp_path: Path
) -> None:
    users = [User(open_page(page_server), name) for name in ("Quentin", "Zuleika")]
    for round_number, seeds in enumerate(((1, 2), (2, 1), (3, 4))):
        for user, seed in zip(users, seeds, strict=True):
            user.takes(seed)
        for user in users:
            user.sees_own_image()
            user.fills_the_form(round_number)
        for user in users:
            user.page.click("#lb-explain")
        for user in reversed(users):
            user.has_own_run(tmp_path)

    for user, other in (users, users[::-1]):
        assert other.name not in user.page.content()
    assert users[0].image != users[1].image


def test_the_page_works_on_a_telephone(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server, 390, 844)
    page.locator(".lb-sample").first.click()
    expect(page.locator("#lb-question")).to_have_value(QUESTION)
    page.click("#lb-explain")
    wait_for(page, "done")
    # What was asked for comes to the reader: the button lies far above it.
    expect(page.locator(".lb-answer")).to_be_in_viewport()

    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    small = page.evaluate(
        "[...document.querySelectorAll('.lb-go button, .lb-tool, .lb-small')]"
        ".filter((n) => n.offsetParent && n.offsetHeight < 44).length"
    )
    assert small == 0
    # What a press shows comes to the reader, with the map, which else lies far above.
    page.locator(".lb-thumb").nth(1).click()
    expect(page.locator(".lb-picked-word")).to_have_text("Inner step 2")
    for shown in (".lb-picked-word", ".lb-map-copy"):
        expect(page.locator(shown)).to_be_in_viewport(ratio=1)
    help_on_belief = page.locator(".lb-strip-side .lb-hint")
    help_on_belief.focus()
    box = help_on_belief.locator(".lb-hint-text").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    # A crop is shown on the image itself.
    page.locator(".lb-card-crop .lb-crop").click()
    expect(page.locator(".lb-canvas")).to_be_in_viewport(ratio=0.9)
    bar = page.evaluate("getComputedStyle(document.querySelector('.lb-go')).backgroundColor")
    assert bar.startswith("rgb(")


def test_a_trace_replays_where_torch_is_not_installed(open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path, "--replay-only") as server:
        page = open_page(server)
        expect(page.locator(".lb-banners .lb-banner")).to_contain_text("live runs are off")
        upload(page, to_zip(trace()), "lesson.radtrace.zip")
        wait_for(page, "done")
        expect(page.locator(".lb-answer")).to_have_text("Spiculated")
        expect(page.locator("#lb-explain")).to_be_disabled()
