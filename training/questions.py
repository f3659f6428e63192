"""Questions about phantoms, of the kinds that OmniMedVQA asks.

Each family turns the truth of a phantom into questions with one visible answer. *Coarse*
families can be answered from the small view; *fine* ones only after zooming in. The wording is a
small controlled vocabulary, in lower case apart from the first letter of a sentence, because the
tokenizer of the embedded model is trained on it.

Answers are balanced by :func:`balanced_questions`, which asks the generator for the phantom that
a wanted answer needs. :func:`questions_for` asks everything that a given truth allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from training.phantoms import FindingRequest, Phantom, PhantomConfig, generate, seed_for, truth_for
from training.phantoms.truth import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    EFFUSION_GRADES,
    HEART_SIZES,
    LEFT,
    LEVELS,
    LINE,
    MARGINS,
    NODULE,
    PNEUMOTHORAX,
    RIGHT,
    SIDES,
    TIP_LEVELS,
    TUBE,
    ZONES,
    Box,
    Finding,
    Truth,
)

Generator = np.random.Generator
Kind = Literal["coarse", "fine"]

COARSE: Final = "coarse"
FINE: Final = "fine"
NONE: Final = "none"
YES, NO = "yes", "no"
LOOK_CLOSER: Final = "A closer look is needed."
_HIDES_HEART: Final = ("moderate", "large")


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

    def as_open(self) -> Question:
        """The same question without options."""
        return replace(self, options=())


@dataclass(frozen=True)
class QuestionCase:
    """A question and what it takes to draw its phantom."""

    phantom_seed: int
    config: PhantomConfig
    question: Question

    def truth(self) -> Truth:
        """Truth of the phantom, without drawing it."""
        return truth_for(self.phantom_seed, self.config)

    def phantom(self) -> Phantom:
        """The phantom."""
        return generate(self.phantom_seed, self.config)


@dataclass(frozen=True)
class _Item:
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
        ask: all questions of the family that a truth allows.
        order: configuration of a phantom in which the given answer is right.
        max_options: size of the option list; the rest of ``answers`` is drawn as distractors.
    """

    kind: Kind
    answers: tuple[str, ...]
    ask: Callable[[Truth], list[_Item]]
    order: Callable[[str, Generator], PhantomConfig]
    max_options: int = 4


def questions_for(truth: Truth, rng: Generator) -> list[Question]:
    """Every question that a truth allows, one wording each, with options."""
    return [
        _word(name, family, item, rng)
        for name, family in FAMILIES.items()
        for item in family.ask(truth)
    ]


def sample_question(
    truth: Truth, rng: Generator, families: Sequence[str] | None = None
) -> Question | None:
    """One question: a family that applies, then one of its questions; ``None`` if none does."""
    names = list(families if families is not None else FAMILIES)
    for index in rng.permutation(len(names)):
        family = _family(names[index])
        items = family.ask(truth)
        if items:
            return _word(names[index], family, items[int(rng.integers(len(items)))], rng)
    return None


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
        families: names to take in turn, all by default; one named twice is asked twice as often.
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
    return _word("lung", FAMILIES["lung"], _lung_item(side, box), rng)


def lung_questions(boxes: dict[str, Box], rng: Generator) -> list[Question]:
    """One request to zoom for each lung whose box is given by side."""
    return [lung_question(side, box, rng) for side, box in boxes.items()]


def vocabulary() -> frozenset[str]:
    """All words that questions, options, answers and reasoning can contain, in lower case."""
    words: set[str] = set()
    for name, family in FAMILIES.items():
        for index, answer in enumerate(family.answers):
            case = _case(name, family, answer, seed_for("demo", index))
            for item in family.ask(case.truth()):
                parts = (*item.texts, *item.answers, *family.answers, item.before, item.after)
                words.update(_words(" ".join(parts)))
    return frozenset(words)


def _words(text: str) -> list[str]:
    kept = "".join(c if c.isalnum() or c in "-'" else " " for c in text.lower())
    return kept.split()


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"Unknown question family {name!r}; use one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


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
            return QuestionCase(phantom_seed, config, _word(name, family, item, rng))
    raise ValueError(f"No phantom fits {answer!r} of family {name!r} at seed {phantom_seed}.")


def _word(name: str, family: Family, item: _Item, rng: Generator) -> Question:
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


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _any_config(
    require: Sequence[FindingRequest] = (), forbid: Sequence[str] = ()
) -> PhantomConfig:
    return PhantomConfig(require=tuple(require), forbid=tuple(forbid), extras=(0.35, 0.4, 0.25))


