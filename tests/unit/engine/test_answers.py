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
