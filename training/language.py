"""What the language model is trained on: questions, the mix of records, its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.geometry import Box
from engine.request import Method
from training.drawn_words import of_drawn_words
from training.latents import LatentConfig
from training.loop import StepsConfig
from training.phantoms import AnyTruth
from training.place_forms import PlaceForm, drawn_form
from training.questions import Question, lung_questions, questions_for
from training.real_images import RealRadiograph, real_picture, shifted_view
from training.records import Form, Record, RecordWriter, ZoomCalls
from training.reports import REPORT_QUESTIONS, places_of
from training.world import CROP_PADDING, Case, Picture, jittered, resized


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question with its pictures, ready to be written in any form."""

    question: Question
    view: Picture
    crops: dict[Box, tuple[Picture, ...]]


def asked_of(case: Case, rng: np.random.Generator) -> Asked:
    """A question about a phantom: half of the time the one that it was made for."""
    if case.truth is None or case.asked is None:
        raise ValueError("A case without truth has no questions of its own.")
    question = case.asked
    if rng.random() < 0.5:
        others = questions_for(case.truth, rng)
        fine = [q for q in others if q.kind == "fine"]
        pool = fine if fine and rng.random() < 0.3 else others
        question = pool[int(rng.integers(len(pool)))]
    if rng.random() < 0.2:
        question = question.as_open()
    return Asked(question, case.view, case.crops)


