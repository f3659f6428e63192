"""The page as Gradio sees it: its folders, its endpoints, and how it is launched."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# In a process of its own, because Gradio leaves event loops and sockets open in this one.
PROGRAM = """
import json, os, stat
from pathlib import Path
from app.models import Models
from app.ui import build, launch_options

def mode(folder):
    return stat.S_IMODE(Path(folder).stat().st_mode)

page = build(Models(), samples=())
first = os.environ["GRADIO_TEMP_DIR"]
build(Models(), samples=())
print(json.dumps({
    "folder": first,
    "folder_again": os.environ["GRADIO_TEMP_DIR"],
    "cache": page.GRADIO_CACHE,
    "mode": mode(first),
    "mode_of_parent": mode(Path(first).parent),
    "siblings": len(list(Path(first).parent.glob("lightbox-gradio-*"))),
    "middleware": [
        [layer.cls.__name__, {name: str(value) for name, value in layer.kwargs.items()}]
        for layer in launch_options("127.0.0.1")["app_kwargs"]["middleware"]
    ],
    "endpoints": page.get_api_info(),
    "options": {
        name: value
        for name, value in launch_options("127.0.0.1").items()
        if isinstance(value, bool | list)
    },
    "public": [fn.api_name for fn in page.fns.values() if fn.api_visibility != "private"],
}))
"""


def built(**environment: str) -> dict[str, Any]:
    """What is true of a page that was built in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder for Gradio that the user has set and others may enter."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, Any]:
    """Of a page whose user has set a folder."""
    return built(GRADIO_TEMP_DIR=str(shared))


def test_a_folder_that_is_set_stays_as_it_is_and_gets_a_private_one(
    facts: dict[str, Any], shared: Path
) -> None:
    assert Path(facts["folder"]).parent == shared
    assert facts["cache"] == facts["folder"]
    assert facts["mode"] == 0o700
    assert facts["mode_of_parent"] == stat.S_IMODE(shared.stat().st_mode) == 0o755


def test_the_private_folder_ends_with_the_program_and_the_other_stays(
    facts: dict[str, Any], shared: Path
) -> None:
    assert not Path(facts["folder"]).exists()
    assert shared.exists()


def test_the_second_execution_of_the_program_takes_the_same_folder(facts: dict[str, Any]) -> None:
    assert facts["folder_again"] == facts["folder"]
    assert facts["siblings"] == 1


def test_without_a_folder_one_is_made(tmp_path: Path) -> None:
    made = built(GRADIO_TEMP_DIR="", TMPDIR=str(tmp_path))

    assert Path(made["folder"]).parent == tmp_path
    assert made["mode"] == 0o700


def test_uploads_that_nobody_opens_are_gone_within_half_an_hour(facts: dict[str, Any]) -> None:
    layers = dict(facts["middleware"])

    assert set(layers) == {"PrivateHeaders", "SameOriginGuard", "UploadSweeper"}
    assert layers["UploadSweeper"]["upload_root"] == facts["folder"]
    assert layers["UploadSweeper"]["served_root"] == f"{facts['folder']}/served"
    assert float(layers["UploadSweeper"]["seconds"]) <= 30 * 60


def test_programs_see_two_endpoints(facts: dict[str, Any]) -> None:
    shown = facts["endpoints"]

    assert set(shown["named_endpoints"]) == {"/explain", "/load_trace"}
    assert shown["unnamed_endpoints"] == {}
    parameters = shown["named_endpoints"]["/explain"]["parameters"]
    names = [parameter["parameter_name"] for parameter in parameters]
    assert names == ["image", "question", "options", "method", "settings", "model"]


def test_what_the_page_itself_listens_to_is_private(facts: dict[str, Any]) -> None:
    assert facts["public"] == ["explain", "load_trace"]


def test_the_launch_opens_nothing_to_others(facts: dict[str, Any]) -> None:
    options = facts["options"]

    for name in ("share", "run_history", "show_error", "ssr_mode", "mcp_server"):
        assert options[name] is False
    assert options["allowed_paths"] == options["footer_links"] == []
