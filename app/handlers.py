"""What happens when the page asks for something. Every answer is the whole page state."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import gradio as gr
import plotly.graph_objects as go

from app.charts import run_chart
from app.group_view import group_json
from app.live import LiveRun, Turns
from app.pictures import describe, picture_files
from app.samples import Sample
from app.security import UploadError, claim_upload
from app.session import OpenImage, Session
from app.tabs import Asked, Begun, Json, NotBegunError, Tabs, field_sent, stamped, turn_sent
from app.texts import CROWDED, FAULT, GROUP_GONE, IMAGE_GONE
from app.view import RunView
from engine.group_io import is_group_file, read_group
from engine.imaging import ImagingError, SourceImage, open_image
from engine.request import Interventions
from engine.trace import Trace
from engine.trace_io import SUFFIX, TraceFileError, read_trace, to_zip

logger = logging.getLogger(__name__)

NO_CHANGE: Final = Interventions()


class Handlers:
    """The listeners of the page but for those that compare (`app.compare_handlers`).

    Args:
        tabs: what they share with those.
        samples: what can be opened without a file.
        turns: the line in which runs wait.
        upload_root: where Gradio puts uploads.
        served_root: where the files of our own lie.
        version: of the app, written into saved traces.
    """

    def __init__(
        self,
        tabs: Tabs,
        samples: tuple[Sample, ...],
        turns: Turns,
        *,
        upload_root: Path,
        served_root: Path,
        version: str,
    ) -> None:
        self._tabs = tabs
        self._samples = samples
        self._upload_root = upload_root
        self._served_root = served_root
        self._version = version
        self._turns = turns

    def open_image(self, data: gr.EventData, request: gr.Request) -> Json:
        """An uploaded image, saved trace or saved group; which of them, its content tells."""
        session = self._tabs.session(request)
        if session is None:
            return self._tabs.failed(None, "E110", CROWDED)
        try:
            content = claim_upload(field_sent(data, "path"), self._upload_root, self._served_root)
        except UploadError as error:
            return self._tabs.failed(session, "E100", str(error))
        if content[:4] == b"PK\x03\x04":
            if is_group_file(content):
                return self._open_group(session, turn_sent(data), content)
            return self._open_trace(session, turn_sent(data), content)
        return self._open_image(session, turn_sent(data), content)

    def open_sample(self, data: gr.EventData, request: gr.Request) -> Json:
        """One of the samples, with its question filled in."""
        session = self._tabs.session(request)
        if session is None:
            return self._tabs.failed(None, "E110", CROWDED)
        index = field_sent(data, "index")
        if type(index) is not int or not 0 <= index < len(self._samples):
            return self._tabs.failed(session, "E100", "There is no such sample.")
        sample = self._samples[index]
        content = sample.path.read_bytes()
        if sample.kind == "recorded":
            return self._open_trace(session, turn_sent(data), content)
        return self._open_image(
            session,
            turn_sent(data),
            content,
            form=stamped(sample.form()),
            looked_at=sample.burned_in,
            title=sample.title,
        )

    def open_member(self, data: gr.EventData, request: gr.Request) -> Json:
        """A member of the open group as a run; without a number, back to the tree."""
        session = self._tabs.session(request)
        if session is None:
            return self._tabs.failed(None, "E110", CROWDED)
        number = field_sent(data, "member")
        with session.lock:
            opened = session.group
            if opened is None:
                return self._tabs.failed(session, "E403", GROUP_GONE)
            if not session.lands(turn_sent(data)):
                return self._tabs.overtaken(session)
            members = opened.group.members
            if type(number) is not int or not 0 <= number < len(members):
                session.forget_run()
                opened.member = None
                return self._tabs.page(session)
            opened.member = number
            view = session.new_run(replay=True, model=self._model_of(members[number].trace))
            session.take(view, members[number].trace)
            session.end_open_run(view)
            return self._tabs.page(session)

    def set_frame(self, data: gr.EventData, request: gr.Request) -> Json:
        """Another frame of the open image."""
        session = self._tabs.session(request)
        if session is None:
            return self._tabs.failed(None, "E110", CROWDED)
        frame, image = field_sent(data, "frame"), session.image
        if image is None:
            return self._tabs.failed(session, "E403", IMAGE_GONE)
        if type(frame) is not int:
            return self._tabs.page(session)
        return self._open_image(
            session,
            turn_sent(data),
            image.file,
            frame=frame,
            looked_at=image.looked_at,
            title=image.title,
        )

    def explain(self, data: gr.EventData, request: gr.Request) -> Iterator[Json]:
        """Runs the model on the image that the page shows and streams what it does."""
        try:
            begun = self._tabs.begin(data, request, self._new_run)
        except NotBegunError as refusal:
            yield refusal.state
            return
        yield from self._streamed(begun)

    def stop(self, data: gr.EventData, request: gr.Request) -> None:
        """Ends the run of this tab; its stream then ends by itself."""
        session = self._tabs.session(request)
        if session is not None:
            session.end_run(turn_sent(data))

    def save_trace(self, request: gr.Request) -> Json:
        """The run as a file to download."""
        session = self._tabs.session(request)
        if session is None:
            return self._tabs.failed(None, "E110", CROWDED)
        with session.lock:
            view, folder, events = session.view, session.run_folder, tuple(session.events)
        if folder is None or view is None or view.run is None:
            return self._tabs.failed(session, "E400", "There is no run to save yet.")
        try:
            content = to_zip(events, app_version=self._version)
        except TraceFileError as error:
            return self._tabs.failed(session, "E401", str(error))
        name = f"lightbox-{folder.name[:8]}{SUFFIX}"
        with session.lock:
            if session.view is not view:
                return self._tabs.overtaken(session)
            (folder / name).write_bytes(content)
            return self._tabs.page(session, {"download": stamped({"name": name})})

    def chart(self, request: gr.Request) -> tuple[Any, Any]:
        """The chart of a run that is over, and whether its panel shows."""
        session = self._tabs.session(request)
        if session is None:
            return gr.skip(), gr.skip()
        with session.lock:
            events = tuple(session.events)
            if session.view is None:
                # The chart of what was open before has nothing to stand beside.
                return gr.skip(), gr.update(visible=False)
            if session.view.status == "running":
                return gr.skip(), gr.skip()
        figure: go.Figure = run_chart(Trace.from_events(events))
        return figure, gr.update(visible=True)

    def _new_run(self, session: Session, asked: Asked) -> RunView:
        """The view of a new run; the caller holds the lock."""
        # What was not changed has nothing to stand beside.
        compares = asked.form.get("compare") is True and asked.request.interventions != NO_CHANGE
        return session.new_run(
            replay=False, model=asked.model.key, compares=compares, donor=asked.donor
        )

    def _model_of(self, trace: Trace) -> str:
        """Key of the model that made a saved run; empty if it is not on offer."""
        return self._tabs.models.key_of(trace.started.model) if trace.started else ""

    def _streamed(self, begun: Begun[RunView]) -> Iterator[Json]:
        session, view = begun.session, begun.work
        asked = begun.asked
        run = LiveRun(asked.model.engine, asked.request, self._turns, begun.stop)
        batches = run.batches()
        try:
            for batch in batches:
                with session.lock:
                    goes_on = session.take(view, batch)
                    session.touch()
                    state = self._tabs.underway(session, run)
                # Where another run or image has taken its place, it ends on what is shown now.
                yield state if goes_on else self._tabs.overtaken(session)
                if not goes_on:
                    return
            if session.end_open_run(view):
                yield self._tabs.page(session)
        finally:
            begun.stop.set()
            batches.close()
            session.end_open_run(view)
            logger.info("run over: %s, %d steps", view.status, len(view.items))

    def _open_trace(self, session: Session, turn: int | None, content: bytes) -> Json:
        try:
            trace = read_trace(content)
        except TraceFileError as error:
            return self._tabs.failed(session, "E402", str(error))
        with session.lock:
            if not session.lands(turn):
                return self._tabs.overtaken(session)
            session.set_image(None)
            session.set_group(None)
            view = session.new_run(replay=True, model=self._model_of(trace))
            session.take(view, trace)
            session.end_open_run(view)
            return self._tabs.page(session, {"form": stamped(self._form_of(trace))})

    def _open_group(self, session: Session, turn: int | None, content: bytes) -> Json:
        try:
            group = read_group(content)
        except TraceFileError as error:
            return self._tabs.failed(session, "E402", str(error))
        facts = group_json(group)
        with session.lock:
            if not session.lands(turn):
                return self._tabs.overtaken(session)
            session.stop.set()
            session.set_image(None)
            session.forget_run()
            session.set_group(group, facts)
            return self._tabs.page(
                session, {"form": stamped(self._form_of(group.members[0].trace))}
            )

    def _form_of(self, trace: Trace) -> Json:
        """What the form is filled in with, so that what was asked can be asked again."""
        if trace.started is None:
            return {}
        request = trace.started.request
        return {
            "question": request.question,
            "options": list(request.options),
            "method": request.method,
            "model": self._model_of(trace),
            "truth": "",
        }

    def _open_image(
        self,
        session: Session,
        turn: int | None,
        content: bytes | Path,
        *,
        frame: int = 0,
        form: Json | None = None,
        looked_at: str = "",
        title: str = "",
    ) -> Json:
        """Opens an image, or with the path of the one that is open, another frame of it."""
        try:
            source, files, facts = _decoded(content, frame)
            failure = None
        except ImagingError as error:
            failure = error
        with session.lock:
            # A frame of an image that is no longer open comes too late as well.
            replaced = isinstance(content, Path) and not session.shows(content)
            if not session.lands(turn) or replaced:
                return self._tabs.overtaken(session)
            if failure is not None:
                return self._tabs.failed(session, failure.code, failure.message)
            session.stop.set()
            file = content if isinstance(content, Path) else session.private / secrets.token_hex(16)
            if isinstance(content, bytes):
                file.write_bytes(content)
                session.forget_run()
                session.set_group(None)
            folder = session.new_folder()
            for name, data in files.items():
                (folder / name).write_bytes(data)
            facts = {"id": folder.name, "folder": str(folder), **facts}
            image = OpenImage(folder.name, file, source, facts, looked_at, title)
            facts["burned_in"] = image.must_be_looked_at
            if looked_at:
                facts["warnings"] = [*facts["warnings"], looked_at]
            session.set_image(image)
            return self._tabs.page(session, {"form": form} if form else None)


def _decoded(content: bytes | Path, frame: int) -> tuple[SourceImage, dict[str, bytes], Json]:
    """An image, the files that the viewer fetches, and the facts that the page may show.

    Raises:
        ImagingError: with a sentence for the user, whatever is wrong with it.
    """
    try:
        source = open_image(content, frame=frame)
        files, raw = picture_files(source)
        return source, files, describe(source, raw)
    except ImagingError:
        raise
    except Exception as error:  # noqa: BLE001 -- the page stays alive, whatever the file did
        logger.error("opening failed: %s", type(error).__name__)
        raise ImagingError(FAULT) from None
