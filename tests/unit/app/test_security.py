"""What keeps other sites, other users and other files out."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import security
from app.security import (
    LOOPBACK,
    PrivateHeaders,
    SameOriginGuard,
    UploadError,
    UploadSweeper,
    claim_upload,
    delete_uploads,
    private_folder,
)


async def answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("in")


@pytest.fixture
def client() -> TestClient:
    app = Starlette(
        routes=[Route("/", answer, methods=["GET", "POST"])],
        middleware=[Middleware(SameOriginGuard, hosts=LOOPBACK)],
    )
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        pytest.param("GET", {}, 200, id="plain"),
        pytest.param("POST", {}, 200, id="program without a browser"),
        pytest.param("POST", {"origin": "http://127.0.0.1:7860"}, 200, id="own page"),
        pytest.param("POST", {"origin": "https://evil.example"}, 403, id="foreign page posts"),
        pytest.param("POST", {"origin": "null"}, 403, id="sandboxed frame posts"),
        pytest.param("POST", {"origin": "http://127.0.0.1:9"}, 403, id="other port posts"),
        pytest.param("POST", {"sec-fetch-site": "cross-site"}, 403, id="cross-site post"),
        pytest.param("GET", {"sec-fetch-site": "cross-site"}, 403, id="foreign page embeds"),
        pytest.param(
            "GET",
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
            200,
            id="link followed",
        ),
        pytest.param("GET", {"host": "evil.example:7860"}, 403, id="rebound name"),
        pytest.param("GET", {"host": "localhost:7860"}, 200, id="localhost"),
        pytest.param("GET", {"host": "[::1]:7860"}, 200, id="loopback of IPv6"),
    ],
)
def test_requests_of_other_sites_are_refused(
    client: TestClient, method: str, headers: dict[str, str], status: int
) -> None:
    assert client.request(method, "/", headers=headers).status_code == status


def test_behind_a_proxy_the_public_name_is_the_origin() -> None:
    guard = SameOriginGuard(answer)  # type: ignore[arg-type]
    headers = Headers({
        "host": "10.0.0.7:7860",
        "x-forwarded-host": "demo.hf.space",
        "origin": "https://demo.hf.space",
    })  # fmt: skip

    assert guard.allows("POST", headers)


@pytest.mark.parametrize("on_space", [False, True])
def test_every_answer_tells_the_browser_to_keep_to_this_server(on_space: bool) -> None:
    app = Starlette(
        routes=[Route("/{path:path}", answer)],
        middleware=[
            Middleware(PrivateHeaders, on_space=on_space),
            Middleware(SameOriginGuard, hosts=LOOPBACK),
        ],
    )
    client = TestClient(app, base_url="http://127.0.0.1:7860")
    page = client.get("/").headers
    picture = client.get("/gradio_api/file=/tmp/x/image.raw").headers
    refused = client.get("/", headers={"host": "evil.example"}).headers
    policy = dict(part.split(" ", 1) for part in page["content-security-policy"].split("; "))

    assert policy["connect-src"] == "'self' data: blob:"
    assert policy["default-src"] == policy["form-action"] == "'self'"
    assert policy["object-src"] == "'none'"
    assert ("huggingface.co" in policy["frame-ancestors"]) is on_space
    assert not any("http" in value for name, value in policy.items() if name != "frame-ancestors")
    assert page["x-content-type-options"] == "nosniff"
    assert page["referrer-policy"] == "no-referrer"
    assert picture["cache-control"] == "no-store"
    assert "cache-control" not in page
    assert refused["content-security-policy"] == page["content-security-policy"]


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    upload = tmp_path / "gradio"
    served = upload / "served"
    served.mkdir(parents=True)
    return upload, served


def uploaded(upload: Path, data: bytes, name: str = "0123abcd") -> Path:
    folder = upload / name
    folder.mkdir(exist_ok=True)
    file = folder / "x.bin"
    file.write_bytes(data)
    return file


def test_an_upload_is_read_and_gone_at_once(roots: tuple[Path, Path]) -> None:
    file = uploaded(roots[0], b"pixels")

    assert claim_upload(str(file), *roots) == b"pixels"
    assert not file.exists()
    assert not file.parent.exists()


def test_another_tab_with_the_same_content_keeps_its_copy(roots: tuple[Path, Path]) -> None:
    file = uploaded(roots[0], b"pixels")
    other = file.with_name("y.bin")
    other.write_bytes(b"pixels")

    claim_upload(str(file), *roots)

    assert claim_upload(str(other), *roots) == b"pixels"


def test_paths_that_are_no_upload_are_refused_and_stay(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    deep = roots[1] / "session" / "image.raw"
    deep.parent.mkdir()
    deep.write_bytes(b"another user's")
    top = roots[0] / "top.bin"
    top.write_bytes(b"x")
    link = roots[0] / "0123abcd"
    link.mkdir()
    (link / "link.bin").symlink_to(secret)
    attempts: list[object] = [
        str(secret),
        str(roots[0] / ".." / "secret.txt"),
        str(deep),
        str(top),
        str(link / "link.bin"),
        str(roots[0] / "0123abcd"),
        "relative.bin",
        "/etc/passwd",
        "bad\0name",
        None,
        7,
        ["x"],
    ]

    for attempt in attempts:
        with pytest.raises(UploadError):
            claim_upload(attempt, *roots)

    assert secret.exists()
    assert deep.exists()


def test_an_empty_upload_is_refused_and_deleted(roots: tuple[Path, Path]) -> None:
    file = uploaded(roots[0], b"")

    with pytest.raises(UploadError, match="empty"):
        claim_upload(str(file), *roots)

    assert not file.exists()


def test_a_large_upload_is_refused_and_deleted(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_UPLOAD_BYTES", 3)
    file = uploaded(roots[0], b"four")

    with pytest.raises(UploadError, match="larger"):
        claim_upload(str(file), *roots)

    assert not file.exists()


def test_old_uploads_are_deleted_with_their_folders(roots: tuple[Path, Path]) -> None:
    upload, served = roots
    old, fresh = uploaded(upload, b"old"), uploaded(upload, b"fresh", "4567cdef")
    broken, arriving = upload / "tmp1", upload / "tmp2"
    ours = served / "session" / "image.raw"
    ours.parent.mkdir()
    for file in (broken, arriving, ours):
        file.write_bytes(b"x")
    for file in (old, broken, ours):
        os.utime(file, (0, 0))

    delete_uploads(upload, served, 60.0)

    assert not old.parent.exists()
    assert not broken.exists()
    assert fresh.exists()
    assert arriving.exists()
    assert ours.exists()


def test_an_upload_that_breaks_off_is_swept(roots: tuple[Path, Path]) -> None:
    upload, served = roots

    async def break_off(_: Request) -> PlainTextResponse:
        (upload / "tmp1").write_bytes(b"half of a picture")
        raise ClientDisconnect

    app = Starlette(
        routes=[Route("/gradio_api/upload", break_off, methods=["POST"])],
        middleware=[Middleware(UploadSweeper, upload_root=upload, served_root=served, seconds=0.1)],
    )
    with TestClient(app) as client:
        with pytest.raises(ClientDisconnect):
            client.post("/gradio_api/upload")
        assert (upload / "tmp1").exists()
        end = time.monotonic() + 30.0
        while (upload / "tmp1").exists() and time.monotonic() < end:
            time.sleep(0.02)

    assert not (upload / "tmp1").exists()


def test_private_folders_are_closed_to_others() -> None:
    folder = private_folder()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    os.rmdir(folder)


def test_private_folders_end_with_the_program() -> None:
    program = (
        "from app.security import private_folder\n"
        "folder = private_folder()\n"
        "(folder / 'image.raw').write_bytes(b'pixels')\n"
        "print(folder)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("/")
    assert not Path(done.stdout.strip()).exists()
