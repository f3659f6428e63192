"""Serves the page around an engine without a model: `python -m tests.e2e.serve --help`."""

from __future__ import annotations

import argparse
import importlib.abc
import sys
import threading
from pathlib import Path

from app.models import FIRST, Checkpoint, Model, Models
from app.samples import Sample
from app.ui import build, launch_options
from tests import factories


class Blocker(importlib.abc.MetaPathFinder):
    """Makes the model libraries look as if they were not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in {"torch", "transformers"}:
            raise ModuleNotFoundError(name)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--delay", type=float, default=0.01)
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--fails", default="")
    parser.add_argument("--flagged", action="store_true", help="every image is a strange one")
    parser.add_argument("--sample", type=Path, help="an image to list as a sample")
    parser.add_argument("--stopped", type=Path, help="a file to write when a run was stopped")
    parser.add_argument("--other", action="append", default=[], help="name of one more model")
    parser.add_argument("--without-base", action="store_true", help="leave out the usual model")
    parser.add_argument("--replay-only", action="store_true")
    return parser.parse_args()


def made_models(options: argparse.Namespace) -> Models:
    """The models that the command line asks for."""
    if options.replay_only:
        sys.meta_path.insert(0, Blocker())
        return Models()
    engine = factories.FakeEngine(
        options.delay, tokens=options.tokens, fails=options.fails, flagged=options.flagged
    )
    if options.stopped:
        threading.Thread(target=mark, args=(engine, options.stopped), daemon=True).start()
    others = [factories.FakeEngine(options.delay, name=name) for name in options.other]
    if options.without_base:
        checkpoint = Checkpoint("medlvr", "", engine.name, methods=("direct", "latent"))
        return Models([Model(checkpoint, engine)], FIRST)
    return factories.offered(engine, *others)


def mark(engine: factories.FakeEngine, file: Path) -> None:
    """Writes the file as soon as the engine has noticed a stop."""
    engine.stopped.wait()
    file.write_text("stopped", encoding="utf-8")


def listed(sample: Path | None) -> tuple[Sample, ...] | None:
    """The sample of the tests, or those of the project."""
    if sample is None:
        return None
    return (
        Sample(
            path=sample,
            title="Drawn chest",
            kind="phantom",
            modality="DX",
            question="What is the margin of the nodule?",
            options=("Spiculated", "Smooth", "Lobulated"),
            truth="a spiculated nodule in the right lower zone",
        ),
    )


def main() -> None:
    """Prints the address, then serves until standard input closes."""
    options = read_options()
    demo = build(made_models(options), samples=listed(options.sample))
    _, url, _ = demo.launch(
        server_port=options.port,
        prevent_thread_lock=True,
        quiet=True,
        **launch_options("127.0.0.1"),
    )
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    demo.close()


if __name__ == "__main__":
    main()
