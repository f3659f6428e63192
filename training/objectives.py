"""Policy losses over text tokens and latent slots: GRPO and VLPO, as free functions of tensors.

Text: the clipped surrogate of PPO (arXiv 1707.06347, eq. 7) with the dual clip of arXiv
1912.09729 (eq. 5) and separate bounds. Latents: the same surrogate over a ratio that a latent
policy defines (Monet's VLPO, methods 2.5). Means over text tokens and over latent slots are
separate, so that a few slots are not drowned by long text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch

LatentPolicy = Literal["none", "deterministic", "gaussian", "spherical"]

# Beyond this a ratio says nothing but that the policies differ.
LOG_RATIO_LIMIT: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Bounds of the surrogate.

    Attributes:
        low, high: the ratio is clipped to `[1 - low, 1 + high]`.
        dual: a negative advantage is never multiplied by a ratio above this; above 1.
    """

    low: float = 0.2
    high: float = 0.28
    dual: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 < self.low < 1.0:
            raise ValueError(f"low must lie between 0 and 1, not {self.low}.")
        if not self.high > 0.0:
            raise ValueError(f"high must be positive, not {self.high}.")
        if not self.dual > 1.0:
            raise ValueError(f"dual must be above 1, not {self.dual}.")


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A clipped surrogate.

    Attributes:
        losses: `(N,)`, to be minimised.
        clipped: share of the entries whose clip took effect, in [0, 1].
    """

    losses: torch.Tensor
    clipped: float


def clipped_surrogate(
    log_ratios: torch.Tensor, advantages: torch.Tensor, clip: ClipConfig
) -> Surrogate:
    """`-min(r A, clip(r) A)`, and for negative advantages at most `-dual * A`.

    Args:
        log_ratios: `(N,)`, log of the policy's over the behaviour policy's probability.
        advantages: `(N,)`.
        clip: bounds.
    """
    limited = log_ratios.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratios = limited.exp()
    plain = -advantages * ratios
    bounded = -advantages * ratios.clamp(1.0 - clip.low, 1.0 + clip.high)
    losses = torch.maximum(plain, bounded)
    capped = torch.minimum(losses, -advantages * clip.dual)
    losses = torch.where(advantages < 0, capped, losses)
    changed = (losses.detach() != plain.detach()).float()
    return Surrogate(losses, float(changed.mean()) if len(changed) else 0.0)


def low_variance_divergence(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor
) -> torch.Tensor:
    """`exp(d) - d - 1` with `d = log ref - log policy`: an estimate of KL(policy || reference).

    Schulman, "Approximating KL divergence" (2020), k3; never negative, unbiased under the
    policy. `(N,)` in nats.
    """
    difference = (reference_log_probs - log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return difference.exp() - difference - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPolicyConfig:
    """How a latent slot is a random variable.

    Attributes:
        kind: `none`: slots carry no gradient of their own; `deterministic`: the surrogate of
            VLPO, `exp(-|z - mu|^2 / 2 sigma^2)`, for latents that were not sampled; `gaussian`:
            the ratio of two Gaussians around the means, for latents drawn with that deviation;
            `spherical`: the same on directions, for latents of a fixed length.
        sigma: deviation of every number; for `spherical` the length of the noise beside a vector
            of length 1, at most 1.
    """

    kind: LatentPolicy = "deterministic"
    sigma: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0.0):
            raise ValueError(f"sigma must be a positive number, not {self.sigma}.")
        if self.kind == "spherical" and self.sigma > 1.0:
            raise ValueError(
                "sigma of spherical latents is a share of their length: it must be at most 1, not "
                f"{self.sigma}."
            )


def drawn_latents(
    means: torch.Tensor, policy: LatentPolicyConfig, generator: torch.Generator | None
) -> torch.Tensor:
    """What is fed into slots whose means are `(N, D)`, drawn as the policy says.

    `none` and `deterministic` feed the mean itself. `spherical` keeps the length of the mean.
    """
    if policy.kind in ("none", "deterministic"):
        return means
    noise = torch.empty_like(means).normal_(generator=generator)
    if policy.kind == "gaussian":
        return means + policy.sigma * noise
    lengths = means.norm(dim=-1, keepdim=True)
    # Noise of the length sigma, whatever the width.
    noise = noise * policy.sigma / means.shape[-1] ** 0.5
    drawn: torch.Tensor = _directions(_directions(means) + noise) * lengths
    return drawn


def squared_latent_distances(
    means: torch.Tensor, others: torch.Tensor, policy: LatentPolicyConfig
) -> torch.Tensor:
    """Squared distances of slots in units of sigma, `(N,)`; of directions if `spherical`.

    Args:
        means: `(N, D)`.
        others: `(N, D)`.
        policy: kind and deviation.
    """
    if policy.kind == "spherical":
        means, others = _directions(means), _directions(others)
    distances: torch.Tensor = ((means - others) ** 2).sum(-1)
    return distances / policy.sigma**2


def _directions(vectors: torch.Tensor) -> torch.Tensor:
    directions: torch.Tensor = torch.nn.functional.normalize(vectors, dim=-1)
    return directions


def latent_log_ratios(
    latents: torch.Tensor,
    means: torch.Tensor,
    old_means: torch.Tensor,
    policy: LatentPolicyConfig,
) -> torch.Tensor:
    """Log-ratio of every slot, `(N,)`.

    The mean of the slot at position p is the hidden state at p - 1: that is what would be fed
    there. (Comparing it with the hidden state at p, as one published implementation does, pulls
    every latent towards the one before it.)

    Args:
        latents: `(N, D)`, what was fed in the rollout.
        means: `(N, D)`, the hidden states before the slots under the policy now.
        old_means: `(N, D)`, the same under the behaviour policy, in the trainer's numerics.
        policy: kind and deviation.

    Returns:
        `log N(z; mu) - log N(z; mu_old)`. At `deterministic` z is the old mean, and this is
        `-|z - mu|^2 / 2 sigma^2`: 0 with a gradient of 0 at the behaviour policy. For the drawn
        policies it is divided by D, or hundreds of dimensions would leave the clip's range at
        the first step (for `spherical`, whose deviation is `sigma / sqrt(D)`, that leaves the
        squared distances of unit vectors over `2 sigma^2`).
    """
    if policy.kind == "none":
        return latents.new_zeros(len(latents))
    scale = 2.0 * policy.sigma**2
    if policy.kind == "deterministic":
        distances: torch.Tensor = ((old_means - means) ** 2).sum(-1)
        return -distances / scale
    if policy.kind == "spherical":
        latents, means, old_means = map(_directions, (latents, means, old_means))
        width = 1
    else:
        width = latents.shape[-1]
    now: torch.Tensor = ((latents - means) ** 2).sum(-1)
    before: torch.Tensor = ((latents - old_means) ** 2).sum(-1)
    return (before - now) / (scale * width)
