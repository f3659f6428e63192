"""Two endpoints for programs: `/explain` and `/load_trace`.

They keep nothing between calls. A run waits in the same line as those of the page, and its
events are the JSON objects that `python -m engine trace --jsonl` prints.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from app.forms import request_from, window_from
from app.live import LiveRun, Turns
from app.models import Models
from app.security import UploadError, claim_upload
from app.texts import LOOK_FIRST_API, NO_DONOR_API, NO_ENGINE
from engine.display import display_image
from engine.imaging import ImagingError, open_image
from engine.request import Request, RequestError
from engine.trace_io import TraceFileError, read_trace, to_json

Json = dict[str, Any]


class Api:
    """What programs may call; every refusal is a `gr.Error` with one sentence.

    Args:
        models: what runs requests; none to read saved traces only.
        turns: the line in which runs wait, shared with the page.
        upload_root: where Gradio puts uploads.
        served_root: where the files of the page lie.
    """

    def __init__(
        self, models: Models, turns: Turns, *, upload_root: Path, served_root: Path
    ) -> None:
        self._models = models
        self._turns = turns
        self._upload_root = upload_root
        self._served_root = served_root

    def explain(
        self,
        image: FileData,
        question: str,
        options: list[str] | None = None,
        method: str = "auto",
        settings: dict[str, Any] | None = None,
        model: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Ask one question about an image (DICOM, PNG or JPEG); yields the events of the run.

        The settings are those of the page: `seed`, `temperature`, `max_crops`, `latent_steps`,
        `max_new_tokens`, `threshold` (nats), `changes`, `window` and `frame`; and `looked`, which
        must be true for a kind of image that often has text burned into the picture. The model is
        one of those that the page offers, by the name of its folder; without it, the first runs.
        """
        if not self._models:
            raise gr.Error(NO_ENGINE)
        given = settings if isinstance(settings, dict) else {}
        form = {**given, "question": question, "options": options, "method": method}
        try:
            content = self._claimed(image)
            chosen = self._models.chosen(model)
            request = _request(content, form)
        except (UploadError, ImagingError, RequestError) as error:
            raise gr.Error(str(error)) from None
        for batch in LiveRun(chosen.engine, request, self._turns, threading.Event()).batches():
            for event in batch:
                yield to_json(event)

    def load_trace(self, file: FileData) -> list[dict[str, Any]]:
        """Check a saved run (`*.radtrace.zip`) from end to end; returns its events."""
        try:
            return [to_json(event) for event in read_trace(self._claimed(file))]
        except (UploadError, TraceFileError) as error:
            raise gr.Error(str(error)) from None

    def _claimed(self, file: object) -> bytes:
        path = file.get("path") if isinstance(file, dict) else None
        return claim_upload(path, self._upload_root, self._served_root)


def _request(content: bytes, form: Json) -> Request:
    frame = form.get("frame", 0)
    if type(frame) is not int:
        raise RequestError("frame must be a whole number, from 0.")
    window, source = window_from(form)
    image = open_image(content, frame=frame)
    if image.burned_in_risk and form.get("looked") is not True:
        raise RequestError(LOOK_FIRST_API)
    changes = form.get("changes")
    if isinstance(changes, dict) and changes.get("latents") == "shuffle":
        raise RequestError(NO_DONOR_API)
    return request_from(form, display_image(image, window, source))
