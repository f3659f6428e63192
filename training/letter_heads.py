"""Attention heads that find the letter of the option that a sentence names.

Three steps, in three layers: a word of an option looks at its letter and at the words before it; a
word that is said looks at the same word of the options, as far as both have the same words before
them; what begins the answer looks at the last word that was said of an option. The heads that do so
begin as copies: what they see is written where it was read, so that a letter that arrives is the
likeliest word at once (embedding and head are tied), and queries and keys of the step in the middle
begin equal, so that equal words find each other (induction heads: Olsson et al., arXiv 2209.11895).
Where to look is taught, as attention on boxes is (`training.grounding`).

Learned from answers alone, which letter stands before an option came last of all, after thousands
of steps, or did not come: until all three steps are there no one of them helps, and what moves the
weights meanwhile is noise.

The heads of the first layer are used once more: tokens that write a box look at its name, which the
third layer has to know (`name_pointers`, `training.looking`).

Visual tokens take up nothing in the first layer: they look at the token before the image, of which
nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention

from engine.prompt import ANSWER_OPEN, IMAGE_PAD, THINK_OPEN, VISION_START
from training.grounding import attention_of

# Where words of options and of sentences take up letters and words before them, where equal ones
# find each other, and where the answer begins: below, and above, the layer that reads boxes.
LETTER_LAYER: Final = 0
MATCHING_LAYER: Final = 3
ANSWERING_LAYER: Final = 4
# Of the last group of heads that share keys and values: the first looks at letters, the second and
# third at the word before and the one before that. In the other layers all of them do the same.
_ALL: Final = -1
# Of what a head sees, what it writes.
COPIED: Final = 1.0
# Of queries and keys that begin equal.
MATCHING_GAIN: Final = 1.5
_LEAST_MASS: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Pointer:
    """Tokens of a sequence, and the one token that each of them is to look at.

    Attributes:
        layer: whose attention it is.
        head: of the last group of heads that share keys; `_ALL`: the mean of them.
        tokens: columns.
        seen: as many columns, none behind the token that looks.
    """

    layer: int
    head: int
    tokens: tuple[int, ...]
    seen: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Option:
    """A line of options: columns of its letter and of its words."""

    letter: int
    words: tuple[int, ...]


def pointers_of(texts: Sequence[str], answers: Sequence[int]) -> tuple[Pointer, ...]:
    """Where a sequence's tokens are to look, so that its letters can be found.

    Args:
        texts: of the tokens, one by one.
        answers: columns of the letters that are to be written, each behind `<answer>`.
    """
    options = _options(texts)
    letters: list[tuple[int, int]] = []
    before: list[tuple[int, int]] = []
    second: list[tuple[int, int]] = []
    for option in options:
        letters += [(word, option.letter) for word in option.words]
        before += [(word, word - 1) for word in option.words[1:]]
        second += [(word, word - 2) for word in option.words[2:]]
    matches: list[tuple[int, int]] = []
    answered: list[tuple[int, int]] = []
    for answer in answers:
        chosen = [o for o in options if o.letter < answer and texts[o.letter] == texts[answer]]
        if not chosen:
            continue
        words = {texts[column]: column for column in chosen[-1].words}
        opened = max((i for i in range(answer) if texts[i] == THINK_OPEN), default=answer)
        said = [i for i in range(opened, answer) if texts[i] in words]
        if not said:
            continue
        before += [(word, word - 1) for word in said if word - 1 in said]
        second += [(word, word - 2) for word in said if {word - 1, word - 2} <= set(said)]
        matches.append((said[-1], words[texts[said[-1]]]))
        answered.append((answer - 1, said[-1]))
    return _pointers(
        (LETTER_LAYER, _ALL, _nothing(texts)),
        (LETTER_LAYER, 0, letters),
        (LETTER_LAYER, 1, before),
        (LETTER_LAYER, 2, second),
        (MATCHING_LAYER, _ALL, matches),
        (ANSWERING_LAYER, _ALL, answered),
    )


def name_pointers(
    texts: Sequence[str], named: Sequence[tuple[Sequence[int], str]]
) -> tuple[Pointer, ...]:
    """Where tokens that write boxes are to look, so that they know what the box is of.

    At the last word of the name, and at the one before it where there are two. The first layer
    takes them up, and the third, which looks at the box, is told.

    Args:
        texts: of the tokens, one by one.
        named: columns of the tokens that write a box, and its name as it stands before them.

    Raises:
        ValueError: a name does not stand there.
    """
    last: list[tuple[int, int]] = []
    before: list[tuple[int, int]] = []
    for tokens, name in named:
        words = _columns_of(texts[: tokens[0]], name)
        last += [(token, words[-1]) for token in tokens]
        before += [(token, words[-2]) for token in tokens if len(words) > 1]
    return _pointers(
        (LETTER_LAYER, _ALL, _nothing(texts)),
        (LETTER_LAYER, 0, last),
        (LETTER_LAYER, 1, before),
    )


def _columns_of(texts: Sequence[str], name: str) -> list[int]:
    """Where a name stood last."""
    start = "".join(texts).rfind(name)
    if start < 0:
        raise ValueError(f"{name!r} does not stand before its box.")
    ends = list(accumulate(len(text) for text in texts))
    return [
        column
        for column, end in enumerate(ends)
        if end > start and end - len(texts[column]) < start + len(name)
    ]


def _nothing(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Visual tokens, and the token before their image."""
    found, start = [], 0
    for column, text in enumerate(texts):
        if text == VISION_START:
            start = column
        elif text == IMAGE_PAD:
            found.append((column, start))
    return found


