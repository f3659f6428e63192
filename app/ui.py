"""The layout of the page; what it does is in `app.handlers` and `app.compare_handlers`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import gradio as gr
from gradio.events import api
from starlette.middleware import Middleware

from app.api import Api
from app.charts import OPTION_COLORS
from app.compare_handlers import CompareHandlers
from app.forms import LIMITS
from app.frontend import page_script, style_sheet
from app.handlers import Handlers
from app.live import Turns
from app.models import Models
from app.samples import Sample, list_samples
from app.security import (
    LOOPBACK,
    PrivateHeaders,
    SameOriginGuard,
    UploadSweeper,
    private_folder,
)
from app.session import IDLE_SECONDS, Sessions
from app.startup import is_loopback
from app.tabs import Tabs
from app.texts import (
    ABOUT,
    ANSWER_NOTE,
    BADGE,
    BELIEF_NOTE,
    BELIEF_NOW,
    BORDER_NOTE,
    BURNED_IN,
    CHECKING,
    CHECKING_ON_SPACE,
    EMPTY,
    ENTROPY_NOTE,
    GATE,
    GATE_ACCEPT,
    HEAT_NOTE,
    LATENT_TEXTS,
    LOOK_FIRST,
    METHOD_TEXTS,
    MODEL_NOTE,
    MODEL_UNKNOWN,
    NO_DONOR,
    NO_ENGINE,
    NO_GAUGE,
    NO_IMAGE,
    NO_LATENTS,
    NO_RUN,
    NO_ZOOM,
    NOT_TRAINED,
    OTHER_STEPS,
    OUT_OF_DISTRIBUTION,
    READY,
    RECORDED,
    SIMILARITY_NOTE,
    STAYS_COVERED,
    UNLIKE,
    UNSURE_NOTE,
    VECTOR_NOTE,
)
from engine.request import MAX_OPTIONS

VERSION: Final = "0.1.0"
ASSETS: Final = Path(__file__).resolve().parent.parent / "assets"
TITLE: Final = "Lightbox"
SERVED: Final = "served"


def build(
    models: Models,
    *,
    samples: tuple[Sample, ...] | None = None,
    on_space: bool = False,
) -> gr.Blocks:
    """The page around the models on offer.

    Args:
        models: what runs requests; none makes a page that replays saved runs only.
        samples: what can be opened without a file; None takes those in `assets/samples`.
        on_space: whether the page says that uploads go to a Space.
    """
    folders = _folders()
    shown = list_samples(ASSETS / "samples") if samples is None else samples
    turns = Turns()
    tabs = Tabs(models, Sessions(private_folder(), folders["served_root"]))
    handlers = Handlers(tabs, shown, turns, **folders, version=VERSION)
    comparing = CompareHandlers(tabs, turns)
    demo: gr.Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as demo:
        # A hot reload would switch the history of runs on again; it keeps questions and
        # file names in the browser.
        demo.run_history = False
        gr.HTML(html_template=_HEADER, elem_id="lb-header", js_on_load=None)
        with gr.Tabs(elem_id="lb-tabs"):
            with gr.Tab("Read", render_children=True):
                live = gr.HTML(
                    value=tabs.page(),
                    html_template='<div class="lb" data-state="loading"></div>',
                    js_on_load=page_script(ASSETS, _constants(shown, models, on_space=on_space)),
                    elem_id="lb-live",
                    apply_default_css=False,
                )
                with gr.Column(visible=False, elem_id="lb-chart") as panel:
                    chart = gr.Plot(show_label=False, label="Chart of this run")
            with gr.Tab("About & safety"):
                gr.Markdown(ABOUT, elem_id="lb-about")
        # Before the page's own listeners, one of which has the same name.
        programs = Api(models, turns, **folders)
        api(programs.explain, api_name="explain", concurrency_limit=16)
        api(programs.load_trace, api_name="load_trace", concurrency_limit=4)
        _wire(demo, handlers, comparing, live, chart, panel)
        demo.unload(tabs.close)
    return demo


def _folders() -> dict[str, Path]:
    """A private folder in Gradio's temporary folder, in which Gradio then works, and our own in it.

    `gradio app.py` executes the program a second time, and both must use the same, so the
    folder that this process has made before is taken again.
    """
    prefix = f"lightbox-gradio-{os.getpid()}-"
    folder = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    if not folder.name.startswith(prefix):
        folder.mkdir(parents=True, exist_ok=True)
        folder = private_folder(prefix, folder)
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
    upload_root = folder.resolve()
    return {"upload_root": upload_root, "served_root": upload_root / SERVED}


def _wire(
    demo: gr.Blocks,
    handlers: Handlers,
    comparing: CompareHandlers,
    live: gr.HTML,
    chart: gr.Plot,
    panel: gr.Column,
) -> None:
    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "api_visibility": "private",
        "trigger_mode": "multiple",
    }
    aside = {**quiet, "queue": False}
    opened = [
        live.open_image(handlers.open_image, outputs=[live], concurrency_limit=4, **quiet),
        live.open_sample(handlers.open_sample, outputs=[live], concurrency_limit=4, **quiet),
        live.explain(
            handlers.explain,
            outputs=[live],
            # The engine's own line keeps runs apart and tells people their place in it.
            concurrency_limit=16,
            **quiet,
        ),
        live.open_compared(comparing.open_compared, outputs=[live], concurrency_limit=4, **quiet),
    ]
    opened.append(
        live.open_member(handlers.open_member, outputs=[live], concurrency_limit=4, **quiet)
    )
    live.compare(comparing.compare, outputs=[live], concurrency_limit=16, **quiet)
    live.set_frame(handlers.set_frame, outputs=[live], concurrency_limit=4, **quiet)
    live.stop_run(handlers.stop, **aside)
    live.save_trace(handlers.save_trace, outputs=[live], concurrency_limit=4, **quiet)
    for event in opened:
        event.then(handlers.chart, outputs=[chart, panel], **quiet)
    demo.queue(max_size=32)


def launch_options(host: str | None, *, on_space: bool = False) -> dict[str, Any]:
    """The keyword arguments of `Blocks.launch` that make the page private and offline.

    Args:
        host: the address to listen on; None leaves it to Gradio, as on a Space.
        on_space: whether Hugging Face may show the page in a frame.
    """
    hosts = {host, *LOOPBACK} if host is not None and is_loopback(host) else None
    return {
        "server_name": host,
        "share": False,
        "run_history": False,
        "footer_links": [],
        "max_file_size": "64mb",
        "allowed_paths": [],
        "show_error": False,
        "ssr_mode": False,
        "strict_cors": True,
        "enable_monitoring": False,
        "mcp_server": False,
        "theme": _theme(),
        "css": style_sheet(ASSETS),
        "app_kwargs": {
            "middleware": [
                Middleware(PrivateHeaders, on_space=on_space),
                Middleware(SameOriginGuard, hosts=hosts),
                Middleware(UploadSweeper, **_folders(), seconds=IDLE_SECONDS),
            ]
        },
    }


def _theme() -> gr.themes.Base:
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(font=fonts, font_mono=mono)


def _constants(samples: tuple[Sample, ...], models: Models, *, on_space: bool) -> dict[str, Any]:
    return {
        "samples": [sample.to_json(index) for index, sample in enumerate(samples)],
        "methods": METHOD_TEXTS,
        "models": models.to_json(),
        "latents": LATENT_TEXTS,
        "limits": LIMITS,
        "option_colors": OPTION_COLORS,
        "most_options": MAX_OPTIONS,
        "text": {
            "gate": GATE,
            "accept": GATE_ACCEPT,
            "heat": HEAT_NOTE,
            "similarity": SIMILARITY_NOTE,
            "border": BORDER_NOTE,
            "vector": VECTOR_NOTE,
            "entropy": ENTROPY_NOTE,
            "unsure": UNSURE_NOTE,
            "belief": BELIEF_NOTE,
            "belief_now": BELIEF_NOW,
            "no_gauge": NO_GAUGE,
            "answer": ANSWER_NOTE,
            "empty": EMPTY,
            "checking": CHECKING_ON_SPACE if on_space else CHECKING,
            "ready": READY,
            "no_engine": NO_ENGINE,
            "no_image": NO_IMAGE,
            "no_donor": NO_DONOR,
            "other_steps": OTHER_STEPS,
            "no_latents": NO_LATENTS,
            "no_run": NO_RUN,
            "stays_covered": STAYS_COVERED,
            "no_zoom": NO_ZOOM,
            "recorded": RECORDED,
            "replaced": models.notice,
            "trained_for": MODEL_NOTE,
            "training_unknown": MODEL_UNKNOWN,
            "not_trained": NOT_TRAINED,
            "distance": OUT_OF_DISTRIBUTION,
            "unlike": UNLIKE,
            "burned_in": BURNED_IN,
            "look_first": LOOK_FIRST,
        },
    }


_HEADER: Final = f"""
<header class="lb-head">
  <div class="lb-brand"><span class="lb-mark" aria-hidden="true"></span>{TITLE}</div>
  <div class="lb-badge" role="note">{BADGE}</div>
</header>
"""