# --- what is shown ---------------------------------------------------------------------------


def _modality(truth: Truth) -> list[_Item]:
    del truth
    return [
        _Item(
            (
                "Which imaging modality is this?",
                "How was this image acquired?",
                "What type of image is shown?",
            ),
            ("x-ray", "ct", "mri", "ultrasound"),
            "x-ray",
            (),
            "The image is a projection of the whole chest.",
            "It is an x-ray.",
        )
    ]


def _body_part(truth: Truth) -> list[_Item]:
    del truth
    return [
        _Item(
            ("Which part of the body is shown?", "What body region does the image show?"),
            ("chest", "abdomen", "head", "knee"),
            "chest",
            (),
            "Two lungs and the heart are seen.",
            "It is the chest.",
        )
    ]


def _free(answer: str, rng: Generator) -> PhantomConfig:
    del answer, rng
    return PhantomConfig()


def _lung_item(side: str, box: Box) -> _Item:
    """The name of a lung by its place in the image: left of the image is the patient's right."""
    place = "left" if side == RIGHT else "right"
    return _Item(
        (
            f"Zoom in on the {side} lung. On which side of the image is it?",
            f"Where is the {side} lung in the image?",
            f"On which side of the image does the {side} lung lie?",
        ),
        ("left side of the image", "right side of the image"),
        f"{place} side of the image",
        (box,),
        f"This is the {side} lung.",
        f"It lies on the {place} side of the image.",
    )


def _lung(truth: Truth) -> list[_Item]:
    return [_lung_item(side, truth.anatomy[f"{side}_lung"].box) for side in SIDES]


def _lung_name(truth: Truth) -> list[_Item]:
    items = []
    for side, place in ((RIGHT, "left"), (LEFT, "right")):
        items.append(
            _Item(
                (
                    f"Which lung lies on the {place} side of the image?",
                    f"Which lung is seen on the {place} side of the image?",
                ),
                ("right lung", "left lung"),
                f"{side} lung",
                (truth.anatomy[f"{side}_lung"].box,),
                f"The {place} side of the image is the {side} side of the patient.",
                f"It is the {side} lung.",
            )
        )
    return items


# --- disease ---------------------------------------------------------------------------------

_PRESENCE_TEXTS: Final = (
    "Is there {a}?",
    "Does the image show {a}?",
    "Is {a} present?",
)


def _presence(kind: str) -> Family:
    """Yes or no for one finding; extras are equally likely for both answers."""

    def ask(truth: Truth) -> list[_Item]:
        found = truth.of_kind(kind)
        if kind == CARDIOMEGALY and _heart_is_hidden(truth):
            return []
        texts = tuple(text.format(a=_named(kind)) for text in _PRESENCE_TEXTS)
        if not found:
            return [_Item(texts, (YES, NO), NO, (), _looked_at(kind), f"There is no {kind}.")]
        after = f"There is {_named(kind)}."
        boxes = tuple(f.box for f in found)
        return [_Item(texts, (YES, NO), YES, boxes, _looked_at(kind), after)]

    def order(answer: str, rng: Generator) -> PhantomConfig:
        del rng
        hidden = (EFFUSION,) if kind == CARDIOMEGALY else ()
        if answer == YES:
            return _any_config([FindingRequest(kind)], hidden)
        return _any_config((), (kind, *hidden))

    return Family(COARSE, (YES, NO), ask, order)


def _named(kind: str) -> str:
    return kind if kind == CARDIOMEGALY else _article(kind)


def _looked_at(kind: str) -> str:
    if kind == CARDIOMEGALY:
        return "The width of the heart is compared with the chest."
    if kind in (TUBE, LINE):
        return "The image is searched for tubes and lines."
    return "Both lungs are searched."


_DISEASES: Final = (NODULE, CONSOLIDATION, EFFUSION, PNEUMOTHORAX, CARDIOMEGALY)


def _which_finding(truth: Truth) -> list[_Item]:
    shown = {f.kind for f in truth.findings if f.kind in _DISEASES}
    if len(shown) > 1 or _heart_is_hidden(truth):
        return []
    answer = next(iter(shown), NONE)
    boxes = tuple(f.box for f in truth.findings if f.kind == answer)
    after = "There is no finding." if answer == NONE else f"There is {_named(answer)}."
    return [
        _Item(
            (
                "Which finding is present?",
                "Which finding does the chest show?",
                "Which disease is seen?",
            ),
            (*_DISEASES, NONE),
            answer,
            boxes,
            "The lungs, the pleura and the heart are searched.",
            after,
        )
    ]


