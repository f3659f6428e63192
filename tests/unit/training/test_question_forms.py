"""What a question knows of its answer."""

from __future__ import annotations

from engine.trace import Answered
from training.questions import Question


def answered(text: str, option: int | None, valid: bool = True) -> Answered:
    options = ("left", "right") if option is not None else ()
    return Answered(
        seconds=1.0, text=text, option=option, valid=valid, options=options, probabilities=()
    )


def question(options: tuple[str, ...]) -> Question:
    return Question(
        family="nodule_side",
        kind="coarse",
        text="Which side?",
        options=options,
        answer="right",
        target_boxes=(),
        reasoning="",
        reasoning_before_zoom="",
        reasoning_after_zoom="",
    )


def test_right_and_wrong() -> None:
    choice = question(("left", "right"))
    assert choice.is_answered_by(answered("right", 1))
    assert not choice.is_answered_by(answered("left", 0))
    assert not choice.is_answered_by(answered("right", 1, valid=False))
    free = question(())
    assert free.is_answered_by(answered(" Right ", None))
    assert not free.is_answered_by(answered("left", None))
