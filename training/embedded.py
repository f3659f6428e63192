"""The embedded model: the class of Qwen2.5-VL at a few million parameters.

`Qwen2_5_VLForConditionalGeneration` with a four-block vision tower and a five-layer language
model; byte-level BPE tokenizer with Qwen's own special-token names, whose numbers are one token.
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
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
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
from training.numbers import drawn_numbers, number_ids

END_OF_TEXT = "<|endoftext|>"
# Numbers from 0 that are one token each; a view is 224 pixels wide, and few are twice that.
WHOLE_NUMBERS = 512
# Qwen2's own takes digits one by one.
_NUMBERS_REGEX = PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# Standard deviation of the patch filters that see contrast; those that see the level keep 0.02.
CONTRAST_DEVIATION = 0.12
# Response of the texture filters to a grey image against that of the contrast filters.
TEXTURE_GAIN = 2.0
# Discrete cosines of a patch with fewer half-waves than this are slow: shading, edges of organs.
SLOW_HALF_WAVES = 2.5
# Standard deviation of text embeddings; transformers' own 0.02 is lost beside the first layers.
EMBEDDING_DEVIATION = 0.6
# Of the last norm: what words are multiplied with once more where they are the head.
LAST_NORM = 1 / 3
# Of the projections that write into the residual stream, against one over the square root of
# their inputs: what a token is must not be drowned by what the first layers add to it.
RESIDUAL_GAIN = 0.3
# Root mean square of what tells visual tokens apart (`scale_visual_tokens`).
VISUAL_SCALE = 0.5
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


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen2's pre-tokenisation, learned from `texts`.

    But for numbers: as in Llama 3 up to three digits are taken together, and those below
    `WHOLE_NUMBERS` are one token, beside the vocabulary. A coordinate is then one decision and not
    three, and a box is written in half of the tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(PRETOKENIZE_REGEX)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(CONTROL_TOKENS) - len(TAG_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab()
    for number in range(10, WHOLE_NUMBERS):
        vocab[str(number)] = len(vocab)
    merges = [*_merges(tokenizer), *_number_merges()]
    whole = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    whole.normalizer = normalizers.NFC()
    whole.pre_tokenizer = _pre_tokenizer(_NUMBERS_REGEX)
    whole.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=whole,
        unk_token=END_OF_TEXT,
        eos_token="<|im_end|>",
        pad_token=END_OF_TEXT,
    )
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAG_TOKENS])
    return fast


def _pre_tokenizer(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _number_merges() -> list[tuple[str, str]]:
    """How digits become numbers, whichever two of three are merged first."""
    pairs: list[tuple[str, str]] = []
    for number in range(10, WHOLE_NUMBERS):
        digits = str(number)
        pairs += [
            (digits[:cut], digits[cut:])
            for cut in range(1, len(digits))
            # No number of several digits begins with 0.
            if digits[cut] != "0" or cut == len(digits) - 1
        ]
    return pairs


def single_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token.

    Raises:
        ValueError: when the tokenizer does not know it.
    """
    found = tokenizer.convert_tokens_to_ids(token)
    # Of a word that it does not know a tokenizer gives the id of its unknown token.
    if not isinstance(found, int) or tokenizer.convert_ids_to_tokens(found) != token:
        raise ValueError(f"The tokenizer does not know {token!r}.")
    return found


def _merges(tokenizer: Tokenizer) -> list[Any]:
    """The learned merges in order, from the tokenizer's own JSON."""
    raw = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in raw]


def embedded_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
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
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                # Columns turn the last of these dimensions. Qwen's shares, here 4, 6 and 6, would
                # leave columns with dimensions that eight of them hardly turn.
                "rope_theta": 10000.0,
                "mrope_section": [2, 6, 8],
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

    Radiographs are mostly a level, some slow shading and very little texture, and the tower's RMS
    norms remove none of the first two. So an eighth of the patch filters begins as transformers
    draws them, three eighths are blind to the level, and one half is blind to everything slow
    and has a larger gain: fine texture is heard from the first step on.

    In the tower's gated layers (SwiGLU, arXiv 2002.05202) gate and value begin equal. A unit then
    begins as a rectified square of one projection: it measures the energy of a texture whatever
    its phase. With two independent projections the sign of that answer is random, and fine
    attributes stayed at chance for two thousand steps.
    """
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for part in (model.model.visual, model.model.language_model):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(std=module.in_features**-0.5)
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(RESIDUAL_GAIN)
            layer.mlp.down_proj.weight.mul_(RESIDUAL_GAIN)
        words: nn.Embedding = model.model.language_model.embed_tokens
        words.weight.normal_(std=EMBEDDING_DEVIATION)
        model.model.language_model.norm.weight.fill_(LAST_NORM)
        for block in model.model.visual.blocks:
            block.mlp.up_proj.weight.copy_(block.mlp.gate_proj.weight)
        _draw_patch_filters(model.model.visual.patch_embed.proj.weight)
    return model


@torch.no_grad()
def order_numbers(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Draws the embeddings of numbers anew, those of near numbers alike, in place."""
    ids = number_ids(tokenizer)
    words: nn.Embedding = model.model.language_model.embed_tokens
    words.weight[ids] = EMBEDDING_DEVIATION * drawn_numbers(len(ids), words.embedding_dim)


@torch.no_grad()
def scale_visual_tokens(model: Qwen2_5_VLForConditionalGeneration, tokens: torch.Tensor) -> None:
    """Changes the last layer of the tower so that its tokens have a set scale.

    After the dense warm-up a token is a hundred times as long as a word, and the language model's
    layers could add nothing to it. What all tokens share, about a quarter of their energy, stays:
    the language model normalises every token to one length, and with the shared part taken off
    that made a faint trace of a finding as loud as the finding. Heads that told nodules from
    none at 0.98 (area under the curve) then told them at 0.54.

    Args:
        model: changed in place.
        tokens: `(N, D)`, visual tokens of training views.
    """
    spread = (tokens - tokens.mean(0)).square().mean().sqrt()
    scale = VISUAL_SCALE / spread
    merger: Any = model.model.visual.merger
    last: nn.Linear = merger.mlp[-1]
    last.weight.mul_(scale)
    last.bias.mul_(scale)


def _draw_patch_filters(filters: torch.Tensor) -> None:
    """Level, contrast and texture filters in place: `(D, 3, 2, 14, 14)`, as `new_model` says."""
    width, channels, frames, side, _ = filters.shape
    contrast = filters[width // 8 :]
    contrast.normal_(std=CONTRAST_DEVIATION)
    contrast -= contrast.mean(dim=(1, 2, 3, 4), keepdim=True)
    # Orthonormal cosines (DCT-II) of one dimension, then the slow ones of two.
    place = (torch.arange(side) + 0.5) / side
    wave = torch.cos(torch.pi * torch.arange(side)[:, None] * place)
    wave /= wave.norm(dim=1, keepdim=True)
    half_waves = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    slow_waves = half_waves[half_waves.float().norm(dim=1) < SLOW_HALF_WAVES]
    slow = torch.stack([torch.outer(wave[row], wave[column]) for row, column in slow_waves])
    slow = slow.flatten(1)
    texture = torch.randn(width // 2, side * side)
    texture -= texture @ slow.T @ slow
    # A grey image repeats itself in every channel and frame: independent draws add up with the
    # square root of the repeats, equal ones with their number.
    repeats = channels * frames
    texture *= TEXTURE_GAIN * CONTRAST_DEVIATION / repeats**0.5
    filters[width - width // 2 :] = texture.reshape(-1, 1, 1, side, side)
