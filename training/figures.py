"""Figures of an ablation as SVG, for the documentation: rows, curves, cosines of latents.

They fold over what `training.ablation.ablate` returns and show nothing that is not in its JSON.
The library that draws them is among what development needs (`requirements-dev.txt`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from training.checkpoints import write_whole

Floats = npt.NDArray[np.float64]

# Logged number, and what it is called under a panel. Those that no row has logged are left out.
CURVES: Final[Mapping[str, str]] = {
    "validation_accuracy": "accuracy, validation",
    "validation_mean_iou": "IoU of zooms with findings, validation",
    "validation_loss": "loss, validation",
    "validation_answer_tokens_right": "answer tokens right, validation",
    "accuracy": "accuracy of rollouts",
    "target_iou": "IoU of rollouts' zooms with findings",
    "entropy": "entropy of the policy, nats",
    "tool_rate": "share of rollouts that zoom",
    "sibling_overlap": "IoU of two rollouts' zooms",
    "box_area": "area of the zooms, share of the image",
    "rollout_tokens": "tokens written in a batch of rollouts",
    "latent_drift_over_sigma": "drift of the latents, in sigma",
    "answer_tokens_right": "answer tokens right, training",
}
# Of these one more panel shows what was reached after how long: rows differ in what a step costs.
_AGAINST_SECONDS: Final = ("validation_accuracy", "answer_tokens_right")
# Of matplotlib's own cycle, which begins anew behind them.
_COLOURS: Final = 10
# Logged at every batch, and noisy: each point is the mean of as many around it.
_SMOOTHED: Final = 5


def write_figures(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Writes every figure that an ablation has numbers for.

    Args:
        folder: is made where it is missing.
        found: as `training.ablation.ablate` returns it.

    Returns:
        What was written: `accuracy.svg`, and where there are any `boxes.svg`, `entropy.svg`,
        `curves.svg` and `latents.svg`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(
        {
            # The same numbers give the same file, with words as words.
            "svg.hashsalt": "lightbox",
            "svg.fonttype": "none",
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "axes.axisbelow": True,
        }
    ):
        figures = {
            "accuracy": _rows(found["lines"], "accuracy", "ci95", "mean accuracy of the families"),
            "boxes": _rows(
                [line for line in found["lines"] if line.get("overlap_ci95")],
                "overlap",
                "overlap_ci95",
                "IoU of zooms with findings",
            ),
            "entropy": _entropy([line for line in found["lines"] if line.get("zoom_entropy")]),
            "curves": _curves(found["curves"]),
            "latents": _latents(found["latents"]),
        }
        return [
            _written(folder / f"{name}.svg", figure)
            for name, figure in figures.items()
            if figure is not None
        ]


def _written(path: Path, figure: Figure) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})
    write_whole(path, lambda file: file.write(content.getvalue()))
    return path


def _rows(
    lines: Sequence[Mapping[str, Any]], value: str, interval: str, label: str
) -> Figure | None:
    """One line below the other: the mean, its interval, and where it is known every seed."""
    if not lines:
        return None
    figure = Figure(figsize=(7.0, 0.9 + 0.27 * len(lines)))
    axes = figure.subplots()
    for place, line in enumerate(lines):
        low, high = line[interval]
        axes.plot([low, high], [place, place], color="#1f5fa8", linewidth=2, zorder=2)
        axes.plot(line[value], place, "o", color="#1f5fa8", markersize=6, zorder=3)
        if value == "accuracy" and len(line["by_seed"]) > 1:
            places = [place] * len(line["by_seed"])
            axes.plot(line["by_seed"], places, "|", color="#222222", markersize=9, zorder=4)
    axes.set_yticks(range(len(lines)), [line["name"] for line in lines])
    axes.invert_yaxis()
    axes.set_xlabel(f"{label} (95% interval; strokes: seeds)" if value == "accuracy" else label)
    return figure


def _entropy(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """One curve a row: overlap of the surest third of its zooms to the least sure (MedVR, Fig. 4).

    With the rank correlation of entropy and overlap, and its interval, in the legend.
    """
    if not lines:
        return None
    figure = Figure(figsize=(7.0, 2.6 + 0.17 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(lines):
        measured = line["zoom_entropy"]
        low, high = measured["spearman_ci95"]
        named = f"{line['name']}: {measured['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]"
        colour = f"C{number}" if len(lines) <= _COLOURS else colormaps["tab20"](number % 20)
        axes.plot(measured["mean_iou_of_thirds"], marker="o", color=colour, label=named)
    axes.set_xticks(range(3), ["surest third", "middle third", "least sure third"])
    axes.set_xlabel("of the zooms, by the entropy of their coordinates")
    axes.set_ylabel("IoU with findings")
    axes.set_ylim(bottom=0.0)
    figure.legend(
        loc="outside lower center", ncols=2, frameon=False, title="rank correlation (95% interval)"
    )
    return figure


def _curves(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Figure | None:
    """One panel for every number, one curve for every row: mean and range over its seeds."""
    shown = [
        name
        for name in CURVES
        # A row that never zooms logs zeros of its zooms: a panel of nothing else is left out.
        if any(record.get(name) for runs in curves.values() for run in runs for record in run)
    ]
    if not shown:
        return None
    timed = [name for name in _AGAINST_SECONDS if name in shown]
    seconds = {row: _seconds(runs) for row, runs in curves.items()}
    timed = timed if any(seconds.values()) else []
    figure, panels = _panels(len(shown) + len(timed), 3, (3.6, 2.5))
    for place, axes in enumerate(panels):
        is_timed = place >= len(shown)
        name = (*shown, *timed)[place]
        for number, (row, runs) in enumerate(curves.items()):
            colour = f"C{number}" if len(curves) <= _COLOURS else colormaps["tab20"](number % 20)
            at = seconds[row] if is_timed else None
            _curve(axes, row, [_points(run, name) for run in runs], colour, at)
        axes.set_title(CURVES[name], fontsize=9)
        axes.set_xlabel("seconds by the clock" if is_timed else "optimiser step")
    named = dict[str, Any]()
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _panels(count: int, most_columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, each of a size in inches, in rows of at most so many."""
    columns = min(most_columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _points(run: Sequence[Mapping[str, float]], name: str) -> dict[float, float]:
    return {record["step"]: record[name] for record in run if name in record}


def _seconds(runs: Sequence[Sequence[Mapping[str, float]]]) -> dict[float, float]:
    """Seconds by the clock up to each logged step, means over the runs that log their speed.

    Of the last stage of a row, with the scorings and saves on the way.
    """
    known = dict[float, list[float]]()
    for run in runs:
        total = last = 0.0
        for record in run:
            if "steps_per_second" in record:
                total += (record["step"] - last) / record["steps_per_second"]
                last = record["step"]
                known.setdefault(last, []).append(total)
    found = {step: sum(totals) / len(totals) for step, totals in known.items()}
    return {0.0: 0.0, **found} if found else {}


def _curve(
    axes: Axes,
    row: str,
    runs: Sequence[Mapping[float, float]],
    colour: str | tuple[float, float, float, float],
    at: Mapping[float, float] | None = None,
) -> None:
    """One row's curve over optimiser steps, or over where `at` puts each of them."""
    steps = sorted(set[float]().union(*runs))
    steps = [step for step in steps if all(step in run for run in runs if run)]
    steps = [step for step in steps if at is None or step in at]
    values = np.array([[run[step] for step in steps] for run in runs if run], dtype=np.float64)
    if not values.any():
        return
    if len(steps) > 4 * _SMOOTHED:
        values = np.stack([smoothed(one, _SMOOTHED) for one in values])
    marker = "" if len(steps) > 4 * _SMOOTHED else "."
    places = steps if at is None else [at[step] for step in steps]
    axes.plot(places, values.mean(axis=0), color=colour, marker=marker, label=row, linewidth=1.4)
    if len(values) > 1:
        axes.fill_between(places, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12)


def smoothed(values: Floats, width: int) -> Floats:
    """Means of up to `width` values around each of `(N,)`; `(N,)`.

    >>> smoothed(np.array([0.0, 3.0, 6.0, 3.0]), 3).tolist()
    [1.5, 3.0, 4.0, 4.5]
    """
    kernel = np.ones(width)
    counts = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.asarray(np.convolve(values, kernel, mode="same") / counts, dtype=np.float64)


def _latents(latents: Mapping[str, Sequence[Mapping[str, Any] | None]]) -> Figure | None:
    """Cosines of the steps of one input, as a matrix, and of the same step of two inputs.

    Behind them the matrices of the inputs, where a row has kept them.
    """
    # Interventions feed what they feed: what a row makes of itself is in the line of its name.
    plain = {name: runs for name, runs in latents.items() if ", " not in name}
    known = {name: kept for name, runs in plain.items() if (kept := [one for one in runs if one])}
    if not known:
        return None
    # The first run's inputs alone: another run's latents have directions of their own, and a row
    # that was kept before inputs were set beside each other has none.
    across = {name: m for name, (one, *_) in known.items() if (m := one.get("across_inputs"))}
    figure, panels = _panels(len(known) + len(across), 4, (2.5, 2.7))
    for (name, runs), axes in zip(known.items(), panels[: len(known)], strict=True):
        matrix = np.mean([one["between_steps"] for one in runs], axis=0)
        between = float(np.mean([one["between_inputs"] for one in runs]))
        drawn = _cosines(axes, matrix, f"{name}\nbetween inputs {between:.2f}")
    for (name, matrix), axes in zip(across.items(), panels[len(known) :], strict=True):
        _cosines(axes, np.array(matrix), f"{name}\n{len(matrix)} inputs, mean over steps")
    figure.colorbar(drawn, ax=panels, shrink=0.7, label="cosine of two steps of one input")
    if across:
        figure.axes[-1].set_ylabel("cosine of two steps of one input, or of two inputs")
    return figure


def _cosines(axes: Axes, matrix: Floats, title: str) -> AxesImage:
    axes.set_axis_off()
    axes.set_title(title, fontsize=8)
    return axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap=colormaps["viridis"])
