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

from app.view import RunView
from engine.imaging import SourceImage
from engine.trace import Event

IDLE_SECONDS: Final = 1800
SWEEP_SECONDS: Final = 60
MAX_SESSIONS: Final = 64


@dataclass(slots=True)
class OpenImage:
    """The image of a session.

    Attributes:
        id: changes with every image and frame, so that the page never shows an old one.
        file: the uploaded bytes, in a folder that is not served.
        facts: see `app.pictures.describe`, with the folder of its files.
    """

    id: str
    file: Path
    source: SourceImage
    facts: dict[str, Any]


@dataclass(slots=True)
class Session:
    """Everything that belongs to one tab.

    Attributes:
        private: a folder that no URL reaches: uploaded files.
        served: a folder whose files the page fetches; its name cannot be guessed.
        stop: of the run in progress; set to end it.
    """

    private: Path
    served: Path
    image: OpenImage | None = None
    events: list[Event] = field(default_factory=list)
    view: RunView | None = None
    run_folder: Path | None = None
    run_image: str | None = None
    replay: bool = False
    before: dict[str, Any] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    used: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> bool:
        """Whether a run is in progress."""
        return self.view is not None and self.view.status == "running" and not self.replay

    def touch(self) -> None:
        """Notes that the tab is in use."""
        self.used = time.monotonic()

    def new_folder(self) -> Path:
        """An empty served folder."""
        folder = self.served / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        return folder

    def new_run(self, *, replay: bool) -> RunView:
        """Forgets the run before and starts an empty one."""
        before = self.before
        self.forget_run()
        self.before = before
        self.run_folder = self.new_folder()
        self.view = RunView()
        self.replay = replay
        self.run_image = None if replay or self.image is None else self.image.id
        return self.view

    def forget_run(self) -> None:
        """Leaves no run behind."""
        if self.run_folder is not None:
            shutil.rmtree(self.run_folder, ignore_errors=True)
        self.run_folder, self.view, self.before = None, None, None
        self.events = []
        self.replay = False

    def take(self, events: Iterable[Event]) -> None:
        """Folds events into the view and writes the files that the page may fetch."""
        if self.view is None or self.run_folder is None:
            return
        known = set(self.view.pictures)
        first = len(self.view.details)
        for event in events:
            self.events.append(event)
            self.view.apply(event)
        for name in self.view.pictures.keys() - known:
            (self.run_folder / name).write_bytes(self.view.pictures[name])
        with (self.run_folder / "details.jsonl").open("ab") as stream:
            stream.writelines(self.view.details[first:])

    def end_open_run(self) -> bool:
        """Marks a run as stopped whose stream ended without saying so; whether it had to."""
        if self.view is None or self.view.status != "running":
            return False
        self.view.status = "stopped"
        return True

    def set_image(self, image: OpenImage | None) -> None:
        """Replaces the image; the files of the one before are deleted."""
        old = self.image
        self.image = image
        if old is not None:
            shutil.rmtree(old.facts["folder"], ignore_errors=True)
            if image is None or image.file != old.file:
                old.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Stops the run and deletes every file."""
        self.stop.set()
        self.view = None
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
        """The session of a tab, made on its first call; idle ones are swept on the way."""
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                session = self._made()
                self._sessions[key] = session
            session.touch()
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

    def _expired(self, keep: str | None) -> list[Session]:
        now = time.monotonic()
        by_age = sorted(self._sessions, key=lambda key: self._sessions[key].used)
        too_many = max(0, len(by_age) - MAX_SESSIONS)
        gone = [
            key
            for rank, key in enumerate(by_age)
            if key != keep and (rank < too_many or now - self._sessions[key].used > IDLE_SECONDS)
        ]
        return [self._sessions.pop(key) for key in gone]
