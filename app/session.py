"""Data of one browser tab, kept apart from every other and deleted with it."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from app.comparison import Comparison
from app.view import RunView
from app.what_if import MAX_BASELINES, Baseline, Donor, baseline_of, with_donor
from engine.group import Group
from engine.imaging import SourceImage
from engine.request import Request
from engine.trace import Event

SWEEP_SECONDS: Final = 60
# With the wait for the next sweep, nothing outlives half an hour without use.
IDLE_SECONDS: Final = 1800 - SWEEP_SECONDS
MAX_SESSIONS: Final = 64


@dataclass(slots=True)
class OpenGroup:
    """The group of a session.

    Attributes:
        group: its members, as read.
        facts: see `app.group_view.group_json`, with the folder of its picture.
        folder: holds `display.png`.
        member: the number of the member whose run is shown; None while the tree is.
    """

    group: Group
    facts: dict[str, Any]
    folder: Path
    member: int | None = None


class CrowdedError(RuntimeError):
    """Every session is running the model, so that there is no room for another one."""


@dataclass(slots=True)
class OpenImage:
    """The image of a session.

    Attributes:
        id: changes with every image and frame, so that the page never shows an old one.
        file: the uploaded bytes, in a folder that is not served.
        facts: see `app.pictures.describe`, with the folder of its files.
        looked_at: what text is burned into a sample, so that its user need not look for it;
            empty for every other image.
        title: among the samples; empty for one that was opened from a file.
    """

    id: str
    file: Path
    source: SourceImage
    facts: dict[str, Any]
    looked_at: str = ""
    title: str = ""

    @property
    def must_be_looked_at(self) -> bool:
        """Whether somebody must have looked for burned-in text before it is run."""
        return self.source.burned_in_risk and not self.looked_at


@dataclass(slots=True)
class Session:
    """Everything that belongs to one tab.

    Its handlers work in threads of their own: what reads or changes more than one field, or
    calls a method that does, holds `lock` for as long as they must belong together.

    Attributes:
        private: a folder that no URL reaches: uploaded files.
        served: a folder whose files the page fetches; its name cannot be guessed.
        turn: the page numbers what its user asks for, from 1; this is the newest that was done.
        stopped: the newest of these numbers that was stopped, perhaps before it began.
        stop: of the run in progress; set to end it.
        closed: whether the tab is gone; nothing is done for it any more.
        comparison: of ways to look at the open image, if one was asked for.
        run_model: key of the model that made the run; empty if it is not on offer.
        run_title: of the image of the run, see `OpenImage.title`.
        run_donor: whose inner steps the run was fed; None if they are its own.
        baselines: runs of the open image without a change, the newest last.
        donors: runs whose inner steps may be fed to one on another image, the newest last.
        compares: whether the run is a changed one that is to stand beside one of these.
    """

    private: Path
    served: Path
    lock: threading.RLock = field(default_factory=threading.RLock)
    turn: int = 0
    stopped: int = 0
    image: OpenImage | None = None
    group: OpenGroup | None = None
    events: list[Event] = field(default_factory=list)
    view: RunView | None = None
    run_folder: Path | None = None
    run_image: str | None = None
    run_frame: int | None = None
    run_model: str = ""
    run_title: str = ""
    run_donor: Donor | None = None
    replay: bool = False
    baselines: list[Baseline] = field(default_factory=list)
    donors: list[Donor] = field(default_factory=list)
    compares: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    closed: bool = False
    comparison: Comparison | None = None
    used: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> bool:
        """Whether a run is in progress."""
        comparing = self.comparison is not None and not self.comparison.over
        single = self.view is not None and self.view.status == "running" and not self.replay
        return comparing or single

    def touch(self) -> None:
        """Notes that the tab is in use."""
        self.used = time.monotonic()

    def lands(self, turn: int | None) -> bool:
        """Whether what the user asked for may still take effect; if so, it has from here on.

        What took longer than something that was asked for later comes too late.

        Args:
            turn: its number; None for a caller that does not count: the newest.
        """
        if self.closed or (turn is not None and turn <= self.turn):
            return False
        self.turn = self.turn + 1 if turn is None else turn
        return True

    def end_run(self, turn: int | None) -> None:
        """Ends the run of that number, also when it has yet to begin, and no later one."""
        with self.lock:
            if turn is not None:
                self.stopped = max(self.stopped, turn)
            if turn is None or turn >= self.turn:
                self.stop.set()

    def new_folder(self) -> Path:
        """An empty served folder."""
        folder = self.served / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        return folder

    def new_run(
        self,
        *,
        replay: bool,
        model: str = "",
        compares: bool = False,
        donor: Donor | None = None,
    ) -> RunView:
        """Ends and forgets the run before and starts an empty one.

        Args:
            replay: whether it is a saved one.
            model: key of the one that makes it; empty if it is not on offer.
            compares: whether it is to stand beside a run of the same request without a change.
            donor: whose inner steps it is fed; None for its own.
        """
        self._renew_stop()
        self._keep_baseline()
        self.forget_run()
        self.compares = compares
        self.run_folder = self.new_folder()
        self.view = RunView()
        self.replay = replay
        self.run_model = model
        self.run_donor = donor
        shown = None if replay else self.image
        self.run_image = None if shown is None else shown.id
        self.run_frame = None if shown is None else shown.facts["frame"]
        self.run_title = "" if shown is None else shown.title
        return self.view

    def _keep_baseline(self) -> None:
        if self.view is None or self.image is None or self.run_image != self.image.id:
            return
        baseline = baseline_of(self.view, self.run_model)
        if baseline is not None:
            self.baselines = [*self.baselines, baseline][-MAX_BASELINES:]

    def new_comparison(self, request: Request, model: str = "") -> Comparison:
        """Ends what runs, forgets the comparison before and starts an empty one."""
        self._renew_stop()
        self.forget_comparison()
        image = None if self.image is None else self.image.id
        self.comparison = Comparison(request, self.new_folder(), image, model)
        return self.comparison

    def _renew_stop(self) -> None:
        self.stop.set()
        self.stop = threading.Event()
        if 0 < self.turn <= self.stopped:
            self.stop.set()

    def forget_comparison(self) -> None:
        """Leaves no comparison behind."""
        if self.comparison is not None:
            shutil.rmtree(self.comparison.folder, ignore_errors=True)
        self.comparison = None

    def forget_run(self) -> None:
        """Leaves no run behind but for its inner steps."""
        if self.view is not None and self.run_image is not None:
            self.donors = with_donor(
                self.donors, self.view, self.run_model, self.events, self.run_title
            )
        if self.run_folder is not None:
            shutil.rmtree(self.run_folder, ignore_errors=True)
        self.run_folder, self.view, self.compares = None, None, False
        self.events = []
        self.replay, self.run_model, self.run_donor = False, "", None

    def take(self, view: RunView, events: Iterable[Event]) -> bool:
        """Folds events into the view and writes the files that the page may fetch.

        Args:
            view: of the run that the events belong to.
            events: what has happened in it.

        Returns:
            False, with nothing taken, when another run or image has taken its place.
        """
        with self.lock:
            if self.view is not view or self.run_folder is None:
                return False
            known = set(view.pictures)
            first = len(view.details)
            for event in events:
                self.events.append(event)
                view.apply(event)
            for name in view.pictures.keys() - known:
                (self.run_folder / name).write_bytes(view.pictures[name])
            with (self.run_folder / "details.jsonl").open("ab") as stream:
                stream.writelines(view.details[first:])
            return True

    def end_open_run(self, view: RunView) -> bool:
        """Marks a run as stopped whose stream ended without saying so; whether it had to."""
        with self.lock:
            if view.status != "running":
                return False
            view.status = "stopped"
            return self.view is view

    def shows(self, file: Path) -> bool:
        """Whether the open image, or a frame of it, came from the file."""
        image = self.image
        return image is not None and image.file == file

    def set_image(self, image: OpenImage | None) -> None:
        """Replaces the image; the files of the one before are deleted."""
        old = self.image
        self.image = image
        self.baselines = []
        self.forget_comparison()
        if old is not None:
            shutil.rmtree(old.facts["folder"], ignore_errors=True)
            if image is None or image.file != old.file:
                old.file.unlink(missing_ok=True)

    def set_group(self, group: Group | None, facts: dict[str, Any] | None = None) -> None:
        """Replaces the group; the picture of the one before is deleted."""
        if self.group is not None:
            shutil.rmtree(self.group.folder, ignore_errors=True)
        self.group = None
        if group is not None:
            folder = self.new_folder()
            (folder / "display.png").write_bytes(group.started.image.display_png)
            self.group = OpenGroup(
                group, {"key": folder.name, "folder": str(folder), **(facts or {})}, folder
            )

    def close(self) -> None:
        """Stops the run and deletes every file."""
        with self.lock:
            self.closed = True
            self.stop.set()
            self.image, self.view, self.donors = None, None, []
            self.group, self.comparison = None, None
            shutil.rmtree(self.private, ignore_errors=True)
            shutil.rmtree(self.served, ignore_errors=True)


class Sessions:
    """The sessions of a process, by the key that Gradio gives each tab.

    Args:
        private_root: parent of the private folders; not below the served one.
        served_root: parent of the served folders; below Gradio's own temporary folder.
    """

    def __init__(self, private_root: Path, served_root: Path) -> None:
        self._private_root = private_root
        self._served_root = served_root
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: str) -> Session:
        """The session of a tab, made on its first call; idle ones are swept on the way.

        Raises:
            CrowdedError: for a new tab, when all the others are running the model.
        """
        pushed_out = None
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                pushed_out = self._make_room()
                session = self._made()
                self._sessions[key] = session
            session.touch()
        if pushed_out is not None:
            pushed_out.close()
        self.sweep(keep=key)
        return session

    def sweep(self, keep: str | None = None) -> None:
        """Closes idle sessions, and comes back by itself as long as there are any left."""
        with self._lock:
            swept = self._expired(keep)
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(SWEEP_SECONDS, self.sweep) if self._sessions else None
            if self._timer is not None:
                self._timer.daemon = True
                self._timer.start()
        for old in swept:
            old.close()

    def drop(self, key: str) -> None:
        """Ends the session of a tab that was closed."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()
            self.sweep()

    def _made(self) -> Session:
        token = secrets.token_hex(16)
        folders = (self._private_root / token, self._served_root / token)
        for folder in folders:
            folder.mkdir(mode=0o700, parents=True)
        return Session(private=folders[0], served=folders[1])

    def _make_room(self) -> Session | None:
        """Takes out the session that was idle for the longest time, if there are too many."""
        if len(self._sessions) < MAX_SESSIONS:
            return None
        idle = [key for key, session in self._sessions.items() if not session.running]
        if not idle:
            raise CrowdedError
        return self._sessions.pop(min(idle, key=lambda key: self._sessions[key].used))

    def _expired(self, keep: str | None) -> list[Session]:
        now = time.monotonic()
        gone = [
            key
            for key, session in self._sessions.items()
            if key != keep and now - session.used > IDLE_SECONDS and not session.running
        ]
        return [self._sessions.pop(key) for key in gone]
