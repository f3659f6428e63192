"""What a rollout came to: answers, form, and the events of forked branches."""

import numpy as np
import pytest

from engine.forking import Origin, ZoomUncertainty
from engine.group import ForkDecision
from engine.trace import Answered, Event, Finished, Reground, TokenStep
from tests import factories
from training.regrounding import BranchRule
from training.trajectories import fork_draws, well_formed, whole_events

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


@pytest.mark.parametrize(("tool", "probability"), [(0.5, 0.2), (1.5, 0.7)])
def test_a_fork_is_drawn_with_its_probability(tool: float, probability: float) -> None:
    """One number of the generator a call; where it is below the probability, the branch forks."""
    rule = BranchRule(base=0.2, gamma=0.5, least_rise=-np.inf, opening=2)
    decisions: list[tuple[int, ForkDecision]] = []
    children = fork_draws(rule, np.random.default_rng(7), decisions)
    # The third of the opening tokens is none of the first two.
    calls = [ZoomUncertainty(number, (0.25, 0.75, 9.0), (tool,)) for number in range(200)]

    made = [children(call) for call in calls]

    assert made == [int(u < probability) for u in np.random.default_rng(7).random(200)]
    assert abs(sum(made) / 200 - probability) < 0.1
    weighed = ForkDecision(
        token_index=3, baseline_nats=0.5, coordinates_nats=tool, probability=probability
    )
    assert decisions == [(number, weighed) for number in range(200)]


def test_a_call_without_entropies_makes_no_fork_and_draws_nothing() -> None:
    rng, decisions = np.random.default_rng(7), list[tuple[int, ForkDecision]]()
    children = fork_draws(BranchRule(base=1.0, least_rise=-np.inf), rng, decisions)

    assert children(ZoomUncertainty(0, (), (1.0,))) == 0
    assert children(ZoomUncertainty(0, (1.0,), ())) == 0
    assert decisions == []
    assert rng.random() == np.random.default_rng(7).random()
