"""The embedded model: the class of Qwen2.5-VL at a few million parameters.

`Qwen2_5_VLForConditionalGeneration` with a four-block vision tower and a six-layer language
model; byte-level BPE tokenizer with Qwen's own special-token names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from engine.prompt import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    LATENT_TOKENS,
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_CALL_CLOSE,
    TOOL_CALL_OPEN,
    TOOL_RESPONSE_CLOSE,
    TOOL_RESPONSE_OPEN,
)

END_OF_TEXT = "<|endoftext|>"
# Of the patch filters that see contrast, against those that see the level.
CONTRAST_GAIN = 6.0
CONTROL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    *LATENT_TOKENS,
)
TAG_TOKENS = (
    TOOL_CALL_OPEN,
    TOOL_CALL_CLOSE,
    TOOL_RESPONSE_OPEN,
    TOOL_RESPONSE_CLOSE,
    THINK_OPEN,
    THINK_CLOSE,
    ANSWER_OPEN,
    ANSWER_CLOSE,
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with Qwen2's pre-tokenisation, learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(CONTROL_TOKENS) - len(TAG_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab()
    merges = _merges(tokenizer)
    qwen = Qwen2Tokenizer(vocab=vocab, merges=merges)
    qwen.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    qwen.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAG_TOKENS])
    qwen.eos_token = "<|im_end|>"
    qwen.pad_token = END_OF_TEXT
    return qwen


def single_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token.

    Raises:
        ValueError: when the tokenizer does not know it.
    """
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int):
        raise ValueError(f"The tokenizer does not know {token!r}.")
    return found


def _merges(tokenizer: Tokenizer) -> list[Any]:
    """The learned merges in order, from the tokenizer's own JSON."""
    raw = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in raw]


def embedded_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """The configuration of the embedded model for a tokenizer."""

    def token_id(token: str) -> int:
        return single_id(tokenizer, token)

    # Rounded up so that the matrix of the head has an even, cache-friendly height.
    vocabulary = -(-len(tokenizer) // 64) * 64
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": token_id(END_OF_TEXT),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id(END_OF_TEXT),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_heads": 5,
            "out_hidden_size": 192,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def new_model(config: Qwen2_5_VLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """The embedded model with fresh weights (seed torch first).

    Transformers draws every matrix with a standard deviation of 0.02, which suits a width of
    some thousands. At a width of 160 that leaves each block a hundredth of the residual stream,
    and the tower learned nothing local in hundreds of steps; so every linear layer is drawn at
    one over the square root of its inputs instead.

    Radiographs are mostly a level and little contrast, and the tower's RMS norms do not remove
    the level: seven of eight patch filters begin blind to it and with a larger gain, so that
    edges and textures are heard from the first step on.
    """
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for part in (model.model.visual, model.model.language_model):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(std=module.in_features**-0.5)
        filters = model.model.visual.patch_embed.proj.weight
        seeing = filters[len(filters) // 8 :]
        seeing -= seeing.mean(dim=(1, 2, 3, 4), keepdim=True)
        seeing *= CONTRAST_GAIN
    return model
