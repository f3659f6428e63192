"""Attention is taught to lie on what coordinates are of, while they are written.

A box is copied from the visual tokens that hold it, and a copy is as good as the attention is
sharp: with half of its weight on other tokens of the image, as it came to be by itself, corners
were averaged with those of other things, and boxes of nodules were off by 8 pixels of 224 as a
whole.
So one more term of the loss asks the heads of one layer to look at the box, and of the visual
tokens that it touches at those that hold most of it: a corner is read worst from a token that the
box only grazes, and a nodule touches three tokens in the mean.

It asks so of the whole call. Asked of the list alone, the first coordinate follows on a single
token that has looked, with two layers left to make a number of it: of 63 nodules' boxes the left
edge was off by 8 pixels in the median, the others, which can read the tokens before, by 3 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from engine.decode import RowTaker
from engine.geometry import Box

# The third: behind two layers a token knows what is asked, and two are left to make digits of what
# is found. The corners of what it looks at are kept readable (`training.corners`).
GROUNDED_LAYER: Final = 2
# Coordinates of a box.
BOX_COORDINATES: Final = 4
# Of one token each, with a comma and a space between them.
COORDINATE_STRIDE: Final = 3
_LEAST_MASS: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Written:
    """Where a record writes the coordinates of a box.

    Attributes:
        begin: the first token that is to look at the box: of a zoom, the one that opens the call.
        start: the token that opens the list of coordinates.
        stop: one past its last number.
        box: in shares of the view.
    """

    begin: int
    start: int
    stop: int
    box: Box


@dataclass(frozen=True, slots=True)
class Look:
    """Tokens of a batch that are to look at visual tokens.

    Attributes:
        row: of the batch.
        tokens: int64 `(N,)`, columns of the tokens that look.
        coordinates: int64 `(C,)`, those of them that coordinates follow.
        seen: int64 `(M,)`, columns of the visual tokens that the box touches.
        corners: left, top, right and bottom of the box, in shares of the view's longer side; None
            where a coordinate is written in more than one token.
        shares: float `(M,)`, how much of the box each of them holds, in what the one holds that
            holds most; None: all the same.
    """

    row: int
    tokens: torch.Tensor
    coordinates: torch.Tensor
    seen: torch.Tensor
    corners: tuple[float, ...] | None = None
    shares: torch.Tensor | None = None


def attention_of(
    asking: torch.Tensor,
    keys: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention `(..., N, T)` of some tokens of a sequence, as its layer has it; differentiable.

    Args:
        asking: `(..., N, D)`, their queries after rotary embedding.
        keys: `(..., T, D)`, of the whole sequence.
        tokens: int64 `(N,)`, their columns.
        mask: bool `(T, T)`, True where attention is allowed; None: causal.
        scaling: factor on the scores, `D ** -0.5` when None.
    """
    factor = asking.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (asking @ keys.mT).float() * factor
    if mask is None:
        allowed = torch.arange(keys.shape[-2], device=keys.device) <= tokens.unsqueeze(-1)
    else:
        allowed = mask[tokens]
    return torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)


class BoxAttention:
    """Takes the attention of looking tokens from one layer, beside the fast kernel.

    A recorder of `engine.attention.sdpa_with_rows`, and differentiable.

    Args:
        looks: of the batch that goes through the model next.
    """

    def __init__(self, looks: tuple[Look, ...]) -> None:
        self._looks = looks
        self._masses: list[torch.Tensor] = []
        self._wanted: list[torch.Tensor] = []

    def take(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        """Takes the rows of one layer, if it is the one that is grounded.

        Args:
            module: the attention; it knows its layer.
            query: `(B, H, T, D)` after rotary embedding.
            key: `(B, K, T, D)`.
            attention_mask: bool `(B, 1, T, T)`, True where attention is allowed; None: causal.
            scaling: factor on the scores, `D ** -0.5` when None.
        """
        if module.layer_idx != GROUNDED_LAYER:
            return
        self._masses.clear()
        self._wanted.clear()
        for look in self._looks:
            heads = query.shape[1] // key.shape[1]
            asking = query[look.row][:, look.tokens]
            asking = asking.reshape(key.shape[1], heads, *asking.shape[1:])
            mask = None if attention_mask is None else attention_mask[look.row, 0]
            weights = attention_of(
                asking, key[look.row].unsqueeze(1), look.tokens.to(key.device), mask, scaling
            )
            on_box = weights[..., look.seen]
            self._masses.append(on_box.sum(-1).flatten(0, 1))
            if look.shares is not None:
                on_box = on_box * look.shares.to(on_box)
            self._wanted.append(on_box.sum(-1).flatten(0, 1))

    @property
    def masses(self) -> tuple[torch.Tensor, ...]:
        """Share of the attention that lies on each box, `(H, N)`: of its tokens, by head."""
        return tuple(self._masses)

    def loss(self) -> torch.Tensor:
        """Minus the logarithm of the mean mass over heads, added over looking tokens; a scalar.

        Of every mass that is on a visual token, the share counts that it holds of the box.

        Raises:
            ValueError: the model has not been run, or has too few layers.
        """
        if len(self._masses) != len(self._looks):
            raise ValueError(f"The model has no layer {GROUNDED_LAYER} whose attention was taken.")
        means = torch.cat([mass.mean(0) for mass in self._wanted])
        # Added and not clamped: a row that looks elsewhere altogether has to learn, too.
        return -(means + _LEAST_MASS).log().sum()


@dataclass(frozen=True, slots=True)
class _Together:
    """Several recorders of attention, one after the other."""

    recorders: tuple[RowTaker, ...]

    def take(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        """Lets every one of them take what it records (arguments as `BoxAttention.take`)."""
        for recorder in self.recorders:
            recorder.take(module, query, key, attention_mask, scaling)


def together(*recorders: RowTaker | None) -> RowTaker | None:
    """One recorder for those that are not None; None where all are."""
    asked = tuple(one for one in recorders if one is not None)
    return _Together(asked) if asked else None
