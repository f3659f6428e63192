"""What a benchmark's questions came to, and the table of it: shares, overlaps, intervals.

Everything here folds over finished runs; `training.evaluate` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.geometry import Box, PatchGrid
from engine.tool_call import opens_coordinates
from engine.trace import EvidenceMap, Failed, Finished, Reground, TokenStep, Trace, peak_place
from training.questions import Question

# Two-sided 95% of the normal distribution.
Z: Final = 1.959964
# Of every bootstrap.
ROUNDS: Final = 2000

# Families that anyone answers who has read the question: no image is needed for them.
TEXT_ONLY_FAMILIES: Final = (
    *("modality", "body_part", "lung", "lung_name"),
    *("head_modality", "head_region", "hemisphere", "breast_modality", "breast_region"),
)
# Families whose target is a part of the body; that of all others is a finding.
ANATOMY_FAMILIES: Final = (
    *("lung", "lung_name", "heart_size", "hemisphere", "slice_level", "midline_shift"),
    *("shift_side", "image_format", "breast_composition"),
)
# Families that ask for a zoom to a named part: without one nothing was found.
_NAMED: Final = ("lung", "hemisphere")

# Overlaps of a zoom at which a group of questions begins. None is that of a box of twice or three
# times the true sides, which rounding would take to either group.
_OVERLAP_EDGES: Final = (0.0, 0.1, 0.2, 0.4)

# Names in the table, and fields of outcomes of which they are means.
_POINTING: Final = {
    "pointing_game": "pointed",
    "latent_attention_pointing_game": "latent_attended",
    "latent_similarity_pointing_game": "latent_alike",
    "pointing_game_ceiling": "reachable",
    "pointing_game_between_cells": "pointed_between",
    "latent_attention_pointing_game_between_cells": "latent_attended_between",
    "latent_similarity_pointing_game_between_cells": "latent_alike_between",
    "touching": "touched",
    "latent_attention_touching": "latent_attended_touching",
    "latent_similarity_touching": "latent_alike_touching",
    "touching_by_chance": "chance",
}


class EvaluationError(ValueError):
    """An evaluation that cannot be run; the message is one sentence."""


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927); (0, 1) without any cases."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    middle = share + Z * Z / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    scale = 1 + Z * Z / count
    # Rounding takes the ends of 0 and of all a little beyond them.
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one question came to.

    Attributes:
        overlap: intersection over union of the first zoom box with the nearest target; 0 for a
            question that needs a zoom and got none (a fine one, or one that asks for a lung);
            None where that says nothing.
        pointed: whether the reasoning's attention peaks in a target; None without targets.
        latent_attended, latent_alike: whether the latent steps' attention, and their similarity
            to the visual tokens, averaged over the steps, peak in a target; None without
            targets or latent steps.
        coordinates_nats: mean entropy of the tokens that write the box of the first zoom, nats;
            None without a zoom.
        touched, latent_attended_touching, latent_alike_touching: the same, where the cell of the
            peak need only touch a target. A target that is smaller than a cell may hold the
            centre of none, so that no map could point into it.
        pointed_between, latent_attended_between, latent_alike_between: the same, where the peak is
            located to a fraction of a cell (`engine.trace.peak_place`).
        reachable: whether a target holds the centre of any cell; None as `touched`.
        chance: share of the cells that touch a target; None as `touched`.
        donor_agrees: whether the latents came from a question with the same answer (`shuffle`).
        donor_is_kin: whether it was one of the same family.
        placed: whether its zooms were put on its target (`training.evaluate.AskConfig`).
        failed_calls: zoom calls that could not be carried out as they stood.
    """

    family: str
    kind: str
    right: bool
    valid: bool
    overlap: float | None
    pointed: bool | None
    latent_attended: bool | None
    latent_alike: bool | None
    zooms: int
    seconds: float
    coordinates_nats: float | None = None
    touched: bool | None = None
    latent_attended_touching: bool | None = None
    latent_alike_touching: bool | None = None
    pointed_between: bool | None = None
    latent_attended_between: bool | None = None
    latent_alike_between: bool | None = None
    reachable: bool | None = None
    chance: float | None = None
    donor_agrees: bool | None = None
    donor_is_kin: bool | None = None
    placed: bool = False
    failed_calls: int = 0


