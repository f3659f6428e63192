"""Rows, layers and the bytes that they take."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.attention import (
    BLOCK_STEPS,
    AttentionRecorder,
    BatchRecorder,
    ImageSpan,
    row_scores,
    row_weights,
    traced_layers,
)
from engine.geometry import PatchGrid

SPANS = (ImageSpan(0, 3, PatchGrid(2, 3)), ImageSpan(1, 12, PatchGrid(2, 2)))


class Layer(torch.nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index


def naive_rows(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Attention of the last query, `(H, S)`, head by head."""
    group = query.shape[1] // key.shape[1]
    rows = [
        torch.softmax(key[0, head // group] @ query[0, head, -1] * query.shape[-1] ** -0.5, 0)
        for head in range(query.shape[1])
    ]
    return torch.stack(rows)


def test_rows_equal_attention_head_by_head() -> None:
    query, key = torch.randn(1, 6, 3, 8), torch.randn(1, 2, 20, 8)
    got = row_weights(row_scores(query, key), 8**-0.5, None)

    torch.testing.assert_close(got.flatten(0, 2), naive_rows(query, key), atol=1e-6, rtol=0)


def test_masked_columns_get_no_weight() -> None:
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 20, 8)
    allowed = torch.rand(20) > 0.5
    weights = row_weights(row_scores(query, key), 8**-0.5, allowed)

    assert weights[..., ~allowed].abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 2))


@given(st.integers(1, 80))
def test_default_layers_are_few_and_lie_in_the_middle_of_their_part(layers: int) -> None:
    chosen = traced_layers("default", layers)

    assert 1 <= len(chosen) <= max(1, min(8, layers // 3))
    # As many layers are left out before the first as behind the last, give or take one.
    assert abs(chosen[0] - (layers - 1 - chosen[-1])) <= 1
    gaps = {late - early for early, late in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert len(set(chosen)) == len(chosen)
    assert traced_layers("none", layers) == ()
    assert traced_layers("all", layers) == tuple(range(layers))


def test_a_recorder_keeps_the_mean_over_heads_of_the_image_columns() -> None:
    recorder = AttentionRecorder((0, 2))
    recorder.begin_step(SPANS)
    expected = []
    for index in range(3):
        query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 20, 8)
        recorder.take(Layer(index), query, key, None, None)
        if index != 1:
            mean = naive_rows(query, key).mean(0)
            expected.append(torch.cat([mean[3:9], mean[12:16]]))
    (rows,) = recorder.rows()

    assert rows.dtype == torch.float16
    torch.testing.assert_close(rows[0].float(), torch.stack(expected), atol=5e-4, rtol=0)
    torch.testing.assert_close(
        recorder.mean_row(), torch.stack(expected).mean(0), atol=5e-4, rtol=0
    )


@pytest.mark.parametrize("steps", [1, BLOCK_STEPS - 1, BLOCK_STEPS, 2 * BLOCK_STEPS + 3])
def test_bytes_kept_are_two_per_step_layer_and_image_token(steps: int) -> None:
    recorder = AttentionRecorder((0, 1, 2))
    for _ in range(steps):
        recorder.begin_step(SPANS[:1])
    recorder.finish()

    assert recorder.steps == steps
    assert recorder.bytes_kept() == steps * 3 * 6 * 2


def test_a_new_crop_widens_the_rows_and_wastes_nothing() -> None:
    recorder = AttentionRecorder((0, 1))
    for spans, steps in ((SPANS[:1], 5), (SPANS, 7)):
        for _ in range(steps):
            recorder.begin_step(spans)
    recorder.finish()

    assert [tuple(rows.shape) for rows in recorder.rows()] == [(5, 2, 6), (7, 2, 10)]
    assert recorder.bytes_kept() == 2 * 2 * (5 * 6 + 7 * 10)


def test_a_batch_gives_every_branch_its_own_rows() -> None:
    recorders = [AttentionRecorder((0,)) for _ in range(2)]
    for recorder in recorders:
        recorder.begin_step(SPANS[:1])
    query, key = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 20, 8)
    mask = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    mask[1, ..., 15:] = False
    BatchRecorder(recorders).take(Layer(0), query, key, mask, None)

    for row, columns in ((0, 20), (1, 15)):
        one = slice(row, row + 1)
        expected = naive_rows(query[one], key[one, :, :columns]).mean(0)[3:9]
        torch.testing.assert_close(recorders[row].mean_row(), expected, atol=5e-4, rtol=0)


def test_nothing_is_kept_without_layers() -> None:
    recorder = AttentionRecorder(())
    recorder.begin_step(SPANS)

    assert recorder.mean_row().numel() == 0
    assert recorder.bytes_kept() == 0
