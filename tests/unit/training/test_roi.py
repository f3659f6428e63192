"""Regions of interest on the grid of visual tokens, and the losses against them."""

import math

import pytest
import torch

from engine.geometry import FULL_IMAGE, Box, PatchGrid
from training.roi import (
    CONTRAST_TEMPERATURE,
    block_shape,
    contrast_loss,
    roi_cells,
    roi_loss,
    roi_targets,
)

GRID = PatchGrid(4, 6)
TOKENS = torch.arange(24.0)[:, None].expand(-1, 3).contiguous()


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        (FULL_IMAGE, list(range(24))),
        (Box(0.0, 0.0, 0.01, 0.01), [0]),
        (Box(0.99, 0.99, 1.0, 1.0), [23]),
        # Floor and ceiling of 1.2 to 3.6 columns and 0.8 to 2.0 rows.
        (Box(0.2, 0.2, 0.6, 0.5), [1, 2, 3, 7, 8, 9]),
        (Box(1 / 6, 0.25, 2 / 6, 0.5), [7]),
    ],
)
def test_boxes_become_blocks_of_tokens(box: Box, cells: list[int]) -> None:
    assert roi_cells([box], GRID) == cells


def test_a_block_of_an_upright_grid_is_not_transposed() -> None:
    assert roi_cells([Box(0.0, 0.5, 1.0, 0.6)], PatchGrid(6, 4)) == [12, 13, 14, 15]
    assert roi_cells([Box(0.5, 0.0, 0.6, 1.0)], PatchGrid(4, 6)) == [3, 9, 15, 21]


def test_several_boxes_are_a_union_with_the_largest_first() -> None:
    small, large = Box(0.0, 0.0, 1 / 6, 0.25), Box(0.0, 0.0, 2 / 6, 0.5)
    assert roi_cells([small, large], GRID) == [0, 1, 6, 7]
    apart = Box(5 / 6, 0.75, 1.0, 1.0)
    assert roi_cells([apart, large], GRID) == [0, 1, 6, 7, 23]
    assert roi_cells([], GRID) == list(range(24))


@pytest.mark.parametrize(
    ("rows", "columns", "steps", "shape"),
    [
        (4, 8, 8, (2, 4)),
        (8, 4, 8, (4, 2)),
        (3, 3, 4, (2, 2)),
        (1, 9, 3, (1, 3)),
        (9, 1, 3, (3, 1)),
        (2, 2, 1, (1, 1)),
    ],
)
def test_blocks_are_cut_into_near_squares(
    rows: int, columns: int, steps: int, shape: tuple[int, int]
) -> None:
    assert block_shape(rows, columns, steps) == shape


def test_pooled_targets_by_hand() -> None:
    # Rows 0 and 1, columns 0 to 3: cells 0 1 2 3 / 6 7 8 9, cut into two squares.
    found = roi_targets(TOKENS, GRID, [Box(0.0, 0.0, 4 / 6, 0.5)], "roi_pooled", 2)
    assert found[:, 0].tolist() == [(0 + 1 + 6 + 7) / 4, (2 + 3 + 8 + 9) / 4]


def test_steps_are_shared_among_boxes_and_the_largest_takes_the_rest() -> None:
    small, large = Box(5 / 6, 0.75, 1.0, 1.0), Box(0.0, 0.0, 2 / 6, 0.25)
    found = roi_targets(TOKENS, GRID, [small, large], "roi_pooled", 3)
    assert found[:, 0].tolist() == [0, 1, 23]
    assert roi_targets(TOKENS, GRID, [small, large], "roi_pooled", 1)[:, 0].tolist() == [0.5]


def test_a_single_token_fills_all_steps() -> None:
    found = roi_targets(TOKENS, GRID, [Box(1 / 6, 0.25, 2 / 6, 0.5)], "roi_pooled", 4)
    assert found[:, 0].tolist() == [7, 7, 7, 7]


def test_full_targets_are_the_tokens_themselves() -> None:
    found = roi_targets(TOKENS, GRID, [Box(0.0, 0.0, 2 / 6, 0.5)], "roi_full", 8)
    assert found[:, 0].tolist() == [0, 1, 6, 7]
    with pytest.raises(ValueError, match="steps"):
        roi_targets(TOKENS, GRID, [], "roi_pooled", 0)


def test_losses_by_hand() -> None:
    hidden, targets = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert float(roi_loss(hidden, targets, "mse")) == 1.0
    # Cosine 24/25; scaled to a root mean square of 1 the vectors are sqrt(2)/5 times (3, 4).
    expected = 1 - 24 / 25 + 0.1 * (2 / 25)
    assert float(roi_loss(hidden, targets, "cosine")) == pytest.approx(expected, rel=1e-5)


def test_the_cosine_loss_does_not_care_about_scale() -> None:
    hidden, targets = torch.randn(5, 8), torch.randn(5, 8)
    one, other = roi_loss(hidden, targets, "cosine"), roi_loss(7 * hidden, 0.2 * targets, "cosine")
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert float(roi_loss(targets, 3 * targets, "cosine")) == pytest.approx(0.0, abs=1e-5)


def test_tokens_of_the_view_compete_for_a_latent() -> None:
    """Cosines of 1, 0 and 0 by hand; the region is the first token, or the first two."""
    tokens = torch.eye(3)
    latent = torch.tensor([[5.0, 0.0, 0.0]])
    high = math.exp(1 / CONTRAST_TEMPERATURE)
    assert contrast_loss(latent, tokens, [0]).item() == pytest.approx(
        -math.log(high / (high + 2)), abs=1e-7
    )
    assert contrast_loss(latent, tokens, [1]).item() == pytest.approx(-math.log(1 / (high + 2)))
    both = contrast_loss(latent, tokens, [0, 1]).item()
    assert both == pytest.approx(-math.log((high + 1) / (high + 2)), abs=1e-6)
    assert contrast_loss(latent, tokens, [0, 1, 2]).item() == pytest.approx(0.0, abs=1e-6)


def test_what_all_tokens_share_is_no_evidence() -> None:
    """A latent of the shared direction alone is close to its target and points nowhere."""
    shared = torch.tensor([10.0, 0.0, 0.0, 0.0])
    tokens = torch.eye(4)[1:] + shared
    assert roi_loss(shared[None], tokens[:1], "cosine").item() < 0.01
    assert contrast_loss(shared[None], tokens, [0]).item() == pytest.approx(math.log(3), rel=1e-3)
