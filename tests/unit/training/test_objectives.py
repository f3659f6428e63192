"""Surrogates, divergences and latent ratios against cases worked by hand."""

import math

import pytest
import torch

from training.objectives import (
    ClipConfig,
    LatentPolicyConfig,
    clipped_surrogate,
    drawn_latents,
    latent_log_ratios,
    low_variance_divergence,
)

CLIP = ClipConfig(low=0.2, high=0.28, dual=3.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 1.0, -1.0, 0),
        (1.2, 1.0, -1.2, 0),
        (1.5, 1.0, -1.28, 1),
        (0.5, 1.0, -0.5, 0),
        (1.0, -1.0, 1.0, 0),
        (0.5, -1.0, 0.8, 1),
        (2.0, -1.0, 2.0, 0),
        (5.0, -1.0, 3.0, 1),
        (5.0, -2.0, 6.0, 1),
        (5.0, 0.0, 0.0, 0),
    ],
)
def test_the_clipped_surrogate_by_hand(
    ratio: float, advantage: float, loss: float, clipped: int
) -> None:
    found = clipped_surrogate(torch.tensor([math.log(ratio)]), torch.tensor([advantage]), CLIP)
    assert float(found.losses[0]) == pytest.approx(loss, rel=1e-6)
    assert found.clipped == clipped


@pytest.mark.parametrize(("ratio", "moves"), [(1.1, True), (1.5, False), (0.5, True)])
def test_a_clipped_ratio_has_no_gradient(ratio: float, moves: bool) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    clipped_surrogate(log_ratio, torch.ones(1), CLIP).losses.sum().backward()
    assert (log_ratio.grad is not None and float(log_ratio.grad) != 0) is moves


def test_log_ratios_beyond_ten_are_cut() -> None:
    found = clipped_surrogate(torch.tensor([50.0]), torch.tensor([-1.0]), ClipConfig(dual=1e9))
    assert float(found.losses) == pytest.approx(math.exp(10), rel=1e-5)


def test_the_divergence_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    log_probs = torch.tensor([-1.0, -1.0, -1.0])
    found = low_variance_divergence(log_probs, torch.tensor([-1.0, -2.0, 0.0]))
    assert found.tolist() == pytest.approx([0.0, math.exp(-1), math.e - 2], rel=1e-5)


def test_its_mean_is_the_divergence() -> None:
    policy, reference = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    exact = float((policy * (policy / reference).log()).sum())
    per_token = low_variance_divergence(policy.log(), reference.log())
    assert float((policy * per_token).sum()) == pytest.approx(exact, rel=1e-5)


# --- latents ------------------------------------------------------------------------------

POLICIES = ("deterministic", "gaussian", "spherical")


def latents_of(kind: str, sigma: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    means = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    policy = LatentPolicyConfig(kind=kind, sigma=sigma)  # type: ignore[arg-type]
    return means, drawn_latents(means, policy, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [*POLICIES, "none"])
def test_the_ratio_is_one_at_the_behaviour_policy(kind: str) -> None:
    means, latents = latents_of(kind)
    policy = LatentPolicyConfig(kind=kind, sigma=0.5)  # type: ignore[arg-type]
    assert latent_log_ratios(latents, means, means, policy).tolist() == [0.0] * 6


def test_the_deterministic_ratio_by_hand() -> None:
    old, now = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    policy = LatentPolicyConfig(kind="deterministic", sigma=5.0)
    assert float(latent_log_ratios(old, now, old, policy)) == pytest.approx(-0.5)


def test_the_deterministic_ratio_is_inert_on_its_own_policy_and_pulls_back_off_it() -> None:
    """Its gradient is 0 at the old means (methods 2.5.3), so one step a rollout is no step."""
    policy = LatentPolicyConfig(kind="deterministic", sigma=2.0)
    old = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    means = old.clone().requires_grad_()
    losses = clipped_surrogate(
        latent_log_ratios(old, means, old, policy), torch.ones(4), CLIP
    ).losses
    losses.sum().backward()
    assert means.grad is not None
    assert float(means.grad.abs().max()) == 0.0
    moved = (old + 0.1).requires_grad_()
    clipped_surrogate(
        latent_log_ratios(old, moved, old, policy), torch.ones(4), CLIP
    ).losses.sum().backward()
    assert moved.grad is not None
    # Descent goes against the gradient: back towards the old means.
    assert ((old - moved.detach()) * -moved.grad > 0).all()


def test_the_gaussian_ratio_moves_the_mean_towards_what_was_drawn() -> None:
    means, latents = latents_of("gaussian")
    policy = LatentPolicyConfig(kind="gaussian", sigma=0.5)
    now = means.clone().requires_grad_()
    ratios = latent_log_ratios(latents, now, means, policy)
    clipped_surrogate(ratios, torch.ones(6), CLIP).losses.sum().backward()
    assert now.grad is not None
    torch.testing.assert_close(-now.grad, (latents - means) / (0.25 * 8))


def test_the_gaussian_ratio_is_a_ratio_of_densities() -> None:
    """Times D (which it is divided by) it is the difference of the log-densities."""
    means, latents = latents_of("gaussian")
    other = means + 0.1
    policy = LatentPolicyConfig(kind="gaussian", sigma=0.5)

    def log_density(mean: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(mean, 0.5).log_prob(latents).sum(-1)

    expected = log_density(other) - log_density(means)
    found = 8 * latent_log_ratios(latents, other, means, policy)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_spherical_latents_keep_the_length_of_their_mean() -> None:
    means, latents = latents_of("spherical")
    torch.testing.assert_close(latents.norm(dim=-1), means.norm(dim=-1))
    assert not torch.allclose(latents, means)
    policy = LatentPolicyConfig(kind="spherical", sigma=0.5)
    # Only directions count.
    found = latent_log_ratios(latents, 3 * means, means, policy)
    torch.testing.assert_close(found, torch.zeros(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [192, 3584])
def test_spherical_latents_turn_by_as_much_whatever_the_width(width: int) -> None:
    """tan of the angle is sigma, and a drift by as much is a ratio that a clip can feel."""
    policy = LatentPolicyConfig(kind="spherical", sigma=0.2)
    means = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    latents = drawn_latents(means, policy, torch.Generator().manual_seed(1))
    cosines = torch.cosine_similarity(means, latents, dim=-1)
    assert float(cosines.mean()) == pytest.approx(1 / (1 + 0.2**2) ** 0.5, abs=0.01)
    ratios = latent_log_ratios(latents, latents, means, policy)
    # All the way to what was drawn: half of |noise|^2 / sigma^2.
    assert float(ratios.mean()) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="a share of their length"):
        LatentPolicyConfig(kind="spherical")


@pytest.mark.parametrize("kind", ["none", "deterministic"])
def test_latents_that_are_not_drawn_are_their_means(kind: str) -> None:
    means, latents = latents_of(kind)
    assert latents is means


@pytest.mark.parametrize("kind", POLICIES)
def test_gradients_of_the_latent_ratio_by_finite_differences(kind: str) -> None:
    policy = LatentPolicyConfig(kind=kind, sigma=0.7)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    latents, means, old = (
        torch.randn(2, 5, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    assert torch.autograd.gradcheck(
        lambda m: latent_log_ratios(latents, m, old, policy), means.requires_grad_()
    )


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"low": 1.0}, {"high": 0.0}, {"dual": 1.0}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClipConfig(**wrong)
    with pytest.raises(ValueError, match="sigma"):
        LatentPolicyConfig(sigma=0.0)
