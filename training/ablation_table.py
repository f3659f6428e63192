"""What the rows of an ablation come to: means over seeds, intervals, differences.

All runs answer the same questions. A bootstrap draws seeds and, inside each family, questions,
with replacement (2,000 rounds, fixed seed), and takes the 2.5th and 97.5th percentile; a
difference draws the same seeds and questions for both rows. Three seeds show little of how much
training varies, so that an interval from three is rather too narrow than too wide.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from training.outcomes import entropy_against_overlap

Floats = npt.NDArray[np.float64]

ROUNDS: Final = 2000


def family_means(right: Floats, families: Sequence[str]) -> Floats:
    """Mean over families of the mean over their questions.

    Args:
        right: `(..., N)`, one value a question.
        families: `(N,)`, of each question.

    Returns:
        `(...)`.
    """
    names = sorted(set(families))
    of = np.asarray(families)
    means = [right[..., of == name].mean(axis=-1) for name in names]
    return np.asarray(np.mean(means, axis=0), dtype=np.float64)


class Draws:
    """The questions and seeds of every round of the bootstrap, the same for all rows.

    Args:
        families: `(N,)`, of each question.
        seeds: how many runs a row has.
    """

    def __init__(self, families: Sequence[str], seeds: int) -> None:
        rng = np.random.default_rng(0)
        of = np.asarray(families)
        self.families = list(families)
        self.seeds = rng.integers(0, seeds, (ROUNDS, seeds))
        self.questions = np.empty((ROUNDS, len(of)), dtype=np.int64)
        for name in sorted(set(families)):
            own = np.flatnonzero(of == name)
            self.questions[:, own] = own[rng.integers(0, len(own), (ROUNDS, len(own)))]

    def means(self, right: Floats) -> Floats:
        """Family means of every round, `(ROUNDS,)`, of `right`, `(seeds, N)`."""
        drawn = [
            right[chosen][:, asked].mean(axis=0)
            for chosen, asked in zip(self.seeds, self.questions, strict=True)
        ]
        return family_means(np.stack(drawn), self.families)

    def known_means(self, values: Floats) -> Floats:
        """Means of every round, `(ROUNDS,)`, of what is known of `values`, `(seeds, N)`.

        Not a number stands for what is not known; so does the mean of nothing.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.array(
                [
                    np.nanmean(values[chosen][:, asked])
                    for chosen, asked in zip(self.seeds, self.questions, strict=True)
                ]
            )


def interval(values: Floats) -> list[float]:
    """The 2.5th and the 97.5th percentile of those that are numbers."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def table(
    scores: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], against: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One line for every way that a row was asked.

    Args:
        scores: by name, for each seed the outcomes of all questions in the same order, each with
            `family`, `kind`, `right` and whatever else `training.outcomes.Outcome` holds.
        against: names of the lines that some lines are compared with.

    Returns:
        For each name, as plain data: `accuracy` (mean of the families' accuracies over the
        seeds), `ci95`, `by_seed`, `families`, `kinds`, and means of what else was measured, of
        `overlap` with `overlap_ci95`; of shuffled latents `right_by_same_donors` and
        `right_by_other_donors`, shares of right answers by the donor's answer; `zoom_entropy`
        (`training.outcomes.entropy_against_overlap`) of the zooms of all seeds together, its
        interval as if no two of them answered the same question. Where a line is
        compared: `against`, `difference` and `difference_ci95`, and where both have overlaps
        `overlap_difference` and `overlap_difference_ci95`.

    Raises:
        ValueError: two runs answered different questions.
    """
    lines: dict[str, dict[str, Any]] = {}
    drawn: dict[str, tuple[Floats, Floats | None]] = {}
    draws: dict[int, Draws] = {}
    first = next(iter(scores.values()))[0]
    families = [outcome["family"] for outcome in first]
    for name, runs in scores.items():
        if any([outcome["family"] for outcome in run] != families for run in runs):
            raise ValueError(f"The row {name} has answered other questions than the first.")
        right = np.array([[float(o["right"]) for o in run] for run in runs])
        if len(runs) not in draws:
            draws[len(runs)] = Draws(families, len(runs))
        by_seed = family_means(right, families)
        line: dict[str, Any] = {
            "name": name,
            "by_seed": by_seed.tolist(),
            "accuracy": float(by_seed.mean()),
            "families": _by(right, families),
            "kinds": _by(right, [outcome["kind"] for outcome in first]),
            **_means(runs),
            "zoom_entropy": entropy_against_overlap(
                (o["family"], o.get("coordinates_nats"), o.get("overlap"))
                for run in runs
                for o in run
            ),
        }
        accuracies, overlaps = draws[len(runs)].means(right), None
        line["ci95"] = interval(accuracies)
        if line["overlap"] is not None:
            overlaps = draws[len(runs)].known_means(_overlaps(runs))
            line["overlap_ci95"] = interval(overlaps)
        lines[name], drawn[name] = line, (accuracies, overlaps)
    for name, other in against.items():
        if {name, other} <= lines.keys() and len(scores[other]) == len(scores[name]):
            lines[name] |= _difference(lines[name], lines[other], drawn[name], drawn[other])
    return list(lines.values())


