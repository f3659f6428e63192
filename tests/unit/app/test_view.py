"""The fold from events to the state of the page."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.view import FORCED, LIVE_GRID, UNSURE, RunView, coarse, unsure_above
from engine.request import Budgets, Interventions
from engine.trace import Failed, TokenStep, Trace, quantised_map
from tests.factories import blob, long_events, request, started, trace


def kinds(view: RunView) -> list[str]:
    return [card[0] for card in view.cards]


def test_the_cards_follow_the_story_of_the_run() -> None:
    view = RunView.from_events(trace())

    assert kinds(view) == ["first", "latent", "look", "unsure", "crop", "look", "answer"]
    assert view.status == "answered"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("direct", ["first", "look", "answer"]),
        ("latent", ["first", "latent", "look", "answer"]),
        ("zoom", ["first", "look", "unsure", "crop", "look", "answer"]),
    ],
)
def test_each_method_has_the_cards_that_it_can_have(method: str, expected: list[str]) -> None:
    assert kinds(RunView.from_events(trace(method=method))) == expected


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"interventions": Interventions(latents="skip")}, id="skipped"),
        pytest.param({"budgets": Budgets(latent_steps=0)}, id="none asked for"),
    ],
)
def test_a_belief_behind_inner_steps_that_were_left_out_has_a_card(
    changes: dict[str, Any],
) -> None:
    view = RunView.from_events(trace(method="latent", **changes))

    assert kinds(view) == ["first", "latent", "look", "answer"]
    start = view.cards[1][1]
    assert view.items[start][:2] == ["b", "latent"]


def test_an_unsure_card_points_at_the_word_before_it() -> None:
    view = RunView.from_events(trace())

    start = next(from_ for kind, from_ in view.cards if kind == "unsure")
    word = view.items[start - 1]

    assert (word[0], word[1]) == ("t", " margin")
    assert word[2] >= 1.5


def test_a_crop_without_an_entropy_rule_has_no_unsure_card() -> None:
    assert "unsure" not in kinds(RunView.from_events(trace(entropy_threshold=None)))


@pytest.mark.parametrize(
    ("of_the_run", "of_the_checkpoint", "expected"),
    [(0.0, 0.4, 0.0), (2.0, 0.4, 2.0), (None, 0.4, 0.4), (None, 0.0, 0.0), (None, None, 1.5)],
)
def test_words_are_unsure_above_the_limit_of_the_run_or_else_of_the_checkpoint(
    of_the_run: float | None, of_the_checkpoint: float | None, expected: float
) -> None:
    first = started(request(entropy_threshold=of_the_run), "r")
    first = replace(first, model=replace(first.model, entropy_threshold=of_the_checkpoint))

    assert unsure_above(first) == expected


@pytest.mark.parametrize(
    ("change", "unsure"),
    [
        ({"entropy_nats": 1.5001}, True),
        ({"entropy_nats": 1.5}, False),
        ({"entropy_nats": 1.4999}, False),
        ({"entropy_nats": 9.0, "forced": True}, False),
        ({"entropy_nats": 9.0, "segment": "answer"}, False),
        ({"entropy_nats": 9.0, "text": " <think>"}, False),
    ],
)
def test_a_word_is_unsure_where_the_rule_of_the_engine_says(
    change: dict[str, Any], unsure: bool
) -> None:
    first, *_, last = trace(method="direct", entropy_threshold=1.5)
    word = replace(trace().tokens[0], **change)

    view = RunView.from_events([first, word, last])

    assert view.items[0][2] == pytest.approx(change["entropy_nats"], abs=6e-4)
    assert bool(view.items[0][5] & UNSURE) is unsure
    assert bool(view.items[0][5] & FORCED) is word.forced


def test_words_of_the_program_come_between_the_doubt_and_the_call() -> None:
    events = list(trace(method="zoom"))
    at = next(i for i, event in enumerate(events) if getattr(event, "text", "") == " margin")
    closing = replace(events[at], text="</think>", entropy_nats=0.01, forced=True)

    view = RunView.from_events([*events[: at + 1], closing, *events[at + 1 :]])

    assert kinds(view) == ["first", "look", "unsure", "crop", "look", "answer"]
    assert view.items[view.cards[2][1] - 1][1] == " margin"


def test_a_call_of_the_model_s_own_is_no_doubt() -> None:
    events = [
        replace(event, forced=False) if isinstance(event, TokenStep) else event
        for event in trace(method="zoom")
    ]

    assert "unsure" not in kinds(RunView.from_events(events))


def test_every_state_extends_the_one_before() -> None:
    view = RunView()
    states = []
    for event in trace():
        view.apply(event)
        states.append(view.to_json())

    assert [json.loads(line) for line in states[-1]["items"].splitlines()] == view.items
    for earlier, later in pairwise(states):
        assert later["items"].startswith(earlier["items"])
        assert later["cards"][: len(earlier["cards"])] == earlier["cards"]


def test_cards_cover_the_items_in_order() -> None:
    view = RunView.from_events(trace())

    starts = [from_ for _, from_ in view.cards]

    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] < len(view.items)


def test_the_state_is_plain_json_and_holds_no_bytes() -> None:
    state = RunView.from_events(trace()).to_json()

    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_details_lie_where_the_items_say() -> None:
    view = RunView.from_events(trace())
    stream = b"".join(view.details)
    place = 0
    for item in view.items:
        if item[0] not in "tl":
            continue
        length = item[7] if item[0] == "t" else item[6]
        detail = json.loads(stream[place : place + length])
        assert ("alternatives" in detail) == (item[0] == "t")
        assert ("similarity" in detail) == (item[0] == "l")
        place += length

    assert place == len(stream)


def test_a_detail_carries_the_map_unchanged() -> None:
    events = trace()
    view = RunView.from_events(events)
    token = events.tokens[3]
    line = json.loads(view.details[3 + len(events.latents)])

    image, rows, columns, _, _, values = line["maps"][0]

    assert (image, rows, columns) == (0, 8, 8)
    assert base64.b64decode(values) == token.attention[0].values


def test_pictures_are_kept_under_names_of_our_own() -> None:
    events = trace()
    view = RunView.from_events(events)

    assert view.pictures.keys() == {"display.png", "seen.png", "crop-1.png"}
    assert view.pictures["crop-1.png"] == events.regrounds[0].crop_png


def test_the_sides_of_the_patient_reach_the_page() -> None:
    run = RunView.from_events(trace()).to_json()["facts"]

    assert run["image"]["left_edge"] == "right"


def test_markup_opens_no_card_of_its_own() -> None:
    events = list(trace(method="direct"))
    first = next(i for i, event in enumerate(events) if isinstance(event, TokenStep))
    tag = replace(events[first], text="<think>")

    view = RunView.from_events([*events[:first], tag, *events[first:]])

    assert kinds(view) == ["first", "look", "answer"]
    assert view.cards[1][1] == view.cards[0][1] + 2


def test_a_failure_before_the_start_is_a_card() -> None:
    view = RunView.from_events([Failed(seconds=0.0, code="E301", message="Too little memory.")])

    assert kinds(view) == ["failed"]
    assert view.status == "failed"
    assert view.to_json()["facts"] is None


def test_an_open_question_shows_what_the_model_would_say() -> None:
    asked = request(options=())
    belief = replace(trace().beliefs[0], options=("a nodule",), probabilities=(1.0,))

    view = RunView.from_events([started(asked, "r"), belief])

    assert view.items[0][6] == "a nodule"


def test_ten_thousand_characters_in_a_token_are_cut() -> None:
    token = replace(trace().tokens[0], text="x" * 10_000)

    view = RunView.from_events([started(request(), "r"), token])

    assert len(view.items[0][1]) == 400


def test_six_hundred_tokens_stay_small() -> None:
    view = RunView.from_events(long_events(600, request()))

    # Both the differences and the whole are sent once, so half of the budget is the limit.
    assert len(json.dumps(view.to_json())) < 60_000


def test_a_run_is_judged_by_the_scale_of_its_largest_map() -> None:
    events = trace()

    largest = max(token.attention[0].peak for token in events.tokens)

    assert RunView.from_events(events).to_json()["scale"] == pytest.approx(largest, abs=1e-4)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_a_coarse_map_keeps_the_peak_and_fits(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows * 100 + columns)
    fine = quantised_map(rng.random((rows, columns)).astype(np.float32), 0)

    small = coarse(fine, LIVE_GRID)

    assert small.rows == min(rows, LIVE_GRID)
    assert small.columns == min(columns, LIVE_GRID)
    assert max(small.values) == max(fine.values)


def test_a_small_map_is_not_touched() -> None:
    fine = blob(3, 3, 0.1)

    assert coarse(fine, LIVE_GRID) is fine


def test_the_view_of_a_prefix_is_the_prefix_of_the_view() -> None:
    events = list(trace())
    whole = RunView.from_events(events)

    for length in range(1, len(events), 7):
        part = RunView.from_events(Trace.from_events(events[:length]))
        assert whole.items[: len(part.items)] == part.items


def test_a_tool_call_without_end_costs_the_same_at_every_token() -> None:
    events = trace()
    view = RunView.from_events(events.events[:1])
    token = replace(events.tokens[0], segment="tool", attention=(), alternatives=())

    def seconds(count: int) -> float:
        began = time.process_time()
        for _ in range(count):
            view.apply(token)
        return time.process_time() - began

    first = seconds(2_000)
    seconds(10_000)

    assert seconds(2_000) < 6 * first
