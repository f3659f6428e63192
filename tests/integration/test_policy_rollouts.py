"""Rollouts as training asks for them: drawn latents, no distributions, the same tokens."""

from __future__ import annotations

import pytest
import torch

from engine.engine import Engine
from engine.loading import LoadedModel
from engine.prompt import ANSWER_OPEN
from engine.request import Budgets, DisplayImage, Request, Sampling, Tracing
from engine.rollout import Rollout
from engine.sequence import FedSequence
from engine.trace import Answered
from tests.integration.conftest import picture
from tests.unit.training.conftest import question
from training.objectives import LatentPolicyConfig
from training.packing import packed_group
from training.policy import policy_outputs
from training.prompts import Prompt
from training.rollout_groups import RolloutConfig, latent_draw, rolled_out
from training.trajectories import roll_out


def request(*, distribution: bool = False, method: str = "latent") -> Request:
    return Request(
        image=DisplayImage(pixels=picture()),
        question="Where is the nodule?",
        options=("left lung", "right lung"),
        method=method,
        sampling=Sampling(temperature=1.0),
        budgets=Budgets(max_new_tokens=6, latent_steps=3),
        tracing=Tracing(layers="none", belief=False, distribution=distribution),
    )


def rolled(engine: Engine, kind: str, seed: int = 0) -> list[FedSequence]:
    policy = LatentPolicyConfig(kind=kind, sigma=0.1)
    decoder, start = engine.prepare(request())
    draw = latent_draw(policy, engine.loaded.device, seed)
    rollout = Rollout(decoder, start, count=2, draw_latent=draw)
    list(rollout.events())
    return rollout.sequences


def test_drawn_latents_are_their_means_and_the_noise_of_the_policy(
    engine: Engine, loaded: LoadedModel
) -> None:
    sequences = rolled(engine, "gaussian")
    group = packed_group(sequences)
    means = policy_outputs(loaded.model, group).latent_means.detach()
    noise = (group.latents - means) / 0.1

    # Slots alternate between the branches in the order in which they were drawn.
    expected = torch.empty(3, 2, 1, group.latents.shape[1])
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        for branch in range(2):
            expected[step, branch].normal_(generator=generator)
    expected = expected[:, :, 0].transpose(0, 1).reshape(6, -1)
    torch.testing.assert_close(noise, expected, atol=5e-3, rtol=0)


def test_draws_differ_between_branches_and_seeds_and_repeat_with_a_seed(engine: Engine) -> None:
    def fed(kind: str, seed: int) -> torch.Tensor:
        return torch.stack([v for s in rolled(engine, kind, seed) for _, v in s.latents])

    one = fed("spherical", 1)
    assert torch.equal(one, fed("spherical", 1))
    assert not torch.allclose(one, fed("spherical", 2))
    assert not torch.allclose(one[0], one[3], atol=1e-3)
    plain = fed("deterministic", 1)
    # Rows of one product can differ in their last digits, as threads share it out.
    torch.testing.assert_close(plain[0], plain[3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "spherical"])
def test_a_group_is_fed_the_draws_of_its_policy(engine: Engine, kind: str) -> None:
    """Its branches share the mean of their first latent, so that draws alone tell them apart."""
    prompt = Prompt(question(), DisplayImage(pixels=picture()))
    config = RolloutConfig(prompts=1, group=3, max_new_tokens=2, latent_steps=2)

    def first_latents(place: int) -> torch.Tensor:
        policy = LatentPolicyConfig(kind=kind, sigma=0.1)
        found = rolled_out(engine, prompt, "latent", config, policy, [5, place])
        return torch.stack([t.sequence.latents[0][1] for t in found.trajectories])

    one = first_latents(0)
    assert len(one.unique(dim=0)) == 3
    assert torch.equal(one, first_latents(0))
    assert not torch.equal(one, first_latents(1))


@pytest.mark.parametrize(("method", "made"), [("direct", False), ("zoom", True)])
def test_a_trajectory_says_whether_it_was_made_to_answer(
    engine: Engine, method: str, made: bool
) -> None:
    """Random weights write no answer by themselves; a text-only run just ends."""
    group = roll_out(engine, request(method=method), None, 2)
    assert [one.made_to_answer for one in group.trajectories] == [made] * 2
    assert [ANSWER_OPEN in one.text for one in group.trajectories] == [made] * 2


@pytest.mark.parametrize("method", ["direct", "zoom"])
def test_leaving_out_the_distribution_changes_no_token(engine: Engine, method: str) -> None:
    def run(distribution: bool) -> tuple[list[list[int]], list[Answered], int]:
        decoder, start = engine.prepare(request(distribution=distribution, method=method))
        rollout = Rollout(decoder, start, count=2)
        answers = [event for _, event in rollout.events() if isinstance(event, Answered)]
        return [branch.ids for branch in rollout.branches], answers, decoder.forwarded

    with_tokens, with_answers, with_positions = run(True)
    tokens, answers, positions = run(False)

    assert tokens == with_tokens
    assert positions < with_positions
    assert all(sum(answer.probabilities) > 0 for answer in with_answers)
    assert all(answer.probabilities == () for answer in answers)
    assert [a.text for a in answers] == [a.text for a in with_answers]
