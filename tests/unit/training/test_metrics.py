"""Metrics: lines of JSON, curves, durations."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.factories import Curves
from training.config import ConfigError
from training.metrics import Metrics, readable_seconds, tensorboard_writer


def test_records_are_lines_and_points(tmp_path: Path) -> None:
    curves = Curves()
    metrics = Metrics(tmp_path, 0, curves)
    metrics.write({"step": 2, "loss": 1.5, "accuracy": 0.5})
    metrics.close()

    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 2,
        "loss": 1.5,
        "accuracy": 0.5,
    }
    assert curves.points == [("loss", 1.5, 2), ("accuracy", 0.5, 2)]
    assert curves.closed


def test_records_after_the_checkpoint_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 2, "loss": 3.0}\n{"step": 4, "loss": 2.0}\n'
    path.write_text(kept + '{"step": 6, "loss": 1.0}\n{"step": 8, "lo')

    assert Metrics(tmp_path, 4).first_loss == 3.0
    assert path.read_text() == kept
    assert Metrics(tmp_path, 0).first_loss is None
    assert path.read_text() == ""


def test_the_first_loss_may_stand_behind_scores(tmp_path: Path) -> None:
    lines = '{"step": 0, "validation_accuracy": 0.5}\n{"step": 2, "loss": 3.0}\n'
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert Metrics(tmp_path, 2).first_loss == 3.0


def test_tensorboard_is_asked_for_by_a_switch_and_named_where_it_is_missing(
    tmp_path: Path,
) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ConfigError, match="needs the package tensorboard: install it"):
            tensorboard_writer(tmp_path, 0)
        return
    writer = tensorboard_writer(tmp_path, 0)
    writer.add_scalar("loss", 1.0, 3)
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (119, "119 s"),
        (121, "2 min"),
        (3540, "59 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_readable(seconds: float, said: str) -> None:
    assert readable_seconds(seconds) == said
