"""The command line of the page, and what it refuses."""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKPOINTS: Final = Path(__file__).resolve().parent.parent / "assets" / "checkpoints"
PRIVACY_WARNING: Final = (
    "Warning: other machines can reach this page. Images and questions then cross the network "
    "without encryption: put it behind HTTPS, and keep images of real patients away."
)
SHARE_REFUSED: Final = (
    "Lightbox opens no public tunnel, because images would leave this machine: "
    "use --host with --auth-file instead."
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for.

    Attributes:
        checkpoint: a hub id or a folder; None offers every embedded model.
        host: the address to listen on; None leaves it to Gradio, as a Space needs.
        port: None takes the first free one from 7860.
        accounts: names and passwords; empty for none.
    """

    checkpoint: str | None
    host: str | None
    port: int | None
    accounts: tuple[tuple[str, str], ...]

    @property
    def warning(self) -> str:
        """A sentence for the terminal when the page is open to other machines."""
        return "" if self.host is None or is_loopback(self.host) else PRIVACY_WARNING


def read_options(arguments: Sequence[str], *, on_space: bool = False) -> Options:
    """Parses the command line; ends the program with status 2 and one line on bad input.

    Args:
        arguments: without the program's name.
        on_space: whether this is a Hugging Face Space, which sets the address itself.
    """
    parser = argparse.ArgumentParser(
        prog="app.py", description="Watch a vision-language model read a medical image."
    )
    parser.add_argument(
        "--checkpoint",
        metavar="ID_OR_DIR",
        help="hub id or folder of a Qwen2.5-VL checkpoint (default: all embedded models to "
        "choose from)",
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--auth-file", type=Path, metavar="FILE", help="accounts, one `name:password` a line"
    )
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.share:
        parser.error(SHARE_REFUSED)
    accounts = _accounts(parser, given.auth_file)
    host = given.host or (None if on_space else "127.0.0.1")
    if host is not None and not is_loopback(host) and not accounts:
        parser.error(f"--host {host} lets other machines in: it needs --auth-file.")
    if given.port is not None and not 1 <= given.port <= 65_535:
        parser.error("--port must lie in 1 to 65535.")
    if given.port is not None and not _is_free(host or "127.0.0.1", given.port):
        parser.error(f"--port {given.port} cannot be used, as by another program: choose another.")
    options = Options(given.checkpoint, host, given.port, accounts)
    checkpoint = options.checkpoint
    if checkpoint is not None and _looks_like_path(checkpoint) and not Path(checkpoint).is_dir():
        parser.error(f"--checkpoint: there is no folder {checkpoint}.")
    return options


def _is_free(host: str, port: int) -> bool:
    """Whether the port can be listened on; an address that is none is left to the server."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError:
        return True
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _looks_like_path(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1


def _accounts(parser: argparse.ArgumentParser, file: Path | None) -> tuple[tuple[str, str], ...]:
    if file is None:
        return ()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        parser.error("--auth-file: the file cannot be read.")
    pairs = [line.strip().partition(":") for line in lines if line.strip()]
    accounts = tuple((name, password) for name, _, password in pairs)
    if not accounts or any(not name or not password for name, password in accounts):
        parser.error("--auth-file: each line must read name:password.")
    return accounts
