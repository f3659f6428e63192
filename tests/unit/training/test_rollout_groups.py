"""Rewards and masks from end to end: the worked example of docs/medvr.md as a policy update."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.forking import Origin
from engine.geometry import Box
from engine.group import ForkDecision
from engine.loading import LoadedModel
from engine.sequence import FedSequence
from engine.tiny import TinyShape, tiny_model
from tests.unit.training.conftest import question
from training.objectives import ClipConfig
from training.packing import packed_group
from training.policy import policy_outputs
from training.policy_loss import ObjectiveConfig, PolicyPart, Totals, policy_loss
from training.rewards import RewardConfig, TrajectoryOutcome
from training.rollout_groups import RewardedGroup, rewarded
from training.rollout_numbers import measured, rollout_numbers
from training.trajectories import Trajectory, TrajectoryGroup

PROMPT = (10, 11, 12, 13)
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
DECISIONS = tuple(
    (
        branch,
        ForkDecision(
            token_index=2, baseline_nats=0.5, coordinates_nats=0.5 + rise, probability=0.5
        ),
    )
    for branch, rise in enumerate((1.0, 0.0))
)
ADVANTAGES = (0.7158330165238083, 0.7158330165238083, -0.026512333945326136, -1.4051536991022902)


def fed(call: list[int], observed: list[int], answer: list[int], forced: int = 0) -> FedSequence:
    """A prompt, a call that is written, an observation that is not, and an answer.

    The first `forced` tokens of the answer are written by the engine.
    """
    sequence = FedSequence(prompt=len(PROMPT))
    sequence.extend(PROMPT, positions(0, len(PROMPT)), [])

    def write(token: int, by_engine: bool) -> None:
        sequence.write(token, 0.0, 0.5, forced=by_engine)
        sequence.feed(token, len(sequence.ids))

    for token in call:
        write(token, False)
    sequence.extend(tuple(observed), positions(len(sequence.ids), len(observed)), [])
    for number, token in enumerate(answer):
        write(token, number < forced)
    return sequence


def positions(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count).expand(3, -1)


def group() -> RewardedGroup:
    """Four trajectories: two agree, one looked elsewhere and is malformed, one is wrong."""
    shapes = [
        (fed([20, 21], [90, 91, 92], [30, 31]), True, True, (LEFT,), None),
        (fed([20, 22], [93], [30, 31]), True, True, (LEFT,), Origin(0, 1)),
        (fed([23], [94, 95], [32, 33, 34], forced=1), True, False, (RIGHT,), None),
        (fed([], [], [35]), False, True, (), None),
    ]
    trajectories = tuple(
        Trajectory(
            sequence=sequence,
            outcome=TrajectoryOutcome(correct=correct, well_formed=formed, boxes=boxes),
            text="",
            events=(),
            origin=origin,
            made_to_answer=any(token.forced for token in sequence.written),
            failed_calls=0 if formed else 2,
        )
        for sequence, correct, formed, boxes, origin in shapes
    )
    asked = question(targets=((0.0, 0.0, 0.5, 1.0),))
    return rewarded(asked, TrajectoryGroup(trajectories, DECISIONS, 77), RewardConfig())


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_model(TinyShape(hidden=32, layers=2, heads=2))


def test_rewards_and_advantages_are_those_of_the_worked_example() -> None:
    found = group()
    assert [part.total for part in found.rewards] == pytest.approx([2, 2, 1.3, 0])
    assert found.advantages == pytest.approx(ADVANTAGES, abs=1e-12)
    assert found.varies


def test_the_loss_of_a_group_is_that_of_its_trajectories_one_by_one(loaded: LoadedModel) -> None:
    """Against plain forwards and a list of what the policy wrote itself, made by hand."""
    found = group()
    language, head = loaded.model.model.language_model, loaded.model.lm_head.weight
    # Column before each token that counts, and the token; nothing observed, nothing forced.
    written = [
        [(3, 20), (4, 21), (8, 30), (9, 31)],
        [(3, 20), (4, 22), (6, 30), (7, 31)],
        [(3, 23), (7, 33), (8, 34)],
        [(3, 35)],
    ]
    losses = []
    for trajectory, advantage, tokens in zip(
        found.rollouts.trajectories, ADVANTAGES, written, strict=True
    ):
        ids = torch.tensor([trajectory.sequence.ids])
        hidden = language(
            inputs_embeds=loaded.model.get_input_embeddings()(ids),
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
            use_cache=False,
        ).last_hidden_state[0]
        log_probs = torch.log_softmax(hidden @ head.T, -1)
        for column, token in tokens:
            ratio = (log_probs[column, token] - log_probs[column, token].detach()).exp()
            losses.append(-advantage * ratio)
    expected = torch.stack(losses).sum() / 12
    parameters = list(language.parameters())
    gradients = torch.autograd.grad(expected, parameters)

    packed = packed_group([t.sequence for t in found.rollouts.trajectories])
    with torch.no_grad():
        old = policy_outputs(loaded.model, packed)
    part = PolicyPart(packed, torch.tensor(found.advantages), old, None)
    assert part.tokens == 12
    config = ObjectiveConfig(clip=ClipConfig(), kl_weight=0.0)
    loss, numbers = policy_loss(
        policy_outputs(loaded.model, packed), part, Totals.of([part]), config
    )

    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert numbers["clipped"] == 0
    for mine, naive in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(mine, naive, atol=2e-5, rtol=1e-3)


def test_an_observation_is_read_and_not_learned(loaded: LoadedModel) -> None:
    """Another observation changes the probabilities after it, and no target."""
    one, other = fed([20], [90, 91], [30]), fed([20], [92, 93], [30])
    packed = [packed_group([sequence]) for sequence in (one, other)]
    assert packed[0].targets.tolist() == packed[1].targets.tolist() == [20, 30]
    before, after = (policy_outputs(loaded.model, p).log_probs.detach() for p in packed)
    assert before[0] == after[0]
    assert abs(float(before[1] - after[1])) > 1e-4


def test_numbers_of_a_batch_by_hand() -> None:
    numbers = rollout_numbers([measured(group())])
    assert numbers == pytest.approx(
        {
            "reward": 5.3 / 4,
            "reward_accuracy": 3 / 4,
            "reward_format": -0.2 / 4,
            "reward_tool": 2.5 / 4,
            "accuracy": 3 / 4,
            "malformed": 1 / 4,
            # Two of one trajectory.
            "failed_calls": 2 / 4,
            "made_to_answer": 1 / 4,
            "tool_rate": 3 / 4,
            "box_area": 0.5,
            # Pairs of three that zoomed: one agrees wholly, two not at all.
            "sibling_overlap": 1 / 3,
            "different_boxes": 2,
            # The target is the left half: found twice, missed once, not looked for once.
            "target_iou": 0.5,
            "forks": 1,
            "rise": 0.5,
            "entropy": 0.5,
            "skipped": 0,
            # 4 + 4 + 4 + 1, less the token that the fork shares.
            "rollout_tokens": 12,
            "rollout_positions": 77,
        }
    )


def test_numbers_of_nothing_are_zero() -> None:
    empty = TrajectoryGroup(
        tuple(
            Trajectory(
                sequence=fed([], [], [35], forced=1),
                outcome=TrajectoryOutcome(correct=False, well_formed=True),
                text="",
                events=(),
                origin=None,
            )
            for _ in range(2)
        ),
        (),
        3,
    )
    numbers = rollout_numbers([measured(rewarded(question("coarse", ()), empty, RewardConfig()))])
    assert numbers["skipped"] == 1
    quiet = {"skipped", "rollout_positions", "rollout_tokens"}
    assert all(value == 0 for name, value in numbers.items() if name not in quiet)
    assert not any(np.isnan(value) for value in numbers.values())
