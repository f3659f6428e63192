"""Reward parts, advantages and branch probabilities against cases worked by hand."""

import math

import pytest

from engine.geometry import Box
from training.regrounding import PRESETS, BranchRule, branch_probability, mean_entropy
from training.rewards import RewardConfig, TrajectoryOutcome, group_advantages, group_rewards

LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
GROUP = (
    TrajectoryOutcome(correct=True, well_formed=True, boxes=(LEFT,)),
    TrajectoryOutcome(correct=True, well_formed=True, boxes=(LEFT,)),
    TrajectoryOutcome(correct=True, well_formed=False, boxes=(RIGHT,)),
    TrajectoryOutcome(correct=True, well_formed=True),
    TrajectoryOutcome(correct=False, well_formed=True, boxes=(LEFT,)),
    TrajectoryOutcome(correct=False, well_formed=False),
)


@pytest.mark.parametrize(
    ("rule", "tools"),
    [
        ("none", [0, 0, 0, 0, 0, 0]),
        ("unconditional", [1, 1, 1, 0, 1, 0]),
        ("gated", [1, 1, 1, 0, 0, 0]),
        ("consensus", [1, 1, 0.5, 0, 0, 0]),
    ],
)
def test_the_four_rules_of_the_tool_reward(rule: str, tools: list[float]) -> None:
    parts, _ = group_rewards(GROUP, RewardConfig(tool_reward=rule))  # type: ignore[arg-type]
    assert [part.tool for part in parts] == tools
    assert [part.accuracy for part in parts] == [1, 1, 1, 1, 0, 0]
    assert [part.format for part in parts] == [0, 0, -0.2, 0, 0, -0.2]
    assert [part.total for part in parts] == [
        a + f + t
        for a, f, t in zip([1, 1, 1, 1, 0, 0], [0, 0, -0.2, 0, 0, -0.2], tools, strict=True)
    ]


def test_weights_scale_their_parts() -> None:
    config = RewardConfig(accuracy=0.9, format_penalty=0.1, tool=0.4)
    parts, _ = group_rewards(GROUP, config)
    assert parts[2].accuracy == 0.9
    assert parts[2].format == -0.1
    assert parts[2].tool == 0.2


def test_advantages_of_a_group_by_hand() -> None:
    # Mean 1, sum of squares 2: sample deviation 1, population sqrt(2/3).
    assert group_advantages([0.0, 1.0, 2.0]) == pytest.approx([-1, 0, 1], abs=2e-6)
    assert group_advantages([0.0, 1.0, 2.0], "population")[2] == pytest.approx(
        1 / (math.sqrt(2 / 3) + 1e-6), rel=1e-12
    )


@pytest.mark.parametrize("rewards", [[], [3.0], [0.7, 0.7, 0.7]])
def test_no_variance_means_no_advantage(rewards: list[float]) -> None:
    assert group_advantages(rewards) == [0.0] * len(rewards)


@pytest.mark.parametrize(
    ("baseline", "tool", "rule", "expected"),
    [
        (0.5, 1.5, BranchRule(), 0.7),
        (0.5, 0.5, BranchRule(), 0.0),
        (0.5, 0.25, BranchRule(), 0.0),
        (0.5, 0.5, PRESETS["literal"], 0.2),
        (0.5, 0.25, PRESETS["literal"], 0.075),
        (2.0, 0.0, PRESETS["literal"], 0.0),
        (0.0, 3.0, BranchRule(), 1.0),
        (0.0, 1.0, PRESETS["arpo"], 0.7),
        (0.0, 2.0, BranchRule(gamma=0.0), 0.2),
        (0.0, 0.4, BranchRule(least_rise=0.5), 0.0),
    ],
)
def test_branch_probabilities(
    baseline: float, tool: float, rule: BranchRule, expected: float
) -> None:
    assert branch_probability(baseline, tool, rule) == pytest.approx(expected, abs=1e-15)


def test_without_gamma_entropy_does_not_matter() -> None:
    rule = BranchRule(gamma=0.0, least_rise=-math.inf)
    assert {branch_probability(b, t, rule) for b in (0.0, 1.0, 2.0) for t in (0.0, 3.0)} == {0.2}


def test_the_baseline_is_the_mean_of_the_opening_tokens() -> None:
    assert mean_entropy([1.0, 2.0, 9.0], 2) == 1.5
    with pytest.raises(ValueError, match="no token"):
        mean_entropy([])


@pytest.mark.parametrize(
    "wrong", [{"base": 1.1}, {"gamma": -1.0}, {"least_rise": math.nan}, {"opening": 0}]
)
def test_branch_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BranchRule(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"accuracy": -1.0}, {"tool": math.inf}, {"format_penalty": -1}])
def test_reward_weights_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RewardConfig(**wrong)  # type: ignore[arg-type]
