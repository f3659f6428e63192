"""From rollouts to optimiser steps: a batch is rolled out, and learned from in several updates.

An optimiser step is a step of `training.loop`, which knows nothing of rollouts: the first step of
a batch rolls it out with the policy as it is then, and the others find it here. Everything is
drawn from the number of the batch, so that a run that goes on between two batches goes on as if
it had never stopped; `training.reinforcement` sees to it that states are saved there. Where
several processes train together each rolls out and learns from its own groups
(`training.replicas`), and all agree on what a mini-batch is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.alarm import ToolAlarm
from training.loop import PartLoss
from training.objectives import low_variance_divergence
from training.packing import PackedGroup, packed_group
from training.policy import PolicyOutputs, policy_outputs
from training.policy_loss import ObjectiveConfig, PolicyPart, Totals, counts, policy_loss
from training.replicas import Replicas
from training.rollout_groups import RewardedGroup
from training.rollout_numbers import measured, rollout_numbers
from training.stopping import DivergedError

ItemT = TypeVar("ItemT")

Reference = Callable[[PackedGroup], PolicyOutputs]
"""What the reference says of packed rollouts."""

Gather = Callable[[int], Sequence[RewardedGroup]]
"""Rolls out this process's share of the batch with a number, with the policy as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateConfig:
    """How a batch of rollouts becomes optimiser steps.

    Attributes:
        steps: optimiser steps of a batch, which shares its groups among them.
        branches: trajectories in one forward; 0: a whole group. Packed branches share their
            prompt, and pay for it with attention over the columns of all of them.
        head_chunk: tokens whose logits are held at a time. A product of few rows reads the whole
            head as one of many does: 64 at a time took 1.2 times as long as all at once.
        gradient_checkpointing: compute the layers again in the backward pass, for memory.
        most_kl: the run stops when the rollouts that are learned from, those of groups whose
            rewards vary, are further from the reference than this, nats a token; 0: never.
    """

    steps: int = 2
    branches: int = 0
    head_chunk: int = 192
    gradient_checkpointing: bool = False
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
        model: the policy; made ready to compute its layers again, if `config` says so.
        reference: what it is kept near to; None: nothing.
        gather: rolls it out.
        config: how batches become steps.
        objective: what is minimised.
        bottleneck: whether rollouts were kept from looking at the image past their latents.
        alarm: hears how often the tool is used; None: nobody listens.
        replicas: that train together; those that a launcher has started by default.
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
        replicas: Replicas | None = None,
    ) -> None:
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self._model, self._reference = model, reference
        self._replicas = replicas or Replicas()
        self._gather, self._config, self._objective = gather, config, objective
        self._bottleneck, self._alarm = bottleneck, alarm
        self._batch: int | None = None
        self._numbers: dict[str, float] = {}
        self._shares: list[list[PolicyPart]] = []
        self._totals: list[Totals] = []

    def parts_at(self, network: object, step: int) -> list[Callable[[], PartLoss]]:
        """This process's parts of an optimiser step, which add up to the loss of its mini-batch.

        Raises:
            DivergedError: the policy has left its reference too far behind.
        """
        del network
        batch, update = divmod(step, self._config.steps)
        if batch != self._batch:
            self._roll_out(batch, step)
        totals = self._totals[update]

        def loss_of(part: PolicyPart) -> PartLoss:
            with self._layers_computed_again():
                found = policy_outputs(self._model, part.packed, chunk=self._config.head_chunk)
            return policy_loss(found, part, totals, self._objective)

        parts = [lambda part=part: loss_of(part) for part in self._shares[update]]
        # What is said of the batch is said once. Where no group taught anything, that leaf is all:
        # it leaves every gradient unset, so that the optimiser passes over all parameters, with
        # its moments and its weight decay.
        numbers = dict(self._numbers) if self._replicas.is_main else {}
        return [lambda: (torch.zeros((), requires_grad=True), numbers), *parts]

    @contextlib.contextmanager
    def _layers_computed_again(self) -> Iterator[None]:
        """For a forward whose gradient is wanted: layers are only computed again in training.

        The engine rolls out in evaluation: in training there would be no cache. Nothing else
        differs, since nothing is dropped out.
        """
        if not self._config.gradient_checkpointing:
            yield
            return
        self._model.train()
        try:
            yield
        finally:
            self._model.train(False)

    def _roll_out(self, batch: int, step: int) -> None:
        began, together = time.monotonic(), self._replicas
        groups = self._own_groups(batch)
        self._numbers = rollout_numbers(together.interleaved([measured(g) for g in groups]))
        self._numbers["rollout_seconds"] = time.monotonic() - began
        if self._alarm is not None:
            self._numbers["tool_alarm"] = float(self._alarm.hear(self._numbers["tool_rate"]))
        # Mini-batches are made of the places of all groups that teach anything.
        varies = together.interleaved([group.varies for group in groups])
        shares = shared_out(
            [place for place, does in enumerate(varies) if does], self._config.steps
        )
        # The first update changes the policy that wrote the groups: what it says of those that a
        # later one learns from has to be asked of it now.
        later = {place for share in shares[1:] for place in share}
        places = together.own(range(len(varies)))
        parts = {
            place: self._parts_of(group, needs_old=place in later)
            for place, group in zip(places, groups, strict=True)
            if group.varies
        }
        self._shares = [
            [part for place in share for part in parts.get(place, [])] for share in shares
        ]
        self._totals = [Totals.over(together.added(counts(share))) for share in self._shares]
        self._batch = batch
        found = together.added(kl_sums([part for own in parts.values() for part in own]))
        kl = found["kl"] / max(1, found["tokens"])
        if self._config.most_kl and kl > self._config.most_kl:
            raise DivergedError(
                f"The policy is {kl:.3g} nats a token away from its reference at step {step}, "
                "more than update.most_kl",
                "lower steps.learning_rate or raise objective.kl_weight",
            )

    def _own_groups(self, batch: int) -> list[RewardedGroup]:
        """This process's groups.

        Raises:
            DivergedError: rolling out has failed so in any process: they all stop together.
        """
        groups, failure = [], ""
        try:
            groups = list(self._gather(batch))
        except DivergedError as error:
            failure = error.reason
        for said in self._replicas.gathered([failure]):
            if said:
                raise DivergedError(said)
        return groups

    @torch.no_grad()
    def _parts_of(self, group: RewardedGroup, *, needs_old: bool) -> list[PolicyPart]:
        """A group as parts, with what the policy and the reference say of it before any update.

        Args:
            group: rolled out by the policy as it is.
            needs_old: whether an update learns from it that is not the first of its batch; else no
                pass is spent on what that update computes by itself.
        """
        sequences = [trajectory.sequence for trajectory in group.rollouts.trajectories]
        advantages = torch.tensor(group.advantages)
        size = self._config.branches or len(sequences)
        parts = []
        for first in range(0, len(sequences), size):
            packed = packed_group(sequences[first : first + size], bottleneck=self._bottleneck)
            old = None
            if needs_old:
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


def kl_sums(parts: Sequence[PolicyPart]) -> dict[str, float]:
    """KL of the policy that wrote the parts to the reference: `kl`, nats, over so many `tokens`.

    The policy's log-probabilities are those that the rollouts recorded.
    """
    total, tokens = 0.0, 0
    for part in parts:
        if part.reference is not None:
            reference = part.reference.log_probs
            recorded = part.packed.recorded.to(reference.device)
            learned = part.packed.learned.to(reference.device)
            total += float(low_variance_divergence(recorded, reference)[learned].sum())
            tokens += part.tokens
    return {"kl": total, "tokens": float(tokens)}
