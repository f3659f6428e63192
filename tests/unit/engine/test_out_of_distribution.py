"""The detector against plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.out_of_distribution import (
    DETECTOR_FILE,
    DetectorError,
    mahalanobis,
    read_detector,
    vision_statistics,
)


def test_statistics_are_mean_and_population_deviation() -> None:
    tokens = torch.randn(30, 8)
    expected = np.concatenate([tokens.numpy().mean(0), tokens.numpy().std(0)])

    np.testing.assert_allclose(vision_statistics(tokens).numpy(), expected, atol=1e-6)
    assert vision_statistics(tokens[:1].bfloat16()).dtype == torch.float32
    assert vision_statistics(tokens[:1])[8:].abs().sum() == 0


def test_the_distance_is_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    mean, precision = sample.mean(0), np.linalg.inv(np.cov(sample.T))
    point = rng.normal(size=4) * 3
    expected = np.sqrt((point - mean) @ precision @ (point - mean))
    got = mahalanobis(torch.tensor(point), torch.tensor(mean), torch.tensor(precision))

    assert got == pytest.approx(expected, rel=1e-6)


def detector_file(folder: Path, **changes: torch.Tensor) -> Path:
    tensors = {
        "mean": torch.zeros(16),
        "precision": torch.eye(16),
        "threshold": torch.tensor([4.0]),
        **changes,
    }
    save_file({k: v for k, v in tensors.items() if v.numel()}, folder / DETECTOR_FILE)
    return folder


def test_an_image_far_away_is_flagged(tmp_path: Path) -> None:
    detector = read_detector(detector_file(tmp_path))
    assert detector is not None
    near = detector.judge(torch.zeros(10, 8))
    far = detector.judge(torch.full((10, 8), 5.0))

    assert (near.score, near.flagged) == (0.0, False)
    assert far.score == pytest.approx(5.0 * 8**0.5)
    assert far.flagged


def test_features_of_another_width_are_not_judged(tmp_path: Path) -> None:
    detector = read_detector(detector_file(tmp_path))

    assert detector is not None
    assert detector.judge(torch.zeros(10, 9)) is None


def test_a_checkpoint_without_a_detector_has_none(tmp_path: Path) -> None:
    assert read_detector(tmp_path) is None


@pytest.mark.parametrize(
    "changes", [{"mean": torch.empty(0)}, {"precision": torch.eye(3)}, {"mean": torch.eye(16)}]
)
def test_a_detector_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(DetectorError, match=DETECTOR_FILE):
        read_detector(detector_file(tmp_path, **changes))


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / DETECTOR_FILE).write_bytes(b"not tensors")

    with pytest.raises(DetectorError, match="cannot be read"):
        read_detector(tmp_path)
