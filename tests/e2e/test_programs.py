"""The endpoints for programs, over HTTP, as a client library calls them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from engine.trace import Trace
from engine.trace_io import from_json, to_zip
from tests.e2e.conftest import Served, served, sixteen_bit_png
from tests.e2e.test_read import appears
from tests.factories import trace

pytestmark = pytest.mark.e2e


@pytest.fixture
def image(tmp_path: Path) -> Any:
    file = tmp_path / "DOE_JANE.png"
    file.write_bytes(sixteen_bit_png())
    return handle_file(str(file))


def test_a_program_explains_an_image_event_by_event(page_server: Served, image: Any) -> None:
    client = Client(page_server.url, verbose=False)
    job = client.submit(image, "Is it round?", ["yes", "no"], api_name="/explain")

    run = Trace.from_events(from_json(event) for event in job)

    assert run.started is not None
    assert run.started.request.options == ("yes", "no")
    assert run.answered is not None
    assert run.answered.text == "yes"
    assert [file for file in (page_server.folder / "gradio").rglob("*DOE*") if file.is_file()] == []


def test_a_program_reads_a_saved_run(page_server: Served, tmp_path: Path) -> None:
    file = tmp_path / "x.radtrace.zip"
    file.write_bytes(to_zip(trace()))
    client = Client(page_server.url, verbose=False)

    events = client.predict(handle_file(str(file)), api_name="/load_trace")

    assert Trace.from_events(from_json(event) for event in events) == trace()


def test_a_refusal_reaches_the_program_as_one_sentence(page_server: Served, image: Any) -> None:
    client = Client(page_server.url, verbose=False)

    with pytest.raises(AppError, match="Ask a question"):
        client.predict(image, " ", api_name="/explain")


def test_a_program_that_cancels_stops_the_engine(tmp_path: Path, image: Any) -> None:
    marker = tmp_path / "stopped"
    with served(tmp_path / "page", "--delay", "0.2", "--stopped", str(marker)) as server:
        client = Client(server.url, verbose=False)
        job = client.submit(image, "Is it round?", api_name="/explain")
        next(iter(job))
        job.cancel()

        assert appears(marker, within=30.0)


def test_what_the_page_listens_to_needs_a_tab(page_server: Served) -> None:
    asked = urllib.request.Request(
        f"{page_server.url}/gradio_api/run/stop",
        data=json.dumps({"data": [], "session_hash": None}).encode(),
        headers={"Content-Type": "application/json"},
    )

    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=60)

    assert json.loads(caught.value.read())["error"] == (
        "This request belongs to no tab: open the page in a browser."
    )
