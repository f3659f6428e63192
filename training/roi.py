"""Regions of interest as targets of latent steps (MedLVR stage 1; LVR, methods 2.3).

A box becomes the block of visual tokens that it touches. LVR feeds and predicts all of them
(`roi_full`), which at decoding time has no counterpart of the same length; `roi_pooled`
averages them to exactly K targets, so that training and decoding agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch.nn import functional

from engine.geometry import FULL_IMAGE, Box, PatchGrid

RoiTarget = Literal["roi_pooled", "roi_full"]
RoiLoss = Literal["mse", "cosine"]

# Of cosines that compete.
CONTRAST_TEMPERATURE: Final = 0.1
# Of the mean squared error of normalised vectors beside the cosine.
_NORMALISED_WEIGHT: Final = 0.1
_EPSILON: Final = 1e-6


def roi_cells(boxes: Sequence[Box], grid: PatchGrid) -> list[int]:
    """Visual tokens of the boxes, each once: the largest box first, raster order inside a box.

    No box stands for the whole image. A box always has at least one token.
    """
    cells: list[int] = []
    for box in _ordered(boxes):
        cells += grid.cells_of(box)
    return list(dict.fromkeys(cells))


def roi_targets(
    tokens: torch.Tensor,
    grid: PatchGrid,
    boxes: Sequence[Box],
    target: RoiTarget,
    steps: int,
) -> torch.Tensor:
    """What the latent steps of a record are to hold.

    Args:
        tokens: `(rows * columns, D)`, visual tokens of the view.
        grid: its grid.
        boxes: regions of interest, normalised; none for the whole image.
        target: pooled to `steps` vectors, or every token of the regions.
        steps: K; for `roi_pooled` with more boxes than that, the largest K are kept.

    Returns:
        `(steps, D)` for `roi_pooled`, `(n, D)` for `roi_full`.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}.")
    if target == "roi_full":
        return tokens[roi_cells(boxes, grid)]
    kept = _ordered(boxes)[:steps]
    # The largest regions take what does not divide.
    shares = [steps // len(kept) + (index < steps % len(kept)) for index in range(len(kept))]
    return torch.cat(
        [_pooled(tokens, grid, box, share) for box, share in zip(kept, shares, strict=True)]
    )


def _ordered(boxes: Sequence[Box]) -> list[Box]:
    return sorted(boxes, key=lambda box: -box.area) or [FULL_IMAGE]


def _pooled(tokens: torch.Tensor, grid: PatchGrid, box: Box, steps: int) -> torch.Tensor:
    """The block of a box averaged over `steps` near-square parts, raster order: `(steps, D)`."""
    cells = grid.cells_of(box)
    columns = len({cell % grid.columns for cell in cells})
    rows = len(cells) // columns
    down, across = block_shape(rows, columns, steps)
    block = tokens[list(cells)].T.reshape(1, -1, rows, columns)
    pooled = functional.adaptive_avg_pool2d(block.float(), (down, across))
    return pooled.flatten(2)[0].T.to(tokens.dtype)


def block_shape(rows: int, columns: int, steps: int) -> tuple[int, int]:
    """How to cut a block into `steps` parts that are as square as can be: `(down, across)`.

    >>> block_shape(4, 8, 8)
    (2, 4)
    """
    pairs = [(down, steps // down) for down in range(1, steps + 1) if steps % down == 0]

    def stretch(pair: tuple[int, int]) -> float:
        ratio = (rows / pair[0]) / (columns / pair[1])
        return max(ratio, 1 / ratio)

    return min(pairs, key=stretch)


def roi_loss(hidden: torch.Tensor, targets: torch.Tensor, kind: RoiLoss) -> torch.Tensor:
    """Mean loss of hidden states `(n, D)` against targets `(n, D)`, in float32.

    `mse` is LVR's, over n and D. `cosine` is `1 - cos` plus a tenth of the squared error of
    vectors scaled to a root mean square of 1: final hidden states and visual tokens differ in
    scale, and a plain squared error is mostly about that.
    """
    hidden, targets = hidden.float(), targets.float()
    if kind == "mse":
        return functional.mse_loss(hidden, targets)
    cosine = functional.cosine_similarity(hidden, targets, dim=-1).mean()
    return 1 - cosine + _NORMALISED_WEIGHT * functional.mse_loss(_scaled(hidden), _scaled(targets))


def contrast_loss(hidden: torch.Tensor, tokens: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
    """How much the latents `(n, D)` resemble other tokens of the view than those of the region.

    Visual tokens share most of their direction, so that a latent close to its target can be as
    close to any other token, and its similarity map peaks anywhere. Here the tokens of the view
    compete (*ours*; InfoNCE with several positives): minus the logarithm of the region's share in
    a softmax of cosines over `CONTRAST_TEMPERATURE`, a mean over the latents, in float32.

    Args:
        hidden: what the model makes of the slots.
        tokens: `(N, D)`, visual tokens of the view.
        cells: of them, the region's (`roi_cells`).
    """
    cosines = (
        functional.normalize(hidden.float(), dim=-1)
        @ functional.normalize(tokens.float(), dim=-1).T
    )
    shares = torch.log_softmax(cosines / CONTRAST_TEMPERATURE, dim=-1)[:, list(cells)]
    return -shares.logsumexp(-1).mean()


def _scaled(vectors: torch.Tensor) -> torch.Tensor:
    return vectors * (vectors.square().mean(-1, keepdim=True) + _EPSILON).rsqrt()
