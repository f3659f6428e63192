"""Consensus-based credit assignment against masks worked by hand on a grid of 4 x 4."""

import numpy as np
import pytest

from engine.geometry import FULL_IMAGE, Box
from training.consensus import ConsensusConfig, consensus_of, mask_overlap, union_mask

LEFT = Box(0.0, 0.0, 0.5, 1.0)
RIGHT = Box(0.5, 0.0, 1.0, 1.0)
TOP = Box(0.0, 0.0, 1.0, 0.5)
FOUR = ConsensusConfig(grid=4)


def drawn(text: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in text.split()])


def test_a_cell_counts_when_its_centre_lies_in_the_half_open_box() -> None:
    # Centres at 1/8, 3/8, 5/8, 7/8: the first edge is inside, the second is not.
    assert (union_mask([Box(0.125, 0.125, 0.625, 0.375)], 4) == drawn("##.. .... .... ....")).all()
    assert not union_mask([Box(0.13, 0.0, 0.37, 1.0)], 4).any()


def test_the_mask_of_a_trajectory_is_the_union_of_its_boxes() -> None:
    both = union_mask([Box(0, 0, 0.5, 0.5), Box(0.25, 0.25, 0.75, 0.75)], 4)
    assert (both == drawn("##.. ###. .##. ....")).all()
    assert (union_mask([], 4) == drawn(".... .... .... ....")).all()


def test_boxes_that_share_an_edge_share_no_cell() -> None:
    assert mask_overlap(union_mask([LEFT], 4), union_mask([RIGHT], 4)) == 0.0


def test_nobody_right_means_no_consensus_and_no_reward() -> None:
    found = consensus_of([[LEFT], [RIGHT]], [False, False], FOUR)
    assert found.voters == 0
    assert not found.agreed.any()
    assert found.rewards == (0.0, 0.0)
    assert found.overlaps == (None, None)


def test_a_single_success_is_its_own_consensus() -> None:
    found = consensus_of([[LEFT], [RIGHT]], [True, False], FOUR)
    assert (found.agreed == union_mask([LEFT], 4)).all()
    assert found.overlaps == (1.0, None)
    assert found.rewards == (1.0, 0.0)


def test_the_consensus_of_two_is_what_both_cover() -> None:
    found = consensus_of([[LEFT], [TOP]], [True, True], FOUR)
    assert (found.agreed == drawn("##.. ##.. .... ....")).all()
    # 4 cells of 8: IoU one half, which is not above one half.
    assert found.overlaps == (0.5, 0.5)
    assert found.rewards == (0.5, 0.5)


def test_a_strict_majority_of_three() -> None:
    found = consensus_of([[LEFT], [LEFT], [RIGHT]], [True, True, True], FOUR)
    assert (found.agreed == union_mask([LEFT], 4)).all()
    assert found.rewards == (1.0, 1.0, 0.5)


def test_half_of_the_voters_is_no_majority() -> None:
    found = consensus_of([[LEFT], [LEFT], [RIGHT], [RIGHT]], [True] * 4, FOUR)
    assert not found.agreed.any()
    assert found.overlaps == (0.0, 0.0, 0.0, 0.0)
    assert found.rewards == (0.5, 0.5, 0.5, 0.5)


def test_the_overlap_must_be_above_eta() -> None:
    boxes = [[Box(0, 0, 0.5, 0.5)], [Box(0, 0, 0.5, 0.75)]]
    exact = consensus_of(boxes, [True, True], ConsensusConfig(grid=4, eta=4 / 6))
    assert exact.overlaps == (1.0, 4 / 6)
    assert exact.rewards == (1.0, 0.5)
    assert consensus_of(boxes, [True, True], ConsensusConfig(grid=4, eta=0.66)).rewards == (1, 1)


def test_wrong_trajectories_do_not_vote() -> None:
    found = consensus_of([[LEFT], [RIGHT], [RIGHT]], [True, False, False], FOUR)
    assert (found.agreed == union_mask([LEFT], 4)).all()
    assert found.rewards == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("majority", "voters", "rewards"),
    [("tool_users", 1, (1.0, 0.0, 0.0)), ("all_success", 3, (0.5, 0.0, 0.0))],
)
def test_successes_without_a_tool_vote_only_where_asked(
    majority: str, voters: int, rewards: tuple[float, ...]
) -> None:
    config = ConsensusConfig(grid=4, majority=majority)  # type: ignore[arg-type]
    found = consensus_of([[LEFT], [], []], [True, True, True], config)
    assert found.voters == voters
    assert found.rewards == rewards


def test_a_box_that_covers_nearly_everything_earns_half_and_makes_no_consensus() -> None:
    found = consensus_of([[FULL_IMAGE], [FULL_IMAGE], [LEFT]], [True] * 3, FOUR)
    assert not found.agreed.any()
    assert found.rewards == (0.5, 0.5, 0.5)
    small = consensus_of([[LEFT], [LEFT], [LEFT, FULL_IMAGE]], [True] * 3, FOUR)
    assert (small.agreed == union_mask([LEFT], 4)).all()
    assert small.overlaps == (1.0, 1.0, 0.5)
    assert small.rewards == (1.0, 1.0, 0.5)
    allowed = ConsensusConfig(grid=4, largest_box=1.0)
    assert consensus_of([[FULL_IMAGE]] * 2, [True] * 2, allowed).rewards == (1.0, 1.0)


def test_a_box_that_is_too_large_earns_half_where_it_meets_the_consensus() -> None:
    """Two votes of three for the left three quarters; the third covers seven eighths.

    Common to both are 6 x 7 of the 8 x 8 cells, in either 6 x 8 + 2 x 7: more than half.
    """
    wide, all_but_a_strip = Box(0.0, 0.0, 0.75, 1.0), Box(0.0, 0.0, 1.0, 0.875)
    found = consensus_of([[wide], [wide], [all_but_a_strip]], [True] * 3, ConsensusConfig(grid=8))
    assert found.overlaps == (1.0, 1.0, 42 / 62)
    assert found.rewards == (1.0, 1.0, 0.5)
    allowed = consensus_of(
        [[wide], [wide], [all_but_a_strip]], [True] * 3, ConsensusConfig(grid=8, largest_box=0.9)
    )
    assert allowed.overlaps == found.overlaps
    assert allowed.rewards == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "wrong", [{"eta": 1.5}, {"grid": 0}, {"largest_box": 0.0}, {"eta": float("nan")}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ConsensusConfig(**wrong)  # type: ignore[arg-type]
