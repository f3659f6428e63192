"""What every question family is made of: questions, wordings, options, and how a family asks.

Families of one modality stand in a module of their own (`training.questions` for the chest,
`training.head_questions`, `training.breast_questions`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from engine.trace import Answered
from training.phantoms import (
    AnyConfig,
    AnyTruth,
    Phantom,
    generate,
    truth_for,
)
from training.phantoms.truth import CARDIOMEGALY, RIGHT, Box

Generator = np.random.Generator
Kind = Literal["coarse", "fine"]

COARSE: Final = "coarse"
FINE: Final = "fine"
NONE: Final = "none"
YES, NO = "yes", "no"
LOOK_CLOSER: Final = "A closer look is needed."
MODALITY_NAMES: Final = ("x-ray", "ct", "mri", "ultrasound")
COUNTS: Final = ("one", "two", "three")
# Names that begin with the name of a consonant, which begins with a vowel.
_SPELT: Final = ("x-ray", "mri")
_UNCOUNTED: Final = (CARDIOMEGALY,)
PRESENCE_TEXTS: Final = (
    "Is there {a}?",
    "Does the image show {a}?",
    "Is {a} present?",
)


@dataclass(frozen=True)
class Question:
    """One question with its answer and the reasoning that leads there.

    Attributes:
        family: name of the family, a key of ``FAMILIES``.
        kind: ``coarse`` (the small view suffices) or ``fine`` (a zoom is needed).
        text: the question.
        options: answers to choose from, shuffled; empty for an open question.
        answer: the right answer; one of the options, if there are any.
        target_boxes: where a zoom should look; empty where no place decides.
        reasoning: one or two sentences that end in what decides.
        reasoning_before_zoom: what can be said before the zoom.
        reasoning_after_zoom: what the zoom adds.
    """

    family: str
    kind: Kind
    text: str
    options: tuple[str, ...]
    answer: str
    target_boxes: tuple[Box, ...]
    reasoning: str
    reasoning_before_zoom: str
    reasoning_after_zoom: str

    @property
    def open(self) -> bool:
        """Whether there are no options."""
        return not self.options

    @property
    def answer_text(self) -> str:
        """The right answer."""
        return self.answer

    @property
    def answer_index(self) -> int | None:
        """Index of the right option; ``None`` for an open question."""
        return self.options.index(self.answer) if self.options else None

    def is_answered_by(self, answered: Answered) -> bool:
        """Whether an answer is the right one; an invalid one never is."""
        if not answered.valid:
            return False
        if self.options:
            return answered.option == self.answer_index
        return answered.text.strip().lower() == self.answer.lower()

    def as_open(self) -> Question:
        """The same question without options."""
        return replace(self, options=())


@dataclass(frozen=True)
class QuestionCase:
    """A question and what it takes to draw its phantom."""

    phantom_seed: int
    config: AnyConfig
    question: Question

    def truth(self) -> AnyTruth:
        """Truth of the phantom, without drawing it."""
        return truth_for(self.phantom_seed, self.config)

    def phantom(self) -> Phantom:
        """The phantom."""
        return generate(self.phantom_seed, self.config)


@dataclass(frozen=True)
class Item:
    """A question before its wording is chosen and its options are shuffled."""

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    answer: str
    boxes: tuple[Box, ...]
    before: str
    after: str


@dataclass(frozen=True)
class Family:
    """A question family.

    Attributes:
        kind: ``coarse`` or ``fine``.
        answers: answers to balance over.
        ask: all questions of the family that a truth of its modality allows.
        order: configuration of a phantom in which the given answer is right.
        max_options: size of the option list; the rest of ``answers`` is drawn as distractors.
    """

    kind: Kind
    answers: tuple[str, ...]
    ask: Callable[[Any], list[Item]]
    order: Callable[[str, Generator], AnyConfig]
    max_options: int = 4


def worded(name: str, family: Family, item: Item, rng: Generator) -> Question:
    """An item as a question: one of its wordings, its options shuffled."""
    others = [answer for answer in item.answers if answer != item.answer]
    keep = rng.permutation(len(others))[: family.max_options - 1]
    options = [item.answer, *(others[int(i)] for i in keep)]
    shuffled = tuple(options[int(i)] for i in rng.permutation(len(options)))
    text = item.texts[int(rng.integers(len(item.texts)))]
    before = f"{item.before} {LOOK_CLOSER}" if family.kind == FINE else item.before
    return Question(
        family=name,
        kind=family.kind,
        text=text,
        options=shuffled,
        answer=item.answer,
        target_boxes=item.boxes,
        reasoning=f"{item.before} {item.after}".strip(),
        reasoning_before_zoom=before,
        reasoning_after_zoom=item.after,
    )


def side_item(organ: str, side: str, box: Box) -> Item:
    """The place of one of a pair of organs: left of the image is the patient's right."""
    place = "left" if side == RIGHT else "right"
    return Item(
        (
            f"Zoom in on the {side} {organ}. On which side of the image is it?",
            f"Where is the {side} {organ} in the image?",
            f"On which side of the image does the {side} {organ} lie?",
        ),
        ("left side of the image", "right side of the image"),
        f"{place} side of the image",
        (box,),
        f"This is the {side} {organ}.",
        f"It lies on the {place} side of the image.",
    )


def article(name: str) -> str:
    """A name with its article, as it is spoken."""
    return f"an {name}" if name[0] in "aeiou" or name in _SPELT else f"a {name}"


def with_article(name: str) -> str:
    """A name as a sentence about it has it: with its article, where it takes one."""
    return name if name in _UNCOUNTED else article(name)
