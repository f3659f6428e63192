"""How well the visual tokens tell what is where, read with the dense heads on validation data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from engine.geometry import Box, BoxError, PatchGrid, clamped_box
from training.image_labels import centres_of
from training.real_images import RealRadiograph, real_picture
from training.vision import DenseHeads, visual_tokens
from training.world import Case, Picture, sides_of

Readings = tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]


def read_picture(
    model: Qwen2_5_VLForConditionalGeneration, heads: DenseHeads, picture: Picture
) -> Readings:
    """Coverage probabilities, attribute logits and edges of one picture's tokens."""
    image = torch.from_numpy(picture.pixels.astype(np.float32))[None]
    with torch.no_grad():
        cover, attributes, edges = heads(visual_tokens(model, [image]))
    return cover.sigmoid(), attributes, edges


def box_from_edges(weights: torch.Tensor, edges: torch.Tensor, grid: PatchGrid) -> Box | None:
    """The box that cells agree on: the mean of their boxes, weighted by their coverage."""
    x, y = centres_of(grid).unbind(-1)
    boxes = torch.stack([x - edges[:, 0], y - edges[:, 1], x + edges[:, 2], y + edges[:, 3]], -1)
    mean = (boxes * weights[:, None]).sum(0) / weights.sum().clamp_min(1e-6)
    mean /= torch.tensor(sides_of(grid)).repeat(2)
    try:
        return clamped_box(*(float(value) for value in mean))[0]
    except BoxError:
        return None


def dense_scores(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: DenseHeads,
    cases: Sequence[Case],
    radiographs: Sequence[RealRadiograph],
    most: int = 145,
) -> dict[str, float]:
    """Peak hits and box overlap of single findings, attribute accuracy, real-lung overlap.

    A peak hits where its token holds something of the finding. The area under the curve of a
    finding ranks phantoms with it above those without by their peaks.

    Args:
        model: with the tower to score.
        heads: trained with it.
        cases: phantoms, of which the first `most` are read.
        radiographs: real ones with lung boxes; may be empty.
        most: five phantoms of each question family by default.
    """
    hits: dict[str, list[float]] = {}
    peaks: dict[str, list[tuple[float, bool]]] = {}
    labels = heads.labels
    fine = [tuple(labels.attributes).index(name) for name in labels.fine]
    for case in cases[:most]:
        if case.truth is None:
            continue
        cover, _, edges = read_picture(model, heads, case.view)
        grid = case.view.grid
        for kind in labels.findings:
            found = case.truth.of_kind(kind)
            name = labels.covers.index(kind)
            column = cover[:, name]
            peak = int(column.argmax())
            peaks.setdefault(kind, []).append((float(column[peak]), bool(found)))
            if len(found) != 1:
                continue
            box = Box(*found[0].focus)
            hits.setdefault(f"hit {kind}", []).append(float(case.view.cover[peak, name] > 0))
            guess = box_from_edges(column**4, edges[:, labels.box_groups.index("finding")], grid)
            overlap = guess.intersection_over_union(box) if guess else 0.0
            hits.setdefault(f"iou {kind}", []).append(overlap)
        for variants in case.crops.values():
            if (variants[0].attributes[:, fine] >= 0).any():
                _score_attributes(model, heads, variants[0], hits)
        _score_attributes(model, heads, case.view, hits)
    if radiographs:
        hits["iou real lungs"] = [
            overlap for one in radiographs for overlap in _lung_overlaps(model, heads, one)
        ]
    return {name: float(np.mean(values)) for name, values in hits.items()} | _areas(peaks)


def _areas(peaks: dict[str, list[tuple[float, bool]]]) -> dict[str, float]:
    """Areas under the curve from pairs of a score and whether the finding is there."""
    scores = {}
    for kind, ranked in peaks.items():
        shown = np.array([peak for peak, present in ranked if present])
        clear = np.array([peak for peak, present in ranked if not present])
        if len(shown) and len(clear):
            scores[f"auc {kind}"] = float((shown[:, None] > clear[None, :]).mean())
    return scores


def _lung_overlaps(
    model: Qwen2_5_VLForConditionalGeneration, heads: DenseHeads, radiograph: RealRadiograph
) -> list[float]:
    picture = real_picture(radiograph.pixels, radiograph.lungs, heads.labels)
    cover, _, edges = read_picture(model, heads, picture)
    overlaps = []
    for group, name in enumerate(("right lung", "left lung")):
        guess = box_from_edges(cover[:, group] ** 4, edges[:, group], picture.grid)
        overlaps.append(guess.intersection_over_union(radiograph.lungs[name]) if guess else 0.0)
    return overlaps


def _score_attributes(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: DenseHeads,
    picture: Picture,
    hits: dict[str, list[float]],
) -> None:
    _, attributes, _ = read_picture(model, heads, picture)
    for index, name in enumerate(heads.labels.attributes):
        values = picture.attributes[:, index]
        cells = np.flatnonzero(values >= 0)
        if len(cells) and (values[cells] == values[cells[0]]).all():
            guess = int(attributes[index][cells].mean(0).argmax())
            hits.setdefault(f"read {name}", []).append(float(guess == values[cells[0]]))
