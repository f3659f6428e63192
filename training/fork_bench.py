"""What forks save: a group of trajectories with EVR's forks, against independent sampling.

On a shipped agent that zooms by itself, about a phantom; all ways give as many trajectories, run
in every round in turning order, on one thread, timed by processor time. `separate` samples each
trajectory by itself, prompt included, as the paper's baseline does; `grouped` samples all of them
in one batch from one pass over the prompt, which is ours, and forks on top of that save tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from engine.bench import interleaved, ratio
from engine.engine import Engine
from training.phantoms import CHEST, to_view8
from training.prompts import Prompt, phantom_image
from training.questions import case_for
from training.regrounding import PRESETS, BranchRule
from training.rollout_groups import RolloutConfig, policy_request
from training.trajectories import TrajectoryGroup, roll_out

AGENT: Final = Path("assets/checkpoints/medvr")
MEMBERS: Final = 16
_PHANTOM: Final = 11


def fork_costs(
    agent: str = str(AGENT),
    *,
    repeats: int,
    members: int = MEMBERS,
    rule: BranchRule = PRESETS["medvr"],
) -> dict[str, Any]:
    """Times the three ways and counts what they write.

    Args:
        agent: a checkpoint that calls the zoom tool.
        repeats: interleaved rounds.
        members: trajectories of a group.
        rule: of the forks.

    Returns:
        `separate_over_forked` and `grouped_over_forked`, how many times as fast a group with forks
        is; `tokens` that each way writes and `positions` that it sends through the model;
        `members` and how many of them are `forks`.
    """
    engine = Engine.load(agent, "cpu")
    case = case_for("nodule_margin", "smooth", _PHANTOM)
    prompt = Prompt(case.question, phantom_image(to_view8(case.phantom()), CHEST))
    config = RolloutConfig(prompts=1, group=members, max_new_tokens=120, max_crops=1)
    request = policy_request(prompt, "zoom", config, seed=1)

    def separate() -> list[TrajectoryGroup]:
        return [
            roll_out(engine, replace(request, seed=seed), prompt.question, 1)
            for seed in range(members)
        ]

    def grouped() -> list[TrajectoryGroup]:
        return [roll_out(engine, request, prompt.question, members)]

    def forked() -> list[TrajectoryGroup]:
        forks = (rule, np.random.default_rng(1))
        return [roll_out(engine, request, prompt.question, members, forks)]

    ways: dict[str, Callable[[], list[TrajectoryGroup]]] = {
        "separate": separate,
        "grouped": grouped,
        "forked": forked,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = {name: way() for name, way in ways.items()}
        times = interleaved(
            {name: _counted(way) for name, way in ways.items()},
            repeats,
        )
    finally:
        torch.set_num_threads(threads)
    return {
        "separate_over_forked": ratio(times["separate"], times["forked"]),
        "grouped_over_forked": ratio(times["grouped"], times["forked"]),
        "tokens": {name: _own_tokens(groups) for name, groups in made.items()},
        "positions": {name: sum(g.forwarded for g in groups) for name, groups in made.items()},
        "members": members,
        "forks": sum(t.origin is not None for g in made["forked"] for t in g.trajectories),
    }


def _counted(way: Callable[[], list[TrajectoryGroup]]) -> Callable[[], list[int]]:
    """A way that returns how many trajectories came of it, which all ways must agree on."""
    return lambda: [sum(len(group.trajectories) for group in way())]


def _own_tokens(groups: list[TrajectoryGroup]) -> int:
    """Tokens that were written: those that a fork shares are its parent's."""
    return sum(
        len(trajectory.sequence.written) - (trajectory.origin.tokens if trajectory.origin else 0)
        for group in groups
        for trajectory in group.trajectories
    )
