"""Serves the page around an engine without a model: `python -m tests.e2e.serve [PORT]`."""

from __future__ import annotations

import sys

from app.ui import build, launch_options
from tests.factories import FakeEngine


def main() -> None:
    """Runs until it is interrupted."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 7871
    build(FakeEngine(delay=0.03)).launch(server_port=port, **launch_options("127.0.0.1"))


if __name__ == "__main__":
    main()
