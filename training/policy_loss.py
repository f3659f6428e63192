"""The loss of a policy on packed rollouts: GRPO over text, VLPO over latents, KL to a reference.

`L = L_text + w L_latent + beta KL + beta_latent |mu - mu_ref|^2 / 2 sigma^2` (methods 2.5.4), each
term a mean of its own over a whole mini-batch. A mini-batch is computed in parts, whose losses
are divided by counts of the whole beforehand, so that they add up whatever the parts are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from training.loop import PartLoss
from training.objectives import (
    ClipConfig,
    LatentPolicyConfig,
    Surrogate,
    clipped_surrogate,
    latent_log_ratios,
    low_variance_divergence,
    squared_latent_distances,
)
from training.packing import PackedGroup
from training.policy import PolicyOutputs


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """The objective.

    Attributes:
        clip: bounds of both surrogates.
        kl_weight: beta, of the KL of the text to the reference; 0: no reference is kept.
        latents: the policy of latent slots; without any, it changes nothing.
        latent_weight: of the latents' surrogate beside the text's.
        latent_kl_weight: of the latents' squared distance to those of the reference.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    kl_weight: float = 0.001
    latents: LatentPolicyConfig = field(default_factory=LatentPolicyConfig)
    latent_weight: float = 1.0
    latent_kl_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kl_weight", "latent_weight", "latent_kl_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} must be a number of at least 0, not {value}.")
        if self.latent_kl_weight and not self.kl_weight:
            raise ValueError("latent_kl_weight needs a reference: give kl_weight.")


@dataclass(frozen=True, slots=True, eq=False)
class PolicyPart:
    """Some branches of a group, with what does not change while the policy learns from them.

    Attributes:
        packed: the branches.
        advantages: float32 `(branches,)`.
        old: what the policy that wrote them says of them, in the numerics of the update; None
            where that is the policy which learns from them, so that its own output is the old one.
        reference: what the reference says; None without one.
    """

    packed: PackedGroup
    advantages: torch.Tensor
    old: PolicyOutputs | None
    reference: PolicyOutputs | None

    @property
    def tokens(self) -> int:
        """How many text tokens are learned from: those that the policy wrote itself."""
        return int(self.packed.learned.sum())


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over a mini-batch: learned tokens and latent slots."""

    tokens: int
    slots: int

    @classmethod
    def of(cls, parts: Sequence[PolicyPart]) -> Totals:
        """Of all parts together, 1 where there are none."""
        return cls.over(counts(parts))

    @classmethod
    def over(cls, added: Mapping[str, float]) -> Totals:
        """Of counts that several processes have added up."""
        return cls(max(1, int(added["tokens"])), max(1, int(added["slots"])))


def counts(parts: Sequence[PolicyPart]) -> dict[str, float]:
    """Learned `tokens` and latent `slots` of some parts of a mini-batch."""
    return {
        "tokens": float(sum(part.tokens for part in parts)),
        "slots": float(sum(len(part.packed.latents) for part in parts)),
    }


def policy_loss(
    found: PolicyOutputs, part: PolicyPart, totals: Totals, config: ObjectiveConfig
) -> PartLoss:
    """The share of a part in the loss of its mini-batch.

    Args:
        found: of the policy now, on the part's branches.
        part: its branches.
        totals: of the mini-batch.
        config: the objective.

    Returns:
        The loss, and numbers whose sums over the parts are means over the mini-batch: the terms
        before their weights, shares of clipped tokens and slots, and of latents the length, the
        distance of the mean from the one in the rollout, and that over sigma.
    """
    old = found.detached() if part.old is None else part.old
    loss, numbers = _text_terms(found, old, part, totals, config)
    if len(part.packed.latents):
        latent, more = _latent_terms(found, old, part, totals, config)
        loss, numbers = loss + latent, {**numbers, **more}
    return loss, {**numbers, "tokens": float(part.packed.columns)}


def _text_terms(
    found: PolicyOutputs,
    old: PolicyOutputs,
    part: PolicyPart,
    totals: Totals,
    config: ObjectiveConfig,
) -> PartLoss:
    learned = part.packed.learned.to(found.log_probs.device)
    advantages = _of_owners(part.advantages, part.packed.owners, found.log_probs)[learned]
    now = found.log_probs[learned]
    surrogate = clipped_surrogate(now - old.log_probs[learned], advantages, config.clip)
    loss = surrogate.losses.sum() / totals.tokens
    numbers = {
        "text_loss": float(loss.detach()),
        "clipped": _share(surrogate, totals.tokens),
    }
    if part.reference is not None:
        divergences = low_variance_divergence(now, part.reference.log_probs[learned])
        divergence = divergences.sum() / totals.tokens
        numbers["kl"] = float(divergence.detach())
        loss = loss + config.kl_weight * divergence
    return loss, numbers


def _latent_terms(
    found: PolicyOutputs,
    old: PolicyOutputs,
    part: PolicyPart,
    totals: Totals,
    config: ObjectiveConfig,
) -> PartLoss:
    means, before = found.latent_means, old.latent_means
    drifts = (means - before).detach().norm(dim=-1)
    in_sigma = squared_latent_distances(means, before, config.latents).detach().sqrt()
    numbers = {
        "latent_norm": float(part.packed.latents.norm(dim=-1).sum()) / totals.slots,
        "latent_drift": float(drifts.sum()) / totals.slots,
        "latent_drift_over_sigma": float(in_sigma.sum()) / totals.slots,
    }
    loss = means.new_zeros(())
    if config.latents.kind != "none":
        advantages = _of_owners(part.advantages, part.packed.latent_owners, means)
        latents = part.packed.latents.to(means.device)
        ratios = latent_log_ratios(latents, means, before, config.latents)
        surrogate = clipped_surrogate(ratios, advantages, config.clip)
        latent = surrogate.losses.sum() / totals.slots
        numbers["latent_loss"] = float(latent.detach())
        numbers["latent_clipped"] = _share(surrogate, totals.slots)
        loss = loss + config.latent_weight * latent
    if part.reference is not None:
        reference = part.reference.latent_means
        distances = squared_latent_distances(means, reference, config.latents) / 2.0
        distance = distances.sum() / totals.slots
        numbers["latent_kl"] = float(distance.detach())
        loss = loss + config.latent_kl_weight * distance
    return loss, numbers


def _of_owners(values: torch.Tensor, owners: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value of each branch, for everything that belongs to it."""
    return values.to(like.device)[owners.to(like.device)]


def _share(surrogate: Surrogate, total: int) -> float:
    return surrogate.clipped * len(surrogate.losses) / total