def outcome_of(question: Question, trace: Trace, seconds: float) -> Outcome:
    """Folds a trace into an outcome.

    Raises:
        EvaluationError: when the run failed.
    """
    for event in trace:
        if isinstance(event, Failed):
            raise EvaluationError(f"A run failed ({event.code}): {event.message}")
    answered = trace.answered
    targets = [Box(*box) for box in question.target_boxes]
    reasoning = _peak(_reasoning_maps(trace))
    attended = _peak([m for step in trace.latents for m in step.attention if m.image == 0])
    alike = _peak([step.similarity for step in trace.latents])
    grid = next((peak.grid for peak in (reasoning, attended, alike) if peak is not None), None)
    return Outcome(
        family=question.family,
        kind=question.kind,
        right=answered is not None and question.is_answered_by(answered),
        valid=answered is not None and answered.valid,
        overlap=_overlap(question, trace, targets),
        pointed=_pointed(reasoning, targets),
        latent_attended=_pointed(attended, targets),
        latent_alike=_pointed(alike, targets),
        zooms=len(trace.regrounds),
        failed_calls=sum(e.failed_calls for e in trace if isinstance(e, Finished)),
        seconds=seconds,
        coordinates_nats=coordinates_nats(trace),
        touched=_touched(reasoning, targets),
        latent_attended_touching=_touched(attended, targets),
        latent_alike_touching=_touched(alike, targets),
        pointed_between=_pointed_between(reasoning, targets),
        latent_attended_between=_pointed_between(attended, targets),
        latent_alike_between=_pointed_between(alike, targets),
        reachable=any(_holds(grid, range(grid.cells), targets)) if grid and targets else None,
        chance=len(_touching(grid, targets)) / grid.cells if grid and targets else None,
    )


def coordinates_nats(trace: Trace) -> float | None:
    """Mean entropy, nats, of the tokens that write the box of the first zoom; None without one.

    As in MedVR's `H_tool` (`engine.forking.coordinate_entropies`): from the first coordinate up
    to the token that closes their list. A call that came to nothing does not count.
    """
    written, entropies = "", list[float]()
    is_writing = False
    for event in trace:
        if isinstance(event, Reground):
            return math.fsum(entropies) / len(entropies) if entropies else None
        if not isinstance(event, TokenStep):
            continue
        if event.segment != "tool":
            written, is_writing = "", False
        elif is_writing:
            is_writing = "]" not in event.text
            if is_writing:
                entropies.append(event.entropy_nats)
        else:
            written += event.text
            is_writing = opens_coordinates(written)
            if is_writing:
                entropies = []
    return None


def _overlap(question: Question, trace: Trace, targets: Sequence[Box]) -> float | None:
    started = trace.started
    if not targets or started is None or started.request.method not in ("zoom", "auto"):
        return None
    if not trace.regrounds:
        return 0.0 if question.kind == "fine" or question.family in _NAMED else None
    box = Box(*trace.regrounds[0].box)
    return max(box.intersection_over_union(target) for target in targets)


def _reasoning_maps(trace: Trace) -> list[EvidenceMap]:
    return [
        evidence
        for token in trace.tokens
        if token.segment == "reasoning"
        for evidence in token.attention
        if evidence.image == 0
    ]


@dataclass(frozen=True, slots=True)
class _Peak:
    """Where the mean of some maps is highest."""

    grid: PatchGrid
    cell: int
    place: tuple[float, float]


def _peak(maps: Sequence[EvidenceMap]) -> _Peak | None:
    if not maps:
        return None
    mean = np.asarray(sum(evidence.to_array() for evidence in maps))
    grid = PatchGrid(maps[0].rows, maps[0].columns)
    return _Peak(grid, int(mean.argmax()), peak_place(mean))


def _pointed(peak: _Peak | None, targets: Sequence[Box]) -> bool | None:
    """Pointing game (Zhang et al., arXiv 1608.00507): is the peak's centre in a target?"""
    if peak is None or not targets:
        return None
    return any(_holds(peak.grid, [peak.cell], targets))


def _pointed_between(peak: _Peak | None, targets: Sequence[Box]) -> bool | None:
    """The pointing game with the peak between the cells."""
    if peak is None or not targets:
        return None
    return any(target.contains(*peak.place) for target in targets)