def real_cases(
    radiographs: Sequence[RealRadiograph], variants: int, seed: int
) -> list[tuple[Picture, dict[str, Box], dict[Box, tuple[Picture, ...]]]]:
    """Shifted views of real radiographs with their lung boxes and crops of these."""
    found = []
    rng = np.random.default_rng([seed, 11])
    for radiograph in radiographs:
        for _ in range(variants):
            pixels, lungs = shifted_view(radiograph, rng)
            view = real_picture(pixels, lungs)
            crops: dict[Box, tuple[Picture, ...]] = {}
            for box in lungs.values():
                region = jittered(box, rng, 0.1).padded(CROP_PADDING)
                x0, y0, x1, y1 = region.to_pixels_outward(pixels.shape[1], pixels.shape[0])
                part = resized(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
                blank = real_picture(part, {})
                crops[box] = (blank,)
            found.append((view, lungs, crops))
    return found


def asked_of_real(
    case: tuple[Picture, dict[str, Box], dict[Box, tuple[Picture, ...]]],
    rng: np.random.Generator,
) -> Asked:
    """A question about a lung of a real radiograph."""
    view, lungs, crops = case
    boxes = {name.split()[0]: box.as_tuple() for name, box in lungs.items()}
    questions = lung_questions(boxes, rng)
    question = questions[int(rng.integers(len(questions)))]
    if rng.random() < 0.2:
        question = question.as_open()
    return Asked(question, view, crops)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig(StepsConfig):
    """Optimiser and schedule of a language stage.

    Attributes:
        batch: records a step.
        corners: weight of the corners that have to stay readable (`training.corners`).
        grounding: weight of attention on boxes that are written (`training.grounding`).
        pointing: weight of the attention by which letters, and the names of what boxes are of, are
            found (`training.letter_heads`).
        spread: standard deviation of the targets of coordinates, in pixels of the view
            (`training.numbers`); 0: only the true number is right.
        distance: weight of how far the expected coordinates lie from the true ones, in sides of
            their box; needs `spread`.
    """

    batch: int
    corners: float = 0.0
    grounding: float = 0.0
    pointing: float = 0.0
    spread: float = 0.0
    distance: float = 0.0

    def __post_init__(self) -> None:
        # Without arguments `super` looks for the class that `slots=True` has replaced.
        StepsConfig.__post_init__(self)
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}.")
        for name in ("corners", "grounding", "pointing", "spread", "distance"):
            # Not a number is neither.
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a number that is not negative, not {getattr(self, name)}."
                )
        if self.distance and not self.spread:
            raise ValueError("distance does nothing without spread: set both, or neither.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """Shares of the record forms, and of real radiographs.

    Attributes:
        zoom: of records about one question, those that call the tool; 0 in pretraining, where the
            call is not taught yet.
        withheld: of these, those whose crop is kept from the model, as
            `Interventions.skip_crops` does: a model that has seen none writes answers to other
            questions there.
        latent: of records with a latent segment.
        report: of the records about phantoms, those that report the whole image
            (`training.reports`).
        conversation: of these, those of several questions about one image.
        short: of these, those of many questions about one image with answers of a few words.
        closeup: of these, those of fine questions about a crop that is the whole image: what a
            zoom would show, with no word of where it lies.
        turns: questions of a conversation.
        places: boxes that are asked for at the end of a record of short answers.
        called: of these, the share that is written as an argument of a function, behind a thought
            that names what it is of (`training.place_forms`).
        letters: records a step, beside the batch, that only ask for letters of given answers.
        words: of these, the share whose options are words drawn from the vocabulary
            (`training.drawn_words`).
        calls: whether the coordinates of zooms are `learned`; or drawn at random, and `given` or
            learned as they were `drawn` (`training.cold_start`).
        probe: of records that answer at once (belief probes).
        auto: of the records whose prompt leaves the choice to the model: of those that answer or
            zoom as the question needs it, and of all with a latent segment, which it then opens.
        real: of records that are not about images of one's own, those about real radiographs.
        own: of records about images of one's own (`training.own_records`), of all.
    """

    zoom: float
    probe: float
    auto: float
    real: float
    withheld: float = 0.0
    own: float = 0.0
    latent: float = 0.0
    report: float = 0.0
    conversation: float = 0.0
    short: float = 0.0
    closeup: float = 0.0
    called: float = 0.0
    turns: int = 4
    words: float = 0.0
    places: int = 0
    letters: int = 0
    calls: ZoomCalls = "learned"

    def __post_init__(self) -> None:
        whole = ("report", "conversation", "short", "closeup")
        single = ("zoom", "withheld", "probe", "auto", "real", "own", "latent", "called", "words")
        for name in (*single, *whole):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in 0 to 1, not {getattr(self, name)}.")
        if sum(getattr(self, name) for name in whole) > 1.0:
            raise ValueError(f"{', '.join(whole)} must not be more than 1 together.")
        if self.turns < 1:
            raise ValueError(f"turns must be at least 1, not {self.turns}.")
        for name in ("places", "letters"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}.")
        if self.places and not self.short:
            raise ValueError("places does nothing without short: set both, or neither.")


def phantom_record(
    case: Case,
    mix: MixConfig,
    writer: RecordWriter,
    rng: np.random.Generator,
    latents: LatentConfig | None = None,
) -> Record:
    """One record about a phantom: a report, a conversation, a close-up, or a single question."""
    several = several_record(case, mix, writer, rng)
    return several or drawn_record(asked_of(case, rng), mix, writer, rng, latents)


def several_record(
    case: Case, mix: MixConfig, writer: RecordWriter, rng: np.random.Generator
) -> Record | None:
    """A report, several questions about one image, or a close-up; None: a single question."""
    draw = rng.random()
    if case.truth is not None and draw < mix.report:
        words = REPORT_QUESTIONS[int(rng.integers(len(REPORT_QUESTIONS)))]
        return writer.report(case.truth, case.view, words)
    if case.truth is not None and draw < mix.report + mix.conversation:
        return writer.conversation(conversation_about(case, mix.turns, rng), case.view)
    if case.truth is not None and draw < mix.report + mix.conversation + mix.short:
        places = drawn_places(case.truth, mix.places, mix.called, rng)
        return writer.short_answers(short_questions(case, rng), case.view, places)
    if draw < mix.report + mix.conversation + mix.short + mix.closeup:
        close = closeup_of(case, rng)
        if close is not None:
            return writer.write(close.question, "direct", close.view)
    return None


def closeup_of(case: Case, rng: np.random.Generator) -> Asked | None:
    """A fine question about a phantom with a crop of its target as the whole image.

    None where the phantom has no fine question, or no crop of what it asks about.
    """
    if case.truth is None:
        return None
    fine = [q for q in questions_for(case.truth, rng) if q.kind == "fine"]
    crops = [_zoom_of(Asked(question, case.view, case.crops), rng)[1] for question in fine]
    shown = [(q, crop) for q, crop in zip(fine, crops, strict=True) if crop is not None]
    if not shown:
        return None
    question, crop = shown[int(rng.integers(len(shown)))]
    # What is said behind a zoom names no place, which a close-up does not show.
    return Asked(replace(question, reasoning=question.reasoning_after_zoom), crop, {})


def short_questions(case: Case, rng: np.random.Generator, most: int = 12) -> list[Question]:
    """Different coarse questions about a phantom, whether something is there before all others.

    Asked first, "On which side is the nodule?" would say that there is one.
    """
    if case.truth is None:
        raise ValueError("A case without truth has no questions of its own.")
    coarse = [q for q in questions_for(case.truth, rng) if q.kind == "coarse"]
    kept = [coarse[i] for i in rng.permutation(len(coarse))[:most]]
    return sorted(kept, key=lambda question: not question.family.endswith("_present"))


def drawn_places(
    truth: AnyTruth, most: int, called: float, rng: np.random.Generator
) -> list[tuple[str, Box, PlaceForm]]:
    """Structures and findings with their boxes and forms, in any order.

    Args:
        truth: of the phantom.
        most: of them.
        called: share of the forms that are arguments of a function.
        rng: chooses.
    """
    places = places_of(truth)
    drawn = [places[i] for i in rng.permutation(len(places))[:most]]
    return [(name, box, drawn_form(called, rng)) for name, box in drawn]


def asked_for_letters(case: Case, rng: np.random.Generator) -> Asked:
    """A question about a phantom whose letters are asked for.

    Of the family that the phantom was made for, as these take turns: of all that can be asked about
    phantoms, few questions are about margins, zones or numbers, and their letters came last.
    """
    if case.truth is None or case.asked is None:
        raise ValueError("A case without truth has no questions of its own.")
    family = case.asked.family
    questions = [q for q in questions_for(case.truth, rng) if q.family == family] or [case.asked]
    question = questions[int(rng.integers(len(questions)))]
    return Asked(question, case.view, case.crops)


def letter_record(
    asked: Asked, mix: MixConfig, writer: RecordWriter, rng: np.random.Generator
) -> Record:
    """The letters of a question, its reasoning given: behind a zoom as often as the mix zooms.

    Some are of drawn words (`mix.words`), which nothing but the given reasoning can tell.
    """
    target, crop = _zoom_of(asked, rng)
    question = asked.question
    if mix.words and rng.random() < mix.words:
        question = of_drawn_words(question, writer.words, rng)
    if crop is None or rng.random() >= mix.zoom:
        return writer.letters(question, asked.view, rng)
    return writer.letters(question, asked.view, rng, crop, target)


def conversation_about(case: Case, turns: int, rng: np.random.Generator) -> list[Question]:
    """Different questions about a phantom, the one that it was made for among them."""
    if case.truth is None or case.asked is None:
        raise ValueError("A case without truth has no questions of its own.")
    others = [q for q in questions_for(case.truth, rng) if q.family != case.asked.family]
    # A fine question asks for a guess here; one in four is enough to keep its form.
    coarse = [q for q in others if q.kind == "coarse" or rng.random() < 0.25]
    kept = [coarse[i] for i in rng.permutation(len(coarse))[: turns - 1]]
    questions = [case.asked, *kept]
    questions = [questions[i] for i in rng.permutation(len(questions))]
    return [q.as_open() if rng.random() < 0.2 else q for q in questions]


def drawn_record(
    asked: Asked,
    mix: MixConfig,
    writer: RecordWriter,
    rng: np.random.Generator,
    latents: LatentConfig | None = None,
) -> Record:
    """One record: its form is drawn from the mix, as far as the question allows it."""
    question = asked.question
    if latents is not None and rng.random() < mix.latent:
        # Whether there is something to find or not: the segment must not tell the answer.
        boxes = [Box(*box) for box in question.target_boxes]
        steps = latents.slots(boxes, asked.view.grid)
        form: Form = "after_latent" if rng.random() < mix.probe else "latent"
        # Left to choose, the model opens the segment itself; else the engine opens it.
        chooses = bool(mix.auto) and rng.random() < mix.auto
        named: Method | None = "auto" if chooses else None
        return writer.write(question, form, asked.view, method=named, latent_steps=steps)
    target, crop = _zoom_of(asked, rng)
    probe = rng.random() < mix.probe
    if crop is None or rng.random() >= mix.zoom:
        if probe:
            return writer.write(question, "early", asked.view, method=_early_method(rng))
        # A closer look is never needed for a coarse question, and `auto` says so.
        auto = question.kind == "coarse" and rng.random() < mix.auto
        zoom_for_nothing = not has_one_place(question) and mix.zoom > 0 and rng.random() < 0.3
        method: Method = "auto" if auto else "zoom" if zoom_for_nothing else "direct"
        return writer.write(question, "direct", asked.view, method=method)
    if probe:
        form = "before_zoom" if rng.random() < 0.5 else "after_zoom"
        return writer.write(question, form, asked.view, crop, target)
    if target is not None and mix.withheld and rng.random() < mix.withheld:
        return writer.withheld(question, asked.view, target)
    auto = question.kind == "fine" and rng.random() < mix.auto
    return writer.write(
        question, "zoom", asked.view, crop, target, method="auto" if auto else "zoom"
    )


def _early_method(rng: np.random.Generator) -> Method:
    methods: tuple[Method, ...] = ("direct", "zoom", "auto")
    return methods[int(rng.integers(len(methods)))]


def zoom_would_tell(question: Question) -> bool:
    """Whether the answer decides if there is one place to look at.

    Such questions are answered without a zoom under every method. Zooms for "yes" alone taught
    the model that a prompt without a zoom means "no": it then said so to every finding.
    """
    family = question.family
    return family.endswith(("_present", "_count")) or family.startswith("which_")


def has_one_place(question: Question) -> bool:
    """Whether there is one place to look at, whatever the answer is."""
    return len(question.target_boxes) == 1 and not zoom_would_tell(question)


def zoom_target(asked: Asked) -> Box | None:
    """The one place that the question is about; None when several are, or no crop is there."""
    if not has_one_place(asked.question):
        return None
    target = Box(*asked.question.target_boxes[0])
    return target if asked.crops.get(target) else None


def _zoom_of(asked: Asked, rng: np.random.Generator) -> tuple[Box | None, Picture | None]:
    """Where a zoom goes, and what it shows."""
    target = zoom_target(asked)
    if target is None:
        return None, None
    variants = asked.crops[target]
    return target, variants[int(rng.integers(len(variants)))]
