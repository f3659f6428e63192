"""What all listeners of the page share: whose tab it is, what it is told, how its runs begin."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import gradio as gr

from app.forms import request_from, window_from
from app.live import LiveRun
from app.models import Model, Models
from app.session import CrowdedError, OpenImage, Session, Sessions
from app.texts import CROWDED, IMAGE_GONE, LOOK_FIRST, NO_ENGINE, NO_TAB, OTHER_IMAGE, TAB_ENDED
from app.what_if import Donor, compared, donor_for
from engine.display import display_image
from engine.request import Request, RequestError

Json = dict[str, Any]
BegunT = TypeVar("BegunT")

# Gradio's page makes up a key of about eleven characters. One that is far shorter is none, but
# a word such as "none" of a program that has no session.
MIN_KEY_LENGTH: Final = 6

logger = logging.getLogger(__name__)


class NotBegunError(RuntimeError):
    """Nothing was begun; `state` is what the page is told instead."""

    def __init__(self, state: Json) -> None:
        super().__init__("nothing was begun")
        self.state = state


@dataclass(frozen=True, slots=True)
class Asked:
    """What a tab asks for.

    Attributes:
        image: that is open.
        form: as it was sent.
        model: that is to run.
        request: of the image and the form.
        donor: whose inner steps the request feeds in, if it does.
    """

    image: OpenImage
    form: Mapping[str, Any]
    model: Model
    request: Request
    donor: Donor | None = None


@dataclass(frozen=True, slots=True)
class Begun(Generic[BegunT]):
    """What a tab has begun on the image that it shows.

    Attributes:
        session: of the tab.
        asked: what was asked of which model.
        work: takes the events: the view of a run, or a comparison.
        stop: ends it when set.
    """

    session: Session
    asked: Asked
    work: BegunT
    stop: threading.Event


class Tabs:
    """The tabs of the page; holds nothing of a user except through `sessions`.

    Args:
        models: what runs requests; none to replay only.
        sessions: the data of every tab.
    """

    def __init__(self, models: Models, sessions: Sessions) -> None:
        self.models = models
        self._sessions = sessions

    def session(self, request: gr.Request) -> Session | None:
        """The session of the tab; None when there is room for no other.

        Raises:
            gr.Error: for a caller without a tab of its own; two of them would share one.
        """
        key = request.session_hash
        if not key or len(key) < MIN_KEY_LENGTH:
            raise gr.Error(NO_TAB)
        try:
            return self._sessions.get(key)
        except CrowdedError:
            return None

    def close(self, request: gr.Request) -> None:
        """The tab was closed."""
        if request.session_hash:
            self._sessions.drop(request.session_hash)

    def page(self, session: Session | None = None, more: Json | None = None) -> Json:
        """The page state: cumulative, and small enough to be sent whole.

        Args:
            session: whose image, run and comparison it shows; None for a page that was just
                opened.
            more: `form`, `error` or `download`, acted on once, or `queued` and `loading`.

        Returns:
            With `turn`, the number of the newest thing that was done, of those that the page
            counts as its user asks for them.
        """
        state: Json = {"live": bool(self.models), "turn": 0, "image": None, "run": None}
        state.update(more or {})
        if session is None:
            return state
        with session.lock:
            state["turn"] = session.turn
            state["image"] = session.image.facts if session.image else None
            # By model: whose inner steps on another image a run may be given.
            image = session.image.source.sha256 if session.image else ""
            state["donors"] = {
                donor.model: donor.to_json() for donor in session.donors if donor.image != image
            }
            if session.group is not None:
                state["group"] = {**session.group.facts, "member": session.group.member}
            if session.view is not None and session.run_folder is not None:
                state["run"] = {
                    "key": session.run_folder.name,
                    "folder": str(session.run_folder),
                    "replay": session.replay,
                    "image": session.run_image,
                    "frame": session.run_frame,
                    "model": session.run_model,
                    "donor": session.run_donor.to_json() if session.run_donor else None,
                    **session.view.to_json(),
                }
                state["before"] = (
                    compared(session.baselines, session.view, session.run_model)
                    if session.compares
                    else None
                )
            comparison = session.comparison
            state["comparison"] = None if comparison is None else comparison.to_json()
        return state

    def underway(self, session: Session, run: LiveRun) -> Json:
        """The page state while a run waits or goes on."""
        return self.page(session, {"queued": run.ahead, "loading": run.loading})

    def failed(self, session: Session | None, code: str, message: str) -> Json:
        """What stands now, with a sentence on what could not be done."""
        logger.info("refused: %s", code)
        return self.page(session, {"error": stamped({"code": code, "message": message})})

    def overtaken(self, session: Session) -> Json:
        """What stands now, because something newer came first or the tab is gone."""
        return self.failed(session, "E111", TAB_ENDED) if session.closed else self.page(session)

    def begin(
        self,
        data: gr.EventData,
        request: gr.Request,
        work: Callable[[Session, Asked], BegunT],
    ) -> Begun[BegunT]:
        """Begins what the page asks the model to do on the image that it shows.

        Args:
            data: what the page sent: its turn, the image that it shows, and the form.
            request: of the tab.
            work: makes what takes the events, from the session and what was asked; called with
                the session's lock held.

        Raises:
            NotBegunError: there is no room, no model, no image or no question that can be run,
                or something newer came first.
        """
        session = self.session(request)
        if session is None:
            raise NotBegunError(self.failed(None, "E110", CROWDED))
        if not self.models:
            raise NotBegunError(self.failed(session, "E300", NO_ENGINE))
        try:
            asked = _asked(session, data, self.models)
            with session.lock:
                _check_shown(session, data, asked.image)
                if not session.lands(turn_sent(data)):
                    raise NotBegunError(self.overtaken(session))
                begun = work(session, asked)
                return Begun(session, asked, begun, session.stop)
        except RequestError as error:
            raise NotBegunError(self.failed(session, "E200", str(error))) from error


def _asked(session: Session, data: gr.EventData, models: Models) -> Asked:
    """What the page asks for, about the open image.

    Raises:
        RequestError: with a sentence for the user, for anything that cannot be run.
    """
    form = field_sent(data, "form")
    with session.lock:
        image, donors = session.image, tuple(session.donors)
    if image is None or not isinstance(form, Mapping):
        raise RequestError(IMAGE_GONE if field_sent(data, "image") else "Open an image first.")
    if image.must_be_looked_at and form.get("looked") is not True:
        raise RequestError(LOOK_FIRST)
    model = models.chosen(form.get("model"))
    window, source = window_from(form)
    donor = donor_for(donors, model.key, image.source.sha256)
    shown = display_image(image.source, window, source)
    request = request_from(form, shown, donor.latents if donor else ())
    fed = request.interventions.latents == "shuffle"
    return Asked(image, form, model, request, donor if fed else None)


def _check_shown(session: Session, data: gr.EventData, image: OpenImage) -> None:
    """What the user sees must be what the model sees, also after the rendering."""
    if session.image is not image or field_sent(data, "image") != image.id:
        raise RequestError(OTHER_IMAGE)


def turn_sent(data: gr.EventData) -> int | None:
    """The number that the page gave to what its user asks for; None for a caller without."""
    turn = field_sent(data, "turn")
    return turn if type(turn) is int and turn > 0 else None


def field_sent(data: gr.EventData, name: str) -> object:
    """A field of what the page sent; None when it sent something else than an object."""
    payload = data._data
    return payload.get(name) if isinstance(payload, Mapping) else None


def stamped(content: Json) -> Json:
    """The content with a mark, so that the page acts on it once and no more."""
    return {**content, "mark": secrets.token_hex(4)}
