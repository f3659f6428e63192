"""Groups of rollouts with what they earned: the material of a policy update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from engine.engine import Engine
from engine.latent import LatentDraw
from engine.request import Budgets, Request, Sampling, Tracing
from training.consensus import Consensus
from training.objectives import LatentPolicyConfig, drawn_latents
from training.prompts import Prompt
from training.questions import Question
from training.regrounding import BranchRule
from training.rewards import RewardConfig, RewardParts, group_advantages, group_rewards
from training.trajectories import TrajectoryGroup, roll_out

PolicyMethod = Literal["direct", "zoom", "latent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How the policy is rolled out.

    Attributes:
        prompts: groups of a batch.
        group: trajectories of a group, M.
        temperature: of sampling. Log-probabilities are those of temperature 1, so that at any
            other one the update is off policy.
        max_new_tokens, max_crops, latent_steps: budgets of a trajectory.
        bottleneck: as `Request.bottleneck`, also in the update.
        branching: when a trajectory forks before it zooms (EVR); None: all begin at the prompt.
    """

    prompts: int
    group: int
    temperature: float = 1.0
    max_new_tokens: int = 160
    max_crops: int = 1
    latent_steps: int = 8
    bottleneck: bool = False
    branching: BranchRule | None = None

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ValueError(f"prompts must be at least 1, not {self.prompts}.")
        if self.group < 2:
            raise ValueError(f"group must be at least 2, not {self.group}.")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be positive, not {self.temperature}.")
        # Refused here, and not at the first rollout.
        self.budgets()

    def budgets(self) -> Budgets:
        """Of a trajectory.

        Raises:
            RequestError: one is out of range.
        """
        return Budgets(
            max_new_tokens=self.max_new_tokens,
            max_crops=self.max_crops,
            latent_steps=self.latent_steps,
        )


@dataclass(frozen=True, slots=True, eq=False)
class RewardedGroup:
    """The trajectories of one prompt and what they earned.

    Attributes:
        question: what was asked.
        rollouts: the trajectories.
        rewards: of each, part by part.
        consensus: where the successful ones looked.
        advantages: of each within the group.
    """

    question: Question
    rollouts: TrajectoryGroup
    rewards: tuple[RewardParts, ...]
    consensus: Consensus
    advantages: tuple[float, ...]

    @property
    def varies(self) -> bool:
        """Whether there is anything to learn: equal rewards have advantages of 0."""
        return any(self.advantages)


def rewarded(question: Question, rollouts: TrajectoryGroup, config: RewardConfig) -> RewardedGroup:
    """Rewards and advantages of the trajectories of one prompt."""
    outcomes = [trajectory.outcome for trajectory in rollouts.trajectories]
    parts, consensus = group_rewards(outcomes, config)
    advantages = group_advantages([part.total for part in parts], config.deviation)
    return RewardedGroup(question, rollouts, parts, consensus, tuple(advantages))


def policy_request(
    prompt: Prompt, method: PolicyMethod, config: RolloutConfig, seed: int
) -> Request:
    """What the policy is asked, sampled and with nothing traced that training does not need."""
    return Request(
        image=prompt.image,
        question=prompt.question.text,
        options=prompt.question.options,
        method=method,
        seed=seed,
        sampling=Sampling(temperature=config.temperature),
        budgets=config.budgets(),
        bottleneck=config.bottleneck,
        tracing=Tracing(layers="none", alternatives=0, belief=False, distribution=False),
    )


def rolled_out(
    engine: Engine,
    prompt: Prompt,
    method: PolicyMethod,
    config: RolloutConfig,
    latents: LatentPolicyConfig,
    draws: Sequence[int],
) -> TrajectoryGroup:
    """Rolls a prompt out.

    Args:
        engine: of the policy as it is now.
        prompt: what is asked.
        method: how.
        config: how many, how long.
        latents: draws latents, where it draws any.
        draws: seeds everything that is drawn: tokens, forks, latents.
    """
    request, rng = drawn_request(prompt, method, config, draws)
    noise = int(rng.integers(2**62))
    return roll_out(
        engine,
        request,
        prompt.question,
        config.group,
        None if config.branching is None else (config.branching, rng),
        latent_draw(latents, engine.loaded.device, noise),
    )


def drawn_request(
    prompt: Prompt, method: PolicyMethod, config: RolloutConfig, draws: Sequence[int]
) -> tuple[Request, np.random.Generator]:
    """The request of `rolled_out` and the draws that come after its seed."""
    rng = np.random.default_rng(list(draws))
    return policy_request(prompt, method, config, int(rng.integers(2**62))), rng


def latent_draw(policy: LatentPolicyConfig, device: torch.device, seed: int) -> LatentDraw | None:
    """Draws latents as a policy says; None where it feeds their means."""
    if policy.kind in ("none", "deterministic"):
        return None
    generator = torch.Generator(device=device).manual_seed(seed)

    def drawn(mean: torch.Tensor) -> torch.Tensor:
        return drawn_latents(mean[None], policy, generator)[0]

    return drawn