def _touched(peak: _Peak | None, targets: Sequence[Box]) -> bool | None:
    if peak is None or not targets:
        return None
    return peak.cell in _touching(peak.grid, targets)


def _holds(grid: PatchGrid, cells: Iterable[int], targets: Sequence[Box]) -> list[bool]:
    """Whether a target holds the centre, cell by cell."""
    found = []
    for cell in cells:
        row, column = divmod(cell, grid.columns)
        x, y = (column + 0.5) / grid.columns, (row + 0.5) / grid.rows
        found.append(any(target.contains(x, y) for target in targets))
    return found


def _touching(grid: PatchGrid, targets: Sequence[Box]) -> set[int]:
    return {cell for target in targets for cell in grid.cells_of(target)}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The machine-readable table.

    `coarse_from_image` is `coarse` without the families that the question itself answers;
    `mean_iou` is over questions about findings, `anatomy_mean_iou` over lungs and hearts.
    `zooms_mean_iou` leaves out questions about findings that got no zoom, which `mean_iou` counts
    as 0 where they need one: together they tell whether boxes are bad or seldom.
    `pointing_game_ceiling` is what pointing games by centres of cells could reach at best,
    `touching_by_chance` what a map that knows nothing would reach of `touching`, and
    `pointing_game_count` the questions with a map and a target; `findings` has the same of
    questions about findings alone. `shuffled` is None without donors. `fine_by_overlap` says how
    fine questions were answered behind zooms that hit badly to well.
    """
    groups: dict[str, list[Outcome]] = {"overall": list(outcomes)}
    for kind in ("coarse", "fine"):
        groups[kind] = [outcome for outcome in outcomes if outcome.kind == kind]
    groups["coarse_from_image"] = [
        outcome for outcome in groups["coarse"] if outcome.family not in TEXT_ONLY_FAMILIES
    ]
    for outcome in outcomes:
        groups.setdefault(outcome.family, []).append(outcome)
    groups = {name: group for name, group in groups.items() if group}
    right = {name: sum(outcome.right for outcome in group) for name, group in groups.items()}
    overlaps = _overlaps(outcomes, of_anatomy=False)
    anatomy = _overlaps(outcomes, of_anatomy=True)
    zoomed = _overlaps([outcome for outcome in outcomes if outcome.zooms], of_anatomy=False)
    return {
        "accuracy": {name: right[name] / len(group) for name, group in groups.items()},
        "ci95": {
            name: list(wilson_interval(right[name], len(group))) for name, group in groups.items()
        },
        "counts": {name: len(group) for name, group in groups.items()},
        "invalid_rate": mean_of(not outcome.valid for outcome in outcomes),
        "mean_iou": mean_of(overlaps),
        "mean_iou_count": len(overlaps),
        "mean_iou_ci95": bootstrap_interval(overlaps),
        "zooms_mean_iou": mean_of(zoomed),
        "zooms_mean_iou_count": len(zoomed),
        "zooms_mean_iou_ci95": bootstrap_interval(zoomed),
        "anatomy_mean_iou": mean_of(anatomy),
        "anatomy_mean_iou_count": len(anatomy),
        "anatomy_mean_iou_ci95": bootstrap_interval(anatomy),
        **_pointing_games(outcomes),
        "findings": _pointing_games(
            [outcome for outcome in outcomes if outcome.family not in ANATOMY_FAMILIES]
        ),
        "shuffled": _by_donor(outcomes),
        "fine_by_overlap": _by_overlap(outcomes),
        "zoom_entropy": entropy_against_overlap(
            (outcome.family, outcome.coordinates_nats, outcome.overlap) for outcome in outcomes
        ),
        "zooms_per_question": mean_of(outcome.zooms for outcome in outcomes),
        "failed_calls_per_question": mean_of(outcome.failed_calls for outcome in outcomes),
        "seconds_per_question": mean_of(outcome.seconds for outcome in outcomes),
    }


def _pointing_games(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares of `_POINTING`, None where no question tells one, and how many questions there are."""
    shares = {
        name: mean_of(value for o in outcomes if (value := getattr(o, field)) is not None)
        for name, field in _POINTING.items()
    }
    count = sum(outcome.reachable is not None for outcome in outcomes)
    return {**shares, "pointing_game_count": count}


