"""Starts the page: `gradio app.py`, or `python app.py [--checkpoint ID_OR_DIR] [--host ...]`.

`gradio app.py` executes this file a second time, in the thread that watches for edits. So the
page is cheap to build, and the model is loaded in the background and only by the first one.
"""

import contextlib
import importlib.util
import logging
import signal
import sys
import threading
from pathlib import Path

import gradio as gr
from gradio.utils import get_space

from app.live import PreparedEngine, StreamEngine
from app.startup import Options, read_options
from app.ui import build, launch_options


def load_engine(checkpoint: str) -> StreamEngine:
    """The engine with its model in memory; the only import of torch on this side."""
    from engine.engine import Engine

    engine = Engine.deferred(checkpoint)
    # A checkpoint that cannot be loaded ends the first run with its reason, not the program.
    with contextlib.suppress(Exception):
        _ = engine.loaded
    return engine


def make_engine(options: Options) -> StreamEngine | None:
    """An engine that loads in the background; None where live runs are not possible."""
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    missing = options.is_embedded and not Path(options.checkpoint).is_dir()
    if not installed or missing:
        return None
    return PreparedEngine(lambda: load_engine(options.checkpoint), start=bool(gr.NO_RELOAD))


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)
on_space = get_space() is not None
options = read_options(sys.argv[1:] if __name__ == "__main__" else [], on_space=on_space)
demo = build(make_engine(options), on_space=on_space)

if __name__ == "__main__":
    if options.warning:
        sys.stderr.write(f"{options.warning}\n")
    if threading.current_thread() is threading.main_thread():
        # Ends like Ctrl+C, so that the files of open tabs are deleted on the way out.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    demo.launch(
        server_port=options.port,
        auth=list(options.accounts) or None,
        **launch_options(options.host, on_space=on_space),
    )
