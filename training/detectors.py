"""The language model's first attention begins as the finding detectors of the dense warm-up.

A small finding covers one visual token of sixty-four. From random weights attention is nearly
uniform, and in the mean of all tokens such a finding is lost: after fifty thousand answers the
model told tubes and pneumothoraces, which cover many tokens, and neither nodules nor effusions.
So every head of the first layer begins with a constant query, and a key that measures one
finding's coverage along the direction that the warm-up's linear head has learned. What the head
finds, and what is made of it, is learned as everything else.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.vision import DenseHeads
from training.world import COVER_NAMES, FINDINGS

# Of the constant query and of the key's direction: a token that holds the finding, about five
# deviations from the others, then scores about six above them.
DETECTOR_GAIN: Final = 2.6
# What is left of the other queries in the dimensions that detectors use.
_QUIET: Final = 0.1


@torch.no_grad()
def attend_to_findings(model: Qwen2_5_VLForConditionalGeneration, heads: DenseHeads) -> None:
    """Sets the first layer's queries and keys, in place; one head for each kind of finding.

    The detectors lie in the slowest rotary dimensions, whose angles hardly change over a
    sequence, so that the distance between text and image does not matter.

    Args:
        model: with fresh language weights and centred visual tokens.
        heads: trained on the tower's tokens.

    Raises:
        ValueError: the model has fewer heads than there are kinds of findings.
    """
    text: Any = model.config.get_text_config()
    width = text.hidden_size // text.num_attention_heads
    per_key = text.num_attention_heads // text.num_key_value_heads
    if text.num_attention_heads < len(FINDINGS):
        raise ValueError(f"{len(FINDINGS)} kinds of findings need as many attention heads.")
    slowest = [width // 2 - 1 - place for place in range(per_key)]
    attention: Any = model.model.language_model.layers[0].self_attn
    for head, name in enumerate(FINDINGS):
        key, place = divmod(head, per_key)
        own = slowest[place]
        queries = [head * width + dimension for dimension in slowest]
        attention.q_proj.weight[queries] *= _QUIET
        attention.q_proj.bias[queries] = 0.0
        attention.q_proj.bias[head * width + own] = DETECTOR_GAIN
        direction = _direction(heads, name)
        attention.k_proj.weight[key * width + own] = DETECTOR_GAIN * direction
        attention.k_proj.bias[key * width + own] = 0.0


def _direction(heads: DenseHeads, name: str) -> torch.Tensor:
    """Unit vector `(D,)` along which a token's coverage by a finding is read."""
    # The heads read through a layer norm, which takes the mean over dimensions away.
    along = heads.cover.weight[COVER_NAMES.index(name)] * heads.norm.weight
    along = along - along.mean()
    direction: torch.Tensor = along / along.norm()
    return direction