def _pointers(*found: tuple[int, int, Sequence[tuple[int, int]]]) -> tuple[Pointer, ...]:
    """Of layers, heads, and pairs of a token and what it is to look at, those that have a pair."""
    return tuple(
        Pointer(layer, head, tuple(one for one, _ in pairs), tuple(other for _, other in pairs))
        for layer, head, pairs in found
        if pairs
    )


def _options(texts: Sequence[str]) -> list[_Option]:
    """Lines of one capital letter, a full stop and words."""
    found = []
    for column in range(1, len(texts) - 1):
        begins = texts[column - 1].endswith("\n") and texts[column + 1].startswith(".")
        if not (begins and len(texts[column]) == 1 and texts[column].isupper()):
            continue
        stop = column + 2
        while stop < len(texts) and "\n" not in texts[stop] and not texts[stop].startswith("<|"):
            stop += 1
        if stop > column + 2:
            found.append(_Option(column, tuple(range(column + 2, stop))))
    return found


def answered_letters(texts: Sequence[str], weights: Sequence[float]) -> list[int]:
    """Columns of the letters that a record learns to write."""
    return [
        column
        for column in range(1, len(texts))
        if weights[column] > 0
        and texts[column - 1] == ANSWER_OPEN
        and len(texts[column]) == 1
        and texts[column].isupper()
    ]