def _order_which(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    forbid = tuple(kind for kind in _DISEASES if kind != answer)
    if answer == NONE:
        return _any_config((), forbid)
    request = (
        FindingRequest(answer, grade="small") if answer == EFFUSION else FindingRequest(answer)
    )
    return _any_config([request], forbid)


def _heart_is_hidden(truth: Truth) -> bool:
    return any(f.attributes["grade"] in _HIDES_HEART for f in truth.of_kind(EFFUSION))


def _side(kind: str) -> Family:
    """Right or left of a finding that is on one side only."""

    def ask(truth: Truth) -> list[_Item]:
        sides = {f.side for f in truth.of_kind(kind)}
        if len(sides) != 1:
            return []
        side = sides.pop()
        place = "left" if side == RIGHT else "right"
        return [
            _Item(
                (f"On which side is the {kind}?", f"Which side shows the {kind}?"),
                SIDES,
                side,
                tuple(f.box for f in truth.of_kind(kind)),
                f"There is {_article(kind)} on the {place} side of the image.",
                f"It is on the {side} side of the patient.",
            )
        ]

    def order(answer: str, rng: Generator) -> PhantomConfig:
        del rng
        return _any_config([FindingRequest(kind, side=answer)])

    return Family(COARSE, SIDES, ask, order)


def _zone(kind: str) -> Family:
    """One of six zones of the only finding of its kind."""

    def ask(truth: Truth) -> list[_Item]:
        found = truth.of_kind(kind)
        if len(found) != 1:
            return []
        zone = found[0].zone
        return [
            _Item(
                (
                    f"In which zone is the {kind}?",
                    f"Where is the {kind}?",
                    f"Which lung zone shows the {kind}?",
                ),
                ZONES,
                zone,
                (found[0].box,),
                f"There is {_article(kind)}.",
                f"It lies in the {zone}.",
            )
        ]

    def order(answer: str, rng: Generator) -> PhantomConfig:
        del rng
        side, level, _ = answer.split()
        return _any_config([FindingRequest(kind, side=side, level=level)])

    return Family(COARSE, ZONES, ask, order)


# --- grading, counting, comparing ------------------------------------------------------------


def _effusion_grade(truth: Truth) -> list[_Item]:
    found = truth.of_kind(EFFUSION)
    if len(found) != 1:
        return []
    grade = found[0].attributes["grade"]
    return [
        _Item(
            ("How large is the pleural effusion?", "What is the size of the pleural effusion?"),
            EFFUSION_GRADES,
            grade,
            (found[0].box,),
            f"There is a pleural effusion on the {found[0].side} side.",
            f"It is {grade}.",
        )
    ]


def _order_effusion_grade(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(EFFUSION, grade=answer)])


def _heart_size(truth: Truth) -> list[_Item]:
    if _heart_is_hidden(truth):
        return []
    size = truth.heart_size
    return [
        _Item(
            ("How large is the heart?", "What is the size of the heart?", "Grade the heart size."),
            HEART_SIZES,
            size,
            (truth.anatomy["heart"].box,),
            "The width of the heart is compared with the chest.",
            f"The heart size is {size}.",
        )
    ]


def _order_heart_size(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    if answer == HEART_SIZES[0]:
        return _any_config((), (CARDIOMEGALY, EFFUSION))
    return _any_config([FindingRequest(CARDIOMEGALY, grade=answer)], (EFFUSION,))


_COUNTS: Final = ("one", "two", "three")


def _count(truth: Truth) -> list[_Item]:
    found = truth.of_kind(NODULE)
    if not 1 <= len(found) <= len(_COUNTS):
        return []
    answer = _COUNTS[len(found) - 1]
    parts = [
        f"{_COUNTS[n - 1]} in the {s} lung" for s in SIDES if (n := len(truth.of_kind(NODULE, s)))
    ]
    return [
        _Item(
            ("How many nodules are there?", "What is the number of nodules?"),
            _COUNTS,
            answer,
            tuple(f.box for f in found),
            f"Nodules: {' and '.join(parts)}.",
            f"The number of nodules is {answer}.",
        )
    ]


def _order_count(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(NODULE)] * (_COUNTS.index(answer) + 1))


def _radius(finding: Finding) -> float:
    return finding.measures["radius_px"]


