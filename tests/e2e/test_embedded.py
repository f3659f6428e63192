"""The shipped program around the shipped model: a real radiograph from a drop to a replay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from pydicom.data import get_testdata_file

from app.startup import CHECKPOINTS
from engine.trace import Belief
from engine.trace_io import read_trace
from tests.e2e.conftest import ROOT, OpenPage, served
from tests.e2e.test_read import saved_trace, upload

# 1955 rows of 1841 pixels, 15 bit, MONOCHROME1, JPEG 2000; of the package pydicom-data.
RADIOGRAPH = get_testdata_file("RG1_J2KR.dcm", download=False)
# Loading a model, and a run, on a machine that does something else as well.
SLOWLY = 240_000

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(RADIOGRAPH is None, reason="needs RG1_J2KR.dcm of pydicom-data"),
    pytest.mark.skipif(not (CHECKPOINTS / "base").is_dir(), reason="needs the embedded checkpoint"),
]

# Measures in the page, from the press of the button to the first word of the run.
TIME_TO_FIRST_STEP = """() => new Promise((resolve) => {
  const list = document.querySelector('.lb-scroll');
  const old = new Set(list.querySelectorAll('.lb-token'));
  const began = performance.now();
  new MutationObserver((_, observer) => {
    if ([...list.querySelectorAll('.lb-token')].every((word) => old.has(word))) return;
    observer.disconnect();
    resolve((performance.now() - began) / 1000);
  }).observe(list, { childList: true, subtree: true });
  document.querySelector('#lb-explain').click();
})"""

# Replays a saved run where nothing that a model needs can be imported.
REPLAY = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"torch", "transformers"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("torch is there")
from app.view import RunView
from engine.trace_io import read_trace

view = RunView.from_events(read_trace(sys.argv[1]))
print(json.dumps({"status": view.status, "items": len(view.items), "run": view.run}))
"""


def drop(page: Page, file: str) -> None:
    """Drops a file from outside of the browser onto the picture."""
    box = page.locator(".lb-stage").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": box["x"] + box["width"] / 2,
                "y": box["y"] + box["height"] / 2,
                "data": {"items": [], "files": [file], "dragOperationsMask": 1},
            },
        )


def opened(page: Page) -> None:
    """Drops the radiograph and fills the form in."""
    assert RADIOGRAPH is not None
    drop(page, str(RADIOGRAPH))
    stage = page.locator(".lb-stage")
    expect(stage).not_to_have_attribute("data-image", "", timeout=SLOWLY)
    expect(stage).to_have_attribute("data-busy", "false", timeout=SLOWLY)
    page.fill("#lb-question", "Is there a pleural effusion?")
    page.fill("#lb-options", "yes\nno")
    page.locator('.lb-method[data-method="zoom"]').click()
    if page.locator("#lb-looked").is_visible():
        page.check("#lb-looked")


def ended(page: Page) -> str:
    """Waits for the end of the run; returns the answer on the page."""
    expect(page.locator(".lb")).to_have_attribute("data-state", "done", timeout=SLOWLY)
    expect(page.locator(".lb-token").first).to_be_visible()
    return page.locator(".lb-answer").inner_text()


def test_a_real_radiograph_from_a_drop_to_a_replay_without_torch(
    open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "app", program="app.py") as server:
        page = open_page(server)
        opened(page)
        page.click("#lb-explain")
        answer = ended(page)
        file = saved_trace(page, tmp_path)

    trace = read_trace(file)
    assert trace.started is not None
    assert trace.answered is not None
    image = trace.started.image
    assert (image.source_width, image.source_height) == (1841, 1955)
    assert trace.started.model.embedded
    assert trace.answered.text == answer

    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    replayed = json.loads(done.stdout)
    assert replayed["status"] == "answered"
    assert replayed["run"]["question"] == "Is there a pleural effusion?"

    with served(tmp_path / "replay", "--replay-only") as server:
        page = open_page(server)
        upload(page, file.read_bytes(), "lesson.radtrace.zip")
        assert ended(page) == answer
        expect(page.locator("#lb-explain")).to_be_disabled()


@pytest.mark.skipif(not (CHECKPOINTS / "medlvr").is_dir(), reason="needs the checkpoint medlvr")
def test_medlvr_shows_its_inner_steps_and_an_intervention_is_a_click_away(
    open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "app", program="app.py") as server:
        page = open_page(server)
        page.locator(".lb-sample").first.click()
        expect(page.locator(".lb-stage")).to_have_attribute("data-busy", "false", timeout=SLOWLY)
        # Offered by name, and what it was trained for follows.
        page.locator(".lb-composer summary", has_text="Settings").click()
        page.locator("#lb-model").select_option(label="Lightbox MedLVR stage 2 (VLPO)")
        expect(page.locator('.lb-method[data-method="latent"]')).to_have_attribute(
            "aria-checked", "true"
        )
        page.click("#lb-explain")
        ended(page)

        thumbs = page.locator(".lb-thumb")
        expect(thumbs).to_have_count(8)
        expect(page.locator(".lb-thumb canvas")).to_have_count(8)
        # Belief at the prompt, behind the inner steps, and at the end.
        assert page.locator(".lb-card .lb-bar-value").count() >= 6
        thumbs.last.click()
        expect(page.locator(".lb-inspect")).to_contain_text("Parts of the image that it resembles")
        expect(page.locator(".lb-inspect")).to_contain_text("Strongest (the ring)")
        page.screenshot(path=str(tmp_path / "medlvr.png"))

        page.locator(".lb-composer summary", has_text="What if").click()
        page.select_option("#lb-latents", "zero")
        page.click("#lb-again")
        expect(page.locator(".lb-banner-change")).to_contain_text(
            "inner steps fed with zeros", timeout=SLOWLY
        )
        ended(page)
        expect(page.locator(".lb-thumb canvas")).to_have_count(8)
        file = saved_trace(page, tmp_path)

    trace = read_trace(file)
    assert trace.started is not None
    assert trace.started.model.stage == "medlvr"
    assert trace.started.request.interventions.latents == "zero"
    assert all(not any(step.vector) for step in trace.latents)
    moments = [event.moment for event in trace if isinstance(event, Belief)]
    assert moments == ["prefill", "latent", "end"]


@pytest.mark.perf
def test_the_first_step_is_on_the_page_within_three_seconds(
    open_page: OpenPage, tmp_path: Path
) -> None:
    with served(tmp_path / "app", program="app.py") as server:
        page = open_page(server)
        opened(page)
        # The first run may wait for the weights.
        page.click("#lb-explain")
        ended(page)

        assert page.evaluate(TIME_TO_FIRST_STEP) <= 3.0
        ended(page)
