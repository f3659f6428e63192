"""Groups of rollouts as trees that are saved and looked at on the page.

`python -m training tree` rolls one prompt out and saves what came of it; `training.reinforcement`
saves the tree of a prompt now and then. What is saved is what was rolled out: nothing is run
again but the encoding of the image.
"""

from __future__ import annotations

import argparse
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.cli import named_image
from engine.engine import Engine
from engine.group import MAX_MEMBERS, Group, Member
from engine.group_io import GROUP_SUFFIX, member_start, write_group
from engine.imaging import ImagingError
from engine.manifest import CheckpointError
from engine.request import Budgets, DisplayImage, Request, Sampling, Tracing
from engine.trace import Trace
from training.config import ConfigError
from training.phantoms import to_view8
from training.phantoms.truth import SPLITS
from training.prompts import PromptConfig, ordered_case
from training.questions import Question
from training.regrounding import PRESETS
from training.trajectories import TrajectoryGroup, roll_out

# Seed of the phantoms that `--phantom` numbers; that of the rollouts is asked for.
_PHANTOMS = 0
_FORKS = 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a tree is grown from.

    Attributes:
        image: as the viewer shows it.
        text, options: the question.
        truth: with its answer; None where nobody knows it.
    """

    image: DisplayImage
    text: str
    options: tuple[str, ...]
    truth: Question | None


def tree_of(
    engine: Engine, request: Request, rollouts: TrajectoryGroup, truth: Question | None
) -> Group:
    """The trajectories of one prompt as a group that can be saved.

    Args:
        engine: that rolled them out; it encodes the image again.
        request: what they were asked.
        rollouts: at most `MAX_MEMBERS` trajectories.
        truth: tells whether right and wrong are known, and what is right.

    Raises:
        GroupError: there are too many.
    """
    _, start = engine.prepare(request)
    started = engine.started(start, uuid.uuid4().hex, time.perf_counter())
    # Events count their seconds from a clock that was not kept.
    started = replace(started, seconds=0.0)
    members = tuple(
        Member(
            trace=Trace((member_start(started, number), *trajectory.events)),
            parent=None if trajectory.origin is None else trajectory.origin.parent,
            shared_tokens=0 if trajectory.origin is None else trajectory.origin.tokens,
            decisions=tuple(d for branch, d in rollouts.decisions if branch == number),
            correct=None if truth is None else trajectory.outcome.correct,
        )
        for number, trajectory in enumerate(rollouts.trajectories)
    )
    return Group(members=members, truth="" if truth is None else truth.answer)


def grow_tree(options: argparse.Namespace) -> str:
    """Rolls one prompt out from the command line and saves its tree; one line on what came of it.

    Raises:
        ConfigError: the checkpoint, the image, the phantom or the target cannot be used.
        RequestError: the question or a budget is out of range.
    """
    if not 2 <= options.group <= MAX_MEMBERS:
        raise ConfigError(f"--group must lie in 2 to {MAX_MEMBERS}, not {options.group}.")
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise ConfigError(f"--out must name a file *{GROUP_SUFFIX} in a folder that exists.")
    asked = _asked(options)
    request = Request(
        image=asked.image,
        question=asked.text,
        options=asked.options,
        method="zoom",
        seed=options.seed,
        sampling=Sampling(temperature=options.temperature),
        budgets=Budgets(max_new_tokens=options.max_new_tokens, max_crops=options.max_crops),
        entropy_threshold=options.entropy_threshold,
        tracing=Tracing(layers="none"),
    )
    if not request.sampling.temperature > 0.0:
        raise ConfigError("--temperature must be above 0: members would all be the same.")
    try:
        engine = Engine.load(options.checkpoint, options.device)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    draws = np.random.default_rng([options.seed, _FORKS])
    rollouts = roll_out(
        engine, request, asked.truth, options.group, (PRESETS[options.branching], draws)
    )
    tree = tree_of(engine, request, rollouts, asked.truth)
    try:
        write_group(options.out, tree)
    except OSError as error:
        raise ConfigError(f"{options.out.name} cannot be written: {error.strerror}.") from error
    return in_words(tree, options.out)


def in_words(tree: Group, path: Path) -> str:
    """One line on a saved tree."""
    forks = sum(member.parent is not None for member in tree.members)
    zooms = sum(bool(member.boxes) for member in tree.members)
    known = [member.correct for member in tree.members if member.correct is not None]
    right = f", {sum(known)} right" if known else ""
    return f"{len(tree.members)} members ({forks} forks, {zooms} zoomed{right}) in {path.name}."


def _asked(options: argparse.Namespace) -> Asked:
    if (options.image is None) == (options.phantom is None):
        raise ConfigError("Give either an image or --phantom SPLIT:NUMBER.")
    if options.phantom is not None:
        if options.question or options.option or options.answer:
            raise ConfigError("--phantom brings its own question, options and answer.")
        return _phantom(options.phantom)
    if not options.question:
        raise ConfigError("An image needs --question.")
    try:
        image = named_image(options)
    except ImagingError as error:
        raise ConfigError(error.message) from error
    choices = tuple(options.option)
    if options.answer and choices and options.answer not in choices:
        raise ConfigError("--answer must be one of the options.")
    truth = None
    if options.answer:
        truth = Question(
            family="asked",
            kind="coarse",
            text=options.question,
            options=choices,
            answer=options.answer,
            target_boxes=(),
            reasoning="",
            reasoning_before_zoom="",
            reasoning_after_zoom="",
        )
    return Asked(image=image, text=options.question, options=choices, truth=truth)


def _phantom(name: str) -> Asked:
    split, _, number = name.partition(":")
    if split not in SPLITS or not (number.isascii() and number.isdigit() and len(number) <= 6):
        raise ConfigError(
            f"--phantom must be SPLIT:NUMBER, with {', '.join(SPLITS)} and a number from 0."
        )
    config = PromptConfig(count=int(number) + 1, seed=_PHANTOMS, split=split)
    case = ordered_case(config, int(number))
    image = DisplayImage(pixels=to_view8(case.phantom()), modality="DX")
    question = case.question
    return Asked(image=image, text=question.text, options=question.options, truth=question)
