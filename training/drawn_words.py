"""Options that are words drawn from the vocabulary, so that a letter follows from nothing else.

From a family's own options, finding the one that a sentence names is learned word by word, or not
at all: after 3,500 steps a model told zones by their side, and guessed among the "upper", "middle"
and "lower" of that side. From words that change all the time finding them is learned as such: in
400 steps of letters, 7 in 10 of drawn words, those of zones went from 46% right to 100% (160
turns); 60 steps of zones alone left them where they were. In another model they stayed at four in
five (docs/training.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.questions import Question

DRAWN_OPTIONS: Final = 4
# Of the lists of options: that all end in one word, as zones do.
_SHARED_END: Final = 0.3
_WORD: Final = re.compile(r" [a-z]{3,}")


def whole_words(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Words, and beginnings of words, that are one token behind a space, in the order of their ids.

    Of at least three small letters each.
    """
    texts = (str(tokenizer.decode([token])) for token in range(len(tokenizer)))
    return tuple(text.strip() for text in texts if _WORD.fullmatch(text))


def of_drawn_words(question: Question, words: Sequence[str], rng: np.random.Generator) -> Question:
    """The question with `DRAWN_OPTIONS` options of drawn words, and reasoning that names one.

    All are of the same four words, one or two each, and some lists end in one more that they
    share: there is as much to confuse as in "left upper zone" and "right upper zone".

    Args:
        question: an open one gets options, too.
        words: at least `DRAWN_OPTIONS`.
        rng: chooses.
    """
    chosen = [words[place] for place in rng.permutation(len(words))[:DRAWN_OPTIONS]]
    length = int(rng.integers(1, 3))
    end = f" {words[int(rng.integers(len(words)))]}" if rng.random() < _SHARED_END else ""
    options: list[str] = []
    while len(options) < DRAWN_OPTIONS:
        places = rng.permutation(DRAWN_OPTIONS)[:length]
        text = " ".join(chosen[place] for place in places) + end
        options += [] if text in options else [text]
    answer = options[0]
    return replace(
        question,
        options=tuple(options[place] for place in rng.permutation(DRAWN_OPTIONS)),
        answer=answer,
        reasoning=f"It is {answer}.",
        reasoning_after_zoom=f"It is {answer}.",
    )
