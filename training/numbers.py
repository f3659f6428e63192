"""Numbers that are one token each: near ones are alike, and a near one is nearly right.

The embedded model writes a coordinate as one token (`training.embedded.train_tokenizer`). Cross-
entropy would take 98 for as wrong as 12 where 99 is true; so the target of a coordinate is spread
over its neighbours, and numbers are points of a smooth curve, where what is learned of one
holds for those beside it. Written digit by digit, boxes of findings were off by 5 to 8 pixels
where a linear reading of the same hidden state was off by 3 to 5.

Where a model is not sure, the best of many likely numbers is little better than its neighbours,
and the noise of single embeddings decides which is written: greedy boxes were worse than those of
the expected coordinates (docs/training.md, "Numbers on a smooth curve"). So the zoom stage begins
by smoothing the curve (`smooth_curve`), and all trainings from there on leave it smooth
(`numbers_keeper`). Digits are free: they are parts of words, too, and on the curve "bbox_2d" was
written as "bbox_0d".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

# Over which numbers are alike, and the share of each length in a number's embedding; what is left
# tells it from its neighbours.
_LENGTHS: Final = (3.0, 12.0, 48.0)
_SHARE: Final = 0.25
# In numbers, of the fastest wave along the curve.
SHORTEST_WAVE: Final = 24
# Of the energy of a curve, beside its slow waves: half precision leaves less.
_ROUGH: Final = 1e-4
# Numbers of one digit.
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


def drawn_numbers(count: int, width: int) -> torch.Tensor:
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


def slow_waves(count: int) -> torch.Tensor:
    """Orthonormal columns `(count - 10, K)` that make smooth curves through numbers from 10 on.

    They span what cosines over all `count` numbers, none faster than `SHORTEST_WAVE`, are there.
    """
    waves = torch.arange(2 * count // SHORTEST_WAVE + 1, dtype=torch.float64)
    middles = (torch.arange(_DIGITS, count, dtype=torch.float64) + 0.5) / count
    basis: torch.Tensor = torch.linalg.qr(torch.cos(torch.pi * middles[:, None] * waves))[0]
    return basis.float()


class _Curve:
    """The embeddings of numbers from 10 on, and their slow waves."""

    def __init__(self, words: nn.Parameter, ids: Sequence[int]) -> None:
        self._words, self._ids = words, list(ids[_DIGITS:])
        self._waves = slow_waves(len(ids)).to(words.device)

    @torch.no_grad()
    def smooth(self) -> None:
        """Leaves nothing but slow waves in them."""
        self._words[self._ids] = self._smoothed().to(self._words.dtype)

    @torch.no_grad()
    def is_smooth(self) -> bool:
        """Whether there is nothing else in them, to the rounding of half precision."""
        embeddings = self._words[self._ids].float()
        rough = (embeddings - self._smoothed()).square().sum()
        return bool(rough <= _ROUGH * embeddings.square().sum())

    def _smoothed(self) -> torch.Tensor:
        kept: torch.Tensor = self._waves @ (self._waves.T @ self._words[self._ids].float())
        return kept


def _curve_of(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> _Curve | None:
    """None where numbers are written digit by digit, and where embeddings are not trained."""
    ids, words = number_ids(tokenizer), model.get_input_embeddings().weight
    assert isinstance(words, nn.Parameter)
    if len(ids) <= _DIGITS or not words.requires_grad:
        return None
    return _Curve(words, ids)


def smooth_curve(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Leaves only slow waves in the embeddings of numbers from 10 on, in place.

    Raises:
        ValueError: the tokenizer writes digits one by one, or embeddings are not trained.
    """
    curve = _curve_of(model, tokenizer)
    if curve is None:
        raise ValueError(
            "tuning.smooth_numbers needs a tokenizer whose numbers are one token each, and "
            "embeddings that are trained (no lora): set it to false."
        )
    curve.smooth()


def numbers_keeper(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> Callable[[], None] | None:
    """What smooths that curve after a step; None where it is not smooth now.

    Args:
        model: its parameters must stay the same tensors, whole in this process.
        tokenizer: of the model.
    """
    curve = _curve_of(model, tokenizer)
    return curve.smooth if curve is not None and curve.is_smooth() else None


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
