"""The loss of a mini-batch, against a case worked by hand and a naive twin."""

import math

import pytest
import torch

from training.objectives import ClipConfig, LatentPolicyConfig
from training.packing import PackedGroup
from training.policy import PolicyOutputs
from training.policy_loss import ObjectiveConfig, PolicyPart, Totals, policy_loss

CLIP = ClipConfig(low=0.2, high=0.28, dual=3.0)


def packed(owners: list[int], learned: list[bool], latent_owners: list[int]) -> PackedGroup:
    """Only what the loss looks at: who wrote which token, and which latents were fed."""
    count, slots = len(owners), len(latent_owners)
    return PackedGroup(
        ids=torch.zeros(count + slots, dtype=torch.int64),
        positions=torch.zeros(3, count + slots, dtype=torch.int64),
        mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        images=(),
        latent_columns=torch.zeros(slots, dtype=torch.int64),
        latents=torch.ones(slots, 2),
        latent_owners=torch.tensor(latent_owners, dtype=torch.int64),
        predictors=torch.zeros(count, dtype=torch.int64),
        targets=torch.zeros(count, dtype=torch.int64),
        owners=torch.tensor(owners, dtype=torch.int64),
        learned=torch.tensor(learned, dtype=torch.bool),
        recorded=torch.zeros(count),
        separate=0,
    )


def outputs(log_probs: list[float], means: list[list[float]]) -> PolicyOutputs:
    return PolicyOutputs(
        torch.tensor(log_probs, requires_grad=True),
        torch.tensor(means).reshape(len(means), 2).requires_grad_(),
    )


