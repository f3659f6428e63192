"""The script of the page: whole, valid, and without a door for text to become code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.frontend import SCRIPTS, page_script, style_sheet
from app.ui import ASSETS

FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org)"
)


def test_every_script_is_part_of_the_page() -> None:
    assert set(SCRIPTS) == {file.name for file in (ASSETS / "js").iterdir()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_text_cannot_become_markup_and_nothing_is_fetched_elsewhere(name: str) -> None:
    source = (ASSETS / "js" / name).read_text(encoding="utf-8")

    assert FORBIDDEN.findall(source) == []


def test_the_style_sheet_fetches_nothing() -> None:
    assert re.findall(r"@import|url\(", style_sheet(ASSETS)) == []


def test_constants_cannot_leave_the_script() -> None:
    script = page_script(ASSETS, {"text": "</script><script>x</script>"})

    assert "</script" not in script


@pytest.mark.parametrize(
    "event",
    [
        *("open_image", "open_sample", "open_member", "set_frame", "explain"),
        *("stop_run", "save_trace", "compare", "open_compared"),
    ],
)
def test_the_server_finds_the_names_of_the_events(event: str) -> None:
    assert f"'{event}'" in page_script(ASSETS, {})


def test_the_script_parses(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to parse the script")
    file = tmp_path / "page.js"
    names = "element, trigger, props, server, upload, watch"
    file.write_text(f"(function ({names}) {{\n{page_script(ASSETS, {})}\n}});")

    done = subprocess.run([node, "--check", str(file)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
