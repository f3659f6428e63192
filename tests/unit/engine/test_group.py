"""What makes members a tree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import group as group_module
from engine.group import (
    ForkDecision,
    Group,
    GroupError,
    Member,
    decision_at,
    readable_rows,
    shared_events,
)
from engine.trace import Answered, TokenStep, Trace
from tests.factories import MEMBERS, group, trace


def members(**changes: dict[int, dict[str, object]]) -> tuple[Member, ...]:
    """The hand-made members, some of them changed by number."""
    found = list(group().members)
    for number, fields in changes["of"].items():
        found[number] = replace(found[number], **fields)  # type: ignore[arg-type]
    return tuple(found)


def test_a_tree_knows_parents_children_and_what_made_a_branch() -> None:
    tree = group()
    at = tree.members[3].shared_tokens

    assert tree.children(0, at) == (3,)
    assert tree.children(3, at) == (5,)
    assert tree.children(1, at) == ()
    assert tree.decision_of(0) is None
    branch = tree.decision_of(5)
    assert branch is not None
    assert (branch.token_index, branch.probability) == (at, 0.9)
    assert [member.answer for member in tree.members] == [
        "Spiculated", "Smooth", "Lobulated", "Spiculated", "Spiculated", "Smooth",
    ]  # fmt: skip
    assert [member.boxes for member in tree.members] == [
        (box.as_tuple(),) for _, _, box, _ in MEMBERS
    ]


def test_a_fork_shares_every_event_before_its_first_own_token() -> None:
    tree = group()
    fork, parent = tree.members[3], tree.members[0]
    shared = shared_events(parent.trace, fork.shared_tokens)

    first = fork.trace.events[shared]
    assert isinstance(first, TokenStep)
    assert first.index == fork.shared_tokens
    assert fork.trace.events[1:shared] == parent.trace.events[1:shared]
    assert fork.trace.events[shared] != parent.trace.events[shared]
    assert shared_events(parent.trace, 10**6) == len(parent.trace)


def test_an_answer_that_names_no_option_is_none() -> None:
    member = group().members[0]
    events = tuple(
        replace(event, valid=False) if event is member.trace.answered else event
        for event in member.trace
    )

    assert replace(member, trace=Trace(events)).answer == ""
    assert replace(member, trace=Trace(events[:1])).answer == ""


DECISION = ForkDecision(token_index=3, baseline_nats=0.1, coordinates_nats=0.2, probability=0.5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({0: {"shared_tokens": 2}}, "shares tokens with nobody", id="root that shares"),
        pytest.param({3: {"parent": 3}}, "not before it", id="its own parent"),
        pytest.param({3: {"parent": 5}}, "not before it", id="a later parent"),
        pytest.param({3: {"parent": -1}}, "not before it", id="a negative parent"),
        pytest.param({0: {"decisions": ()}}, "nothing was decided", id="no decision"),
        pytest.param({3: {"shared_tokens": 4}}, "nothing was decided", id="branches elsewhere"),
        pytest.param({3: {"parent": 1}}, "differs from its parent", id="another's beginning"),
        pytest.param(
            {1: {"decisions": (replace(DECISION, token_index=10**6),)}}, "wrote nothing", id="late"
        ),
        pytest.param(
            {1: {"decisions": (replace(DECISION, token_index=-1),)}}, "wrote nothing", id="early"
        ),
        pytest.param({1: {"decisions": (DECISION, DECISION)}}, "wrote nothing", id="twice"),
        pytest.param(
            {1: {"decisions": (replace(DECISION, coordinates_nats=-0.1),)}}, "entropy", id="below 0"
        ),
        pytest.param(
            {1: {"decisions": (replace(DECISION, baseline_nats=float("nan")),)}},
            "entropy",
            id="no number",
        ),
        pytest.param(
            {1: {"decisions": (replace(DECISION, probability=1.1),)}}, "probability", id="above 1"
        ),
        pytest.param({1: {"trace": Trace(()), "decisions": ()}}, "start", id="no run"),
    ],
)
def test_members_that_are_no_tree_are_refused(
    changes: dict[int, dict[str, object]], says: str
) -> None:
    with pytest.raises(GroupError, match=says):
        # Of a parent whose decisions change, the forks are left out.
        Group(members=members(of=changes)[: 4 if 1 not in changes else 2])


def test_a_group_has_a_member_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GroupError, match="not 0"):
        Group(members=())
    monkeypatch.setattr(group_module, "MAX_MEMBERS", 5)
    with pytest.raises(GroupError, match="1 to 5 members, not 6"):
        group()


def test_a_decision_is_found_by_its_token() -> None:
    member = group().members[0]

    assert decision_at(member, member.decisions[0].token_index) is member.decisions[0]
    assert decision_at(member, 0) is None


def test_a_table_says_what_nobody_knows_and_what_did_not_happen() -> None:
    events = tuple(e for e in trace(method="direct") if not isinstance(e, Answered))
    silent = Trace(events)

    rows = readable_rows(Group(members=(Member(trace=silent),)))

    assert rows[2:5] == ["truth     not known", "votes     none 1", "members   1, 0 of them forks"]
    tokens = str(len(silent.tokens))
    assert rows[-1].split() == ["1", "at", "the", "question", tokens, "none", "no", "zoom"]


def test_a_table_names_all_members_that_branched_off_at_one_place() -> None:
    tree = group()
    again = replace(tree.members[3], decisions=())
    rows = readable_rows(replace(tree, members=(*tree.members, again)))

    assert any(row.endswith("chance 0.650: members 4, 7") for row in rows)
