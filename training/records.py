"""Questions as token sequences: prompt, what the model should write, and what counts.

A record holds the token ids with every image expanded, a weight per token for the loss (0 for
everything that the model does not write itself: prompts, tool responses, images), and the
pictures in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from engine.geometry import Box, PatchGrid
from engine.processor import expanded_ids
from engine.prompt import (
    IM_END,
    LATENT_END,
    LATENT_SLOT,
    LATENT_START,
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_CALL_OPEN,
    answer_text,
    assistant_head,
    option_letter,
    prompt_text,
    question_text,
    tool_message_text,
    tool_response_text,
    turn,
    zoom_call_text,
)
from engine.reground import SKIPPED_MESSAGE
from engine.request import METHODS, Method
from training.drawn_words import whole_words
from training.grounding import Written
from training.letter_heads import Pointer, answered_letters, name_pointers, pointers_of
from training.numbers import FreeNumber
from training.phantoms import AnyTruth
from training.place_forms import PlaceForm
from training.question_forms import with_article
from training.questions import Question
from training.reports import box_text, report_text, whole_pixels
from training.world import Picture

# The answer is one token among thirty, and the one that is asked for.
ANSWER_WEIGHT: Final = 3.0
# Of the coordinates in a report. At full weight their noise, a pixel more or less, drowned the
# words: after 800 steps the model still guessed what it now writes after 400.
COORDINATE_WEIGHT: Final = 0.1
# Of boxes that are asked for, with the braces around them; several in one record.
PLACE_WEIGHT: Final = 0.5
# Of coordinates of which any will do. At full weight the model soon wrote one box wherever it
# called the tool, and what it knew of the place that its thought had named was lost.
FREE_WEIGHT: Final = 0.1
# Of a record of letters, at most. What each ends in is drawn, so that one option may come twice and
# another not at all.
LETTER_TURNS: Final = 3
SHORT_ANSWERS: Final = "Answer every question in a few words."
# Answers that a sentence about them does not hold as they are.
_UNNAMED: Final = ("yes", "no", "none")
_COORDINATES: Final = re.compile(r"(\[[0-9, ]+\])")

ZoomCalls = Literal["learned", "given", "drawn"]
Form = Literal["direct", "latent", "zoom", "early", "after_latent", "before_zoom", "after_zoom"]


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One training sequence.

    Attributes:
        ids: token ids, images expanded.
        weights: loss weight of each token as a target; 0 where nothing is learned.
        pictures: the images in order.
        roi: regions of interest of the view that its latent steps are to hold; meaningless
            without latent steps.
        written: boxes of the view whose coordinates the model is to write, and where.
        free: columns of coordinates of which any number that makes a box will do.
        pointers: where tokens are to look, so that letters are found.
    """

    ids: list[int]
    weights: list[float]
    pictures: tuple[Picture, ...]
    roi: tuple[Box, ...] = ()
    written: tuple[Written, ...] = ()
    free: tuple[FreeNumber, ...] = ()
    pointers: tuple[Pointer, ...] = ()


