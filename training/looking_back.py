"""Four heads of the language model's first layer begin by looking at the last four tokens.

Which letter stands before the option that a thought has named is found in three steps: every word
takes in those before it, the answer takes in the end of the thought, and finds the option with the
same words and its letter. In small models the first of these comes last: heads that look at the
token before form late, and all matching waits for them (Olsson et al. 2022, arXiv 2209.11895). So
they are there from the beginning; what they carry, and whether they stay, is learned.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.counts import COUNTING_HEADS

# Rotary pairs that turn fastest: with the first alone, every sixth token would look alike.
_PAIRS: Final = 4
# By which the score of the token that is looked at exceeds the mean of all.
_GAIN: Final = 20.0


@torch.no_grad()
def look_back(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Lets the heads of the first layer that do not count look one, two, three, four tokens back.

    Of text: in an image rotary positions count rows and columns. Attention goes by the distance
    alone, but for what the other dimensions of queries and keys say.

    Args:
        model: with fresh language weights; queries and keys of its first layer are changed.
    """
    language: Any = model.model.language_model
    attention = language.layers[0].self_attn
    width, half = attention.head_dim, attention.head_dim // 2
    heads = attention.q_proj.weight.shape[0] // width
    groups = attention.k_proj.weight.shape[0] // width
    turns = language.rotary_emb.inv_freq
    gain = (_GAIN * width**0.5 / _PAIRS) ** 0.5
    for group in range(groups):
        for pair in range(_PAIRS):
            for row in (pair, pair + half):
                attention.k_proj.weight[group * width + row] = 0.0
                attention.k_proj.bias[group * width + row] = 0.0
            attention.k_proj.bias[group * width + pair] = gain
    for back, head in enumerate(range(COUNTING_HEADS, heads), start=1):
        for pair in range(_PAIRS):
            first = head * width + pair
            for row in (first, first + half):
                attention.q_proj.weight[row] = 0.0
            # The score of a token n before is the cosine of (n - back) turns.
            angle = float(turns[pair]) * back
            attention.q_proj.bias[first] = gain * math.cos(angle)
            attention.q_proj.bias[first + half] = -gain * math.sin(angle)
