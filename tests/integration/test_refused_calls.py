"""Zoom calls that cannot be carried out: what the model is told, how often, and what comes then.

No weights write such calls on purpose, so what is written is scripted; everything else, the bans on
what may be drawn among it, is the loop's own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.engine import Engine
from engine.geometry import PatchGrid
from engine.loading import LoadedModel
from engine.processor import expanded_ids
from engine.prompt import tool_message_text, tool_response_text, zoom_call_text
from engine.reground import ANSWER_TURN, NO_ZOOMS_LEFT
from engine.request import Request
from engine.rollout import Rollout
from engine.script import Script, ScriptError
from engine.trace import Event, Finished, Reground
from tests.integration.conftest import MakeRequest
from training.trajectories import Trajectory, trajectory_of, well_formed

BROKEN = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments"\n</tool_call>'
OTHER_TOOL = '<tool_call>\n{"name": "crop", "arguments": {"bbox_2d": [0, 0, 9, 9]}}\n</tool_call>'
OUTSIDE = zoom_call_text((90000, 90000, 99000, 99000))
GOOD = zoom_call_text((0, 0, 50, 40))
ANSWER = "<answer>left lung</answer>"


def zooming(make_request: MakeRequest, most_crops: int) -> Request:
    return make_request(
        method="zoom", max_crops=most_crops, max_new_tokens=600, layers="none", belief=False
    )


def scripted(
    engine: Engine, request: Request, turns: list[str]
) -> tuple[Trajectory, list[Event], Rollout]:
    """A run that writes these turns; the engine's own words stand between them."""
    decoder, start = engine.prepare(request)
    ids = [token for turn in turns for token in engine.loaded.vocabulary.encode(turn)]
    rollout = Rollout(decoder, start, script=Script(ids))
    events = [event for _, event in rollout.events()]
    return trajectory_of(rollout, 0, {0: events}, None), events, rollout


def test_a_refused_call_is_answered_in_words_and_the_episode_goes_on(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    """A bad call, a good one, and two bad ones: the third that fails is the last."""
    turns = [BROKEN, GOOD, OTHER_TOOL, OUTSIDE, ANSWER]
    found, events, rollout = scripted(engine, zooming(make_request, 2), turns)
    (crop,) = [event for event in events if isinstance(event, Reground)]
    told = [
        tool_message_text("The tool call is not valid JSON."),
        tool_response_text(),
        tool_message_text("The only tool is image_zoom_in_tool."),
        # What is wrong with the third is not told any more.
        tool_message_text("No more zooms are left. Answer now."),
        "",
    ]

    fed: list[int] = []
    for written, said in zip(turns, told, strict=True):
        fed += loaded.vocabulary.encode(written)
        grids = [PatchGrid(crop.rows, crop.columns)] if said == told[1] else []
        fed += expanded_ids(loaded.tokenizer, said, grids)
    sequence = found.sequence
    assert sequence.ids[sequence.prompt :] == fed
    assert len(sequence.images) == 2

    assert found.failed_calls == 3
    assert isinstance(events[-1], Finished)
    assert events[-1].failed_calls == 3
    assert rollout.branches[0].last_turn
    assert found.text == "\n".join(turns)
    assert found.made_to_answer is False
    # Its tags are in order: it is malformed by its calls alone.
    assert well_formed(found.text)
    assert not found.outcome.well_formed


def test_what_calls_rightly_is_well_formed(engine: Engine, make_request: MakeRequest) -> None:
    found, _, rollout = scripted(engine, zooming(make_request, 2), [GOOD, ANSWER])
    assert found.failed_calls == 0
    assert found.outcome.well_formed
    assert not rollout.branches[0].last_turn


def test_a_backbone_that_counts_in_thousandths_is_understood_so(
    loaded: LoadedModel, make_request: MakeRequest
) -> None:
    """As Qwen3-VL does: of a view of 400 x 300 pixels that is not square."""
    counts = replace(loaded.manifest, coordinates="thousandths")
    engine = Engine(replace(loaded, manifest=counts))
    call = zoom_call_text((100, 250, 600, 750))
    _, events, _ = scripted(engine, zooming(make_request, 1), [call, ANSWER])
    (crop,) = [event for event in events if isinstance(event, Reground)]
    assert crop.box == pytest.approx((0.1, 0.25, 0.6, 0.75))
    # With the padding of a tenth of each side that this checkpoint asks for.
    assert crop.box_source_px == (20, 60, 260, 240)
    assert not crop.clamped


def test_two_failed_calls_leave_the_tool_open(engine: Engine, make_request: MakeRequest) -> None:
    found, events, _ = scripted(
        engine, zooming(make_request, 2), [BROKEN, OTHER_TOOL, GOOD, ANSWER]
    )
    assert found.failed_calls == 2
    assert sum(isinstance(event, Reground) for event in events) == 1


@pytest.mark.parametrize(
    ("most_crops", "turns", "failed"),
    [
        pytest.param(2, [BROKEN, OTHER_TOOL, OUTSIDE], 3, id="too many failed"),
        pytest.param(1, [GOOD, GOOD], 0, id="zooms spent"),
        pytest.param(1, [GOOD, BROKEN], 1, id="failed with zooms spent"),
    ],
)
def test_in_the_last_turn_there_is_no_tool_and_an_answer_is_asked_for(
    engine: Engine,
    loaded: LoadedModel,
    make_request: MakeRequest,
    most_crops: int,
    turns: list[str],
    failed: int,
) -> None:
    request = zooming(make_request, most_crops)
    encode = loaded.vocabulary.encode
    count = sum(len(encode(turn)) for turn in turns)
    # Where the tool may be called, its first token can be drawn; here it cannot.
    with pytest.raises(ScriptError, match=f"^token {count} cannot be drawn there$"):
        scripted(engine, request, [*turns, GOOD])

    # A last turn that gives no answer is followed by one that the engine opens.
    given_up, opened = "I see.<|im_end|>", "left lung</answer>"
    found, _, rollout = scripted(engine, request, [*turns, given_up, "<answer>", opened])
    ending = tool_message_text(NO_ZOOMS_LEFT) + "I see." + ANSWER_TURN + "<answer>" + opened
    assert loaded.tokenizer.decode(found.sequence.ids).endswith(ending)
    assert found.made_to_answer
    assert found.failed_calls == failed
    assert rollout.branches[0].reason == "answered"
