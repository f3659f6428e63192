"""What must never happen in the browser: foreign code, foreign requests, stored text, jams."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from engine.trace import RunStarted, TokenStep
from engine.trace_io import to_zip
from tests.e2e.conftest import OpenPage, Served, served
from tests.e2e.test_read import ask, open_image, upload, wait_for
from tests.factories import events_of, request

pytestmark = pytest.mark.e2e

PAYLOADS = (
    "<img src=x onerror=window.hacked=1>",
    "${window.hacked=1}",
    "`+(window.hacked=1)+`",
    "</script><script>window.hacked=1</script>",
    "{{constructor.constructor('window.hacked=1')()}}",
    "\\u{ \\x C:\\users \\",
    "<b>\u202e right to left",
)

WATCH_LONG_TASKS = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    window.longest = Math.max(window.longest, entry.duration);
  }
}).observe({ entryTypes: ['longtask'] });
"""


def not_hacked(page: Page) -> None:
    """No payload ran, and the page still draws."""
    assert page.evaluate("window.hacked === undefined")
    assert (
        page.locator(".lb img[src='x'], .lb script, .lb b:has-text('right to left')").count() == 0
    )
    assert page.locator("text=Error rendering").count() == 0


def test_questions_and_options_stay_text(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_image(page)
    ask(page, " ".join(PAYLOADS), "\n".join(PAYLOADS))
    wait_for(page, "done")
    expect(page.locator("#lb-chart .js-plotly-plot")).to_be_visible()

    expect(page.locator(".lb-answer")).to_have_text(PAYLOADS[0])
    not_hacked(page)


def test_a_hostile_trace_stays_text(page_server: Served, open_page: OpenPage) -> None:
    events = []
    asked = request(question=PAYLOADS[0], options=PAYLOADS[:3])
    for number, event in enumerate(events_of(asked)):
        changed = event
        if isinstance(event, TokenStep):
            payload = PAYLOADS[number % len(PAYLOADS)]
            others = tuple(replace(other, text=payload) for other in event.alternatives)
            changed = replace(event, text=payload, alternatives=others)
        if isinstance(event, RunStarted):
            model = replace(event.model, id=PAYLOADS[0], stage=PAYLOADS[1])
            changed = replace(event, model=model, notices=PAYLOADS, run_id=PAYLOADS[2])
        events.append(changed)
    page = open_page(page_server)
    upload(page, to_zip(events), "evil.radtrace.zip")
    wait_for(page, "done")
    page.locator(".lb-token").first.click()
    expect(page.locator(".lb-inspect")).not_to_have_attribute("data-ready", "")
    page.locator(".lb-inspector summary", has_text="About this run").click()

    not_hacked(page)


@pytest.mark.timed
def test_six_hundred_words_stay_within_the_budgets(open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path, "--tokens", "600", "--delay", "0.02") as server:
        page = open_page(server)
        open_image(page)
        page.evaluate(WATCH_LONG_TASKS)
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        received: list[int] = []
        session.on("Network.dataReceived", lambda event: received.append(event["dataLength"]))
        ask(page, options="")
        # A failing `expect` draws the whole page as text again and again, inside of the page:
        # its tasks would be counted as the page's own.
        page.wait_for_function("document.querySelector('.lb').dataset.state === 'done'")
        longest = page.evaluate("window.longest")
        expect(page.locator(".lb-token")).to_have_count(600)

        streamed = sum(received)
        assert 600 * 20 < streamed <= 150_000
        # The chart comes after the run and brings a library of megabytes; it is not counted.
        assert longest <= 100


def test_nothing_leaves_and_nothing_is_kept(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    page.reload()
    open_image(page)
    ask(page, "A very private question?")
    wait_for(page, "done")
    page.locator(".lb-token").first.click()
    expect(page.locator("#lb-chart .js-plotly-plot")).to_be_visible()

    foreign = [url for url in asked if not url.startswith((page_server.url, "data:", "blob:"))]
    assert foreign == []
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert "private" not in kept
    assert "DOE" not in kept
    local, session = json.loads(kept)
    assert local.keys() <= {"lightbox.preferences"}
    assert set(json.loads(local["lightbox.preferences"])) <= {
        "layer",
        "limit",
        "method",
        "theme",
        "keys",
    }
    assert session == {"lightbox.notice": "accepted"}
    assert page.context.cookies() == []
    assert not any("DOE" in url for url in asked)


def test_no_upload_stays_where_it_can_be_fetched(open_page: OpenPage, tmp_path: Path) -> None:
    with served(tmp_path, "--delay", "0.005") as server:
        page = open_page(server)
        open_image(page)
        ask(page)
        wait_for(page, "done")

        names = [file.name for file in (tmp_path / "gradio").rglob("*") if file.is_file()]
        assert {"image.raw", "details.jsonl", "seen.png", "display.png", "crop-1.png"} == set(names)
        page.close()
        page.context.close()


def status_of(url: str, method: str = "GET", **headers: str) -> int:
    """The status of a request outside of a browser."""
    asked = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_other_sites_and_other_files_are_refused(page_server: Served) -> None:
    url = page_server.url

    assert status_of(url) == 200
    assert status_of(f"{url}/gradio_api/upload", "POST", Origin="https://evil.example") == 403
    assert status_of(f"{url}/config", **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert status_of(f"{url}/gradio_api/file=/etc/passwd") == 403
    assert status_of(f"{url}/gradio_api/file={Path(__file__)}") == 403


def test_the_notice_holds_the_focus_until_it_is_accepted(
    page_server: Served, browser: object
) -> None:
    context = browser.new_context()  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto(page_server.url)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("It is not a medical device")
    for _ in range(3):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "lb-accept"
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.locator(".lb-badge")).to_have_text("Research and teaching only. Not for diagnosis.")
    page.reload()
    expect(page.locator(".lb")).to_have_attribute("data-state", "empty")
    expect(dialog).to_have_count(0)
    context.close()
