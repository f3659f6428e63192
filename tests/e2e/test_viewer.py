"""The picture: windowing, zoom, turns, readouts, frames, and boxes drawn on it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from app.pictures import describe, picture_files
from engine.imaging import Window, render
from engine.imaging import open_image as open_source
from engine.trace import Event, EvidenceMap, LatentStep, Reground, TokenStep, peak_place
from engine.trace_io import read_trace, to_zip
from tests.e2e.conftest import OpenPage, Served
from tests.e2e.test_read import ask, open_image, upload, wait_for
from tests.factories import chest, events_of, request
from tests.unit.imaging.dicom_files import make_dataset, save, to_file

pytestmark = pytest.mark.e2e

CENTRE = """() => {
  const canvas = document.querySelector('.lb-canvas');
  const x = Math.floor(canvas.width / 2), y = Math.floor(canvas.height / 2);
  return canvas.getContext('2d').getImageData(x, y, 1, 1).data[0];
}"""


# How yellow a pixel of the fitted picture is: 0 where no heat map lies over the grey.
COLOR = """(x, y) => {
  const canvas = document.querySelector('.lb-canvas');
  const scale = Math.min(canvas.width, canvas.height) / 256;
  const place = [canvas.width / 2 + (x - 128) * scale, canvas.height / 2 + (y - 128) * scale];
  const [r, , b] = canvas.getContext('2d').getImageData(...place.map(Math.round), 1, 1).data;
  return r - b;
}"""


def series(frames: int = 3) -> bytes:
    """A multi-frame DICOM whose frames grow brighter."""
    values = chest(128).astype(np.uint16)
    stack = np.stack([values * 8 + 100 * frame for frame in range(frames)])
    windows = {"WindowCenter": [1000, 500], "WindowWidth": [2000, 400]}
    return to_file(
        stack, Modality="CT", BitsStored=12, ImageOrientationPatient=[1, 0, 0, 0, 1, 0], **windows
    )


# Grey levels of all raw numbers, by the viewer's own code on a page of nothing else.
LOOKUP = """([image, window, touched, table]) => {
  const state = {
    image, window, lut: null, invert: false, windowSource: touched ? 'request' : '',
    table: table ? new Uint8Array(table) : null,
  };
  const viewer = Object.assign(Object.create(Viewer.prototype), state);
  return Array.from(viewer.lookup(), (word) => word & 255);
}"""


def floats(far: float) -> bytes:
    """Float pixels around zero, one of them far off, as a "no data" mark may be."""
    values = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    values[3, 4] = far
    dataset = make_dataset(values)
    dataset.FloatPixelData = values.tobytes()
    del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    return save(dataset)


RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
FAR = RAMP.astype(np.uint32)
FAR[5, 5] = 2**31
PICTURES = {
    "integers": to_file(RAMP, WindowCenter=1000, WindowWidth=500),
    "signed": to_file(RAMP.astype(np.int16) - 2000, WindowCenter=-500, WindowWidth=1),
    "inverted": to_file(RAMP, PhotometricInterpretation="MONOCHROME1"),
    "exact": to_file(RAMP, WindowCenter=9, WindowWidth=0.5, VOILUTFunction="LINEAR_EXACT"),
    "sigmoid": to_file(RAMP, WindowCenter=2000, WindowWidth=900, VOILUTFunction="SIGMOID"),
    "wide": to_file(FAR, WindowCenter=2000, WindowWidth=4000),
    "far": floats(1e6),
    "no data": floats(-3.4e38),
}
WINDOWS = [None, Window(100.0, 900.0), Window(0.5, 2.0, "LINEAR_EXACT"), Window(900, 70, "SIGMOID")]


@pytest.mark.parametrize("name", PICTURES)
def test_the_viewer_shows_what_the_model_sees(browser: Browser, name: str) -> None:
    source = open_source(PICTURES[name])
    _, raw = picture_files(source)
    facts = describe(source, raw)
    assert raw is not None
    numbers = np.frombuffer(raw.data, "<u2")
    page = browser.new_page()
    for script in ("dom.js", "viewer.js"):
        page.add_script_tag(path=Path("assets/js") / script)

    for window in WINDOWS:
        shown = window or source.default_window
        assert shown is not None
        asked = [facts, [shown.center, shown.width, shown.function], window is not None, None]
        levels = np.array(page.evaluate(LOOKUP, asked))[numbers].reshape(source.pixels.shape)
        off = np.abs(levels - render(source, window).astype(int))
        assert off.max() <= 1, window
    page.close()


def drag(page: Page, dx: int, dy: int) -> None:
    """Drags from the middle of the picture."""
    box = page.locator(".lb-canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


def readout(page: Page) -> str:
    """The line under the picture."""
    return page.locator(".lb-readout").inner_text()


def test_the_window_follows_the_mouse_the_presets_and_the_keys(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_image(page, series())
    line = page.locator(".lb-readout")
    canvas = page.locator(".lb-canvas")
    expect(line).to_contain_text("W 2000 L 1000")

    canvas.press("2")
    expect(line).to_contain_text("W 400 L 500")
    drag(page, 60, 40)
    expect(line).not_to_contain_text("W 400 L 500")
    expect(page.get_by_label("Window preset")).to_have_value("")
    page.get_by_role("button", name="Reset the view (space)").click()
    expect(line).to_contain_text("W 2000 L 1000")

    page.wait_for_function(f"({CENTRE})() > 0")
    before = page.evaluate(CENTRE)
    canvas.press("i")
    page.wait_for_function(f"Math.abs(({CENTRE})() - {255 - before}) < 3")


def test_zoom_pan_and_turns_show_in_the_readouts(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_image(page, series())
    canvas = page.locator(".lb-canvas")
    fitted = readout(page)
    left, right = page.locator(".lb-mark-left"), page.locator(".lb-mark-right")
    expect(left).to_have_text("R")
    expect(right).to_have_text("L")

    canvas.press("+")
    expect(page.locator(".lb-readout")).not_to_have_text(fitted)
    canvas.press("=")
    expect(page.locator(".lb-readout")).to_have_text(fitted, use_inner_text=True)
    canvas.hover()
    page.mouse.wheel(0, -300)
    expect(page.locator(".lb-readout")).not_to_have_text(fitted)
    expect(page.locator(".lb-probe")).to_contain_text("x ")
    canvas.press("h")
    expect(left).to_have_text("L")
    expect(right).to_have_text("R")
    canvas.press("r")
    expect(left).to_have_text("")
    canvas.press(" ")
    expect(left).to_have_text("R")
    expect(page.locator(".lb-readout")).to_have_text(fitted, use_inner_text=True)


def test_the_patients_sides_are_those_of_the_file(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    left, right = page.locator(".lb-mark-left"), page.locator(".lb-mark-right")
    values = chest(64).astype(np.uint16)
    open_image(page, to_file(values, Modality="CR", PatientOrientation=["R", "F"]))
    expect(left).to_have_text("L")
    expect(right).to_have_text("R")
    page.locator(".lb-canvas").press("h")
    expect(left).to_have_text("R")

    sagittal = [0.569486, 0.822001, 0, 0, 0, -1]
    open_image(page, to_file(values, Modality="MR", ImageOrientationPatient=sagittal))
    expect(left).to_have_text("")
    expect(right).to_have_text("")
    upload(page, to_zip(events_of(request())), "x.radtrace.zip")
    wait_for(page, "done")
    expect(left).to_have_text("R")


def test_another_frame_keeps_the_window_and_the_zoom(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_image(page, series())
    canvas = page.locator(".lb-canvas")
    label = page.locator(".lb-frame-label")
    expect(label).to_have_text("1 / 3")
    fitted = readout(page).rpartition("zoom")[2]
    canvas.press("2")
    canvas.press("+")
    # The line is written with the next picture, not with the key.
    line = page.locator(".lb-readout")
    expect(line).to_contain_text("W 400")
    expect(line).not_to_contain_text(fitted)
    before = readout(page)

    canvas.press("PageDown")
    expect(label).to_have_text("2 / 3")
    expect(page.locator(".lb-stage")).to_have_attribute("data-busy", "false")
    assert "W 400" in before
    assert readout(page) == before
    canvas.press("PageUp")
    expect(label).to_have_text("1 / 3")


def test_a_crop_can_be_put_elsewhere_by_keys_alone(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    open_image(page)
    what_if = page.locator(".lb-composer summary", has_text="What if")
    what_if.press("Enter")
    expect(page.locator(".lb-composer")).to_contain_text("There is no run on this image yet")
    expect(page.get_by_text("The last run cut nothing out.")).to_be_hidden()
    what_if.press("Enter")
    ask(page)
    wait_for(page, "done")

    what_if.press("Enter")
    crops = page.get_by_role("group", name="Move crops").get_by_role("button")
    expect(crops).to_have_count(1)
    crops.first.press("Enter")
    expect(page.locator(".lb-stage")).to_have_attribute("data-tool", "draw")
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("button", name="Leave crop 1 where it was")).to_be_visible()
    expect(page.locator("#lb-again")).to_be_focused()
    page.keyboard.press("Enter")

    expect(page.locator(".lb-banner-change")).to_contain_text("crop 1 cut elsewhere")
    expect(page.locator(".lb-compare")).to_contain_text("Without the change: Spiculated")


def padded_run(margin_px: int) -> list[Event]:
    """A run whose crop reaches beyond its box, with attention all over that crop."""
    everywhere = EvidenceMap(image=1, rows=8, columns=8, values=b"\xff" * 64, peak=0.05, total=0.5)
    events: list[Event] = []
    for event in events_of(request()):
        match event:
            case Reground():
                x0, y0, x1, y1 = event.box_source_px
                cut = (x0 - margin_px, y0 - margin_px, x1 + margin_px, y1 + margin_px)
                events.append(replace(event, box_source_px=cut))
            case TokenStep(attention=(view, _)):
                events.append(replace(event, attention=(view, everywhere)))
            case _:
                events.append(event)
    return events


def test_the_heat_of_a_crop_lies_over_all_that_was_cut(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    upload(page, to_zip(padded_run(20)), "x.radtrace.zip")
    wait_for(page, "done")
    expect(page.locator(".lb-stage")).to_have_attribute("data-busy", "false")
    page.locator(".lb-strip").press("1")
    # The box is 65 pixels wide, the cut 105, the image 256.
    expect(page.locator(".lb-inspect")).to_contain_text("2.4 ×")

    page.locator(".lb-canvas").press("=")
    page.locator(".lb-token", has_text="spiculated").first.click()
    page.get_by_role("group", name="Picture").get_by_role("button", name="Crop 1").click()
    # The cut begins at (32, 113), the box at (52, 133).
    page.wait_for_function(f"({COLOR})(46, 127) > 60")
    assert page.evaluate(f"({COLOR})(26, 107)") == 0


def test_the_peak_of_a_map_is_where_the_engine_says(browser: Browser) -> None:
    page = browser.new_page()
    page.add_script_tag(path=Path("assets/js/grids.js"))
    rng = np.random.default_rng(3)
    # Few levels, so that some are equal; small grids, so that some peaks lie at a border.
    grids = [rng.integers(0, 9, (rows, columns)) for rows in range(1, 7) for columns in range(1, 7)]
    asked = [[*grid.shape, grid.flatten().tolist()] for grid in grids]
    found = page.evaluate(
        "(all) => all.map(([rows, columns, values]) => peakPlace({ rows, columns, values }))", asked
    )
    np.testing.assert_allclose(found, [peak_place(grid) for grid in grids], atol=1e-12)
    page.close()


def test_a_ring_marks_the_peak_of_the_heat_map(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    hot = bytes(200 if cell in (27, 28) else 10 for cell in range(64))
    between = EvidenceMap(image=0, rows=8, columns=8, values=hot, peak=0.1, total=0.5)
    maps = chain([between, replace(between, peak=0.01)], repeat(between))
    events = [
        replace(event, attention=(next(maps),)) if isinstance(event, TokenStep) else event
        for event in events_of(request())
    ]
    upload(page, to_zip(events), "x.radtrace.zip")
    wait_for(page, "done")
    page.locator(".lb-token").first.click()
    expect(page.locator(".lb-inspect")).to_contain_text("Strongest (the ring): middle centre")
    # Two equal cells share the middle of the fitted picture as their border, in the fourth row.
    ring = """() => {
      const canvas = document.querySelector('.lb-canvas');
      const scale = Math.min(canvas.width, canvas.height) / 8;
      const [x, y] = [canvas.width / 2, canvas.height / 2 - scale / 2];
      const at = (dx, dy) => canvas.getContext('2d').getImageData(
        Math.round(x + dx), Math.round(y + dy), 1, 1).data;
      const radius = 6 * (window.devicePixelRatio || 1);
      return [at(radius, 0), at(-radius, 0), at(0, 0)].map(([r, , b]) => [r, b]);
    }"""
    page.wait_for_function(f"({ring})().slice(0, 2).every(([r, b]) => r === b && r > 150)")
    middle = page.evaluate(ring)[2]
    assert middle[0] - middle[1] > 60
    darkest = """() => {
      const canvas = document.querySelector('.lb-canvas');
      const scale = Math.min(canvas.width, canvas.height) / 8;
      const ratio = window.devicePixelRatio || 1;
      const row = canvas.getContext('2d').getImageData(
        Math.round(canvas.width / 2 + 3 * ratio), Math.round(canvas.height / 2 - scale / 2),
        Math.round(6 * ratio), 1).data;
      return Math.min(...row.filter((value, at) => at % 4 === 0));
    }"""
    assert page.evaluate(darkest) < 60
    # Of a weak map, whose highest cell is below the limit, the ring is all that is drawn.
    page.locator(".lb-token").nth(1).click()
    page.wait_for_function(f"({ring})()[2].every((value, at, [r, b]) => r === b)")
    page.wait_for_function(f"({darkest})() < 60")
    expect(page.locator(".lb-inspect")).to_contain_text("Strongest (the ring): middle centre")
    page.get_by_label("Heat map", exact=True).select_option("off")
    expect(page.locator(".lb-inspect")).to_contain_text("Strongest: middle centre")
    page.wait_for_function(f"({darkest})() > 100")


def test_an_empty_map_has_no_strongest_place(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    empty = EvidenceMap(image=0, rows=8, columns=8, values=bytes(64), peak=0.0, total=0.0)
    nothing = {"attention": (empty,), "similarity": empty, "norm": 0.0, "cosine_to_previous": 0.0}
    events = [
        replace(event, **nothing) if isinstance(event, LatentStep) else event
        for event in events_of(request())
    ]
    upload(page, to_zip(events), "x.radtrace.zip")
    wait_for(page, "done")
    page.locator(".lb-thumb").nth(1).click()
    inspector = page.locator(".lb-inspect")
    expect(inspector).to_contain_text("This map is empty: the step resembles no part of the image.")
    expect(inspector.locator(".lb-figure").first).to_have_text(re.compile("^–likeness"))
    inspector.get_by_role("button", name="Looked at").click()
    expect(inspector).to_contain_text("This map is empty: nothing of the image was looked at.")
    expect(inspector).not_to_contain_text("Strongest")
    expect(inspector).not_to_contain_text("at the border")


def test_escape_leaves_a_box_undrawn(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_image(page)
    page.locator(".lb-composer summary", has_text="What if").click()
    page.click("#lb-cover")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Escape")

    expect(page.locator(".lb-stage")).to_have_attribute("data-tool", "window")
    expect(page.get_by_role("button", name="Remove region 1")).to_have_count(0)
    page.click("#lb-cover")
    drag(page, 80, 80)
    expect(page.get_by_role("button", name="Remove region 1")).to_be_visible()


def test_a_box_that_is_none_is_said_to_be_too_small(
    page_server: Served, open_page: OpenPage
) -> None:
    page = open_page(page_server)
    cover = page.locator("#lb-cover")
    page.locator(".lb-composer summary", has_text="What if").click()
    expect(cover).to_be_disabled()
    page.locator(".lb-composer summary", has_text="What if").click()
    open_image(page)
    page.locator(".lb-composer summary", has_text="What if").click()
    cover.press("Enter")
    page.keyboard.press("Enter")

    expect(page.get_by_text("The box is too small: draw a larger one.").first).to_be_visible()
    expect(cover).to_be_focused()


def test_a_covered_region_stays_with_its_image(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    open_image(page)
    page.locator(".lb-composer summary", has_text="What if").click()
    page.locator("#lb-cover").press("Enter")
    for key in ("ArrowRight", "Enter"):
        page.keyboard.press(key)
    region = page.get_by_role("button", name="Remove region 1")
    expect(region).to_be_visible()
    region.focus()
    page.fill("#lb-question", "Where?")
    expect(region).to_be_visible()

    upload(page, to_zip(events_of(request())), "x.radtrace.zip")
    wait_for(page, "done")
    expect(region).to_have_count(0)


def test_what_is_covered_before_a_run_is_covered_in_it_and_in_what_is_saved(
    page_server: Served, open_page: OpenPage, tmp_path: Path
) -> None:
    """Until it is taken off: two runs with it, and one without."""
    page = open_page(page_server)
    open_image(page)
    what_if = page.locator(".lb-composer summary", has_text="What if")
    what_if.click()
    expect(page.get_by_text("What is covered stays covered in every run")).to_be_visible()
    page.click("#lb-cover")
    drag(page, 80, 80)
    region = page.get_by_role("button", name="Remove region 1")
    expect(region).to_be_visible()
    covered = []
    for turn in range(3):
        ask(page)
        wait_for(page, "done")
        with page.expect_download() as download:
            page.click("#lb-save")
        download.value.save_as(tmp_path / f"{turn}.radtrace.zip")
        started = read_trace(tmp_path / f"{turn}.radtrace.zip").started
        assert started is not None
        covered.append(len(started.request.interventions.occlude))
        what_if.click()
        if turn == 1:
            region.click()
        expect(region).to_have_count(1 if turn == 0 else 0)
        what_if.click()

    assert covered == [1, 1, 0]


def test_an_image_unlike_the_training_is_marked(page_server: Served, open_page: OpenPage) -> None:
    page = open_page(page_server)
    upload(page, to_zip(events_of(request(), flagged=True)), "x.radtrace.zip")
    wait_for(page, "done")

    expect(page.locator(".lb-banners .lb-banner-warn")).to_contain_text(
        "unlike what the model was trained on"
    )
    expect(page.locator(".lb-card-answer .lb-unlike")).to_be_visible()
    page.locator(".lb-inspector summary", has_text="About this run").click()
    expect(page.locator(".lb-inspector")).to_contain_text("3.1 (limit 1), marked")
