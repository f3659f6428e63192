"""Starts the page: `gradio app.py`, or `python app.py [--checkpoint ID_OR_DIR] [--host ...]`.

`gradio app.py` executes this file a second time, in the thread that watches for edits. So the
page is cheap to build, and the default model is loaded in the background and only by the first
one; every other model is loaded before its first run.
"""

import contextlib
import functools
import importlib.util
import logging
import signal
import sys
import threading

import gradio as gr
from gradio.utils import get_space

from app.live import PreparedEngine, StreamEngine
from app.models import (
    FIRST,
    Checkpoint,
    Models,
    embedded_checkpoints,
    given_checkpoint,
    models_of,
)
from app.startup import CHECKPOINTS, Options, read_options
from app.ui import build, launch_options


def load_engine(checkpoint: str) -> StreamEngine:
    """The engine with its model in memory; the only import of torch on this side."""
    from engine.engine import Engine

    engine = Engine.deferred(checkpoint)
    # A checkpoint that cannot be loaded ends the first run with its reason, not the program.
    with contextlib.suppress(Exception):
        _ = engine.loaded
    return engine


def find_models(options: Options) -> Models:
    """The models to choose from, each loaded when it is needed; none without torch."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return Models()
    given = options.checkpoint
    checkpoints = embedded_checkpoints(CHECKPOINTS) if given is None else (given_checkpoint(given),)

    def prepared(checkpoint: Checkpoint) -> StreamEngine:
        start = checkpoint is checkpoints[0] and bool(gr.NO_RELOAD)
        return PreparedEngine(functools.partial(load_engine, checkpoint.source), start=start)

    return models_of(checkpoints, prepared, FIRST if given is None else "")


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)
on_space = get_space() is not None
options = read_options(sys.argv[1:] if __name__ == "__main__" else [], on_space=on_space)
demo = build(find_models(options), on_space=on_space)

if __name__ == "__main__":
    if options.warning:
        sys.stderr.write(f"{options.warning}\n")
    if threading.current_thread() is threading.main_thread():
        # Ends like Ctrl+C, so that the files of open tabs are deleted on the way out.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Quiet, because Gradio would go on to advise the tunnel that is refused here.
    address = demo.launch(
        server_port=options.port,
        auth=list(options.accounts) or None,
        prevent_thread_lock=True,
        quiet=True,
        **launch_options(options.host, on_space=on_space),
    )[1]
    sys.stdout.write(f"* Running on local URL:  {address}\n")
    sys.stdout.flush()
    demo.block_thread()
