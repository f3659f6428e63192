"""The numbers of a run over its steps: JSON lines, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from training.checkpoints import write_whole
from training.config import ConfigError

METRICS_FILE: Final = "metrics.jsonl"
TENSORBOARD_FOLDER: Final = "tensorboard"


class ScalarWriter(Protocol):
    """What of TensorBoard's `SummaryWriter` is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:  # noqa: ANN401
        """Adds one point to a curve."""

    def close(self) -> None:
        """Writes what is left."""


class Metrics:
    """Appends records to `metrics.jsonl`, one JSON object a line.

    Args:
        folder: of the run.
        start: step that the run goes on from; records of later steps are of a run that was
            killed before it could save them, and are written again.
        writer: takes the same numbers as curves; None: no TensorBoard.

    Attributes:
        first_loss: the first one that is there.
        is_scored: whether the scores of step `start` are there, which a kill right behind the
            checkpoint may have cost.
    """

    def __init__(self, folder: Path, start: int, writer: ScalarWriter | None = None) -> None:
        self._path = folder / METRICS_FILE
        self._writer = writer
        kept = _trimmed(self._path, start)
        # Scores may stand before it.
        self.first_loss = next((record["loss"] for record in kept if "loss" in record), None)
        self.is_scored = any(r["step"] == start and "loss" not in r for r in kept)

    def write(self, record: Mapping[str, float]) -> None:
        """Adds the numbers of one step; `step` is among them."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")
        if self._writer is not None:
            for name, number in record.items():
                if name != "step":
                    self._writer.add_scalar(name, number, int(record["step"]))

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def _trimmed(path: Path, start: int) -> list[dict[str, float]]:
    """Drops records past a step, and a line that was cut; returns those that are left."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    kept, records = [], []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] > start:
            continue
        kept.append(line)
        records.append(record)
    if kept != lines:
        text = "".join(f"{line}\n" for line in kept)
        write_whole(path, lambda file: file.write(text.encode()))
    return records


def require_tensorboard(wanted: bool) -> None:
    """Refuses at once what would be refused once everything is drawn and encoded.

    Raises:
        ConfigError: the package tensorboard is wanted and not installed.
    """
    if wanted:
        _summary_writer()


def _summary_writer() -> Callable[..., ScalarWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "The switch tensorboard needs the package tensorboard: install it, or leave the "
            "switch off."
        ) from error
    found: Callable[..., ScalarWriter] = SummaryWriter
    return found


def tensorboard_writer(folder: Path, start: int) -> ScalarWriter:
    """A writer of curves into `folder/tensorboard`, where `tensorboard --logdir` finds them.

    Args:
        folder: of the run.
        start: step that the run goes on from; later points of a killed run are hidden.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """
    return _summary_writer()(str(folder / TENSORBOARD_FOLDER), purge_step=start + 1)


def readable_seconds(seconds: float) -> str:
    """A duration for people: seconds below two minutes, then minutes, then hours.

    >>> readable_seconds(95), readable_seconds(600), readable_seconds(3900)
    ('95 s', '10 min', '1 h 05 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
