"""Kinds of question families that sections of the body share: CT slices and ultrasound images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from training.phantoms import Finding, SectionConfig, SectionRequest, SectionTruth
from training.question_forms import (
    COARSE,
    COUNTS,
    FINE,
    MODALITY_NAMES,
    NO,
    NONE,
    PRESENCE_TEXTS,
    YES,
    Family,
    Generator,
    Item,
    article,
)

# as in the questions about chests: the image also shows what is not asked about
_EXTRAS: Final = (0.35, 0.4, 0.25)


def wish(
    study: str, require: Sequence[SectionRequest] = (), forbid: Sequence[str] = ()
) -> SectionConfig:
    """Configuration of a phantom with some findings and perhaps others beside them."""
    return SectionConfig(study, tuple(require), tuple(forbid), _EXTRAS)


@dataclass(frozen=True)
class Subject:
    """What families ask about: findings of some kinds under one name.

    Attributes:
        study: name of the modality's phantoms.
        kinds: of the findings.
        noun: their name in a question.
        sides: on which they may lie.
        where: how a sentence places them, with ``{}`` for the side.
        searched: what is looked at first.
    """

    study: str
    kinds: tuple[str, ...]
    noun: str
    sides: tuple[str, ...]
    where: str
    searched: str

    def found(self, truth: SectionTruth, side: str | None = None) -> list[Finding]:
        """Findings of the subject, on one side where it is given."""
        return [f for f in truth.findings if f.kind in self.kinds and side in (None, f.side)]

    def kind(self, rng: Generator) -> str:
        """Any kind of the subject."""
        return self.kinds[int(rng.integers(len(self.kinds)))]

    def place(self, finding: Finding) -> str:
        """Where a finding lies, in words."""
        return self.where.format(finding.side)

    def referents(self, truth: SectionTruth) -> list[tuple[str, Finding]]:
        """(name in a question, finding) wherever there is one referent."""
        found = self.found(truth)
        if len(found) == 1:
            return [(f"the {self.noun}", found[0])]
        alone = [on_side for s in self.sides if len(on_side := self.found(truth, s)) == 1]
        return [(f"the {self.noun} {self.place(f)}", f) for (f,) in alone]

    def presence(self) -> Family:
        """Is there one? Extras are equally likely for both answers."""
        texts = tuple(text.format(a=article(self.noun)) for text in PRESENCE_TEXTS)

        def ask(truth: SectionTruth) -> list[Item]:
            found = self.found(truth)
            if not found:
                after = f"There is no {self.noun}."
                return [Item(texts, (YES, NO), NO, (), self.searched, after)]
            boxes = tuple(f.box for f in found)
            after = f"There is {article(self.noun)}."
            return [Item(texts, (YES, NO), YES, boxes, self.searched, after)]

        def order(answer: str, rng: Generator) -> SectionConfig:
            if answer == YES:
                return wish(self.study, [SectionRequest(self.kind(rng))])
            return wish(self.study, (), self.kinds)

        return Family(COARSE, (YES, NO), ask, order)

    def side(self) -> Family:
        """On which side, where all are on one."""
        texts = (f"On which side is the {self.noun}?", f"Which side shows the {self.noun}?")

        def ask(truth: SectionTruth) -> list[Item]:
            found = self.found(truth)
            if len({f.side for f in found}) != 1:
                return []
            side, boxes = found[0].side, tuple(f.box for f in found)
            before, after = f"There is {article(self.noun)}.", f"It is {self.place(found[0])}."
            return [Item(texts, self.sides, side, boxes, before, after)]

        def order(answer: str, rng: Generator) -> SectionConfig:
            return wish(self.study, [SectionRequest(self.kind(rng), side=answer)], self.kinds)

        return Family(COARSE, self.sides, ask, order)

    def zone(self, zones: tuple[str, ...], texts: tuple[str, ...], after: str) -> Family:
        """In which zone the only one lies.

        Args:
            zones: to choose from.
            texts: wordings.
            after: what the zone is put into.
        """

        def ask(truth: SectionTruth) -> list[Item]:
            found = self.found(truth)
            if len(found) != 1:
                return []
            said = after.format(found[0].zone)
            before = f"There is {article(self.noun)}."
            return [Item(texts, zones, found[0].zone, (found[0].box,), before, said)]

        def order(answer: str, rng: Generator) -> SectionConfig:
            return wish(self.study, [SectionRequest(self.kind(rng), zone=answer)], self.kinds)

        return Family(COARSE, zones, ask, order)

    def attribute(
        self,
        name: str,
        answers: tuple[str, ...],
        texts: tuple[str, ...],
        after: Mapping[str, str] | str,
        kinds: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Family:
        """An attribute that can be read from the small view, of the only one.

        Args:
            name: of the attribute.
            answers: its values.
            texts: wordings.
            after: what each value, or any, is said in.
            kinds: kinds that can have each value; all by default.
        """

        def ask(truth: SectionTruth) -> list[Item]:
            found = self.found(truth)
            if len(found) != 1:
                return []
            value = found[0].attributes[name]
            said = after.format(value) if isinstance(after, str) else after[value]
            before = f"There is {article(self.noun)} {self.place(found[0])}."
            return [Item(texts, answers, value, (found[0].box,), before, said)]

        def order(answer: str, rng: Generator) -> SectionConfig:
            fit = kinds[answer] if kinds else self.kinds
            kind = fit[int(rng.integers(len(fit)))]
            wanted = SectionRequest(kind, attributes={name: answer})
            return wish(self.study, [wanted], self.kinds)

        return Family(COARSE, answers, ask, order)

    def fine(
        self, name: str, answers: tuple[str, ...], texts: tuple[str, ...], after: Mapping[str, str]
    ) -> Family:
        """An attribute that only a close look tells, of the only one, or of one on each side.

        Args:
            name: of the attribute.
            answers: its values.
            texts: wordings with ``{name}`` for what is asked about.
            after: what each value is said in.
        """

        def ask(truth: SectionTruth) -> list[Item]:
            return [
                Item(
                    tuple(text.format(name=referent) for text in texts),
                    answers,
                    finding.attributes[name],
                    (finding.focus,),
                    f"There is {article(self.noun)} {self.place(finding)}.",
                    after[finding.attributes[name]],
                )
                for referent, finding in self.referents(truth)
            ]

        def order(answer: str, rng: Generator) -> SectionConfig:
            sides = [self.sides[int(i)] for i in rng.permutation(len(self.sides))]
            require = [SectionRequest(self.kind(rng), sides[0], attributes={name: answer})]
            if rng.random() > 0.7:
                require.append(SectionRequest(self.kind(rng), sides[1]))
            return wish(self.study, require, self.kinds)

        return Family(FINE, answers, ask, order)

    def count(self, texts: tuple[str, ...], plural: str) -> Family:
        """How many there are, one to three."""

        def ask(truth: SectionTruth) -> list[Item]:
            found = self.found(truth)
            if not 1 <= len(found) <= len(COUNTS):
                return []
            answer = COUNTS[len(found) - 1]
            parts = [
                f"{COUNTS[n - 1]} {self.where.format(side)}"
                for side in self.sides
                if (n := len(self.found(truth, side)))
            ]
            before = f"{plural.capitalize()}: {' and '.join(parts)}."
            after = f"The number of {plural} is {answer}."
            return [Item(texts, COUNTS, answer, tuple(f.box for f in found), before, after)]

        def order(answer: str, rng: Generator) -> SectionConfig:
            wanted = [SectionRequest(self.kind(rng)) for _ in range(COUNTS.index(answer) + 1)]
            return wish(self.study, wanted, self.kinds)

        return Family(COARSE, COUNTS, ask, order)

    def larger(self, texts: tuple[str, ...], measure: str, size: tuple[str, str, str]) -> Family:
        """Which of two, one on each side, is clearly larger.

        Args:
            texts: wordings.
            measure: what is compared.
            size: name of the attribute that grades it, with its least and its greatest value.
        """
        name, small, large = size

        def ask(truth: SectionTruth) -> list[Item]:
            pair = [self.found(truth, side) for side in self.sides]
            if [len(one) for one in pair] != [1, 1]:
                return []
            first, second = pair[0][0], pair[1][0]
            ratio = first.measures[measure] / second.measures[measure]
            if max(ratio, 1 / ratio) < 1.5:
                return []
            larger = first if ratio > 1 else second
            before = f"There is {article(self.noun)} on each side."
            after = f"The {self.noun} {self.place(larger)} is larger."
            boxes = (first.box, second.box)
            return [Item(texts, self.sides, larger.side, boxes, before, after)]

        def order(answer: str, rng: Generator) -> SectionConfig:
            wanted = [
                SectionRequest(
                    self.kind(rng), side, attributes={name: large if side == answer else small}
                )
                for side in self.sides
            ]
            return wish(self.study, wanted, self.kinds)

        return Family(COARSE, self.sides, ask, order)


def constant(
    study: str, texts: tuple[str, ...], answers: tuple[str, ...], answer: str, said: tuple[str, str]
) -> Family:
    """A question with the same answer, said in two sentences, for every phantom of a modality."""

    def ask(truth: SectionTruth) -> list[Item]:
        del truth
        return [Item(texts, answers, answer, (), *said)]

    def order(answer: str, rng: Generator) -> SectionConfig:
        del answer, rng
        return wish(study)

    return Family(COARSE, (answer,), ask, order)


def modality(study: str, answer: str, before: str) -> Family:
    """Which imaging modality this is, asked as of a radiograph."""
    texts = (
        "Which imaging modality is this?",
        "How was this image acquired?",
        "What type of image is shown?",
    )
    return constant(study, texts, MODALITY_NAMES, answer, (before, f"It is {answer}."))


def body_part(study: str, answers: tuple[str, ...], answer: str, before: str) -> Family:
    """Which part of the body is shown, asked as of a radiograph."""
    texts = ("Which part of the body is shown?", "What body region does the image show?")
    return constant(study, texts, answers, answer, (before, f"It is the {answer}."))


def trait(
    study: str,
    name: str,
    answers: tuple[str, ...],
    texts: tuple[str, ...],
    sentences: tuple[str, str],
    structure: str,
) -> Family:
    """An attribute of the whole image.

    Args:
        study: name of the modality's phantoms.
        name: of the attribute.
        answers: its values.
        texts: wordings.
        sentences: what is looked at, and what the value is put into.
        structure: where to look.
    """
    before, after = sentences

    def ask(truth: SectionTruth) -> list[Item]:
        value = truth.traits[name]
        box = truth.anatomy[structure].box
        return [Item(texts, answers, value, (box,), before, after.format(value))]

    def order(answer: str, rng: Generator) -> SectionConfig:
        del rng
        return SectionConfig(study, extras=_EXTRAS, traits={name: answer})

    return Family(COARSE, answers, ask, order)


def which(
    study: str,
    kinds: tuple[str, ...],
    texts: tuple[str, ...],
    before: str,
    named: Callable[[str], str] = article,
) -> Family:
    """Which kind of finding is there, where there is one kind or none."""

    def ask(truth: SectionTruth) -> list[Item]:
        shown = {f.kind for f in truth.findings}
        if len(shown) > 1:
            return []
        answer = next(iter(shown), NONE)
        boxes = tuple(f.box for f in truth.findings)
        after = f"There is {named(answer)}." if shown else "There is no finding."
        return [Item(texts, (*kinds, NONE), answer, boxes, before, after)]

    def order(answer: str, rng: Generator) -> SectionConfig:
        del rng
        require = [] if answer == NONE else [SectionRequest(answer)]
        return wish(study, require, kinds)

    return Family(COARSE, (*kinds, NONE), ask, order)
