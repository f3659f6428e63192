"""From rollouts to optimiser steps: a batch is rolled out, and learned from in several updates.

An optimiser step is a step of `training.loop`, which knows nothing of rollouts: the first step of
a batch rolls it out with the policy as it is then, and the others find it here. Everything is
drawn from the number of the batch, so that a run that goes on between two batches goes on as if
it had never stopped; `training.reinforcement` sees to it that states are saved there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.alarm import ToolAlarm
from training.loop import PartLoss, Report
from training.objectives import low_variance_divergence
from training.packing import PackedGroup, packed_group
from training.policy import PolicyOutputs, policy_outputs
from training.policy_loss import ObjectiveConfig, PolicyPart, Totals, policy_loss
from training.rollout_groups import RewardedGroup
from training.rollout_numbers import rollout_numbers
from training.stopping import DivergedError

ItemT = TypeVar("ItemT")

Reference = Callable[[PackedGroup], PolicyOutputs]
"""What the reference says of packed rollouts."""

Gather = Callable[[int], Sequence[RewardedGroup]]
"""Rolls out the batch with a number, with the policy as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateConfig:
    """How a batch of rollouts becomes optimiser steps.

    Attributes:
        steps: optimiser steps of a batch, which shares its groups among them.
        branches: trajectories in one forward; 0: a whole group. Packed branches share their
            prompt, and pay for it with attention over the columns of all of them.
        head_chunk: tokens whose logits are held at a time.
        most_kl: the run stops when its rollouts are further from the reference than this, nats
            a token; 0: never.
    """

    steps: int = 2
    branches: int = 0
    head_chunk: int = 64
    most_kl: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("branches", 0), ("head_chunk", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not self.most_kl >= 0.0:
            raise ValueError(f"most_kl must not be negative, not {self.most_kl}.")


class PolicyUpdates:
    """The parts of every optimiser step.

    Args:
        model: the policy.
        reference: what it is kept near to; None: nothing.
        gather: rolls it out.
        config: how batches become steps.
        objective: what is minimised.
        bottleneck: whether rollouts were kept from looking at the image past their latents.
        alarm: hears how often the tool is used; None: nobody listens.
        report: takes what the alarm says.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        reference: Reference | None,
        gather: Gather,
        config: UpdateConfig,
        objective: ObjectiveConfig,
        *,
        bottleneck: bool = False,
        alarm: ToolAlarm | None = None,
        report: Report = lambda _: None,
    ) -> None:
        self._model, self._reference = model, reference
        self._gather, self._config, self._objective = gather, config, objective
        self._bottleneck, self._alarm, self._report = bottleneck, alarm, report
        self._batch: int | None = None
        self._numbers: dict[str, float] = {}
        self._shares: list[list[PolicyPart]] = []

    def parts_at(self, network: object, step: int) -> list[Callable[[], PartLoss]]:
        """The parts of an optimiser step, which add up to the loss of its mini-batch.

        Raises:
            DivergedError: the policy has left its reference too far behind.
        """
        del network
        batch, update = divmod(step, self._config.steps)
        if batch != self._batch:
            self._roll_out(batch, step)
        parts = self._shares[update]
        if not parts:
            # No group taught anything. A leaf leaves every gradient unset, so that the optimiser
            # passes over all parameters, with its moments and its weight decay.
            return [lambda: (torch.zeros((), requires_grad=True), dict(self._numbers))]
        totals = Totals.of(parts)

        def loss_of(part: PolicyPart) -> PartLoss:
            found = policy_outputs(self._model, part.packed, chunk=self._config.head_chunk)
            loss, numbers = policy_loss(found, part, totals, self._objective)
            return loss, numbers | (self._numbers if part is parts[0] else {})

        return [lambda part=part: loss_of(part) for part in parts]  # type: ignore[misc]

    def _roll_out(self, batch: int, step: int) -> None:
        began = time.monotonic()
        groups = self._gather(batch)
        self._numbers = rollout_numbers(groups)
        self._numbers["rollout_seconds"] = time.monotonic() - began
        if self._alarm is not None:
            if said := self._alarm.heard(self._numbers["tool_rate"]):
                self._report(said)
            self._numbers["tool_alarm"] = float(self._alarm.rings)
        parts = [self._parts_of(group) for group in groups if group.varies]
        self._shares = [
            [part for group in share for part in group]
            for share in shared_out(parts, self._config.steps)
        ]
        self._batch = batch
        kl = mean_kl([part for group in parts for part in group])
        if self._config.most_kl and kl > self._config.most_kl:
            raise DivergedError(
                f"The policy is {kl:.3g} nats a token away from its reference at step {step}, "
                f"more than update.most_kl: training stopped and keeps its last checkpoint; lower "
                "steps.learning_rate or raise objective.kl_weight, and start the same command "
                "again."
            )

    @torch.no_grad()
    def _parts_of(self, group: RewardedGroup) -> list[PolicyPart]:
        """A group as parts, with what the policy and the reference say of it before any update."""
        sequences = [trajectory.sequence for trajectory in group.rollouts.trajectories]
        advantages = torch.tensor(group.advantages)
        size = self._config.branches or len(sequences)
        parts = []
        for first in range(0, len(sequences), size):
            packed = packed_group(sequences[first : first + size], bottleneck=self._bottleneck)
            old = policy_outputs(self._model, packed, chunk=self._config.head_chunk)
            reference = None if self._reference is None else self._reference(packed)
            parts.append(PolicyPart(packed, advantages[first : first + size], old, reference))
        return parts


def shared_out(items: Sequence[ItemT], count: int) -> list[list[ItemT]]:
    """Shares items among `count` updates; where there are fewer, they are taken again in turn.

    >>> shared_out("abc", 2), shared_out("a", 2)
    ([['a', 'c'], ['b']], [['a'], ['a']])
    """
    if not items:
        return [[] for _ in range(count)]
    if len(items) < count:
        return [[items[index % len(items)]] for index in range(count)]
    return [list(items[index::count]) for index in range(count)]


def mean_kl(parts: Sequence[PolicyPart]) -> float:
    """KL of the policy that wrote the parts to the reference, nats a token; 0 without one."""
    total, tokens = 0.0, 0
    for part in parts:
        if part.reference is not None:
            learned = part.packed.learned.to(part.old.log_probs.device)
            found = low_variance_divergence(part.old.log_probs, part.reference.log_probs)[learned]
            total += float(found.sum())
            tokens += part.tokens
    return total / max(1, tokens)
