"""Numbers that are one token each: near ones begin alike, and a near one is nearly right.

The embedded model writes a coordinate as one token (`training.embedded.train_tokenizer`). Cross-
entropy would take 98 for as wrong as 12 where 99 is true; so the target of a coordinate is spread
over its neighbours, and numbers begin as points of a smooth curve, where what is learned of one
holds for those beside it. Written digit by digit, boxes of findings were off by 5 to 8 pixels
where a linear reading of the same hidden state was off by 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

# Over which numbers are alike, and the share of each length in a number's embedding; what is left
# tells it from its neighbours.
_LENGTHS: Final = (3.0, 12.0, 48.0)
_SHARE: Final = 0.25
_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class FreeNumber:
    """A coordinate of which any number will do, as long as it makes a box in the picture.

    Attributes:
        column: of the token.
        least: lowest number that is allowed.
        most: highest number that is allowed.
    """

    column: int
    least: int
    most: int


def number_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the numbers from 0 on, as far as each is one token."""
    known: dict[str, int] = tokenizer.get_vocab()
    ids: list[int] = []
    while (name := str(len(ids))) in known:
        ids.append(known[name])
    return ids


def smooth_numbers(count: int, width: int) -> torch.Tensor:
    """Random vectors `(count, width)` of unit variance, those of near numbers alike.

    Draws of a Gaussian process in every dimension (seed torch first).
    """
    numbers = torch.arange(count, dtype=torch.float64)
    apart = (numbers[:, None] - numbers[None, :]).square()
    alike = sum((torch.exp(-apart / (2 * length**2)) for length in _LENGTHS), torch.zeros(1))
    own = 1.0 - _SHARE * len(_LENGTHS)
    covariance = _SHARE * alike + own * torch.eye(count, dtype=torch.float64)
    root: torch.Tensor = torch.linalg.cholesky(covariance)
    return (root @ torch.randn(count, width, dtype=torch.float64)).float()


class NumberScale:
    """Spreads the targets of coordinates over the numbers beside them.

    Args:
        tokenizer: that writes numbers as one token.
        spread: standard deviation of a target, in pixels of the view.

    Raises:
        ValueError: the tokenizer writes digits one by one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spread: float) -> None:
        ids = number_ids(tokenizer)
        if len(ids) <= _DIGITS:
            raise ValueError(
                "language.spread needs a tokenizer whose numbers are one token each: set it to 0."
            )
        self._ids = torch.tensor(ids)
        self._spread = spread

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropies in nats, `(N,)`; of what is no number, as they are everywhere.

        Args:
            logits: `(N, V)`.
            targets: int64 `(N,)`, token ids.
        """
        ids = self._ids.to(targets.device)
        losses = functional.cross_entropy(logits, targets, reduction="none")
        rows, values = torch.nonzero(targets.unsqueeze(-1) == ids, as_tuple=True)
        apart = torch.arange(len(ids), device=targets.device) - values.unsqueeze(-1)
        wanted = torch.softmax(-apart.square() / (2 * self._spread**2), dim=-1)
        said = torch.log_softmax(logits[rows], dim=-1)[:, ids]
        return losses.index_copy(0, rows, -(wanted * said).sum(-1))

    def distances(
        self, logits: torch.Tensor, targets: torch.Tensor, sides: torch.Tensor
    ) -> torch.Tensor:
        """How far the expected coordinates lie from the true ones, in sides of their box: `(N,)`.

        Cross-entropy takes a pixel for a pixel, whether of a nodule's width or of a lung's.

        Args:
            logits: `(N, V)`, before coordinates; what is no number has no part in the mean.
            targets: int64 `(N,)`, ids of numbers.
            sides: `(N,)`, in pixels of the view.
        """
        ids = self._ids.to(targets.device)
        values = (targets.unsqueeze(-1) == ids).float().argmax(-1)
        counted = torch.arange(len(ids), device=logits.device, dtype=logits.dtype)
        expected = torch.softmax(logits[:, ids], dim=-1) @ counted
        far: torch.Tensor = (expected - values).abs() / sides
        return far


def free_losses(logits: torch.Tensor, numbers: Sequence[int], bounds: torch.Tensor) -> torch.Tensor:
    """Minus the logarithm of the probability of all numbers that are allowed, nats `(N,)`.

    That there is a number is learned from it, and not which.

    Args:
        logits: `(N, V)`.
        numbers: ids of the numbers from 0 on.
        bounds: int64 `(N, 2)`, lowest and highest allowed number.
    """
    said = torch.log_softmax(logits, dim=-1)[:, torch.tensor(numbers, device=logits.device)]
    counted = torch.arange(len(numbers), device=logits.device)
    outside = (counted < bounds[:, :1]) | (counted > bounds[:, 1:])
    return -said.masked_fill(outside, float("-inf")).logsumexp(-1)
