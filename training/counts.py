"""Two heads of the language model's first layer count the columns and rows of visual tokens.

Each weighs `<|vision_start|>`, which stands one place before the image, against `<|im_start|>`:
the score of the first turns with the number of columns (or rows) between it and the token that
looks, as M-RoPE turns it, and all other tokens score far less. So the weight of the first is a
count, whatever the image shows.

A hundred steps of training on words destroyed it, though a loss asked for corners all the while:
the scores ran into one of the two words altogether, where a softmax has no slope to come back by.
Places of visual tokens were then known to 7 pixels of 224, less exactly than by the tower alone,
and are to 1 where the heads stay as they are (`training.token_places`, docs/training.md). So these
weights are put back after every step of every training (`Counts.put_back`), but where weights are
spread over processes, and the layers above learn to use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.geometry import PatchGrid
from engine.prompt import IM_START, VISION_START
from training.embedded import single_id
from training.grounding import GROUNDED_LAYER
from training.kept import Kept

# Of queries and keys that hold `<|vision_start|>` and `<|im_start|>` above all other tokens.
ANCHOR_GAIN: Final = 10.0
# By which the score of the first rises from the first column, or row, to the last.
COUNT_RANGE: Final = 2.0
# Length of what a whole weight adds to a token.
COUNT_WRITTEN: Final = 8.0
# Of the first layer: that of columns, that of rows.
COUNTING_HEADS: Final = 2


@torch.no_grad()
def number_rows_and_columns(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tokens: torch.Tensor,
    grid: PatchGrid,
) -> None:
    """Lets two heads of the first layer begin as a reading of the column and of the row.

    The counts are written where visual tokens have least. From random weights no head found this.
    Words lose what they had there; they go on looking like no finding (`detectors.quieten_words`)
    as far as readings of findings have no part in these directions.

    Args:
        model: with words and visual tokens as they will be; changed in place.
        tokenizer: of the model.
        tokens: `(N, D)`, visual tokens of training views.
        grid: of a view; of one with more or fewer columns the first layer counts as well.
    """
    language: Any = model.model.language_model
    attention = language.layers[0].self_attn
    width, half = attention.head_dim, attention.head_dim // 2
    turns = language.rotary_emb.inv_freq
    words = language.embed_tokens.weight
    # Of which visual tokens have least: two for what is written and two that become the words'.
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    counts, (start, turn) = directions[-2:], directions[-4:-2]
    words -= words @ directions[-4:].T @ directions[-4:]
    for name, direction in ((VISION_START, start), (IM_START, turn)):
        word = words[single_id(tokenizer, name)]
        word.copy_(direction * word.norm())
    # Of a word behind its norm.
    length = words.shape[1] ** 0.5
    # Until something is learned, the layer writes nothing else.
    language.layers[0].mlp.down_proj.weight.zero_()
    attention.o_proj.weight.zero_()
    used = _turned_pairs(model)
    slowest = half - 1
    keys = _key_rows(model)
    attention.k_proj.weight[keys] = 0.0
    attention.k_proj.bias[keys] = 0.0
    # Two turns begin before the image: in its middle the start of the image weighs as much.
    level = 1 + math.log(2) * width**0.5 / ANCHOR_GAIN**2
    attention.k_proj.weight[slowest] = ANCHOR_GAIN * (level * start + turn) / length
    attention.v_proj.weight[0] = (start - turn) / length
    attention.v_proj.bias[0] = 0.0
    for head, (pairs, count) in enumerate(zip(used, (grid.columns, grid.rows), strict=True)):
        own = slice(head * width, (head + 1) * width)
        attention.q_proj.weight[own] = 0.0
        attention.q_proj.bias[own] = 0.0
        attention.q_proj.bias[head * width + slowest] = ANCHOR_GAIN
        middle = (count + 1) / 2
        # From the first column to the last, the score is to rise by `COUNT_RANGE`.
        rise = sum(float(turns[pair]) for pair in pairs) * (count - 1)
        gain = (COUNT_RANGE * width**0.5 / rise) ** 0.5
        for pair in pairs:
            angle = float(turns[pair]) * middle
            attention.k_proj.weight[pair] = gain * start / length
            attention.q_proj.bias[head * width + pair] = -gain * math.sin(angle)
            attention.q_proj.bias[head * width + pair + half] = -gain * math.cos(angle)
        attention.o_proj.weight[:, head * width] = COUNT_WRITTEN * counts[head]


def anchors(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """The embeddings of the words that are counted from, as unit vectors: `(2, D)`."""
    words: Any = model.get_input_embeddings()
    ids = [single_id(tokenizer, name) for name in (VISION_START, IM_START)]
    found: torch.Tensor = words.weight.detach()[ids]
    unit: torch.Tensor = found / found.norm(dim=1, keepdim=True)
    return unit


def count_directions(model: Qwen2_5_VLForConditionalGeneration) -> torch.Tensor:
    """Where the counts are written: orthonormal columns, `(D, 2)`."""
    attention: Any = model.model.language_model.layers[0].self_attn
    written = [head * attention.head_dim for head in range(COUNTING_HEADS)]
    basis: torch.Tensor = torch.linalg.qr(attention.o_proj.weight.detach()[:, written].float())[0]
    return basis


def counts_columns(model: Qwen2_5_VLForConditionalGeneration) -> bool:
    """Whether the first layer has the heads of `number_rows_and_columns`, as they began."""
    attention = model.model.language_model.layers[0].self_attn
    bias = attention.q_proj.bias
    if bias is None:
        return False
    width: int = attention.head_dim
    own = slice(0, COUNTING_HEADS * width)
    anchors = bias[width // 2 - 1 : COUNTING_HEADS * width : width]
    # No other model asks the same of every token whatever it is.
    return bool((attention.q_proj.weight[own] == 0).all() and (anchors == ANCHOR_GAIN).all())


class Counts:
    """The weights that count columns and rows, as they are now, and the room that these have.

    Args:
        model: whose first layer counts (`counts_columns`); its parameters must stay the same
            tensors, whole in this process.
        tokenizer: of the model.
        layers: in the output of the first so many nothing but the counts is written where these
            are. None but trained ones: what is not in a stage's state must not move.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        layers: int = GROUNDED_LAYER,
    ) -> None:
        language: Any = model.model.language_model
        first = language.layers[0]
        attention, width = first.self_attn, first.self_attn.head_dim
        own = slice(0, COUNTING_HEADS * width)
        keys = _key_rows(model)
        written = [head * width for head in range(COUNTING_HEADS)]
        anchors = [single_id(tokenizer, name) for name in (VISION_START, IM_START)]
        chosen: Sequence[tuple[nn.Parameter, Any]] = (
            (attention.q_proj.weight, own),
            (attention.q_proj.bias, own),
            (attention.k_proj.weight, keys),
            (attention.k_proj.bias, keys),
            (attention.v_proj.weight, [0]),
            (attention.v_proj.bias, [0]),
            (attention.o_proj.weight, (slice(None), written)),
            (first.input_layernorm.weight, slice(None)),
            (language.embed_tokens.weight, anchors),
        )
        self._kept = Kept.of(chosen)
        self._directions = count_directions(model)
        self._writers: list[nn.Parameter] = [
            writer.weight
            for layer in language.layers[:layers]
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj)
            if writer.weight.requires_grad
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Gives the weights the values that they had, and clears what else is written there.

        To be called after every step of an optimiser.
        """
        for writer in self._writers:
            counts = self._directions.to(writer.device, writer.dtype)
            writer.sub_(counts @ (counts.T @ writer))
        self._kept.put_back()


def counts_keeper(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    layers: int = GROUNDED_LAYER,
) -> Callable[[], None] | None:
    """What puts the counts back after a step (`training.loop.Stage.after_step`).

    None where the first layer does not count. By default all layers below the one that reads boxes
    off visual tokens leave the counts their room (arguments as in `Counts`).
    """
    return Counts(model, tokenizer, layers).put_back if counts_columns(model) else None


def _turned_pairs(model: Qwen2_5_VLForConditionalGeneration) -> tuple[range, range]:
    """Rotary dimensions that turn with the column, and those that turn with the row."""
    text: Any = model.config.get_text_config()
    time, height, _ = text.rope_parameters["mrope_section"]
    return range(time + height, time + height + 3), range(time + height - 2, time + height)


def _key_rows(model: Qwen2_5_VLForConditionalGeneration) -> list[int]:
    """Rows of the keys' matrix that the counts use: what turns, and the slowest pair."""
    half = model.model.language_model.layers[0].self_attn.head_dim // 2
    turned = [pair for pairs in _turned_pairs(model) for pair in pairs]
    return [row for pair in (*turned, half - 1) for row in (pair, pair + half)]
