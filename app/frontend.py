"""The files of the page: style sheet and scripts, put together at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

# In the order in which they need each other; each defines names, only the last one acts.
SCRIPTS: Final = (
    "dom.js",
    "colormap.js",
    "grids.js",
    "details.js",
    "viewer.js",
    "cards.js",
    "strip.js",
    "inspector.js",
    "tree.js",
    "composer.js",
    "compare.js",
    "gate.js",
    "main.js",
)
SHEETS: Final = ("app.css", "compare.css")


def page_script(assets: Path, constants: dict[str, Any]) -> str:
    """The script of the live component: constants, then every file, in one function scope."""
    parts = [(assets / "js" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    body = "\n".join(parts)
    # "</" never appears literally, whatever the texts hold.
    frozen = json.dumps(constants, ensure_ascii=True).replace("</", "<\\/")
    return f"(() => {{\n'use strict';\nconst LB = Object.freeze({frozen});\n{body}\n}})();"


def style_sheet(assets: Path) -> str:
    """The style sheet of the page."""
    return "\n".join((assets / name).read_text(encoding="utf-8") for name in SHEETS)
