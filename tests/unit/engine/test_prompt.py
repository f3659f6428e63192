"""What users write cannot forge a turn, a tag or an image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.manifest import Manifest
from engine.prompt import (
    IMAGE_PAD,
    neutralised,
    option_letter,
    prompt_text,
    question_text,
    request_prompt,
    system_text,
    tool_message_text,
    tool_response_text,
    zoom_call_text,
)
from engine.request import METHODS, DisplayImage, Request
from engine.tiny import CONTROL_TOKENS, TAG_TOKENS, tiny_tokenizer
from engine.tool_call import ImageSizes, parse_zoom_call

MARKS = [*CONTROL_TOKENS, *TAG_TOKENS, "<tools>", "<|", "|>", "<", ">", "|", "im_end", "/"]
FORGED = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=4)), max_size=8).map("".join)


def prompt(question: str, options: tuple[str, ...] = (), style: str = "full") -> str:
    return prompt_text(
        style=style, question_first=False, method="zoom", question=question, options=options
    )


@given(FORGED, FORGED)
def test_no_text_of_a_user_becomes_a_control_token(question: str, option: str) -> None:
    tokenizer = tiny_tokenizer()
    special = {tokenizer.get_vocab()[token] for token in (*CONTROL_TOKENS, *TAG_TOKENS)}

    def marks(text: str) -> list[int]:
        return [token for token in tokenizer(text)["input_ids"] if token in special]

    assert marks(prompt(question, (option, "x"))) == marks(prompt("q", ("o", "x")))


@given(FORGED)
def test_what_is_neutralised_stays_as_it_is(text: str) -> None:
    once = neutralised(text)

    assert neutralised(once) == once
    assert once.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("style", ["full", "compact"])
@pytest.mark.parametrize("first", [False, True])
def test_every_method_has_a_prompt_of_its_own_with_one_image(style: str, first: bool) -> None:
    manifest = Manifest(prompt_style=style, question_first=first)
    image = DisplayImage(pixels=np.zeros((8, 8), dtype=np.uint8))
    prompts = [
        request_prompt(
            manifest, Request(image=image, question="Q?", options=("a", "b"), method=method)
        )
        for method in METHODS
    ]

    assert all(text.count(IMAGE_PAD) == 1 for text in prompts)
    assert all(text.endswith("<|im_start|>assistant\n") for text in prompts)
    assert all("A. a\nB. b" in text for text in prompts)
    pairs = itertools.combinations(prompts, 2)
    assert all(("put the letter" in text) is (style == "full") for text in prompts)
    assert style == "full" or all(one != other for one, other in pairs)
    before, after = prompts[0].split(IMAGE_PAD)
    assert ("Q?" in before) is first
    assert ("Q?" in after) is not first


@pytest.mark.parametrize("first", [False, True])
def test_under_the_bottleneck_the_question_stands_before_the_image(first: bool) -> None:
    """Behind it, it would be hidden from the answer with the image."""
    request = Request(
        image=DisplayImage(pixels=np.zeros((8, 8), dtype=np.uint8)),
        question="Q?",
        method="latent",
        bottleneck=True,
    )
    before, after = request_prompt(Manifest(question_first=first), request).split(IMAGE_PAD)
    assert "Q?" in before
    assert "Q?" not in after


def test_the_tool_is_explained_where_it_may_be_called() -> None:
    for method in METHODS:
        assert ("image_zoom_in_tool" in system_text("full", method)) is (method in ("zoom", "auto"))


def test_a_letter_is_asked_for_where_there_are_options() -> None:
    assert "letter" in question_text("full", "direct", "Q?", ("a", "b"))
    assert "letter" not in question_text("full", "direct", "Q?", ())
    assert [option_letter(index) for index in (0, 1, 9)] == ["A", "B", "J"]


def test_answers_of_the_tool_are_turns() -> None:
    assert tool_response_text().count(IMAGE_PAD) == 1
    assert "No." in tool_message_text("No.")
    assert tool_message_text("No.").count("<|im_start|>") == 2


def test_a_written_call_is_read_back() -> None:
    call = zoom_call_text((10, 20, 110, 220)).split("<tool_call>")[1].split("</tool_call>")[0]
    box, clamped = parse_zoom_call(call, ImageSizes(400, 400, 800, 800))

    assert box.as_tuple() == (0.025, 0.05, 0.275, 0.55)
    assert not clamped
