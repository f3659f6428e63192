"""Questions about phantoms, of the kinds that OmniMedVQA asks.

Each family turns the truth of a phantom into questions with one visible answer. *Coarse*
families can be answered from the small view; *fine* ones only after zooming in. The wording is a
small controlled vocabulary, in lower case apart from the first letter of a sentence, because the
tokenizer of the embedded model is trained on it.

Answers are balanced by :func:`balanced_questions`, which asks the generator for the phantom that
a wanted answer needs. :func:`questions_for` asks everything that a given truth allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from training.breast_questions import BREAST_FAMILIES
from training.chest_questions import CHEST_FAMILIES
from training.head_questions import HEAD_FAMILIES
from training.phantoms import CHEST, AnyTruth, modality_of, seed_for, truth_for
from training.phantoms.breast_ultrasound.words import STUDY as BREAST
from training.phantoms.head_ct.words import STUDY as HEAD
from training.phantoms.truth import Box
from training.question_forms import (
    COARSE,
    FINE,
    LOOK_CLOSER,
    Family,
    Generator,
    Question,
    QuestionCase,
    side_item,
    worded,
)

__all__ = [
    "ALL_FAMILIES",
    "COARSE_FAMILIES",
    "FAMILIES",
    "FAMILIES_OF",
    "FINE_FAMILIES",
    "LOOK_CLOSER",
    "Question",
    "QuestionCase",
    "balanced_questions",
    "case_for",
    "lung_question",
    "lung_questions",
    "questions_for",
]

FAMILIES_OF: Final[dict[str, dict[str, Family]]] = {
    CHEST: CHEST_FAMILIES,
    HEAD: HEAD_FAMILIES,
    BREAST: BREAST_FAMILIES,
}
"""Families of each modality; no two modalities share a name."""

FAMILIES: Final = CHEST_FAMILIES
ALL_FAMILIES: Final = {n: f for families in FAMILIES_OF.values() for n, f in families.items()}
COARSE_FAMILIES: Final = tuple(n for n, f in FAMILIES.items() if f.kind == COARSE)
FINE_FAMILIES: Final = tuple(n for n, f in FAMILIES.items() if f.kind == FINE)


def questions_for(truth: AnyTruth, rng: Generator) -> list[Question]:
    """Every question that a truth allows, one wording each, with options."""
    return [
        worded(name, family, item, rng)
        for name, family in FAMILIES_OF[modality_of(truth)].items()
        for item in family.ask(truth)
    ]


def balanced_questions(
    count: int,
    seed: int,
    split: str,
    families: Sequence[str] | None = None,
    open_fraction: float = 0.0,
) -> Iterator[QuestionCase]:
    """Yield ``count`` cases with families balanced, and answers balanced inside each family.

    Args:
        count: number of cases; each has its own phantom.
        seed: base seed; equal seeds give equal cases.
        split: split of the phantoms' seeds.
        families: names to take in turn, all of the chest by default; one named twice is asked
            twice as often.
        open_fraction: share of the questions that come without options.

    Raises:
        ValueError: a negative count, or an unknown family or split.
    """
    if count < 0:
        raise ValueError("The number of questions must not be negative.")
    names = list(families if families is not None else FAMILIES)
    if not names:
        raise ValueError("At least one question family is needed.")
    asked = dict.fromkeys(names, 0)
    for index in range(count):
        name = names[index % len(names)]
        family = _family(name)
        answer = family.answers[asked[name] % len(family.answers)]
        asked[name] += 1
        case = _case(name, family, answer, seed_for(split, index, seed))
        opened = np.random.default_rng((case.phantom_seed, 7)).random() < open_fraction
        yield replace(case, question=case.question.as_open()) if opened else case


def case_for(family: str, answer: str, phantom_seed: int) -> QuestionCase:
    """The case of one family with a wanted answer on the phantom of a seed.

    Raises:
        ValueError: an unknown family, or an answer that the family does not have.
    """
    found = _family(family)
    if answer not in found.answers:
        raise ValueError(f"{answer!r} is no answer of {family!r}; use one of {found.answers}.")
    return _case(family, found, answer, phantom_seed)


def lung_question(side: str, box: Box, rng: Generator) -> Question:
    """A request to zoom in on a lung, for phantoms and for real radiographs alike.

    Args:
        side: ``right`` or ``left`` (of the patient).
        box: the lung.
        rng: chooses the wording and the order of the options.
    """
    return worded("lung", FAMILIES["lung"], side_item("lung", side, box), rng)


def lung_questions(boxes: dict[str, Box], rng: Generator) -> list[Question]:
    """One request to zoom for each lung whose box is given by side."""
    return [lung_question(side, box, rng) for side, box in boxes.items()]


def _family(name: str) -> Family:
    if name not in ALL_FAMILIES:
        known = ", ".join(ALL_FAMILIES)
        raise ValueError(f"Unknown question family {name!r}; use one of {known}.")
    return ALL_FAMILIES[name]


def _case(name: str, family: Family, answer: str, phantom_seed: int) -> QuestionCase:
    """Order a phantom for an answer and pick the question that has it."""
    for attempt in range(40):
        rng = np.random.default_rng((phantom_seed, attempt, 5))
        config = family.order(answer, rng)
        try:
            truth = truth_for(phantom_seed, config)
        except ValueError:
            continue
        items = [item for item in family.ask(truth) if item.answer == answer]
        if items:
            item = items[int(rng.integers(len(items)))]
            return QuestionCase(phantom_seed, config, worded(name, family, item, rng))
    raise ValueError(f"No phantom fits {answer!r} of family {name!r} at seed {phantom_seed}.")
