"""One head of the language model's second layer looks at all visual tokens alike.

How many nodules there are, which lung has more, which nodule is larger: no single token tells.
Attention that goes where something is found cannot count it, because its weights add up to one: two
nodules get half of it each, and what is read is the same as of one. The mean of all tokens differs
with every nodule, and the tower's warm-up has taught it the answers (`training.image_labels`). Left
to be learned from words, no head came to look at all tokens, and counts were guessed.

So the last head of the second layer has a key that tells visual tokens from words and nothing else.
Words look at visual tokens, these at the words before them, of which there is nothing to be read.
Its values begin as readings of the mean: logistic regressions, fitted on training phantoms to what
the first layer makes of them. Where it looks is kept as the counts of rows and columns are, in
every training that follows (`averages_keeper`); what it reads is kept while the model learns where
to look, and is learned on from words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from training.counts import count_directions, counts_columns
from training.kept import Kept

AVERAGING_LAYER: Final = 1
# Of the score of visual tokens above that of words: two hundred words get a thousandth of it.
EVEN_GAIN: Final = 8.0
# Length of what a reading that is off its mean by one deviation adds to a token.
READING_WRITTEN: Final = 1.0
# Of the mean variance, added to every direction when visual tokens are told from words.
_RIDGE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Apart:
    """What tells visual tokens from words, most evenly: Fisher's discriminant.

    Attributes:
        direction: `(D,)`, along which they are as far apart as 1 in the mean, and as alike as can
            be among themselves.
        word: the mean of words along it.
    """

    direction: torch.Tensor
    word: float

    @classmethod
    def of(cls, images: torch.Tensor, words: torch.Tensor) -> Apart:
        """Of visual tokens `(V, D)` and words `(W, D)`."""
        between = images.mean(0) - words.mean(0)
        within = (images.T.cov() + words.T.cov()) / 2
        within = within + _RIDGE * within.trace() / len(within) * torch.eye(len(within))
        direction = torch.linalg.solve(within, between)
        direction = direction / (direction @ between)
        return cls(direction, float(direction @ words.mean(0)))

    def mean(self, images: torch.Tensor) -> torch.Tensor:
        """What a word sees of visual tokens `(V, D)`: nearly their mean, `(D,)`."""
        return (EVEN_GAIN * images @ self.direction).softmax(0) @ images


@dataclass(frozen=True, slots=True)
class Inputs:
    """What goes into the layer, behind its norm.

    Attributes:
        means: `(N, D)`, what a word sees of the visual tokens of each view.
        words: `(W, D)`, tokens of prompts beside them.
        apart: what tells the two.
    """

    means: torch.Tensor
    words: torch.Tensor
    apart: Apart


@dataclass(frozen=True, slots=True)
class Reading:
    """Linear logits of one answer.

    Attributes:
        weight: `(C, D)`.
        bias: `(C,)`.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def guesses(self, means: torch.Tensor) -> torch.Tensor:
        """The likeliest answer of each mean `(N, D)`, int64 `(N,)`."""
        return (means @ self.weight.T + self.bias).argmax(-1)


