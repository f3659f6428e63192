"""The command line of the page."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from app.startup import is_loopback, read_options


def test_the_default_is_every_embedded_model_on_this_machine_only() -> None:
    options = read_options([])

    assert options.checkpoint is None
    assert (options.host, options.port, options.accounts) == ("127.0.0.1", None, ())
    assert options.warning == ""


def test_a_space_sets_the_address_itself() -> None:
    assert read_options([], on_space=True).host is None


def test_other_machines_need_accounts_and_get_a_warning(tmp_path: Path) -> None:
    accounts = tmp_path / "accounts"
    accounts.write_text("ada:secret:with colon\n\nbob:x\n")

    options = read_options(["--host", "0.0.0.0", "--auth-file", str(accounts)])

    assert options.accounts == (("ada", "secret:with colon"), ("bob", "x"))
    assert "without encryption" in options.warning


def test_a_hub_id_is_no_folder() -> None:
    assert read_options(["--checkpoint", "org/model"]).checkpoint == "org/model"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--share"], "no public tunnel"),
        (["--host", "0.0.0.0"], "--auth-file"),
        (["--host", "example.org"], "--auth-file"),
        (["--port", "0"], "65535"),
        (["--port", "x"], "invalid int"),
        (["--checkpoint", "/nowhere/at/all"], "no folder"),
        (["--checkpoint", "./missing"], "no folder"),
        (["--auth-file", "/nowhere"], "cannot be read"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        read_options(arguments)

    assert caught.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            read_options(["--port", str(port)])

    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"--port {port} cannot be used, as by another program: choose another.")
    assert read_options(["--port", str(port)]).port == port


@pytest.mark.parametrize("content", ["", "no colon", "ada:", ":secret"])
def test_an_account_file_without_accounts_is_refused(tmp_path: Path, content: str) -> None:
    accounts = tmp_path / "accounts"
    accounts.write_text(content)

    with pytest.raises(SystemExit):
        read_options(["--auth-file", str(accounts)])


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.5.5.5", True),
     ("0.0.0.0", False), ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