@torch.no_grad()
def begin_copying(model: Qwen2_5_VLForConditionalGeneration, kept_out: torch.Tensor) -> None:
    """Lets the last group of heads of three layers begin as copies, and one of them as a match.

    All copy the same directions of a token, drawn at random. Queries and keys of the match use
    the slowest rotary dimensions, so that the distance of the words does not matter.

    Args:
        model: changed in place; its embedding and head are tied.
        kept_out: `(N, D)`, directions that are not copied.

    Raises:
        ValueError: the model has too few layers, or heads too wide.
    """
    language: Any = model.model.language_model
    if len(language.layers) <= ANSWERING_LAYER:
        raise ValueError(f"Letters are found in {ANSWERING_LAYER + 1} layers; there are fewer.")
    width: int = language.layers[0].self_attn.head_dim
    hidden: int = language.embed_tokens.weight.shape[1]
    if len(kept_out) + 2 * width > hidden:
        raise ValueError(f"Two heads of {width} dimensions do not fit into {hidden}.")
    # Always the same: a run that goes on does not draw what the interrupted one has drawn before.
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(hidden, 2 * width, generator=generator)
    drawn = torch.cat([kept_out.T, random], dim=1)
    basis = torch.linalg.qr(drawn)[0].T[len(kept_out) :]
    copied, matched = basis[:width], basis[width:]
    for number in (LETTER_LAYER, MATCHING_LAYER, ANSWERING_LAYER):
        attention = language.layers[number].self_attn
        keys, heads = _last_group(attention)
        attention.v_proj.weight[keys] = copied
        attention.v_proj.bias[keys] = 0.0
        attention.o_proj.weight[:, heads] = COPIED * copied.T.repeat(
            1, attention.num_key_value_groups
        )
    attention = language.layers[MATCHING_LAYER].self_attn
    keys, heads = _last_group(attention)
    half = width // 2
    rows = [place for pair in range(half // 2, half) for place in (pair, pair + half)]
    match = torch.zeros(width, hidden)
    match[rows] = MATCHING_GAIN * matched[: len(rows)]
    attention.k_proj.weight[keys] = match
    attention.k_proj.bias[keys] = 0.0
    attention.q_proj.weight[heads] = match.repeat(attention.num_key_value_groups, 1)
    attention.q_proj.bias[heads] = 0.0


@torch.no_grad()
def leave_room(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Lets the heads of the first layer that will copy write nothing until they do.

    Called after every step of what teaches the layer before, in which nothing then comes to hang
    on them.
    """
    attention: Any = model.model.language_model.layers[LETTER_LAYER].self_attn
    _, heads = _last_group(attention)
    attention.o_proj.weight[:, heads] = 0.0


def _last_group(attention: Qwen2_5_VLAttention) -> tuple[slice, slice]:
    """Rows of its keys and values, and those of its queries."""
    width, group = attention.head_dim, attention.num_key_value_groups
    keys, queries = attention.k_proj.weight.shape[0], attention.q_proj.weight.shape[0]
    return slice(keys - width, keys), slice(queries - group * width, queries)


class PointerAttention:
    """Takes the attention of tokens that point from three layers, beside the fast kernel.

    A recorder of `engine.attention.sdpa_with_rows`, and differentiable.

    Args:
        pointers: of the batch that goes through the model next, with their rows.
    """

    def __init__(self, pointers: Sequence[tuple[int, Pointer]]) -> None:
        self._pointers = tuple(pointers)
        self._masses: dict[int, list[torch.Tensor]] = {}

    def take(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        """Takes what pointers of one layer are about (arguments as `BoxAttention.take`)."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        group = query.shape[1] // key.shape[1]
        masses = []
        for row, pointer in self._pointers:
            if pointer.layer != layer:
                continue
            heads = query[row, -group:]
            if pointer.head != _ALL:
                heads = heads[pointer.head : pointer.head + 1]
            tokens = torch.tensor(pointer.tokens, device=key.device)
            seen = torch.tensor(pointer.seen, device=key.device)
            mask = None if attention_mask is None else attention_mask[row, 0]
            weights = attention_of(heads[:, tokens], key[row, -1], tokens, mask, scaling)
            one = weights.gather(-1, seen.expand(len(heads), -1).unsqueeze(-1)).squeeze(-1)
            masses.append(one.mean(0))
        # Layers that are computed again in a backward pass are taken again.
        self._masses[layer] = masses

    def loss(self) -> torch.Tensor:
        """Minus the logarithm of the mass on what is pointed at, mean of each pointer, added up.

        Raises:
            ValueError: the model has not been run, or has too few layers.
        """
        masses = [mass for found in self._masses.values() for mass in found]
        if len(masses) != len(self._pointers):
            raise ValueError("The model has too few layers for the heads that find letters.")
        return -torch.stack([(mass + _LEAST_MASS).log().mean() for mass in masses]).sum()