def test_a_mini_batch_by_hand() -> None:
    """Two trajectories of advantages 2 and -1; the third token was written by the engine.

    Ratios of the learned tokens are 1.5 (clipped to 1.28), 0.5 and 1. Their losses are -2.56,
    0.8 (the clip again: -(-1) * 0.8) and 1: the mean over three is -0.76 / 3.
    """
    group = packed([0, 1, 0, 1], [True, True, False, True], [])
    old = outputs([-1.0, -1.0, -1.0, -1.0], [])
    now = outputs([-1.0 + math.log(1.5), -1.0 + math.log(0.5), -0.1, -1.0], [])
    # Only the last token is away from the reference, by a nat.
    reference = outputs([-1.0 + math.log(1.5), -1.0 + math.log(0.5), -9.0, -2.0], [])
    part = PolicyPart(group, torch.tensor([2.0, -1.0]), old, reference)

    loss, numbers = policy_loss(
        now, part, Totals.of([part]), ObjectiveConfig(clip=CLIP, kl_weight=0.5)
    )

    text, kl = (-2.56 + 0.8 + 1.0) / 3, math.exp(-1) / 3
    assert numbers["text_loss"] == pytest.approx(text, rel=1e-5)
    assert numbers["kl"] == pytest.approx(kl, rel=1e-5)
    assert numbers["clipped"] == pytest.approx(2 / 3)
    assert float(loss.detach()) == pytest.approx(text + 0.5 * kl, rel=1e-5)
    loss.backward()
    gradient = now.log_probs.grad
    assert gradient is not None
    # Clipped, clipped, forced: only the last one moves, by A r / 3 and the slope of the KL.
    assert gradient[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(gradient[3]) == pytest.approx((1.0 + 0.5 * (1 - math.exp(-1))) / 3, rel=1e-5)


def test_latents_have_a_mean_of_their_own() -> None:
    """Slots (1, 1) of one policy at (1, 1): drifts 0 and 2; sigma 2: ratios 1 and exp(-0.5)."""
    group = packed([0] * 4, [True] * 4, [0, 1])
    old = outputs([-1.0] * 4, [[1.0, 1.0], [1.0, 1.0]])
    now = outputs([-1.0] * 4, [[1.0, 1.0], [1.0, 3.0]])
    part = PolicyPart(group, torch.tensor([1.0, 1.0]), old, None)
    config = ObjectiveConfig(
        clip=CLIP, kl_weight=0.0, latents=LatentPolicyConfig(sigma=2.0), latent_weight=3.0
    )

    loss, numbers = policy_loss(now, part, Totals.of([part]), config)

    latent = -(1.0 + math.exp(-0.5)) / 2
    assert numbers["text_loss"] == pytest.approx(-1.0)
    assert numbers["latent_loss"] == pytest.approx(latent)
    assert numbers["latent_norm"] == pytest.approx(math.sqrt(2))
    assert numbers["latent_drift"] == pytest.approx(1.0)
    assert numbers["latent_drift_over_sigma"] == pytest.approx(0.5)
    assert float(loss.detach()) == pytest.approx(-1.0 + 3.0 * latent)
    assert "kl" not in numbers


@pytest.mark.parametrize("kind", ["none", "deterministic", "gaussian", "spherical"])
def test_which_latent_policies_move_latents(kind: str) -> None:
    """With the advantage 1, at a drift: `none` leaves the slots alone."""
    group = packed([0], [True], [0])
    part = PolicyPart(group, torch.ones(1), outputs([-1.0], [[1.0, 0.0]]), None)
    now = outputs([-1.0], [[0.8, 0.3]])
    latents = LatentPolicyConfig(kind=kind, sigma=1.0)

    loss, numbers = policy_loss(
        now, part, Totals.of([part]), ObjectiveConfig(kl_weight=0.0, latents=latents)
    )
    loss.backward()

    moved = now.latent_means.grad is not None and float(now.latent_means.grad.abs().sum()) > 0
    assert moved is (kind != "none")
    assert ("latent_loss" in numbers) is (kind != "none")


def test_the_divergence_of_latents_is_that_of_gaussians() -> None:
    part = PolicyPart(
        packed([0], [True], [0]),
        torch.zeros(1),
        outputs([-1.0], [[1.0, 0.0]]),
        outputs([-1.0], [[1.0, 2.0]]),
    )
    config = ObjectiveConfig(
        latents=LatentPolicyConfig(kind="none", sigma=2.0), latent_kl_weight=0.25
    )
    loss, numbers = policy_loss(outputs([-1.0], [[1.0, 0.0]]), part, Totals.of([part]), config)
    assert numbers["latent_kl"] == pytest.approx(4 / 8)
    assert float(loss.detach()) == pytest.approx(0.25 * 4 / 8)


def test_spherical_latents_differ_by_their_directions() -> None:
    """A mean of length 13 at a right angle to the old one, twice as long: two sides of a square."""
    reference = outputs([-1.0], [[0.0, -7.0]])
    part = PolicyPart(
        packed([0], [True], [0]), torch.zeros(1), outputs([-1.0], [[13.0, 0.0]]), reference
    )
    config = ObjectiveConfig(
        latents=LatentPolicyConfig(kind="spherical", sigma=0.5), latent_kl_weight=0.25
    )
    loss, numbers = policy_loss(outputs([-1.0], [[0.0, 26.0]]), part, Totals.of([part]), config)
    assert numbers["latent_drift"] == pytest.approx(math.hypot(13, 26))
    assert numbers["latent_drift_over_sigma"] == pytest.approx(math.sqrt(2) / 0.5)
    assert numbers["latent_kl"] == pytest.approx(2.0**2 / (2 * 0.5**2))
    assert float(loss.detach()) == pytest.approx(0.25 * numbers["latent_kl"])


def test_parts_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    owners, learned = [0, 0, 1, 1, 1], [True, False, True, True, True]

    def part(kept: slice, branches: slice, shift: int) -> tuple[PolicyPart, PolicyOutputs]:
        group = packed(
            [owner - shift for owner in owners[kept]],
            learned[kept],
            [owner - shift for owner in [0, 1][branches]],
        )
        old, now, reference = (
            PolicyOutputs(log_probs[kept], means[branches]) for log_probs, means in tensors
        )
        return PolicyPart(group, advantages[branches], old, reference), now

    tensors = [(-torch.rand(5), torch.randn(2, 2)) for _ in range(3)]
    advantages = torch.tensor([1.5, -0.5])
    config = ObjectiveConfig(kl_weight=0.3, latents=LatentPolicyConfig(sigma=1.0))
    whole, now = part(slice(0, 5), slice(0, 2), 0)
    expected, numbers = policy_loss(now, whole, Totals.of([whole]), config)
    halves = [part(slice(0, 2), slice(0, 1), 0), part(slice(2, 5), slice(1, 2), 1)]
    totals = Totals.of([half for half, _ in halves])
    found = [policy_loss(now, half, totals, config) for half, now in halves]

    assert float(sum(loss for loss, _ in found)) == pytest.approx(float(expected), rel=1e-5)
    for name, number in numbers.items():
        assert sum(more[name] for _, more in found) == pytest.approx(number, rel=1e-5)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="kl_weight must be a number of at least 0"):
        ObjectiveConfig(kl_weight=-1.0)
    with pytest.raises(ValueError, match="needs a reference"):
        ObjectiveConfig(kl_weight=0.0, latent_kl_weight=0.1)
