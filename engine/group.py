"""The rollouts of one prompt as a tree: who branched off whom, where, and how unsure it was.

Half of the trajectories of a group begin at the prompt; the others go on from one of them, from
just before it wrote the coordinates of a zoom (MedVR's EVR, methods 3.5). Here they are traces
like any other, so that whoever can show a run can show a member. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

from engine.trace import RunStarted, TokenStep, Trace

MAX_MEMBERS: Final = 64
# Answers that are longer push the rest of their row aside.
MAX_ANSWER_WIDTH: Final = 32


class GroupError(ValueError):
    """Members that are no tree; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkDecision:
    """A zoom call at which it was decided by a draw whether another member branches off.

    Attributes:
        token_index: how many tokens had been written before its coordinates.
        baseline_nats: mean entropy of the opening tokens of the same trajectory.
        coordinates_nats: mean entropy of the tokens that write the coordinates.
        probability: of a branch, in [0, 1].
    """

    token_index: int
    baseline_nats: float
    coordinates_nats: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One trajectory of a group.

    Attributes:
        trace: all of it, what it shares with its parent included.
        parent: number of the member that it branched off; None: it begins at the prompt.
        shared_tokens: how many tokens it shares with its parent.
        decisions: at its own zoom calls, in order; none once the group had all its members.
        correct: whether the answer is right; None where nobody knows.
    """

    trace: Trace
    parent: int | None = None
    shared_tokens: int = 0
    decisions: tuple[ForkDecision, ...] = ()
    correct: bool | None = None

    @property
    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """The boxes that it looked at, normalised, in order."""
        return tuple(crop.box for crop in self.trace.regrounds)

    @property
    def answer(self) -> str:
        """The answer as text; empty when there is none, or none that can be read."""
        answered = self.trace.answered
        return answered.text if answered is not None and answered.valid else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The members of a group, every parent before its children.

    Attributes:
        members: see there; numbered from 0 in this order.
        truth: the right answer in words; empty where nobody knows it.

    Raises:
        GroupError: the members are no tree of runs of one prompt.
    """

    members: tuple[Member, ...]
    truth: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.members) <= MAX_MEMBERS:
            raise GroupError(f"A group has 1 to {MAX_MEMBERS} members, not {len(self.members)}.")
        for number, member in enumerate(self.members):
            _check_decisions(member)
            if member.parent is None:
                if member.shared_tokens:
                    raise GroupError("A member of the group shares tokens with nobody.")
            elif not 0 <= member.parent < number:
                raise GroupError("A member of the group branches off one that is not before it.")
            else:
                _check_fork(self.members[member.parent], member)
        if any(member.trace.started is None for member in self.members):
            raise GroupError("A member of the group has no start of its run.")

    @property
    def started(self) -> RunStarted:
        """The start of the first member, which the others share but for its id and seed."""
        started = self.members[0].trace.started
        if started is None:
            raise GroupError("A member of the group has no start of its run.")
        return started

    def children(self, number: int, token_index: int) -> tuple[int, ...]:
        """Numbers of the members that branched off a member at one of its zoom calls."""
        return tuple(
            child
            for child, member in enumerate(self.members)
            if member.parent == number and member.shared_tokens == token_index
        )

    def decision_of(self, number: int) -> ForkDecision | None:
        """What made a member branch off its parent; None for one that begins at the prompt."""
        member = self.members[number]
        if member.parent is None:
            return None
        return decision_at(self.members[member.parent], member.shared_tokens)


def readable_rows(group: Group) -> list[str]:
    """A group as lines of text: the question, the votes, and every member with its branches."""
    started = group.started
    votes = Counter(_answer(member) for member in group.members)
    forks = sum(member.parent is not None for member in group.members)
    width = min(max(len(answer) for answer in votes), MAX_ANSWER_WIDTH)
    row = f"{{:>6}}  {{:<20}}  {{:>6}}  {{:<{width}}}  {{:<5}}  {{}}".format
    lines = [
        f"{started.model.id} on {started.model.device}, method {started.request.method}, "
        f"seed {started.request.seed}",
        f"question  {started.request.question!r}",
        f"truth     {group.truth!r}" if group.truth else "truth     not known",
        # Equal counts keep the order in which the answers came.
        f"votes     {', '.join(f'{answer} {count}' for answer, count in votes.most_common())}",
        f"members   {len(group.members)}, {forks} of them forks",
        "",
        row("member", "begins", "tokens", "answer", "", "boxes, in shares of the image"),
    ]
    for number, member in enumerate(group.members):
        begins = "at the question"
        if member.parent is not None:
            # Counted from 1, as on the page.
            begins = f"off {member.parent + 1} at token {member.shared_tokens}"
        verdict = {True: "right", False: "wrong", None: ""}[member.correct]
        boxes = "  ".join(f"({', '.join(f'{edge:.3f}' for edge in box)})" for box in member.boxes)
        tokens = len(member.trace.tokens)
        lines.append(row(number + 1, begins, tokens, _answer(member), verdict, boxes or "no zoom"))
        lines += [_branching(group, number, decision) for decision in member.decisions]
    return lines


def _answer(member: Member) -> str:
    return repr(member.answer) if member.answer else "none"


def _branching(group: Group, number: int, decision: ForkDecision) -> str:
    children = group.children(number, decision.token_index)
    word = "member" if len(children) == 1 else "members"
    came = f"{word} {', '.join(str(child + 1) for child in children)}" if children else "no branch"
    return (
        f"{'':>8}zoom at token {decision.token_index}: entropy {decision.baseline_nats:.3f} nats "
        f"in the opening, {decision.coordinates_nats:.3f} in the coordinates, "
        f"chance {decision.probability:.3f}: {came}"
    )


def decision_at(member: Member, token_index: int) -> ForkDecision | None:
    """The decision of a member at a token; None where it had none to make."""
    return next((d for d in member.decisions if d.token_index == token_index), None)


def shared_events(parent: Trace, tokens: int) -> int:
    """How many events of a trace come before its token with this index (or a later one)."""
    for place, event in enumerate(parent):
        if isinstance(event, TokenStep) and event.index >= tokens:
            return place
    return len(parent)


def _check_decisions(member: Member) -> None:
    length = len(member.trace.tokens)
    least = member.shared_tokens
    for decision in member.decisions:
        if not least <= decision.token_index < length:
            raise GroupError("The group weighs a branch where its member wrote nothing.")
        least = decision.token_index + 1
        entropies = (decision.baseline_nats, decision.coordinates_nats)
        if not all(math.isfinite(value) and value >= 0.0 for value in entropies):
            raise GroupError("The group holds an entropy that is not a number of at least 0.")
        if not 0.0 <= decision.probability <= 1.0:
            raise GroupError("The group holds a probability that does not lie in 0 to 1.")


def _check_fork(parent: Member, member: Member) -> None:
    if decision_at(parent, member.shared_tokens) is None:
        raise GroupError("A member of the group branches off where nothing was decided.")
    shared = shared_events(parent.trace, member.shared_tokens)
    # The start differs in id and seed; everything after it is the parent's own.
    if member.trace.events[1:shared] != parent.trace.events[1:shared]:
        raise GroupError("A member of the group differs from its parent before it branches off.")