def _overlaps(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Floats:
    found = [[np.nan if o.get("overlap") is None else o["overlap"] for o in run] for run in runs]
    return np.array(found, dtype=np.float64)


def _difference(
    line: Mapping[str, Any],
    rival: Mapping[str, Any],
    own: tuple[Floats, Floats | None],
    other: tuple[Floats, Floats | None],
) -> dict[str, Any]:
    """What a line is above another; `own` and `other` hold what both came to in every round."""
    found: dict[str, Any] = {
        "against": rival["name"],
        "difference": line["accuracy"] - rival["accuracy"],
        "difference_ci95": interval(np.subtract(own[0], other[0])),
    }
    if own[1] is not None and other[1] is not None:
        found["overlap_difference"] = line["overlap"] - rival["overlap"]
        found["overlap_difference_ci95"] = interval(np.subtract(own[1], other[1]))
    return found


def _by(right: Floats, labels: Sequence[str]) -> dict[str, float]:
    of = np.asarray(labels)
    return {name: float(right[:, of == name].mean()) for name in dict.fromkeys(labels)}


def _means(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float | None]:
    """Means over all runs and questions where a number says something."""
    found: dict[str, float | None] = {}
    for name in _MEANS:
        values = [float(o[name]) for run in runs for o in run if o.get(name) is not None]
        found[name] = sum(values) / len(values) if values else None
    for name, agrees in (("right_by_same_donors", True), ("right_by_other_donors", False)):
        right = [float(o["right"]) for run in runs for o in run if o.get("donor_agrees") is agrees]
        if right:
            found[name] = sum(right) / len(right)
    return found


# Numbers of an outcome that the table holds means of.
_MEANS: Final = (
    *("overlap", "pointed", "touched", "latent_attended", "latent_attended_touching"),
    *("latent_alike", "latent_alike_touching", "reachable", "chance", "zooms", "seconds"),
    *("pointed_between", "latent_attended_between", "latent_alike_between"),
)


def readable(
    lines: Sequence[Mapping[str, Any]],
    seeds: int,
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]] | None = None,
) -> str:
    """The table as text.

    Args:
        lines: as `table` returns them.
        seeds: how many runs a row has.
        curves: by row, for each seed the records that were logged; of those that time their
            rollouts the mean is told.
    """
    head = f"{'row':44s} accuracy  95% interval      compared; boxes; latents"
    shown = [f"Mean accuracy over families, {seeds} seed(s)", head]
    for line in lines:
        low, high = line["ci95"]
        text = f"{line['name']:44s} {line['accuracy']:7.1%}  [{low:6.1%}, {high:6.1%}]"
        if "difference" in line:
            low, high = line["difference_ci95"]
            text += f"  {100 * line['difference']:+5.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            text += f" against {line['against']}"
        if line["overlap"] is not None:
            low, high = line["overlap_ci95"]
            text += f"  IoU {line['overlap']:.2f} [{low:.2f}, {high:.2f}]"
        if "overlap_difference" in line:
            low, high = line["overlap_difference_ci95"]
            text += f" {line['overlap_difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        if line["zooms"]:
            text += f"  zooms {line['zooms']:.2f}"
        if line.get("zoom_entropy"):
            found = line["zoom_entropy"]
            low, high = found["spearman_ci95"]
            text += f"  entropy to IoU {found['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]"
        if line["latent_attended"] is not None:
            text += f"  latents point {line['latent_attended']:.0%}"
        if "right_by_other_donors" in line:
            text += f"  other donors {line['right_by_other_donors']:.0%}"
        shown.append(text)
    return "\n".join([*shown, *_rollout_seconds(curves or {})]) + "\n"


def _rollout_seconds(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
) -> Iterator[str]:
    for name, runs in curves.items():
        seconds = [r["rollout_seconds"] for run in runs for r in run if "rollout_seconds" in r]
        if seconds:
            mean = sum(seconds) / len(seconds)
            yield f"{name}: {mean:.1f} s for a batch of rollouts, mean of {len(seconds)}"
