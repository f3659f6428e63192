"""Rollouts of a policy as trajectories: what was fed, what was written, what it came to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.engine import Engine
from engine.forking import Forking, Origin, ZoomUncertainty
from engine.geometry import Box
from engine.group import ForkDecision
from engine.latent import LatentDraw
from engine.prompt import ANSWER_OPEN, TAG_PAIRS
from engine.request import Request
from engine.rollout import Rollout
from engine.sequence import FedSequence
from engine.trace import Answered, Event, Reground, TokenStep
from training.questions import Question
from training.regrounding import BranchRule, branch_probability, mean_entropy
from training.rewards import TrajectoryOutcome

_TAGS: Final = re.compile("|".join(map(re.escape, (*TAG_PAIRS, *TAG_PAIRS.values()))))


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One branch of a group.

    Attributes:
        sequence: what it was fed and what it wrote.
        outcome: what the reward needs to know.
        text: everything that it wrote, over all turns.
        events: of the whole branch, what it shares with the branch it forked off included.
        origin: where it forked; None for a branch from the prompt.
        made_to_answer: whether the engine opened its answer, at the end of the budget or behind a
            turn that had none.
        failed_calls: zoom calls that it wrote and that could not be carried out as they stood.
    """

    sequence: FedSequence
    outcome: TrajectoryOutcome
    text: str
    events: tuple[Event, ...]
    origin: Origin | None
    made_to_answer: bool = False
    failed_calls: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryGroup:
    """The trajectories of one prompt.

    Attributes:
        trajectories: exactly as many as were asked for.
        decisions: number of a trajectory and what was weighed, for every zoom call that was
            complete while there was room to fork, in the order of the calls.
        forwarded: positions that were sent through the language model.
    """

    trajectories: tuple[Trajectory, ...]
    decisions: tuple[tuple[int, ForkDecision], ...]
    forwarded: int

    @property
    def rises(self) -> tuple[float, ...]:
        """Entropy of the coordinates over that of the opening, nats, for every decision."""
        return tuple(d.coordinates_nats - d.baseline_nats for _, d in self.decisions)


def roll_out(
    engine: Engine,
    request: Request,
    question: Question | None,
    count: int,
    forks: tuple[BranchRule, np.random.Generator] | None = None,
    draw_latent: LatentDraw | None = None,
) -> TrajectoryGroup:
    """A group of `count` trajectories from one prefill.

    Args:
        engine: of the policy.
        request: sampled, and without attention traces; branches differ in their seeds.
        question: tells right from wrong; None: nobody knows, and nothing counts as right.
        count: trajectories.
        forks: rule and draws of EVR: half of the trajectories begin at the prompt, the others
            fork off them, and what forks leave over begins at the prompt. None: all begin
            there.
        draw_latent: of a policy whose latents are drawn; None: slots are fed their means.
    """
    decoder, start = engine.prepare(request)
    decisions: list[tuple[int, ForkDecision]] = []
    forking = None if forks is None else Forking(count, fork_draws(*forks, decisions))
    roots = count if forks is None else max(1, count // 2)
    rollout = Rollout(decoder, start, count=roots, forking=forking, draw_latent=draw_latent)
    events: dict[int, list[Event]] = {}
    for branch, event in rollout.events():
        events.setdefault(branch, []).append(event)
    trajectories = tuple(
        trajectory_of(rollout, number, events, question) for number in range(count)
    )
    return TrajectoryGroup(trajectories, tuple(decisions), decoder.forwarded)


def fork_draws(
    rule: BranchRule, rng: np.random.Generator, decisions: list[tuple[int, ForkDecision]]
) -> Callable[[ZoomUncertainty], int]:
    """One draw for every zoom call: does the branch fork?

    Args:
        rule: gives the probability.
        rng: draws.
        decisions: takes the number of the branch and what was weighed, call by call.

    Returns:
        `engine.forking.Forking.children`.
    """

    def children(uncertainty: ZoomUncertainty) -> int:
        if not uncertainty.coordinates or not uncertainty.opening:
            return 0
        # Of this branch's own opening, so that the baseline is never another rollout's.
        baseline = mean_entropy(uncertainty.opening, rule.opening)
        tool = mean_entropy(uncertainty.coordinates)
        probability = branch_probability(baseline, tool, rule)
        decision = ForkDecision(
            token_index=len(uncertainty.opening),
            baseline_nats=baseline,
            coordinates_nats=tool,
            probability=probability,
        )
        decisions.append((uncertainty.branch, decision))
        return int(rng.random() < probability)

    return children


def trajectory_of(
    rollout: Rollout,
    number: int,
    events: Mapping[int, Sequence[Event]],
    question: Question | None,
) -> Trajectory:
    """What a branch of a rollout that has ended came to.

    Args:
        rollout: has ended.
        number: of the branch.
        events: of every branch, those that a fork shares with its parent at the parent's.
        question: as in `roll_out`.
    """
    branch = rollout.branches[number]
    whole = whole_events(rollout.origins, number, events)
    answered = next(event for event in whole if isinstance(event, Answered))
    boxes = tuple(Box(*event.box) for event in whole if isinstance(event, Reground))
    return Trajectory(
        sequence=rollout.sequences[number],
        outcome=TrajectoryOutcome(
            correct=question is not None and question.is_answered_by(answered),
            well_formed=well_formed(branch.text) and branch.failed_calls == 0,
            boxes=boxes,
        ),
        text=branch.text,
        events=tuple(whole),
        origin=rollout.origins.get(number),
        made_to_answer=branch.made_to_answer,
        failed_calls=branch.failed_calls,
    )


def whole_events(
    origins: Mapping[int, Origin], number: int, events: Mapping[int, Sequence[Event]]
) -> list[Event]:
    """A branch's events, those that it shares with the branch it forked off first."""
    own = list(events.get(number, ()))
    origin = origins.get(number)
    if origin is None:
        return own
    shared: list[Event] = []
    for event in whole_events(origins, origin.parent, events):
        if isinstance(event, TokenStep) and event.index >= origin.tokens:
            break
        shared.append(event)
    return shared + own


def well_formed(text: str) -> bool:
    """Whether every tag is closed before another opens, and one answer has something in it."""
    marks = list(_TAGS.finditer(text))
    openings, closings = marks[::2], marks[1::2]
    if len(openings) != len(closings):
        return False
    answers = []
    for opening, closing in zip(openings, closings, strict=True):
        if TAG_PAIRS.get(opening.group()) != closing.group():
            return False
        if opening.group() == ANSWER_OPEN:
            answers.append(text[opening.end() : closing.start()].strip())
    return len(answers) == 1 and bool(answers[0])
