"""What the model would answer now, read on a fork of the cache.

The words that lead to the answer are fed to a fork; the run itself never sees them, so a probe
cannot change a token. Options are compared as whole token sequences from the first place where
they differ, because tokenizers need not split at a tag (`>B` is one token of Qwen2.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from engine.decode import Decoder, DecodeState
from engine.prompt import ANSWER_CLOSE, ANSWER_OPEN, LATENT_END, THINK_CLOSE, option_letter
from engine.sampling import InvalidLogitsError
from engine.vocabulary import Vocabulary

MOST_OPEN_TOKENS: Final = 12


@dataclass(frozen=True, slots=True)
class Distribution:
    """The answer if the model had to answer now.

    Attributes:
        options: the options, or the one greedy answer of an open question.
        probabilities: over the options, renormalised to 1; of an open answer, its own.
        outside: probability of anything else.
    """

    options: tuple[str, ...]
    probabilities: tuple[float, ...]
    outside: float


def leading_text(text: str, thinking: bool) -> str:
    """What must be written to reach the answer from a text that ends as `text` does."""
    if thinking:
        return f"{THINK_CLOSE}\n{ANSWER_OPEN}"
    if not text or text.endswith(("\n", LATENT_END)):
        return ANSWER_OPEN
    return f"\n{ANSWER_OPEN}"


def probe(
    decoder: Decoder, fork: DecodeState, leading: str, options: tuple[str, ...]
) -> Distribution:
    """Asks a fork (a batch of one, used up by this) for its answer.

    Raises:
        InvalidLogitsError: when the model's output is not finite.
    """
    vocabulary = decoder.loaded.vocabulary
    if not options:
        return _open_answer(decoder, fork, vocabulary, leading)
    sequences = [
        vocabulary.encode(f"{leading}{option_letter(index)}{ANSWER_CLOSE}")
        for index in range(len(options))
    ]
    logprobs = _sequence_logprobs(decoder, fork, sequences)
    masses = torch.tensor(logprobs, dtype=torch.float64)
    # In logarithms: shares of options that are all very unlikely stay exact.
    shares = torch.softmax(masses, dim=-1)
    if not torch.isfinite(shares).all():
        raise InvalidLogitsError
    outside = 1.0 - float(masses.exp().sum())
    return Distribution(options, tuple(shares.tolist()), min(1.0, max(0.0, outside)))


def _sequence_logprobs(
    decoder: Decoder, fork: DecodeState, sequences: list[list[int]]
) -> list[float]:
    """Log-probability of each sequence from where they first differ until it stands alone."""
    shared = 0
    while len({sequence[shared] for sequence in sequences}) == 1:
        shared += 1
    feed(decoder, fork, sequences[0][:shared])
    logprobs = torch.log_softmax(fork.logits[0].float(), dim=-1)
    heads = [sequence[shared] for sequence in sequences]
    values: list[float] = logprobs[torch.tensor(heads, device=logprobs.device)].tolist()
    for head in {head for head in heads if heads.count(head) > 1}:
        members = [index for index, other in enumerate(heads) if other == head]
        tails = [sequences[index][shared:] for index in members]
        inner = _sequence_logprobs(decoder, decoder.branched(fork, 0), tails)
        for index, value in zip(members, inner, strict=True):
            values[index] += value
    return values


def _open_answer(
    decoder: Decoder, fork: DecodeState, vocabulary: Vocabulary, leading: str
) -> Distribution:
    feed(decoder, fork, vocabulary.encode(leading))
    text, logprob = b"", 0.0
    for _ in range(MOST_OPEN_TOKENS):
        logprobs = torch.log_softmax(fork.logits[0].float(), dim=-1)
        token = int(logprobs.argmax())
        logprob += float(logprobs[token])
        if not math.isfinite(logprob):
            raise InvalidLogitsError
        if token in vocabulary.stop_ids:
            break
        text += vocabulary.bytes_of(token)
        if ANSWER_CLOSE.encode() in text:
            break
        feed(decoder, fork, [token])
    answer = text.decode("utf-8", errors="replace").split(ANSWER_CLOSE, 1)[0].strip()
    probability = float(torch.tensor(logprob, dtype=torch.float64).exp())
    return Distribution((answer,), (probability,), max(0.0, 1.0 - probability))


def feed(decoder: Decoder, state: DecodeState, token_ids: list[int]) -> None:
    """Feeds text tokens to the only branch of a state."""
    if len(token_ids) == 1:
        decoder.step(state, decoder.embed_step(token_ids))
    elif token_ids:
        decoder.append(state, 0, decoder.text_layout(token_ids, state.next_positions[0]))
