"""What happens when the page asks for something. Every answer is the whole page state."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from app.charts import run_chart
from app.forms import request_from, window_from
from app.live import LiveRun, StreamEngine, Turns
from app.pictures import describe, display_image, picture_files
from app.samples import Sample
from app.security import UploadError, claim_upload
from app.session import OpenImage, Session, Sessions
from app.texts import FAULT, NO_ENGINE
from app.view import RunView
from engine.imaging import ImagingError, open_image
from engine.request import Request, RequestError
from engine.trace import Trace
from engine.trace_io import SUFFIX, TraceFileError, read_trace, to_zip

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Handlers:
    """The listeners of the page; they hold nothing of a user except through `sessions`.

    Args:
        engine: what runs requests, or None to replay only.
        sessions: the data of every tab.
        samples: what can be opened without a file.
        upload_root: where Gradio puts uploads.
        served_root: where the files of our own lie.
        version: of the app, written into saved traces.
    """

    def __init__(
        self,
        engine: StreamEngine | None,
        sessions: Sessions,
        samples: tuple[Sample, ...],
        *,
        upload_root: Path,
        served_root: Path,
        version: str,
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._samples = samples
        self._upload_root = upload_root
        self._served_root = served_root
        self._version = version
        self._turns = Turns()

    def page(self, session: Session | None = None, more: Json | None = None) -> Json:
        """The page state: cumulative, and small enough to be sent whole.

        Args:
            session: whose image and run it shows; None for a page that was just opened.
            more: `form`, `error` or `download`, acted on once, or `queued` and `loading`.
        """
        state: Json = {"live": self._engine is not None, "image": None, "run": None}
        if session is None:
            return state
        state.update(more or {})
        state["image"] = session.image.facts if session.image else None
        if session.view is not None and session.run_folder is not None:
            state["run"] = {
                "key": session.run_folder.name,
                "folder": str(session.run_folder),
                "replay": session.replay,
                "image": session.run_image,
                **session.view.to_json(),
            }
            state["before"] = session.before
        return state

    def open_image(self, data: gr.EventData, request: gr.Request) -> Json:
        """An uploaded image or saved trace; which of the two, its content tells."""
        session = self._session(request)
        try:
            content = claim_upload(_get(data, "path"), self._upload_root, self._served_root)
        except UploadError as error:
            return self._failed(session, "E100", str(error))
        if content[:4] == b"PK\x03\x04":
            return self._open_trace(session, content)
        return self._open_image(session, content)

    def open_sample(self, data: gr.EventData, request: gr.Request) -> Json:
        """One of the samples, with its question filled in."""
        session = self._session(request)
        index = _get(data, "index")
        if type(index) is not int or not 0 <= index < len(self._samples):
            return self._failed(session, "E100", "There is no such sample.")
        sample = self._samples[index]
        content = sample.path.read_bytes()
        if sample.kind == "recorded":
            return self._open_trace(session, content)
        return self._open_image(session, content, form=_stamped(sample.form()))

    def set_frame(self, data: gr.EventData, request: gr.Request) -> Json:
        """Another frame of the open image."""
        session = self._session(request)
        frame = _get(data, "frame")
        if session.image is None or type(frame) is not int:
            return self.page(session)
        return self._open_image(session, session.image.file, frame=frame)

    def explain(self, data: gr.EventData, request: gr.Request) -> Iterator[Json]:
        """Runs the model and streams what it does."""
        session = self._session(request)
        form = _get(data, "form")
        if self._engine is None:
            yield self._failed(session, "E300", NO_ENGINE)
            return
        try:
            if session.image is None or not isinstance(form, Mapping):
                raise RequestError("Open an image first.")
            window, source = window_from(form)
            shown = display_image(session.image.source, window, source)
            wanted = request_from(form, shown)
        except RequestError as error:
            yield self._failed(session, "E200", str(error))
            return
        session.stop.set()
        # Beliefs compare only where the same was asked about the same picture.
        same_image = session.run_image == session.image.id
        before = _summary(session.view) if form.get("compare") is True and same_image else None
        session.before = before if before and _asks_the_same(before, wanted) else None
        session.stop = threading.Event()
        session.new_run(replay=False)
        run = LiveRun(self._engine, wanted, self._turns, session.stop)
        yield from self._streamed(session, run, session.stop)

    def stop(self, request: gr.Request) -> None:
        """Ends the run of this tab; its stream then ends by itself."""
        self._session(request).stop.set()

    def save_trace(self, request: gr.Request) -> Json:
        """The run as a file to download."""
        session = self._session(request)
        if session.view is None or session.run_folder is None or not session.events:
            return self._failed(session, "E400", "There is no run to save yet.")
        try:
            content = to_zip(session.events, app_version=self._version)
        except TraceFileError as error:
            return self._failed(session, "E401", str(error))
        name = f"lightbox-{session.run_folder.name[:8]}{SUFFIX}"
        (session.run_folder / name).write_bytes(content)
        return self.page(session, {"download": _stamped({"name": name})})

    def chart(self, request: gr.Request) -> tuple[Any, Any]:
        """The chart of a run that is over, and whether its panel shows."""
        session = self._session(request)
        if session.view is None or session.view.status == "running":
            return gr.skip(), gr.skip()
        figure: go.Figure = run_chart(Trace.from_events(session.events))
        return figure, gr.update(visible=True)

    def close(self, request: gr.Request) -> None:
        """The tab was closed."""
        if request.session_hash:
            self._sessions.drop(request.session_hash)

    def _session(self, request: gr.Request) -> Session:
        return self._sessions.get(request.session_hash or "none")

    def _failed(self, session: Session, code: str, message: str) -> Json:
        logger.info("refused: %s", code)
        return self.page(session, {"error": _stamped({"code": code, "message": message})})

    def _streamed(self, session: Session, run: LiveRun, stop: threading.Event) -> Iterator[Json]:
        view = session.view
        batches = run.batches()
        try:
            for batch in batches:
                if session.view is not view:
                    # Another run or image has taken its place: end on what is shown now.
                    yield self.page(session)
                    return
                session.touch()
                session.take(batch)
                loading = not getattr(self._engine, "ready", True)
                yield self.page(session, {"queued": run.ahead, "loading": loading})
            if session.end_open_run():
                yield self.page(session)
        finally:
            stop.set()
            batches.close()
            if view is not None:
                logger.info("run over: %s, %d steps", view.status, len(view.items))

    def _open_trace(self, session: Session, content: bytes) -> Json:
        try:
            trace = read_trace(content)
        except TraceFileError as error:
            return self._failed(session, "E402", str(error))
        session.stop.set()
        session.set_image(None)
        session.before = None
        session.new_run(replay=True)
        session.take(trace)
        return self.page(session, {"form": _stamped(_form_of(trace))})

    def _open_image(
        self, session: Session, content: bytes | Path, *, frame: int = 0, form: Json | None = None
    ) -> Json:
        try:
            source = open_image(content, frame=frame)
        except ImagingError as error:
            return self._failed(session, error.code, error.message)
        except Exception as error:  # noqa: BLE001 -- the page stays alive, whatever the file did
            logger.error("opening failed: %s", type(error).__name__)
            return self._failed(session, "E100", FAULT)
        session.stop.set()
        file = content if isinstance(content, Path) else session.private / secrets.token_hex(16)
        if isinstance(content, bytes):
            file.write_bytes(content)
            session.forget_run()
        folder = session.new_folder()
        files, raw = picture_files(source)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        facts = {"id": folder.name, "folder": str(folder), **describe(source, raw)}
        session.set_image(OpenImage(folder.name, file, source, facts))
        return self.page(session, {"form": form} if form else None)


def _get(data: gr.EventData, name: str) -> object:
    """A field of what the page sent; None when it sent something else than an object."""
    payload = data._data
    return payload.get(name) if isinstance(payload, Mapping) else None


def _stamped(content: Json) -> Json:
    """The content with a mark, so that the page acts on it once and no more."""
    return {**content, "mark": secrets.token_hex(4)}


def _summary(view: RunView | None) -> Json | None:
    """The answer and the belief of a run, to stand beside those of the next."""
    if view is None or view.run is None:
        return None
    answer = next((item for item in reversed(view.items) if item[0] == "a"), None)
    belief = next((item for item in reversed(view.items) if item[0] == "b"), None)
    probabilities = (answer[4] if answer else []) or (belief[3] if belief else [])
    return {
        "question": view.run["question"],
        "options": view.run["options"],
        "answer": answer[1] if answer else "",
        "probabilities": probabilities,
        "changes": view.run["changes"],
    }


def _asks_the_same(before: Json, wanted: Request) -> bool:
    return (before["question"], before["options"]) == (wanted.question, list(wanted.options))


def _form_of(trace: Trace) -> Json:
    started = trace.started
    if started is None:
        return {}
    request = started.request
    return {
        "question": request.question,
        "options": list(request.options),
        "method": request.method,
        "truth": "",
    }
