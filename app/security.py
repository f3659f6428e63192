"""Keeping other sites, other users and other files out."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD_BYTES: Final = 64 * 2**20
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

# Gradio makes functions out of strings and sets inline scripts, so scripts cannot be held to
# files; what holds is that nothing is fetched from, or sent to, anywhere else.
_POLICY: Final = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "media-src": "'self' data: blob:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
# A Space shows the page in a frame of Hugging Face.
_SPACE_FRAMES: Final = "https://huggingface.co https://*.huggingface.co https://*.hf.space"
_FILES: Final = "/gradio_api/file="
_UPLOAD: Final = "/gradio_api/upload"

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class UploadError(ValueError):
    """An upload that cannot be taken; the message is one sentence for the user."""


class PrivateHeaders:
    """ASGI middleware whose headers keep the page to itself.

    The browser fetches from this server only (Content Security Policy), tells no other site
    where it came from, takes no file for another type than it says, and keeps no picture, no
    trace and no upload in its cache.

    Args:
        app: the wrapped application.
        on_space: whether Hugging Face may show the page in a frame.
    """

    def __init__(self, app: ASGIApp, *, on_space: bool = False) -> None:
        self._app = app
        frames = f"'self' {_SPACE_FRAMES}" if on_space else "'self'"
        policy = {**_POLICY, "frame-ancestors": frames}
        self._policy = "; ".join(f"{name} {value}" for name, value in policy.items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and adds to the head of the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = self._policy
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                if _FILES in path:
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, guarded)


class SameOriginGuard:
    """ASGI middleware that turns away requests which another site made the browser send.

    A page of any site can make a browser post to a server on this machine. Such a request
    carries an `Origin` that is not ours and `Sec-Fetch-Site: cross-site`; following a link to
    the page, or framing it, is a navigation and stays allowed (W3C Fetch Metadata).

    Args:
        app: the wrapped application.
        hosts: host names under which the page may be reached, or None for any. A server on
            loopback names them, so that a foreign name that resolves to it is refused.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None = None) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 or passes the request on."""
        if scope["type"] == "http" and not self.allows(scope["method"], Headers(scope=scope)):
            await PlainTextResponse("Refused.", status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def allows(self, method: str, headers: Headers) -> bool:
        """Whether a request with these headers may pass."""
        host = headers.get("host", "")
        if self._hosts is not None and _host_name(host) not in self._hosts:
            return False
        site = headers.get("sec-fetch-site", "")
        if method in _SAFE_METHODS:
            return site != "cross-site" or headers.get("sec-fetch-mode") == "navigate"
        if site == "cross-site":
            return False
        origin = headers.get("origin")
        if origin is None:
            return True
        return urlsplit(origin).netloc in {host, headers.get("x-forwarded-host", host)}


class UploadSweeper:
    """ASGI middleware that deletes what was uploaded and not opened, also where it broke off.

    Args:
        app: the wrapped application.
        upload_root: the folder that uploads arrive in.
        served_root: the folder of our own files inside it, which are no uploads.
        seconds: how long an upload may wait for its tab to open it.
    """

    def __init__(
        self, app: ASGIApp, *, upload_root: Path, served_root: Path, seconds: float
    ) -> None:
        self._app = app
        self._folders = (upload_root, served_root)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; looks after an upload once its time is over."""
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] == "http" and scope["path"].endswith(_UPLOAD):
                loop = asyncio.get_running_loop()
                loop.call_later(self._seconds, delete_uploads, *self._folders, self._seconds)


def delete_uploads(upload_root: Path, served_root: Path, seconds: float) -> None:
    """Deletes the uploads to which nothing was written for so many seconds."""
    oldest = time.time() - seconds
    for entry in list(upload_root.iterdir()):
        if entry == served_root:
            continue
        # A tab may open it at this moment, and a folder may still hold a younger one.
        with contextlib.suppress(OSError):
            for file in [entry] if entry.is_file() else list(entry.iterdir()):
                if file.stat().st_mtime <= oldest:
                    file.unlink()
            entry.rmdir()


def _host_name(host: str) -> str:
    return urlsplit(f"//{host}").hostname or ""


def claim_upload(path: object, upload_root: Path, served_root: Path) -> bytes:
    """The bytes of a file that was just uploaded; Gradio's copy is deleted at once.

    Args:
        path: the path that the page sent back; nothing about it is trusted.
        upload_root: the folder that uploads arrive in.
        served_root: the folder of our own files inside it, which are no uploads.

    Raises:
        UploadError: when the path is no upload, or the file is empty or too large.
    """
    refused = UploadError("The upload did not arrive: try it again.")
    if not isinstance(path, str) or "\0" in path or not Path(path).is_absolute():
        raise refused
    given = Path(path)
    file = given.resolve()
    root, served = upload_root.resolve(), served_root.resolve()
    inside = file.is_relative_to(root) and not file.is_relative_to(served)
    # An upload lies exactly one folder deep, in a folder named by the hash of its content.
    if not inside or given.is_symlink() or len(file.relative_to(root).parts) != 2:
        raise refused
    if not file.is_file():
        raise refused
    try:
        if file.stat().st_size > MAX_UPLOAD_BYTES:
            raise UploadError(f"The file is larger than {MAX_UPLOAD_BYTES // 2**20} MB.")
        data = file.read_bytes()
    finally:
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # The same content may have come from two tabs.
            file.parent.rmdir()
    if not data:
        raise UploadError("The file is empty.")
    return data


def private_folder(prefix: str = "lightbox-", parent: Path | None = None) -> Path:
    """A new temporary folder that only this user can enter, deleted when the program ends.

    Args:
        prefix: of its name, which cannot be guessed.
        parent: the folder to make it in; None takes the system's folder for temporary files.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