def _larger(truth: Truth) -> list[_Item]:
    right, left = truth.of_kind(NODULE, RIGHT), truth.of_kind(NODULE, LEFT)
    if len(right) != 1 or len(left) != 1:
        return []
    ratio = _radius(right[0]) / _radius(left[0])
    if max(ratio, 1 / ratio) < 1.5:
        return []
    side = RIGHT if ratio > 1 else LEFT
    return [
        _Item(
            (
                "Which nodule is larger?",
                "Is the nodule in the right lung or the nodule in the left lung larger?",
            ),
            ("right lung", "left lung"),
            f"{side} lung",
            (right[0].box, left[0].box),
            "There is a nodule in each lung.",
            f"The nodule in the {side} lung is larger.",
        )
    ]


def _order_larger(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    side = answer.split(maxsplit=1)[0]
    other = LEFT if side == RIGHT else RIGHT
    return _any_config(
        [
            FindingRequest(NODULE, side=side, size="large"),
            FindingRequest(NODULE, side=other, size="small"),
        ]
    )


def _more(truth: Truth) -> list[_Item]:
    counts = {side: len(truth.of_kind(NODULE, side)) for side in SIDES}
    if counts[RIGHT] == counts[LEFT]:
        return []
    side = RIGHT if counts[RIGHT] > counts[LEFT] else LEFT
    found = [f"{_COUNTS[n - 1] if n else 'none'} in the {s} lung" for s, n in counts.items()]
    return [
        _Item(
            ("Which lung has more nodules?", "In which lung are there more nodules?"),
            ("right lung", "left lung"),
            f"{side} lung",
            tuple(f.box for f in truth.of_kind(NODULE)),
            f"Nodules: {' and '.join(found)}.",
            f"The {side} lung has more.",
        )
    ]


def _order_more(answer: str, rng: Generator) -> PhantomConfig:
    side = answer.split(maxsplit=1)[0]
    other = LEFT if side == RIGHT else RIGHT
    more = [FindingRequest(NODULE, side=side)] * 2
    return _any_config(more + [FindingRequest(NODULE, side=other)] * int(rng.integers(2)))


# --- devices ---------------------------------------------------------------------------------


def _which_device(truth: Truth) -> list[_Item]:
    shown = [f for f in truth.findings if f.kind in (TUBE, LINE)]
    if len(shown) > 1:
        return []
    answer = shown[0].kind if shown else NONE
    after = f"There is {_article(answer)}." if shown else "There is no tube and no line."
    return [
        _Item(
            ("Which device is present?", "Which tube or line is seen?"),
            (TUBE, LINE, NONE),
            answer,
            tuple(f.box for f in shown),
            _looked_at(TUBE),
            after,
        )
    ]


def _order_device(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    forbid = tuple(kind for kind in (TUBE, LINE) if kind != answer)
    return _any_config([] if answer == NONE else [FindingRequest(answer)], forbid)


def _tip(truth: Truth) -> list[_Item]:
    found = truth.of_kind(TUBE)
    if len(found) != 1:
        return []
    tip = found[0].attributes["tip"]
    return [
        _Item(
            (
                "Where is the tip of the endotracheal tube?",
                "Where does the endotracheal tube end?",
            ),
            TIP_LEVELS,
            tip,
            (found[0].focus,),
            "There is an endotracheal tube.",
            f"Its tip is {tip}.",
        )
    ]


def _order_tip(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(TUBE, tip=answer)])


def _line_side(truth: Truth) -> list[_Item]:
    found = truth.of_kind(LINE)
    if len(found) != 1:
        return []
    side = found[0].side
    return [
        _Item(
            (
                "From which side does the central line come?",
                "On which side does the central line enter?",
            ),
            SIDES,
            side,
            (found[0].box,),
            "There is a central line.",
            f"It comes from the {side} side of the patient.",
        )
    ]


def _order_line_side(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(LINE, side=answer)])


# --- fine attributes -------------------------------------------------------------------------


def _referents(truth: Truth, kind: str) -> list[tuple[str, str, Finding]]:
    """(name in a question, place in a sentence, finding) wherever there is one referent."""
    found = truth.of_kind(kind)
    if len(found) == 1:
        return [(f"the {kind}", f"in the {found[0].zone}", found[0])]
    named = []
    for side in SIDES:
        on_side = truth.of_kind(kind, side)
        if len(on_side) == 1:
            named.append(
                (f"the {kind} in the {side} lung", f"in the {on_side[0].zone}", on_side[0])
            )
    return named


def _nodule_requests(rng: Generator, **wanted: str | bool) -> list[FindingRequest]:
    """One nodule with an attribute, or one in each lung of which either may be asked about."""
    side = SIDES[int(rng.integers(2))]
    level = LEVELS[int(rng.integers(3))]
    asked = replace(FindingRequest(NODULE, side=side, level=level), **wanted)  # type: ignore[arg-type]
    if rng.random() < 0.7:
        return [asked]
    return [asked, FindingRequest(NODULE, side=LEFT if side == RIGHT else RIGHT)]