def _by_donor(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Accuracy where the donor's answer is the right one, and where it is another.

    With how many donors were of another family for want of one of the same, if any were.
    """
    found: dict[str, Any] = {}
    for name, agrees in (("same_answer", True), ("other_answer", False)):
        group = [outcome.right for outcome in outcomes if outcome.donor_agrees is agrees]
        if group:
            found[name] = {
                "accuracy": sum(group) / len(group),
                "ci95": list(wilson_interval(sum(group), len(group))),
                "count": len(group),
            }
    strangers = sum(outcome.donor_is_kin is False for outcome in outcomes)
    if strangers:
        found["of_another_family"] = strangers
    return found or None


def _by_overlap(outcomes: Sequence[Outcome]) -> list[dict[str, Any]] | None:
    """Accuracy of fine questions that zoomed by how well the first zoom hit, from worst to best.

    Of each group the lowest overlap (`from`; it reaches up to the next group's), `accuracy`, `ci95`
    and `count`; None where no fine question zoomed.
    """
    hits = [
        (o.overlap, o.right)
        for o in outcomes
        if o.kind == "fine" and o.zooms and o.overlap is not None
    ]
    if not hits:
        return None
    groups = []
    for least, most in zip(_OVERLAP_EDGES, (*_OVERLAP_EDGES[1:], math.inf), strict=True):
        right = [is_right for overlap, is_right in hits if least <= overlap < most]
        groups.append(
            {
                "from": least,
                "accuracy": mean_of(right),
                "ci95": list(wilson_interval(sum(right), len(right))),
                "count": len(right),
            }
        )
    return groups


def _overlaps(outcomes: Sequence[Outcome], *, of_anatomy: bool) -> list[float]:
    return [
        outcome.overlap
        for outcome in outcomes
        if outcome.overlap is not None and (outcome.family in ANATOMY_FAMILIES) is of_anatomy
    ]


def entropy_against_overlap(
    zooms: Iterable[tuple[str, float | None, float | None]],
) -> dict[str, Any] | None:
    """Whether zooms to a finding hit it less where their coordinates were unsure (MedVR, Fig. 4).

    Args:
        zooms: `family`, `coordinates_nats` and `overlap` of outcomes; those that lack a number or
            ask for anatomy are left out.

    Returns:
        `spearman`, the rank correlation between entropy and overlap, with `spearman_ci95`;
        `mean_iou_of_thirds`, from the surest third of the zooms to the least sure; `count` and
        `mean_nats` of the zooms. None for fewer than three.
    """
    pairs = np.array(
        [
            (nats, overlap)
            for family, nats, overlap in zooms
            if nats is not None and overlap is not None and family not in ANATOMY_FAMILIES
        ]
    )
    if len(pairs) < 3:
        return None
    rng = np.random.default_rng(0)
    drawn = [spearman(*pairs[rng.integers(0, len(pairs), len(pairs))].T) for _ in range(ROUNDS)]
    thirds = np.array_split(pairs[np.argsort(pairs[:, 0], kind="stable"), 1], 3)
    return {
        "count": len(pairs),
        "mean_nats": float(pairs[:, 0].mean()),
        "spearman": spearman(*pairs.T),
        "spearman_ci95": [float(value) for value in np.percentile(drawn, [2.5, 97.5])],
        "mean_iou_of_thirds": [float(third.mean()) for third in thirds],
    }


def spearman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Spearman's rank correlation of `(N,)` and `(N,)`, equal values sharing their mean rank.

    0 where either of them does not vary.
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.sqrt((ranks**2).sum(axis=1))
    return float(ranks[0] @ ranks[1] / lengths.prod()) if lengths.all() else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places], dtype=np.float64)


def mean_of(values: Iterable[float]) -> float | None:
    """Their mean; None of none."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else None


def bootstrap_interval(values: Sequence[float], rounds: int = ROUNDS) -> list[float] | None:
    """Percentile bootstrap 95% interval of a mean (fixed seed)."""
    if not values:
        return None
    rng = np.random.default_rng(0)
    drawn = np.asarray(values)[rng.integers(0, len(values), (rounds, len(values)))]
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]