@torch.no_grad()
def average_evenly(
    model: Qwen2_5_VLForConditionalGeneration, inputs: Inputs, readings: Sequence[Reading]
) -> None:
    """Lets the last head of the layer look at all visual tokens alike, and write what it reads.

    Key and query lie in slow rotary dimensions, so that distances do not matter. The other heads
    of the group, which share its values, begin without writing these.

    Args:
        model: changed in place.
        inputs: of the layer.
        readings: of which each has a value for every answer, in deviations over the means; of two
            answers one value.

    Raises:
        ValueError: there are more of them than a head has dimensions.
    """
    attention: Any = model.model.language_model.layers[AVERAGING_LAYER].self_attn
    place = _Place.of(model)
    direction, word = inputs.apart.direction, inputs.apart.word
    width = place.queries.stop - place.queries.start
    attention.q_proj.weight[place.queries] = 0.0
    attention.q_proj.bias[place.queries] = 0.0
    # A word asks for what is on the side of visual tokens, a visual token for what is not.
    attention.q_proj.weight[place.query] = -2.0 * EVEN_GAIN * direction
    attention.q_proj.bias[place.query] = EVEN_GAIN * (1.0 + 2.0 * word)
    attention.k_proj.weight[place.key] = width**0.5 * direction
    attention.k_proj.bias[place.key] = -(width**0.5) * word
    weights = torch.cat([_rows(one.weight) for one in readings])
    if len(weights) > width:
        raise ValueError(f"A head of {width} dimensions cannot hold {len(weights)} readings.")
    read = inputs.means @ weights.T
    scale = read.std(0).clamp_min(1e-4)
    values = slice(place.values.stop - len(weights), place.values.stop)
    attention.v_proj.weight[values] = weights / scale[:, None]
    attention.v_proj.bias[values] = -read.mean(0) / scale
    written = attention.o_proj.weight
    for head in range(attention.num_key_value_groups):
        own = written.shape[1] - head * width
        written[:, own - len(weights) : own] = 0.0
    # Always the same: a run that goes on does not draw what the interrupted one has drawn before.
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(len(written), len(weights), generator=generator)
    if counts_columns(model):
        # Nothing else is written where the first layer has put the counts of rows and columns.
        counts = count_directions(model)
        drawn -= counts @ (counts.T @ drawn)
    written[:, place.queries] = 0.0
    written[:, -len(weights) :] = READING_WRITTEN * torch.linalg.qr(drawn)[0]


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """Of two answers the second against the first, which is all there is to tell."""
    return weight[1:] - weight[:1] if len(weight) == 2 else weight


@dataclass(frozen=True, slots=True)
class _Place:
    """Rows of the head: of its queries, of its group's keys and values, and those that are used."""

    queries: slice
    values: slice
    query: int
    key: int

    @classmethod
    def of(cls, model: Qwen2_5_VLForConditionalGeneration) -> _Place:
        attention: Any = model.model.language_model.layers[AVERAGING_LAYER].self_attn
        width: int = attention.head_dim
        queries, values = attention.q_proj.out_features, attention.v_proj.out_features
        # Detectors of the group use slower ones, one each.
        own = width // 2 - attention.num_key_value_groups
        return cls(
            slice(queries - width, queries),
            slice(values - width, values),
            queries - width + own,
            values - width + own,
        )


def looks_evenly(model: Qwen2_5_VLForConditionalGeneration) -> bool:
    """Whether the second layer has the head of `average_evenly`."""
    layers: Any = model.model.language_model.layers
    if len(layers) <= AVERAGING_LAYER or layers[AVERAGING_LAYER].self_attn.q_proj.bias is None:
        return False
    place, asking = _Place.of(model), layers[AVERAGING_LAYER].self_attn.q_proj
    others = [row for row in range(*place.queries.indices(len(asking.bias))) if row != place.query]
    # No other model asks with a single dimension.
    return bool((asking.weight[others] == 0).all() and (asking.bias[others] == 0).all())


def averages_keeper(
    model: Qwen2_5_VLForConditionalGeneration, *, readings: bool = False
) -> Callable[[], None] | None:
    """What gives the head, after a step, the weights that it has now; None without such a head.

    Args:
        model: its parameters must stay the same tensors, whole in this process.
        readings: whether values and what is written of them are kept, too, and not only where the
            head looks.
    """
    if not looks_evenly(model):
        return None
    layer: Any = model.model.language_model.layers[AVERAGING_LAYER]
    attention, place = layer.self_attn, _Place.of(model)
    chosen: list[tuple[nn.Parameter, Any]] = [
        (attention.q_proj.weight, place.queries),
        (attention.q_proj.bias, place.queries),
        (attention.k_proj.weight, [place.key]),
        (attention.k_proj.bias, [place.key]),
        (layer.input_layernorm.weight, slice(None)),
    ]
    if readings:
        written = attention.o_proj.weight[:, place.queries].any(dim=0).nonzero()[:, 0]
        read = place.values.start + written
        chosen += [
            (attention.v_proj.weight, read),
            (attention.v_proj.bias, read),
            (attention.o_proj.weight, (slice(None), place.queries)),
        ]
    return Kept.of(chosen).put_back