def _margin(truth: Truth) -> list[_Item]:
    items = []
    for name, place, nodule in _referents(truth, NODULE):
        margin = nodule.attributes["margin"]
        items.append(
            _Item(
                (
                    f"What is the margin of {name}?",
                    f"Which margin does {name} have?",
                    f"How is the margin of {name}?",
                ),
                MARGINS,
                margin,
                (nodule.box,),
                f"There is a nodule {place}.",
                f"Its margin is {margin}.",
            )
        )
    return items


def _order_margin(answer: str, rng: Generator) -> PhantomConfig:
    return _any_config(_nodule_requests(rng, margin=answer))


def _calcification(truth: Truth) -> list[_Item]:
    items = []
    for name, place, nodule in _referents(truth, NODULE):
        calcified = nodule.attributes["calcification"] == "calcified"
        items.append(
            _Item(
                (f"Is {name} calcified?", f"Does {name} contain calcification?"),
                (YES, NO),
                YES if calcified else NO,
                (nodule.box,),
                f"There is a nodule {place}.",
                "It is calcified." if calcified else "It is not calcified.",
            )
        )
    return items


def _order_calcification(answer: str, rng: Generator) -> PhantomConfig:
    return _any_config(_nodule_requests(rng, calcified=answer == YES))


def _bronchogram(truth: Truth) -> list[_Item]:
    items = []
    for name, place, patch in _referents(truth, CONSOLIDATION):
        answer = patch.attributes["air bronchogram"]
        items.append(
            _Item(
                (
                    f"Is there an air bronchogram in {name}?",
                    f"Does {name} contain an air bronchogram?",
                ),
                (YES, NO),
                answer,
                (patch.box,),
                f"There is a consolidation {place}.",
                "It contains an air bronchogram."
                if answer == YES
                else "It contains no air bronchogram.",
            )
        )
    return items


def _order_bronchogram(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(CONSOLIDATION, bronchogram=answer == YES)])


FAMILIES: Final[dict[str, Family]] = {
    "modality": Family(COARSE, ("x-ray",), _modality, _free),
    "body_part": Family(COARSE, ("chest",), _body_part, _free),
    "lung": Family(COARSE, ("left side of the image", "right side of the image"), _lung, _free),
    "lung_name": Family(COARSE, ("right lung", "left lung"), _lung_name, _free),
    "nodule_present": _presence(NODULE),
    "consolidation_present": _presence(CONSOLIDATION),
    "effusion_present": _presence(EFFUSION),
    "pneumothorax_present": _presence(PNEUMOTHORAX),
    "cardiomegaly_present": _presence(CARDIOMEGALY),
    "tube_present": _presence(TUBE),
    "line_present": _presence(LINE),
    "which_finding": Family(COARSE, (*_DISEASES, NONE), _which_finding, _order_which),
    "nodule_side": _side(NODULE),
    "consolidation_side": _side(CONSOLIDATION),
    "effusion_side": _side(EFFUSION),
    "pneumothorax_side": _side(PNEUMOTHORAX),
    "nodule_zone": _zone(NODULE),
    "consolidation_zone": _zone(CONSOLIDATION),
    "effusion_grade": Family(COARSE, EFFUSION_GRADES, _effusion_grade, _order_effusion_grade),
    "heart_size": Family(COARSE, HEART_SIZES, _heart_size, _order_heart_size),
    "nodule_count": Family(COARSE, _COUNTS, _count, _order_count),
    "larger_nodule": Family(COARSE, ("right lung", "left lung"), _larger, _order_larger),
    "more_nodules": Family(COARSE, ("right lung", "left lung"), _more, _order_more),
    "which_device": Family(COARSE, (TUBE, LINE, NONE), _which_device, _order_device),
    "tube_tip": Family(COARSE, TIP_LEVELS, _tip, _order_tip),
    "line_side": Family(COARSE, SIDES, _line_side, _order_line_side),
    "nodule_margin": Family(FINE, MARGINS, _margin, _order_margin),
    "nodule_calcification": Family(FINE, (YES, NO), _calcification, _order_calcification),
    "air_bronchogram": Family(FINE, (YES, NO), _bronchogram, _order_bronchogram),
}
COARSE_FAMILIES: Final = tuple(n for n, f in FAMILIES.items() if f.kind == COARSE)
FINE_FAMILIES: Final = tuple(n for n, f in FAMILIES.items() if f.kind == FINE)
