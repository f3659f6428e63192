"""What a rollout came to: answers, form, and the events of forked branches."""

import pytest

from engine.forking import Origin
from engine.trace import Answered, Event, Finished, Reground, TokenStep
from tests import factories
from training.trajectories import well_formed, whole_events

CALL = '<tool_call>\n{"name": "image_zoom_in_tool"}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("<think>a</think>\n<answer>B</answer>", True),
        ("<answer>B</answer>", True),
        (f"<think>a</think>\n{CALL}\n<think>b</think>\n<answer>B</answer>", True),
        ("<think>a\n<answer>B</answer>", False),
        ("a</think>\n<answer>B</answer>", False),
        ("<think>a<think>b</think></think><answer>B</answer>", False),
        ("<think>a</think>\n<answer>B", False),
        ("<answer>A</answer><answer>B</answer>", False),
        ("<think>a</think>", False),
        ("", False),
        ('<think>a</think><tool_call>{"name"<answer>B</answer>', False),
        ("<answer>B</answer></tool_call>", False),
        (f"{CALL}]}}</tool_call>\n<answer>B</answer>", False),
        (f"{CALL}\n{CALL}\n<answer>B</answer>", True),
        ("<think>a<answer></think>B</answer>", False),
        ("<think><answer>B</answer></think>", False),
        ("<answer></answer>", False),
        ("<answer> </answer>", False),
    ],
)
def test_form(text: str, fine: bool) -> None:
    assert well_formed(text) is fine


def test_a_forks_events_begin_with_what_it_shares() -> None:
    """Child 2 forked off 1, which had forked off 0."""
    whole = list(factories.trace(method="zoom"))
    tokens = [event for event in whole if isinstance(event, TokenStep)]
    first, second = tokens[4], tokens[2]
    events: dict[int, list[Event]] = {0: whole, 1: tokens[4:], 2: tokens[2:5]}
    origins = {1: Origin(0, first.index), 2: Origin(1, second.index)}

    one, two = whole_events(origins, 1, events), whole_events(origins, 2, events)

    assert whole_events(origins, 0, events) == whole
    assert [e.index for e in one if isinstance(e, TokenStep)] == [t.index for t in tokens]
    assert [e.index for e in two if isinstance(e, TokenStep)] == [0, 1, 2, 3, 4]
    assert not any(isinstance(event, Finished | Answered | Reground) for event in one)
    assert two[0] is whole[0]
