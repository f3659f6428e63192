"""What counts as an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answers import read_answer

OPTIONS = ("left lung", "right lung", "no effusion", "effusion")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("<answer>B</answer>", 1),
        ("<answer> b </answer>", 1),
        ("<answer>(B)</answer>", 1),
        ("<answer>B.</answer>", 1),
        ("<answer>B: right lung</answer>", 1),
        ("<answer>B) right lung</answer>", 1),
        ("<answer>B right lung</answer>", 1),
        ("<answer>right lung</answer>", 1),
        ("<answer>Right  Lung.</answer>", 1),
        ("<answer>It is the right lung.</answer>", 1),
        ("<answer>no effusion</answer>", 2),
        ("<answer>there is no effusion</answer>", 2),
        ("<answer>effusion</answer>", 3),
        ("<answer>A</answer> no: <answer>B</answer>", 1),
        ("<answer>A <answer>B</answer>", 1),
        ("So \\boxed{B}", 1),
        ("\\boxed{A} but <answer>B</answer>", 1),
        ("The answer is B.", 1),
        ("Final answer: (B)", 1),
        ("B", 1),
        ("B. right lung", 1),
        ("I see the right lung", 1),
    ],
)
def test_an_option_is_read(text: str, option: int) -> None:
    reading = read_answer(text, OPTIONS)

    assert reading.valid
    assert reading.option == option
    assert reading.text == OPTIONS[option]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<answer></answer>",
        "<answer>E</answer>",
        "<answer>left lung or right lung</answer>",
        "<answer>left lng</answer>",
        "<answer>A nodule</answer>",
        "<answer>unclear",
        "I cannot tell.",
    ],
)
def test_what_names_no_single_option_is_invalid(text: str) -> None:
    reading = read_answer(text, OPTIONS)

    assert not reading.valid
    assert reading.option is None


@pytest.mark.parametrize(
    "text",
    [
        "no nodule",
        "There is no evidence of a nodule.",
        "not a nodule",
        "I do not see a nodule",
        "I don't see any nodule",
        "without a nodule",
        "no fracture, nodule or mass",
        "neither a nodule nor a mass",
        "The nodule is absent.",
        "nodule: none",
        "nodule? no.",
        "A nodule is ruled out",
        "lungs free of any nodule",
        "a mass rather than a nodule",
        "The lungs are clear. No nodule. The heart is large.",
        "no nodule but an effusion",
    ],
)
def test_an_option_that_is_denied_is_no_answer(text: str) -> None:
    for written in (text, f"<answer>{text}</answer>", f"The answer is {text}"):
        assert not read_answer(written, ("nodule", "effusion")).valid


@pytest.mark.parametrize(
    ("text", "options", "option"),
    [
        ("a nodule", ("nodule", "effusion"), 0),
        ("The heart is not enlarged. There is a nodule.", ("nodule", "effusion"), 0),
        ("no fracture but a nodule", ("nodule", "effusion"), 0),
        ("There is no nodule", ("no nodule", "nodule"), 0),
        ("It is not calcified", ("calcified", "not calcified"), 1),
        ("no nodule", ("yes", "no"), 1),
        ("No, there is not.", ("yes", "no"), 1),
        ("none of these is seen", ("nodule", "effusion", "none of these"), 2),
        ("a nodule in the notch", ("nodule", "effusion"), 0),
        ("B. no nodule here", ("nodule", "clear lungs"), 1),
    ],
)
def test_a_denial_elsewhere_or_in_the_option_itself_denies_nothing(
    text: str, options: tuple[str, ...], option: int
) -> None:
    assert read_answer(f"<answer>{text}</answer>", options).option == option


def test_a_prefix_denies_too() -> None:
    assert not read_answer("<answer>non-calcified</answer>", ("calcified", "smooth")).valid


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>3 cm</answer>", "3 cm"),
        ("<answer>a</answer><answer> b </answer>", "b"),
        ("the answer is pleural effusion", "pleural effusion"),
        ("\\boxed{seven}", "seven"),
    ],
)
def test_an_open_answer_is_what_was_written(text: str, answer: str) -> None:
    reading = read_answer(text, ())

    assert reading == type(reading)(answer, None, True)


def test_an_open_question_without_an_answer_is_invalid() -> None:
    assert not read_answer("I am still thinking", ()).valid


def test_a_letter_that_is_also_an_options_text_means_the_text() -> None:
    assert read_answer("<answer>B</answer>", ("B", "A")).option == 0


@given(st.text(max_size=200), st.lists(st.text(min_size=1, max_size=9), min_size=2, max_size=6))
def test_any_text_is_read_without_an_error(text: str, options: list[str]) -> None:
    reading = read_answer(text, tuple(options))

    assert reading.valid == (reading.option is not None)
    assert reading.option is None or reading.text == options[reading.option]


def test_a_hyphenated_word_names_no_letter() -> None:
    assert read_answer("<answer>A-lines</answer>", ("B-lines", "A-lines")).option == 1
    assert read_answer("<answer>A - B-lines</answer>", ("B-lines", "A-lines")).option == 0
