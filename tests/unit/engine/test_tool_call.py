"""Zoom calls: what is read, what is refused, what can be written."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.geometry import Box
from engine.prompt import TOOL_CALL_CLOSE, TOOL_CALL_OPEN, ZOOM_TOOL_NAME, zoom_call_text
from engine.tiny import tiny_tokenizer
from engine.tool_call import (
    LEAST_SIDE_PX,
    CoordinateGrammar,
    CoordinateWriter,
    ImageSizes,
    ToolCallError,
    coordinate_tokens,
    parse_zoom_call,
)
from engine.vocabulary import Vocabulary
from training.embedded import train_tokenizer

SIZES = ImageSizes(seen_width=224, seen_height=112, source_width=896, source_height=448)


def call(box: object, name: str = ZOOM_TOOL_NAME) -> str:
    return json.dumps({"name": name, "arguments": {"bbox_2d": box}})


def test_seen_pixels_become_a_normalised_box() -> None:
    box, clamped = parse_zoom_call(call([56, 28, 112, 84]), SIZES)

    assert box == Box(0.25, 0.25, 0.5, 0.75)
    assert not clamped


def test_the_text_that_the_prompt_writes_is_read_back() -> None:
    inner = zoom_call_text((0, 0, 224, 112))[len(TOOL_CALL_OPEN) : -len(TOOL_CALL_CLOSE)]

    assert parse_zoom_call(inner, SIZES) == (Box(0.0, 0.0, 1.0, 1.0), False)


def test_a_box_over_the_edge_is_cut_there() -> None:
    box, clamped = parse_zoom_call(call([-20, 28, 112.5, 500]), SIZES)

    assert box == Box(0.0, 0.25, 112.5 / 224, 1.0)
    assert clamped


def test_arguments_may_be_a_json_text() -> None:
    text = json.dumps(
        {"name": ZOOM_TOOL_NAME, "arguments": json.dumps({"bbox_2d": [0, 0, 56, 56]})}
    )

    assert parse_zoom_call(text, SIZES)[0] == Box(0.0, 0.0, 0.25, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "one JSON object"),
        ("__import__('os')", "not valid JSON"),
        ("[" * 3000, "not valid JSON"),
        ("x" * 5000, "too long"),
        (call([1, 2, 3, 4], name="rm"), ZOOM_TOOL_NAME),
        (json.dumps({"name": ZOOM_TOOL_NAME}), "lacks its arguments"),
        (call(None), "four numbers"),
        (call([1, 2, 3]), "four numbers"),
        (call(["1", "2", "30", "40"]), "four numbers"),
        (call([True, False, 100, 100]), "four numbers"),
        (call([1, 2, 10**400, 4]).replace("1" + "0" * 400, "9" * 401), "too large"),
        (call([0, 0, 100, "NaN"]).replace('"NaN"', "NaN"), "not valid JSON"),
        (call([0, 0, 100, "I"]).replace('"I"', "1e999"), "too large"),
        (call([100, 0, 50, 50]), "x1 < x2"),
        (call([10, 10, 10, 50]), "x1 < x2"),
        (call([300, 0, 400, 50]), "outside"),
        (call([0, 0, 6, 50]), "too small"),
        (call([0, 0, 50, 6]), "too small"),
    ],
)
def test_a_call_that_cannot_be_carried_out_says_why(text: str, words: str) -> None:
    with pytest.raises(ToolCallError, match=words):
        parse_zoom_call(text, SIZES)


def test_the_smallest_box_covers_28_pixels_of_the_original() -> None:
    seven = LEAST_SIDE_PX * SIZES.seen_width / SIZES.source_width

    assert parse_zoom_call(call([0, 0, seven, seven]), SIZES)[0].x1 == pytest.approx(28 / 896)


def test_an_image_smaller_than_that_can_be_looked_at_whole() -> None:
    tiny = ImageSizes(seen_width=56, seen_height=56, source_width=20, source_height=20)

    assert parse_zoom_call(call([0, 0, 56, 56]), tiny)[0] == Box(0.0, 0.0, 1.0, 1.0)


def test_a_sliver_is_refused() -> None:
    wide = ImageSizes(seen_width=5600, seen_height=56, source_width=56_000, source_height=560)

    with pytest.raises(ToolCallError, match="too narrow"):
        parse_zoom_call(call([0, 0, 5600, 3]), wide)


@given(
    st.one_of(
        st.text(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=5)
                | st.dictionaries(st.sampled_from(["name", "arguments", "bbox_2d"]), inner)
            ),
            max_leaves=12,
        ).map(json.dumps),
        st.lists(st.integers() | st.floats(), min_size=4, max_size=4).map(call),
    )
)
def test_the_parser_survives_anything(text: str) -> None:
    try:
        box, _ = parse_zoom_call(text, SIZES)
    except ToolCallError as error:
        assert str(error)  # noqa: PT017 - either outcome is right, the message must not be empty
    else:
        assert box.area > 0


# --- coordinates, digit by digit ----------------------------------------------------------

SMALL = ImageSizes(seen_width=12, seen_height=9, source_width=120, source_height=90)


# A box over the whole width and a tenth of the height is 400 times as wide as it is high.
WIDE = ImageSizes(seen_width=12, seen_height=9, source_width=12_000, source_height=300)
TALL = ImageSizes(seen_width=9, seen_height=12, source_width=300, source_height=12_000)


def can_be_cut(box: tuple[int, ...], sizes: ImageSizes) -> bool:
    try:
        return not parse_zoom_call(call(list(box)), sizes)[1]
    except ToolCallError:
        return False


def allowed_lists(sizes: ImageSizes) -> set[str]:
    """The naive twin: every list of coordinates that the parser takes."""
    columns, rows = range(sizes.frame.width + 1), range(sizes.frame.height + 1)
    return {
        ", ".join(map(str, box))
        for box in itertools.product(columns, rows, columns, rows)
        if can_be_cut(box, sizes)
    }


@pytest.mark.parametrize("sizes", [SMALL, WIDE, TALL], ids=["small", "wide", "tall"])
def test_the_grammar_accepts_exactly_the_lists_that_can_be_cut(sizes: ImageSizes) -> None:
    grammar = CoordinateGrammar(sizes)
    lists = allowed_lists(sizes)
    prefixes = {text[:end] for text in lists for end in range(len(text) + 1)}

    assert all(grammar.complete(text) for text in lists)
    for prefix in prefixes:
        assert grammar.viable(prefix), prefix
        for letter in "0123456789, ":
            longer = prefix + letter
            assert grammar.viable(longer) == (longer in prefixes), longer
            assert grammar.complete(longer) == (longer in lists), longer


@given(
    st.integers(28, 2000),
    st.integers(28, 2000),
    st.integers(20, 8000),
    st.integers(50, 200),
    st.sampled_from(["pixels", "thousandths"]),
    st.data(),
)
def test_whatever_is_drawn_the_call_is_well_formed(
    width: int, height: int, source_width: int, aspect: int, kind: str, data: st.DataObject
) -> None:
    source = (source_width, max(source_width * aspect // 100, 1))
    sizes = ImageSizes(width, height, *source, coordinates=kind)  # type: ignore[arg-type]
    writer = CoordinateWriter(VOCABULARY, CoordinateGrammar(sizes))
    while not writer.done:
        allowed = writer.allowed()
        assert allowed
        writer.accept(data.draw(st.sampled_from(allowed)))
    box, clamped = parse_zoom_call(call(json.loads(f"[{writer.text}]")), sizes)

    assert not clamped
    assert 0.0 <= box.x0 < box.x1 <= 1.0


VOCABULARY = Vocabulary(tiny_tokenizer(), 512)


@pytest.mark.parametrize(
    "text", ["", "0", "3", "12", "12,", "12, ", "12, 1", "12, 100, 3", "7, 9, 90, 60"]
)
def test_pieces_that_are_whole_numbers_are_allowed_where_their_letters_are(text: str) -> None:
    tokenizer = train_tokenizer(["a list of 12, 104 and 98"] * 3, vocabulary=400)
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    grammar = CoordinateGrammar(SIZES)
    writer = CoordinateWriter(vocabulary, grammar)
    pieces, ends = coordinate_tokens(vocabulary)
    assert len(pieces) > 500
    writer.text = text

    expected = [one for one, piece in pieces.items() if grammar.viable(text + piece)]

    assert writer.allowed() == expected + (ends if grammar.complete(text) else [])
