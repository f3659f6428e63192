"""The table of an ablation, against cases worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.ablation import printed
from training.ablation_table import family_means, readable, table


def outcome(family: str, right: bool, **more: Any) -> dict[str, Any]:
    return {"family": family, "kind": "coarse", "right": right, "zooms": 0, "seconds": 1.0, **more}


def run(*right: bool) -> list[dict[str, Any]]:
    """Three questions of one family, one of another."""
    return [outcome(name, value) for name, value in zip("aaab", right, strict=True)]


def test_every_family_counts_the_same() -> None:
    right = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])

    assert family_means(right, ["a", "a", "a", "b"]).tolist() == pytest.approx([1 / 3, 1.0])


def test_a_line_is_the_mean_over_seeds_and_a_difference_its_own() -> None:
    scores = {
        "plain": [run(True, True, False, False), run(True, False, False, False)],
        "better": [run(True, True, True, True), run(True, True, False, True)],
    }

    plain, better = table(scores, {"better": "plain"})

    assert plain["by_seed"] == pytest.approx([1 / 3, 1 / 6])
    assert plain["accuracy"] == pytest.approx(0.25)
    assert plain["families"] == {"a": pytest.approx(0.5), "b": 0.0}
    assert better["accuracy"] == pytest.approx((1.0 + 5 / 6) / 2)
    assert better["difference"] == pytest.approx(better["accuracy"] - 0.25)
    assert better["against"] == "plain"
    assert "difference" not in plain


def test_an_interval_of_equal_runs_has_no_width_and_one_of_the_same_answers_no_difference() -> None:
    always, mixed = run(True, True, True, True), run(True, False, True, False)

    sure, first, second = table(
        {"sure": [always], "first": [mixed], "second": [mixed]}, {"second": "first"}
    )

    assert sure["ci95"] == [1.0, 1.0]
    low, high = first["ci95"]
    assert low < first["accuracy"] < high
    # The same questions are drawn for both: what answers alike differs in no round.
    assert second["difference_ci95"] == [0.0, 0.0]


def test_an_interval_over_questions_is_as_wide_as_theory_says() -> None:
    """A share of 0.3 of 200 questions, and the mean of two such families."""
    one = [outcome("a", number % 10 < 3) for number in range(200)]
    two = [outcome("b", number % 10 < 3) for number in range(200)]
    deviation = (0.3 * 0.7 / 200) ** 0.5
    for questions, expected in (([*one], deviation), ([*one, *two], deviation / 2**0.5)):
        (line,) = table({"line": [questions]}, {})
        low, high = line["ci95"]
        assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.15)


def test_shuffled_lines_tell_donors_apart() -> None:
    run_of = [
        outcome("a", True, donor_agrees=True),
        outcome("a", True, donor_agrees=False, latent_alike_touching=True),
        outcome("b", False, donor_agrees=False, latent_alike_touching=False),
    ]
    (line,) = table({"shuffled": [run_of]}, {})
    assert (line["right_by_same_donors"], line["right_by_other_donors"]) == (1.0, 0.5)
    assert line["latent_alike_touching"] == 0.5
    (plain,) = table({"plain": [[outcome("a", True)]]}, {})
    assert "right_by_same_donors" not in plain


def test_seeds_that_differ_widen_the_interval() -> None:
    good, bad = run(True, True, True, True), run(False, False, False, False)

    (line,) = table({"row": [good, bad]}, {})

    assert line["ci95"] == [0.0, 1.0]


def test_rows_that_answered_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="other questions"):
        table({"row": [run(True, True, True, True)], "odd": [[outcome("b", True)]]}, {})


def test_means_leave_out_what_says_nothing() -> None:
    answers = [
        outcome("a", True, overlap=0.5, latent_attended=None),
        outcome("a", True, overlap=None, latent_attended=None),
    ]

    (line,) = table({"row": [answers]}, {})

    assert (line["overlap"], line["latent_attended"]) == (0.5, None)
    assert "IoU 0.50 [0.50, 0.50]" in readable([line], 1)


def test_a_row_can_be_compared_with_one_that_comes_later() -> None:
    scores = {"first": [run(True, True, True, True)], "later": [run(False, True, False, False)]}

    first, later = table(scores, {"first": "later"})

    assert first["difference"] == first["accuracy"] - later["accuracy"]


def test_overlaps_are_compared_where_both_have_one() -> None:
    def boxes(*overlaps: float | None) -> list[dict[str, Any]]:
        return [outcome("a", True, overlap=overlap) for overlap in overlaps]

    none, low, high = table(
        {"none": [boxes(None, None)], "low": [boxes(0.1, 0.3)], "high": [boxes(0.3, 0.5)]},
        {"low": "none", "high": "low"},
    )

    assert "overlap_ci95" not in none
    assert "overlap_difference" not in low
    assert low["overlap_ci95"] == pytest.approx([0.1, 0.3])
    assert high["overlap_difference"] == pytest.approx(0.2)
    # The same questions are drawn for both, and each is 0.2 better.
    assert high["overlap_difference_ci95"] == pytest.approx([0.2, 0.2])
    assert "+0.20 [+0.20, +0.20]" in readable([high], 1)


def zooms(*pairs: tuple[float | None, float | None], family: str = "a") -> list[dict[str, Any]]:
    return [outcome(family, True, coordinates_nats=nats, overlap=over) for nats, over in pairs]


def test_a_line_sets_entropy_against_overlap_over_all_seeds() -> None:
    """Fig. 4: three zooms of two seeds; the surer, the better."""
    missed = outcome("a", True, overlap=0.0)
    seeds = [[*zooms((0.1, 0.6), (0.2, 0.5)), missed], [*zooms((0.3, 0.1)), missed, missed]]
    lungs = [zooms((0.1, 0.6), (0.2, 0.5), (0.3, 0.4), family="lung")]
    (line,) = table({"row": seeds}, {})
    (anatomy,) = table({"lungs": lungs}, {})

    found = line["zoom_entropy"]
    assert (found["count"], found["mean_nats"]) == (3, pytest.approx(0.2))
    assert found["spearman"] == pytest.approx(-1.0)
    assert found["mean_iou_of_thirds"] == pytest.approx([0.6, 0.5, 0.1])
    low, high = found["spearman_ci95"]
    assert low == pytest.approx(-1.0)
    text = readable([line], 2)
    assert f"  entropy to IoU -1.00 [{low:+.2f}, {high:+.2f}]" in text
    assert anatomy["zoom_entropy"] is None
    assert "entropy" not in readable([anatomy], 1)


def test_the_text_tells_the_seconds_of_a_batch_of_rollouts_where_they_were_logged() -> None:
    (line,) = table({"row": [run(True, True, True, True)]}, {})
    curves = {
        "fine-tuned": [[{"step": 1.0, "loss": 2.0}]],
        "row": [
            # Greedy scores stand in a record of their own.
            [{"step": 0.0}, {"step": 2.0, "rollout_seconds": 4.0}],
            [{"step": 2.0, "rollout_seconds": 5.0}, {"step": 4.0, "rollout_seconds": 9.0}],
        ],
        "asked": [[]],
    }
    text = readable([line], 2, curves)
    assert text.splitlines()[-1] == "row: 6.0 s for a batch of rollouts, mean of 3"
    assert text.count("rollouts") == 1
    assert "rollouts" not in readable([line], 2)
    assert "\nrow: 6.0 s" in printed(
        {"lines": [line], "seeds": [1, 2], "curves": curves}, as_json=False
    )
