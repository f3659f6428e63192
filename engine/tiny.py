"""Random-weight models of the real class, for tests and for the benchmark.

`Qwen2_5_VLForConditionalGeneration` with a byte-level BPE `Qwen2Tokenizer` that holds every
special token of `engine.prompt` and Qwen's own. What such a model writes is noise: it serves
to check equivalences and to time the loop.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from engine.loading import LoadedModel, assembled
from engine.manifest import Manifest, PixelBudget
from engine.processor import ImageProcessor
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
CONTROL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
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
_SAMPLE_TEXTS = (
    "Where is the nodule? Which lung shows the effusion? Is the heart enlarged?",
    "The margin is smooth. The mass lies in the left lower zone. Look again at the right lung.",
    'Method: direct. Method: zoom. "name": "image_zoom_in_tool", "arguments": {"bbox_2d": [',
    "A. right lung\nB. left lung\nC. both\nD. neither",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyShape:
    """Sizes of a random-weight model.

    Attributes:
        intermediate: width inside of the feed-forward layers; three times `hidden` when 0.
        vocabulary: unused words fill the tokenizer up to this size.
        tied: whether the head shares the weights of the embedding.
    """

    hidden: int = 64
    intermediate: int = 0
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    vision_hidden: int = 32
    vision_depth: int = 2
    vocabulary: int = 0
    tied: bool = True


BENCH_SHAPE = TinyShape(
    hidden=384,
    intermediate=1024,
    layers=12,
    heads=12,
    key_value_heads=2,
    vision_hidden=32,
    vocabulary=32_000,
    tied=False,
)
"""The `random` group of the benchmark: 43 million parameters, a vocabulary of 32,000."""

EMBEDDED_SHAPE = TinyShape(
    hidden=192,
    layers=5,
    heads=6,
    key_value_heads=2,
    vision_hidden=160,
    vision_depth=4,
    vocabulary=1344,
)
"""The sizes of the embedded model, for where its weights are absent."""


def tiny_tokenizer(vocabulary: int = 0, texts: tuple[str, ...] = _SAMPLE_TEXTS) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with Qwen2's pre-tokenisation.

    Args:
        vocabulary: when larger than needed, unused words fill it up to this size.
        texts: what the merges are learned from.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    vocab = dict(trained.get_vocab())
    room = vocabulary - len(CONTROL_TOKENS) - len(TAG_TOKENS)
    for number in range(room - len(vocab)):
        vocab[f"\u0120w{number}q"] = len(vocab)
    merges: Any = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge)
        for merge in json.loads(trained.to_str())["model"]["merges"]
    ]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAG_TOKENS])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = END_OF_TEXT
    return tokenizer


def tiny_config(tokenizer: Qwen2Tokenizer, shape: TinyShape) -> Qwen2_5_VLConfig:
    """The configuration of a random-weight model for a tokenizer."""

    def token_id(token: str) -> int:
        return tokenizer.get_vocab()[token]

    head = shape.hidden // shape.heads // 2
    time = max(1, head // 4)
    height = (head - time) // 2
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate or shape.hidden * 3,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "max_position_embeddings": 32_768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [time, height, head - time - height],
            },
            "bos_token_id": token_id(END_OF_TEXT),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id(END_OF_TEXT),
            "tie_word_embeddings": shape.tied,
            # Wide enough that attention and the next-token distribution are far from flat,
            # so that a wrong mask or position shows in the numbers.
            "initializer_range": 0.08,
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_hidden * 2,
            "num_heads": 2,
            "out_hidden_size": shape.hidden,
            "window_size": 112,
            "fullatt_block_indexes": [shape.vision_depth - 1],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=shape.tied,
    )


def tiny_manifest(view_tokens: int = 16, crop_tokens: int = 4) -> Manifest:
    """A manifest with a view and crops of about the given numbers of visual tokens."""

    def budget(tokens: int) -> PixelBudget:
        return PixelBudget(least=tokens * 784, most=tokens * 784)

    return Manifest(
        name="random weights",
        stage="random",
        prompt_style="compact",
        view=budget(view_tokens),
        crop=budget(crop_tokens),
        crop_padding=0.1,
    )


def tiny_model(
    shape: TinyShape | None = None,
    *,
    seed: int = 0,
    manifest: Manifest | None = None,
    tokenizer: Qwen2Tokenizer | None = None,
    device: str = "cpu",
) -> LoadedModel:
    """A random-weight model with everything that the engine needs to run it."""
    shape = shape or TinyShape()
    tokenizer = tokenizer or tiny_tokenizer(shape.vocabulary)
    config = tiny_config(tokenizer, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    return assembled(
        model=model.to(torch.device(device)).eval(),
        tokenizer=tokenizer,
        image_processor=ImageProcessor(),
        manifest=manifest or tiny_manifest(),
        revision="",
    )
