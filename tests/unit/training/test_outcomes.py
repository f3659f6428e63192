"""Scoring: intervals, overlaps, and the table, against cases worked by hand."""

import numpy as np
import pytest

from engine.geometry import Box, PatchGrid
from engine.trace import TokenStep, Trace, quantised_map
from tests import factories
from training.evaluate import asked_families
from training.outcomes import (
    ANATOMY_FAMILIES,
    TEXT_ONLY_FAMILIES,
    Outcome,
    _Peak,
    _peak,
    _pointed,
    _pointed_between,
    _touched,
    bootstrap_interval,
    coordinates_nats,
    spearman,
    summary,
    wilson_interval,
)
from training.questions import ALL_FAMILIES, FAMILIES_OF


def outcome(**changes: object) -> Outcome:
    fields: dict[str, object] = {
        "family": "nodule_zone",
        "kind": "coarse",
        "right": True,
        "valid": True,
        "overlap": None,
        "pointed": None,
        "latent_attended": None,
        "latent_alike": None,
        "zooms": 0,
        "seconds": 1.0,
    }
    return Outcome(**(fields | changes))


def test_wilson_interval_by_hand() -> None:
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4901625, abs=1e-6)
    assert high == pytest.approx(0.9433178, abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for count in range(1, 200):
        assert 1.0 - 1e-12 < wilson_interval(count, count)[1] <= 1.0
        assert 0.0 <= wilson_interval(0, count)[0] < 1e-12


def test_table_counts_each_group() -> None:
    table = summary(
        [
            outcome(),
            outcome(right=False, family="nodule_side", latent_attended=True, latent_alike=False),
            outcome(family="lung", overlap=0.5, zooms=1),
            outcome(family="heart_size", overlap=0.7),
            outcome(family="modality", failed_calls=3),
            outcome(kind="fine", family="nodule_margin", overlap=0.8, zooms=1, pointed=True),
            outcome(
                kind="fine",
                family="nodule_margin",
                right=False,
                valid=False,
                overlap=0.0,
                pointed=False,
            ),
        ]
    )
    assert table["accuracy"] == {
        "overall": 5 / 7,
        "coarse": 4 / 5,
        "coarse_from_image": 2 / 3,
        "fine": 0.5,
        "lung": 1.0,
        "heart_size": 1.0,
        "modality": 1.0,
        "nodule_zone": 1.0,
        "nodule_side": 0.0,
        "nodule_margin": 0.5,
    }
    assert table["counts"]["overall"] == 7
    assert set(table["ci95"]) == set(table["accuracy"])
    assert table["invalid_rate"] == pytest.approx(1 / 7)
    assert table["mean_iou"] == pytest.approx(0.4)
    assert table["mean_iou_count"] == 2
    # Of the two fine questions one got no zoom at all.
    assert table["zooms_mean_iou"] == pytest.approx(0.8)
    assert table["zooms_mean_iou_count"] == 1
    assert table["anatomy_mean_iou"] == pytest.approx(0.6)
    assert table["anatomy_mean_iou_count"] == 2
    assert table["pointing_game"] == 0.5
    assert table["latent_attention_pointing_game"] == 1.0
    assert table["latent_similarity_pointing_game"] == 0.0
    assert table["zooms_per_question"] == pytest.approx(2 / 7)
    assert table["failed_calls_per_question"] == pytest.approx(3 / 7)
    assert table["seconds_per_question"] == 1.0


def test_fine_answers_are_told_by_how_well_the_zoom_hit() -> None:
    fine = {"kind": "fine", "family": "nodule_margin", "zooms": 1}
    table = summary(
        [
            outcome(**fine, overlap=0.0, right=False),
            outcome(**fine, overlap=0.0999),
            outcome(**fine, overlap=0.1),
            outcome(**fine, overlap=0.4),
            outcome(**fine, overlap=1.0),
            outcome(**fine),
            outcome(**fine | {"zooms": 0}, overlap=0.0),
            outcome(overlap=0.3, right=False, zooms=1),
        ]
    )
    groups = table["fine_by_overlap"]
    assert [group["from"] for group in groups] == [0.0, 0.1, 0.2, 0.4]
    assert [group["count"] for group in groups] == [2, 1, 0, 2]
    assert [group["accuracy"] for group in groups] == [0.5, 1.0, None, 1.0]
    assert groups[0]["ci95"] == list(wilson_interval(1, 2))
    assert groups[2]["ci95"] == [0.0, 1.0]
    assert summary([outcome(overlap=0.3, zooms=1)])["fine_by_overlap"] is None


def test_a_small_target_may_hold_no_centre_and_is_still_touched() -> None:
    """On a grid of 2 x 2 the box lies in the upper left cell, away from its centre."""
    small, off = Box(0.3, 0.3, 0.4, 0.4), Box(0.6, 0.0, 1.0, 0.4)
    peak = _Peak(PatchGrid(2, 2), 0, (0.25, 0.25))
    assert _pointed(peak, [small]) is False
    assert _touched(peak, [small]) is True
    assert _touched(peak, [off]) is False
    assert _pointed(_Peak(PatchGrid(2, 2), 1, (0.75, 0.25)), [off]) is True
    assert _touched(None, [small]) is _pointed(peak, []) is None


def test_a_peak_between_cells_points_into_a_target_that_holds_no_centre() -> None:
    """Of 4 x 4 cells the four in the middle are equal: the peak lies on the corner they share."""
    small = [Box(0.45, 0.45, 0.55, 0.55)]
    middle = np.zeros((4, 4))
    middle[1:3, 1:3] = 1.0
    peak = _peak([quantised_map(middle, 0)])
    assert _pointed(peak, small) is False
    assert _pointed_between(peak, small) is True
    assert _pointed_between(peak, [Box(0.0, 0.0, 0.4, 1.0)]) is False
    assert _pointed_between(None, small) is _pointed_between(peak, []) is None
    table = summary([outcome(latent_alike_between=True), outcome(latent_alike_between=False)])
    assert table["latent_similarity_pointing_game_between_cells"] == 0.5


def test_shuffles_are_told_apart_by_the_donors_answer() -> None:
    table = summary(
        [
            outcome(donor_agrees=True),
            outcome(donor_agrees=False),
            outcome(donor_agrees=False, right=False, reachable=False, chance=0.25),
            outcome(reachable=True, chance=0.75),
        ]
    )
    assert table["shuffled"]["same_answer"]["accuracy"] == 1.0
    assert table["shuffled"]["other_answer"]["accuracy"] == 0.5
    assert table["shuffled"]["other_answer"]["count"] == 2
    assert "of_another_family" not in table["shuffled"]
    assert table["pointing_game_ceiling"] == table["touching_by_chance"] == 0.5
    assert table["pointing_game_count"] == 2
    lung = outcome(family="lung", reachable=True, latent_alike=True)
    mixed = summary([lung, outcome(reachable=False, latent_alike=False)])
    assert mixed["latent_similarity_pointing_game"] == 0.5
    assert mixed["findings"]["latent_similarity_pointing_game"] == 0.0
    assert mixed["findings"]["pointing_game_count"] == 1
    assert summary([outcome()])["shuffled"] is None


def test_nothing_to_point_at_is_no_number() -> None:
    table = summary([outcome()])
    assert table["mean_iou"] is None
    assert table["zooms_mean_iou"] is None
    assert table["pointing_game"] is None
    assert "fine" not in table["accuracy"]


def test_bootstrap_holds_the_mean_and_narrows() -> None:
    few = bootstrap_interval([0.0, 1.0] * 10)
    many = bootstrap_interval([0.0, 1.0] * 1000)
    assert few is not None
    assert many is not None
    assert few[0] < 0.5 < few[1]
    assert many[1] - many[0] < few[1] - few[0]


def step(text: str, nats: float, segment: str = "tool") -> TokenStep:
    return TokenStep(
        seconds=0.0,
        index=0,
        token_id=0,
        text=text,
        logprob=0.0,
        entropy_nats=nats,
        alternatives=(),
        segment=segment,  # type: ignore[arg-type]
        forced=False,
        attention=(),
    )


CROP = factories.trace(method="zoom").regrounds[0]
BEFORE = [step("Look.", 9.0, "reasoning"), step('<tool_call>{"bbox_2d": [', 8.0)]


def test_entropy_of_a_zoom_is_that_of_its_coordinates_by_hand() -> None:
    numbers = [step("46", 1.0), step(", ", 0.25), step("116", 0.5)]
    after = [step("]}}", 7.0), step("</tool_call>", 6.0)]

    assert coordinates_nats(Trace((*BEFORE, *numbers, *after, CROP))) == pytest.approx(1.75 / 3)
    assert coordinates_nats(Trace((*BEFORE, *numbers, *after))) is None


def test_a_call_that_came_to_nothing_has_no_say_in_the_entropy_of_the_next() -> None:
    failed = [*BEFORE, step("99999", 5.0), step("]", 5.0), step(" Again.", 3.0, "reasoning")]
    second = [step('{"bbox_2d":[', 4.0), step("1", 2.0), step("]", 0.0)]

    assert coordinates_nats(Trace((*failed, *second, CROP))) == 2.0


def test_rank_correlation_by_hand() -> None:
    # Ranks 1 2 3 4 and 1 2.5 2.5 4: covariance 4.5, lengths sqrt(5) and sqrt(4.5).
    found = spearman(np.array([0.1, 0.2, 0.3, 9.0]), np.array([1.0, 2.0, 2.0, 5.0]))
    assert found == pytest.approx(4.5 / np.sqrt(5 * 4.5))
    assert spearman(np.arange(5.0), -(np.arange(5.0) ** 3)) == pytest.approx(-1.0)
    assert spearman(np.arange(3.0), np.ones(3)) == 0.0


def test_entropy_is_set_against_overlap_for_zooms_to_findings_alone() -> None:
    fine = {"kind": "fine", "family": "nodule_margin", "zooms": 1}
    table = summary(
        [
            *(outcome(**fine, overlap=0.6 - n, coordinates_nats=n) for n in (0.0, 0.1, 0.2)),
            outcome(family="lung", overlap=0.9, zooms=1, coordinates_nats=3.0),
            outcome(**(fine | {"zooms": 0}), overlap=0.0),
        ]
    )
    found = table["zoom_entropy"]
    assert found["count"] == 3
    assert found["mean_nats"] == pytest.approx(0.1)
    assert found["spearman"] == pytest.approx(-1.0)
    assert found["mean_iou_of_thirds"] == pytest.approx([0.6, 0.5, 0.4])
    assert summary([outcome()])["zoom_entropy"] is None


@pytest.mark.parametrize("modality", FAMILIES_OF)
def test_fine_families_are_asked_three_times_as_often(modality: str) -> None:
    asked = asked_families(modality)
    for name, family in FAMILIES_OF[modality].items():
        assert asked.count(name) == (3 if family.kind == "fine" else 1)
    assert set(asked) == FAMILIES_OF[modality].keys()


def test_families_that_are_counted_apart_exist() -> None:
    assert set(TEXT_ONLY_FAMILIES) | set(ANATOMY_FAMILIES) <= ALL_FAMILIES.keys()
    # One answer for every image of a modality: the question alone tells it.
    constant = {name for name, family in ALL_FAMILIES.items() if len(family.answers) == 1}
    assert constant <= set(TEXT_ONLY_FAMILIES)
