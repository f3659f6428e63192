"""The cold start of the zoom agent: the format of a tool call, and nothing of where to look.

MedVR learns where to look by reinforcement (arXiv 2604.08203); what it begins with must be able
to call the tool, or it would never try. Here every call holds a box drawn at random, and the words
before it say nothing of any place. There are three ways:

- `mix.calls: drawn`: the random coordinates are learned as they are, and the crop shows what is
  asked about, whatever the call says. So reading a crop is learned, and calls go anywhere. Boxes
  that are asked for outside of calls may go on being learned beside (`mix.places`): what calls have
  to find out is that these are the ones to write.
- `mix.calls: given`: all that is learned of a call's coordinates is that they are numbers which
  make a box (`training.numbers.free_losses`), and the crop shows what is asked about, whatever the
  call says. Reading a crop is learned; which numbers the model writes is what it makes of boxes
  that are asked for outside of calls. Those may go on being learned beside (`mix.places`), with
  true boxes, as the pretraining of Qwen2.5-VL has them, and as arguments of other functions too
  (`mix.called`). No call is ever shown a true box, and what a call does about it is transfer; but a
  cold start with places is not blind (docs/medvr.md).
- `boxes: random` of a world (`training.world`): coordinates are learned, and the crop is of that
  box. The model unlearns what its pretraining knew of places, and hardly learns to read: one crop
  in fourteen holds the finding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from training.language import (
    Asked,
    LanguageConfig,
    MixConfig,
    asked_of,
    drawn_record,
    several_record,
    zoom_target,
)
from training.phantoms import labels_of, modality_of
from training.questions import LOOK_CLOSER, Question
from training.records import Record, RecordWriter
from training.reports import places_of
from training.world import Case, WorldConfig, random_box

# Of the questions, those that are answered without a zoom, some of them although the prompt
# offers one: a policy that always zooms could not find out what a zoom is worth.
ANSWERED_AT_ONCE: Final = 0.3
_TELLING: Final = ("report", "real", "own", "latent", "places", "closeup", "withheld")


def check_boxes(
    train: WorldConfig, validation: WorldConfig, mix: MixConfig, language: LanguageConfig
) -> None:
    """Refuses a stage whose zooms are taught without a word of where to look, and which tells it.

    Args:
        train: which phantoms.
        validation: which phantoms, too.
        mix: of the records.
        language: weights of the stage.

    Raises:
        ValueError: see `check_blind`; or phantoms are validated with other boxes, or random boxes
            are asked for in both ways.
    """
    if train.boxes != validation.boxes:
        raise ValueError(
            "train.boxes and validation.boxes must be the same: what is never taught cannot be "
            "validated."
        )
    if train.boxes == "random" and mix.calls != "learned":
        raise ValueError(
            f"mix.calls: {mix.calls} draws boxes itself, and its crops show what is asked about: "
            "leave boxes: random out of train and validation, or set mix.calls to learned."
        )
    if train.boxes == "random" or mix.calls != "learned":
        check_blind(mix, language.corners, language.grounding)


def check_blind(mix: MixConfig, corners: float = 0.0, grounding: float = 0.0) -> None:
    """Refuses what needs true boxes: all records that tell where things are.

    Args:
        mix: of the records.
        corners: weight of the corners of boxes that have to stay readable (`training.corners`).
        grounding: weight of attention on boxes that are written (`training.grounding`).

    Raises:
        ValueError: the mix has a share of one; or random boxes are learned, and corners have a
            weight, or attention is to lie on boxes that nobody can know.
    """
    # Boxes that are asked for are no step: where they are learned elsewhere, they may go on.
    telling = [name for name in _TELLING if name != "places" or mix.calls == "learned"]
    for name in telling:
        if getattr(mix, name):
            raise ValueError(
                f"mix.{name} must be 0 where the boxes of zooms are random: its records tell where "
                "things are."
            )
    # As are places: what is known of them outside of calls may be kept.
    if corners and mix.calls == "learned":
        raise ValueError(
            "language.corners must be 0 where random boxes are learned: true boxes would teach "
            "where things are."
        )
    if grounding and mix.calls == "learned":
        raise ValueError(
            "language.grounding must be 0 where random boxes are learned: attention would be "
            "taught to lie on boxes that cannot be known."
        )


def blind_record(
    case: Case, mix: MixConfig, writer: RecordWriter, rng: np.random.Generator
) -> Record:
    """One record about a phantom whose calls hold random boxes."""
    several = several_record(case, mix, writer, rng)
    return several or drawn_record(aside(asked_of(case, rng), case, rng), mix, writer, rng)


def aside(asked: Asked, case: Case, rng: np.random.Generator) -> Asked:
    """A question, its zoom sent to a random box, or nowhere: some are answered at once.

    The crop is that of the box where the phantom's crops are (`boxes: random`), and else what is
    asked about. Where there is nothing to zoom into, the question stays as it is.
    """
    words, crops = LOOK_CLOSER, asked.crops
    if case.blind:
        boxes = tuple(case.crops)
        box = boxes[int(rng.integers(len(boxes)))]
    else:
        target = zoom_target(asked)
        if target is None:
            return asked
        height, width = asked.view.pixels.shape
        box = random_box(width, height, rng)
        words, crops = closer_look(asked.question, case), {box: asked.crops[target]}
    targets = () if rng.random() < ANSWERED_AT_ONCE else (box.as_tuple(),)
    question = replace(asked.question, target_boxes=targets, reasoning_before_zoom=words)
    return Asked(question, asked.view, crops)


def closer_look(question: Question, case: Case) -> str:
    """Says that a closer look is needed, and at what, if the question names it.

    Without the name every box was the heart's: what calls learn of boxes that are asked for they
    learn behind the name of what is asked for. It is the question's own word, so that nothing is
    told that was not known.
    """
    names: list[str] = []
    if case.truth is not None:
        names += labels_of(modality_of(case.truth)).findings
        names += [name for name, _ in places_of(case.truth)]
    # The longest first: "right lung" holds "lung".
    found = [name for name in sorted(names, key=len, reverse=True) if name in question.text]
    return f"A closer look at the {found[0]} is needed." if found else LOOK_CLOSER
