"""Text from tokens: characters, tags and segments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.transcript import Transcript


def written(*pieces: str | bytes) -> tuple[Transcript, list[str]]:
    transcript = Transcript()
    segments = [transcript.write(p if isinstance(p, bytes) else p.encode())[1] for p in pieces]
    return transcript, segments


@given(st.text(max_size=60), st.data())
def test_any_split_of_the_bytes_gives_the_same_text(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    transcript, pieces, start = Transcript(), [], 0
    while start < len(raw):
        end = data.draw(st.integers(start + 1, len(raw)))
        pieces.append(transcript.write(raw[start:end])[0])
        start = end

    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_a_character_shows_once_it_is_whole() -> None:
    transcript = Transcript()
    lung = "肺".encode()

    assert [transcript.write(lung[i : i + 1])[0] for i in range(3)] == ["", "", "肺"]


def test_segments_of_whole_tags() -> None:
    _, segments = written(
        "<think>",
        "so",
        "</think>",
        "\n",
        "<tool_call>",
        "{}",
        "</tool_call>",
        "<answer>",
        "B",
        "</answer>",
        "",
    )

    assert segments == ["reasoning"] * 4 + ["tool"] * 3 + ["answer"] * 3 + ["reasoning"]


def test_segments_of_tags_in_pieces() -> None:
    transcript, segments = written("x", "<", "answer", ">B", "</", "answer", ">")

    assert segments == ["reasoning"] * 3 + ["answer"] * 4
    assert transcript.answers_closed == 1
    assert transcript.text_before_opening() == "x"
    assert transcript.opened_token == 1


def test_a_tag_that_begins_inside_a_token_is_opened_at_that_token() -> None:
    transcript, _ = written("one", " two<", "answer>")

    assert transcript.text_before_opening() == "one"
    assert transcript.opened_in_turn == 1


def test_thinking_is_followed() -> None:
    transcript, _ = written("<think>", "hm")
    assert transcript.thinking
    transcript.write(b"</think>")
    assert not transcript.thinking


def test_an_answer_inside_a_tool_call_is_part_of_the_call() -> None:
    transcript, segments = written("<tool_call>", "<answer>B</answer>", "</tool_call>")

    assert set(segments) == {"tool"}
    assert transcript.answers_closed == 0
    assert transcript.tool_call_text == "<answer>B</answer>"


def test_a_new_turn_starts_clean_and_goes_on_counting() -> None:
    transcript, _ = written("<think>", "<tool_call>", "{}", "</tool_call>")
    transcript.begin_turn()

    assert (transcript.text, transcript.thinking, transcript.segment) == ("", False, "reasoning")
    assert transcript.tokens == 4
    assert transcript.calls_closed == 1
    transcript.write(b"a")
    transcript.write(b"<answer>")
    assert transcript.opened_token == 5


def test_the_beginning_of_a_tag_is_noticed() -> None:
    assert written("size <", "ans")[0].inside_tag()
    assert not written("a < b")[0].inside_tag()
    assert not written("<answer>")[0].inside_tag()
