"""Keeping other sites, other users and other files out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_UPLOAD_BYTES: Final = 64 * 2**20
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class UploadError(ValueError):
    """An upload that cannot be taken; the message is one sentence for the user."""


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


def private_folder() -> Path:
    """A new temporary folder that only this user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="lightbox-"))
    os.chmod(folder, 0o700)
    return folder.resolve()