class RecordWriter:
    """Writes records for one tokenizer.

    Args:
        tokenizer: of the model.
        calls: what is learned of the coordinates of zooms: that they name what is asked about
            (`learned`), that they are numbers (`given`), or the numbers alone (`drawn`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, calls: ZoomCalls = "learned") -> None:
        self._tokenizer = tokenizer
        self._calls = calls
        self._texts: dict[int, str] = {}

    @cached_property
    def words(self) -> tuple[str, ...]:
        """What options of drawn words are made of (`training.drawn_words`)."""
        return whole_words(self._tokenizer)

    def write(
        self,
        question: Question,
        form: Form,
        view: Picture,
        crop: Picture | None = None,
        target: Box | None = None,
        *,
        method: Method | None = None,
        latent_steps: int = 0,
    ) -> Record:
        """A record of one form.

        Args:
            question: what is asked, and what should be written.
            form: `direct` answers from the view; `latent` after a latent segment, also where
                there is nothing to find (its presence must not tell the answer); `zoom` calls
                the tool, then answers;
                the others teach the belief probes, an answer at once: `early` after the
                prompt, `after_latent` after the segment, `before_zoom` after the first reasoning,
                `after_zoom` after the crop.
            view: the whole image.
            crop: what the tool returns (`zoom` and `after_zoom`).
            target: the box that the tool call names, normalised.
            method: named in the prompt; by default as the form asks.
            latent_steps: slots of the segment (`latent`).
        """
        zooms = form in ("zoom", "before_zoom", "after_zoom")
        goes_latent = form in ("latent", "after_latent")
        own: Method = "zoom" if zooms else "latent" if goes_latent else "direct"
        named: Method = method or own
        prompt = _head(question, named)
        index = question.answer_index
        letter = option_letter(index) if index is not None else question.answer
        answer = answer_text(letter)
        parts: list[tuple[str, float, Picture | None]] = [(prompt, 0.0, view)]
        boxes: dict[int, Box] = {}
        given: tuple[int, Picture] | None = None
        if goes_latent:
            # The slots are fed, and the engine closes the segment: `<|lat_end|>` is learned all
            # the same, so that a decoder that does not force it works too.
            parts += [(LATENT_START, 1.0, None), (LATENT_SLOT * latent_steps, 0.0, None)]
            parts += [(LATENT_END, 1.0, None)]
        if form in ("direct", "latent"):
            parts += [(_thought(question.reasoning), 1.0, None), (answer, ANSWER_WEIGHT, None)]
        elif form in ("early", "after_latent"):
            parts += [(answer, ANSWER_WEIGHT, None)]
        elif form == "before_zoom":
            before = _thought(question.reasoning_before_zoom)
            parts += [(before, 0.0, None), (answer, ANSWER_WEIGHT, None)]
        else:
            if crop is None or target is None:
                raise ValueError(f"A record of the form {form!r} needs a crop and its box.")
            learned = 1.0 if form == "zoom" else 0.0
            if self._calls == "given":
                given = len(parts), view
            elif learned and self._calls == "learned":
                boxes = {len(parts): target}
            parts += [(_call(question, target, view), learned, None)]
            parts += [(tool_response_text(), 0.0, crop)]
            if form == "zoom":
                parts += [(_thought(question.reasoning_after_zoom), 1.0, None)]
            parts += [(answer, ANSWER_WEIGHT, None)]
        if form in ("direct", "latent", "zoom"):
            parts += [(IM_END, 1.0, None)]
        roi = tuple(Box(*box) for box in question.target_boxes)
        return self._joined(parts, roi, boxes, given)

    def withheld(self, question: Question, view: Picture, target: Box) -> Record:
        """An answer behind a zoom whose crop is kept from the model; the call is given.

        As the engine answers where `Interventions.skip_crops` names the crop.

        Args:
            question: what is asked; of a fine one the answer can only be guessed.
            view: the whole image.
            target: the box that the call names, normalised.
        """
        index = question.answer_index
        answer = question.answer if index is None else option_letter(index)
        parts: list[tuple[str, float, Picture | None]] = [
            (_head(question, "zoom"), 0.0, view),
            (_call(question, target, view), 0.0, None),
            (tool_message_text(SKIPPED_MESSAGE), 0.0, None),
            (_thought(question.reasoning_after_zoom), 1.0, None),
            (answer_text(answer), ANSWER_WEIGHT, None),
            (IM_END, 1.0, None),
        ]
        return self._joined(parts, tuple(Box(*box) for box in question.target_boxes))

    def asked(self, question: Question, view: Picture) -> Record:
        """The prompt of a question with its image, and nothing to be learned from it."""
        prompt = _head(question)
        return self._joined([(prompt, 0.0, view)], ())

    def conversation(self, questions: Sequence[Question], view: Picture) -> Record:
        """Several questions about one image, each in a turn of its own, answered directly.

        The visual tokens are paid for once, so that a second of training holds about twice as
        many answers.

        Args:
            questions: at least one; the first stands before the image, as everywhere.
            view: the whole image.
        """
        first, *others = questions
        head = _head(first)
        parts: list[tuple[str, float, Picture | None]] = [(head, 0.0, view), *_answered(first)]
        for question in others:
            asked = question_text("compact", "direct", question.text, question.options)
            between = f"\n{turn('user', asked)}{assistant_head()}"
            parts += [(between, 0.0, None), *_answered(question)]
        return self._joined(parts, ())

    def report(self, truth: AnyTruth, view: Picture, question: str) -> Record:
        """A report of everything that there is, with places (`training.reports`)."""
        head = prompt_text(
            style="compact", question_first=True, method="direct", question=question, options=()
        )
        parts: list[tuple[str, float, Picture | None]] = [(head, 0.0, view)]
        boxes: dict[int, Box] = {}
        for piece in filter(None, _COORDINATES.split(report_text(truth, seen_size(view)))):
            is_box = piece.startswith("[")
            if is_box:
                boxes[len(parts)] = _named_box(piece, seen_size(view))
            parts.append((piece, COORDINATE_WEIGHT if is_box else 1.0, None))
        return self._joined([*parts, (IM_END, 1.0, None)], (), boxes)

    def short_answers(
        self,
        questions: Sequence[Question],
        view: Picture,
        places: Sequence[tuple[str, Box, PlaceForm]] = (),
    ) -> Record:
        """Many questions about one image, each with its answer in words and nothing else.

        A conversation spends eighty tokens on an answer, most of them wording that is soon
        known; here it is fifteen, so that a second of training holds four times as many.

        Args:
            questions: in the order in which they are asked.
            view: the whole image.
            places: names and boxes of what is asked for behind the questions, and the form of the
                answer (`training.place_forms`).
        """
        head = prompt_text(
            style="compact",
            question_first=True,
            method="direct",
            question=SHORT_ANSWERS,
            options=(),
        )
        parts: list[tuple[str, float, Picture | None]] = [(head, 0.0, view)]
        for question in questions:
            parts += [(question.text, 0.0, None), (f" {question.answer}.\n", 1.0, None)]
        boxes: dict[int, Box] = {}
        for name, box, form in places:
            written = form.answer(box_text(box.as_tuple(), seen_size(view)))
            boxes[len(parts) + 1] = box
            parts += [(form.before(name), 0.0, None), (f"{written}\n", PLACE_WEIGHT, None)]
        record = self._joined([*parts, (IM_END, 1.0, None)], (), boxes)
        if not places:
            return record
        named = [
            (range(written.begin, written.stop), name)
            for written, (name, _, _) in zip(record.written, places, strict=True)
        ]
        texts = [self._text(token) for token in record.ids]
        return replace(record, pointers=name_pointers(texts, named))

    def letters(
        self,
        question: Question,
        view: Picture,
        rng: np.random.Generator,
        crop: Picture | None = None,
        target: Box | None = None,
    ) -> Record:
        """Letters of a question's options, each behind reasoning that ends in that option.

        Which letter stands before the option that fits is learned from nothing else, and from
        whole answers alone it took the model thousands of steps. The reasoning is given and ends
        in any option, so that the letter has to follow from it and not from the image; only where
        the answer is yes, no or `none` it is always the true one (`reasonings_of`). The image is
        there all the same: what was learned without it held only in part where one was.

        Every turn asks anew, with the options in another order and another draw of the one that
        the reasoning ends in. Where one list served all turns, the letters were told from those
        that had been given before: right in the last turn, a guess in the first.

        With a crop, the first turn calls the tool before it reasons. Letters that were only ever
        asked for right behind the view failed behind a call and a crop, in as many as half of the
        zones that the reasoning had named rightly.

        Args:
            question: with options.
            view: the whole image.
            rng: chooses orders and ends.
            crop: what the tool returns in the first turn; None: it does not call the tool.
            target: the box that its call names, normalised.

        Raises:
            ValueError: the question is open, or a crop comes without its box.
        """
        if question.answer_index is None:
            raise ValueError("An open question has no letter.")
        if (crop is None) != (target is None):
            raise ValueError("A crop among letters needs its box, and a box its crop.")
        parts: list[tuple[str, float, Picture | None]] = []
        for number in range(min(len(question.options), LETTER_TURNS)):
            order = rng.permutation(len(question.options))
            asked = replace(question, options=tuple(question.options[place] for place in order))
            own = asked.reasoning
            if number:
                words = question_text("compact", "direct", asked.text, asked.options)
                parts += [(f"{IM_END}\n{turn('user', words)}{assistant_head()}", 0.0, None)]
            elif crop is not None and target is not None:
                own = asked.reasoning_after_zoom
                parts += [
                    (_head(asked, "zoom"), 0.0, view),
                    (_call(asked, target, view), 0.0, None),
                ]
                parts += [(tool_response_text(), 0.0, crop)]
            else:
                parts += [(_head(asked), 0.0, view)]
            listed = reasonings_of(asked, own)
            index, reasoning = listed[int(rng.integers(len(listed)))]
            parts += [
                (_thought(reasoning), 0.0, None),
                (answer_text(option_letter(index)), ANSWER_WEIGHT, None),
            ]
        record = self._joined(parts, ())
        texts = [self._text(token) for token in record.ids]
        return replace(record, pointers=pointers_of(texts, answered_letters(texts, record.weights)))

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self._tokenizer.decode([token]))
        return self._texts[token]

    def _joined(
        self,
        parts: list[tuple[str, float, Picture | None]],
        roi: tuple[Box, ...],
        boxes: Mapping[int, Box] | None = None,
        given: tuple[int, Picture] | None = None,
    ) -> Record:
        """A record of parts: text, weight and picture.

        Args:
            parts: in order.
            roi: of the record.
            boxes: those that parts write, by the number of the part.
            given: number of a part of whose coordinates any in a picture will do, and that picture.
        """
        ids: list[int] = []
        weights: list[float] = []
        written: list[Written] = []
        free: list[FreeNumber] = []
        for number, (text, weight, picture) in enumerate(parts):
            grids: list[PatchGrid] = [picture.grid] if picture else []
            tokens = expanded_ids(self._tokenizer, text, grids)
            if boxes and number in boxes:
                begin, start, stop = (len(ids) + place for place in self._coordinates(tokens))
                written.append(Written(begin, start, stop, boxes[number]))
            if given is not None and number == given[0]:
                _, start, stop = self._coordinates(tokens)
                columns = [len(ids) + place for place in range(start + 1, stop)]
                texts = [str(self._tokenizer.decode([one])) for one in tokens[start + 1 : stop]]
                free += _free_numbers(columns, texts, seen_size(given[1]))
            ids += tokens
            weights += [weight] * len(tokens)
        for one in free:
            weights[one.column] *= FREE_WEIGHT
        pictures = tuple(picture for _, _, picture in parts if picture)
        return Record(ids, weights, pictures, roi, tuple(written), tuple(free))

    def _coordinates(self, tokens: Sequence[int]) -> tuple[int, int, int]:
        """Where looking begins, where the list of coordinates opens, and one past its last.

        Looking begins with the call, or with the last token of the part before.
        """
        texts = [self._tokenizer.decode([token]) for token in tokens]
        start = next(place for place, text in enumerate(texts) if "[" in text)
        stop = next(place for place in range(start, len(texts)) if "]" in texts[place])
        opens = TOOL_CALL_OPEN in texts[:start]
        return texts.index(TOOL_CALL_OPEN) if opens else -1, start, stop


def _free_numbers(
    columns: Sequence[int], texts: Sequence[str], size: tuple[int, int]
) -> list[FreeNumber]:
    """The numbers among the tokens of a list of coordinates.

    Args:
        columns: of the tokens.
        texts: of the tokens.
        size: height and width of the picture that the box has to lie in.

    Raises:
        ValueError: a number is not one token.
    """
    found = [
        (column, int(text))
        for column, text in zip(columns, texts, strict=True)
        if text.strip().isdigit()
    ]
    if len(found) != 4:
        raise ValueError(
            "mix.calls: given needs a tokenizer whose numbers are one token each: learn random "
            "boxes instead (mix.calls: learned, train.boxes: random), or take another base."
        )
    height, width = size
    lowest = (0, 0, found[0][1] + 1, found[1][1] + 1)
    highest = (width - 1, height - 1, width, height)
    return [
        FreeNumber(column, least, most)
        for (column, _), least, most in zip(found, lowest, highest, strict=True)
    ]


def _named_box(text: str, size: tuple[int, int]) -> Box:
    """The box that a list of coordinates names in an image of `size`, height and width."""
    x0, y0, x1, y1 = (int(value) for value in text.strip("[]").split(", "))
    return Box(x0 / size[1], y0 / size[0], x1 / size[1], y1 / size[0])


def _head(question: Question, method: Method = "direct") -> str:
    """The prompt of a question, with the image behind its words."""
    return prompt_text(
        style="compact",
        question_first=True,
        method=method,
        question=question.text,
        options=question.options,
    )


def _answered(question: Question) -> list[tuple[str, float, Picture | None]]:
    """What the model writes to a question that the view answers, to the end of its turn."""
    index = question.answer_index
    letter = option_letter(index) if index is not None else question.answer
    return [
        (_thought(question.reasoning), 1.0, None),
        (answer_text(letter), ANSWER_WEIGHT, None),
        (IM_END, 1.0, None),
    ]


def _call(question: Question, target: Box, view: Picture) -> str:
    """What the model writes up to the end of its tool call."""
    return _thought(question.reasoning_before_zoom) + zoom_call_text(seen_box(target, view))


def reasonings_of(question: Question, own: str) -> list[tuple[int, str]]:
    """The number of each option with reasoning that ends in it, in the order of the options.

    It is the question's own with the answer in its last sentence exchanged, together with its
    article ("There is a nodule.", "There is cardiomegaly."). Where that sentence does not name the
    answer ("There is no finding." for `none`), and for yes and no, there is but the question's own.

    Args:
        question: with options; an open one has no reasonings.
        own: its reasoning, whole or behind a zoom.
    """
    index = question.answer_index
    if index is None:
        return []
    before, stop, last = own.rpartition(". ")
    named = re.compile(rf"\b{re.escape(question.answer)}\b")
    if question.answer in _UNNAMED or len(named.findall(last)) != 1:
        return [(index, own)]
    whole = re.compile(rf"\b{re.escape(with_article(question.answer))}\b")
    takes_article = whole.search(last) is not None
    exchanged = whole if takes_article else named
    return [
        (
            number,
            before + stop + exchanged.sub(with_article(option) if takes_article else option, last),
        )
        for number, option in enumerate(question.options)
        if option not in _UNNAMED
    ]


def seen_size(view: Picture) -> tuple[int, int]:
    """Height and width of a picture, in pixels."""
    height, width = view.pixels.shape
    return int(height), int(width)


def _thought(text: str) -> str:
    """Reasoning between its tags; nothing where there is none, as in records of one's own."""
    return "" if not text else f"{THINK_OPEN}{text}{THINK_CLOSE}\n"


def seen_box(box: Box, view: Picture) -> tuple[int, int, int, int]:
    """A normalised box as a tool call writes it, in pixels of the picture that the model sees."""
    return whole_pixels(box, seen_size(view))


def corpus(questions: list[Question], rng: np.random.Generator) -> list[str]:
    """Texts that the tokenizer is learned from: prompts and completions of questions."""
    texts = []
    for question in questions:
        box = rng.integers(0, 225, 4)
        texts += [_head(question, method) for method in METHODS]
        texts += [
            question.reasoning,
            question.reasoning_before_zoom,
            question.reasoning_after_zoom,
            answer_text(question.answer),
            zoom_call_text((int(box[0]), int(box[1]), int(box[2]), int(box[3]))),
        ]
    return texts
