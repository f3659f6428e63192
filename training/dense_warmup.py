"""The dense warm-up of the vision tower: its parts, what a batch holds, and the loop over them.

The targets and losses of a single batch are in `training.vision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from training.dense_scores import dense_scores
from training.image_labels import (
    ImageHeads,
    ImageWeights,
    answer_scores,
    image_loss,
    labelled_crop,
    labelled_view,
    number_scores,
)
from training.loop import Report, StepsConfig, prefixed, run_steps
from training.materials import Materials
from training.phantoms.label_names import CHEST_LABELS, LabelNames
from training.real_images import RealRadiograph, real_picture, shifted_view
from training.vision import (
    DenseHeads,
    DenseTargets,
    augmented,
    dense_loss,
    length_spread,
    visual_tokens,
    window_of,
)
from training.world import Picture

# Linear heads stand a larger learning rate than the tower under them.
HEAD_RATE: Final = 3.0
HEADS: Final = ("heads", "image_heads")
# Steps between scores, which take as long as twenty of them; parts are scored at their end, too.
SCORE_EVERY: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMixConfig:
    """Pictures of one batch of the dense warm-up.

    Windows are squares of `window_cells` a side. They cost a fraction of a whole picture, and a
    texture, or a small finding, is as good to learn from a part.

    Attributes:
        views: whole phantoms.
        view_windows: windows of views around a cell that a finding covers.
        crops: crops of any target.
        fine_crops: crops that show a fine attribute.
        fine_windows: windows of such crops.
        real: views of real radiographs; more phantoms where none are at hand.
        window_cells: visual tokens on a side of a window.
    """

    views: int = 0
    view_windows: int = 0
    crops: int = 0
    fine_crops: int = 0
    fine_windows: int = 0
    real: int = 0
    window_cells: int = 4

    def __post_init__(self) -> None:
        counts = ("views", "view_windows", "crops", "fine_crops", "fine_windows", "real")
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}.")
        if not any(getattr(self, name) for name in counts):
            raise ValueError("A batch of the dense warm-up needs at least one picture.")
        if self.window_cells < 1:
            raise ValueError(f"window_cells must be at least 1, not {self.window_cells}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWeights:
    """Weights of the parts of the dense loss.

    Attributes:
        cover: of a sum over names.
        attributes: of a mean over readings.
        edges: of a mean over distances, in shares of the longer side of a picture.
        extents: of the same in sides of the box (`training.vision.extent_loss`).
        lengths: of how much the lengths of tokens differ (`training.vision.length_spread`).
    """

    cover: float = 0.0
    attributes: float = 0.0
    edges: float = 0.0
    extents: float = 0.0
    lengths: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePartConfig:
    """One part of the dense warm-up: what is learned, from which pictures, for how long.

    Attributes:
        name: of the folder that keeps its state.
        weights: of what every token covers.
        image: of what the whole picture shows (`training.image_labels`); all 0: not taught.
    """

    name: str
    steps: StepsConfig
    mix: DenseMixConfig
    weights: DenseWeights
    image: ImageWeights = field(default_factory=ImageWeights)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"The name of a part must be one word, not {self.name!r}.")


def warm_up(
    model: Qwen2_5_VLForConditionalGeneration,
    parts: Sequence[DensePartConfig],
    out: Path,
    seed: int,
    materials: Materials,
    report: Report,
) -> WarmUpHeads:
    """Trains the tower in parts and returns its heads, which are not exported."""
    width = model.config.get_text_config().hidden_size
    labels = materials.labels
    heads = WarmUpHeads(DenseHeads(width, labels), ImageHeads(width, labels))
    pool = DensePool.of(materials)
    views = [labelled_view(case, labels) for case in materials.validation]
    for part in parts:
        modules: dict[str, nn.Module] = {"tower": model.model.visual, "heads": heads.dense}
        if part.image != ImageWeights():
            modules["image_heads"] = heads.image

        def scores(_: int, part: DensePartConfig = part) -> dict[str, float]:
            found = dense_scores(
                model, heads.dense, materials.validation, materials.real_validation
            )
            return found | _image_scores(model, heads.image, views, part.image)

        run_steps(
            folder=out / part.name,
            modules=modules,
            readings=dict.fromkeys(HEADS, HEAD_RATE),
            config=part.steps,
            loss_at=DenseStep(model, heads, pool, part, seed),
            report=prefixed(report, part.name),
            evaluate=scores,
            evaluate_every=SCORE_EVERY,
        )
    return heads


def _image_scores(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: ImageHeads,
    views: Sequence[Picture],
    taught: ImageWeights,
) -> dict[str, float]:
    """Shares of answers and of numbers that are read right in each view, of what is taught."""
    if not taught.answers and not taught.shares:
        return {}
    scores: dict[str, list[float]] = {}
    for view in views:
        image = torch.from_numpy(view.pixels.astype(np.float32))[None]
        with torch.no_grad():
            tokens = visual_tokens(model, [image])
        found = answer_scores(heads, tokens, [view]) if taught.answers else {}
        found |= number_scores(heads, tokens, [view]) if taught.shares else {}
        for name, hits in found.items():
            scores.setdefault(name, []).extend(hits)
    return {name: float(np.mean(hits)) for name, hits in scores.items()}


@dataclass(frozen=True, slots=True)
class WarmUpHeads:
    """Readings of the tower that are thrown away after the warm-up."""

    dense: DenseHeads
    image: ImageHeads


@dataclass(frozen=True, slots=True)
class DenseStep:
    """The loss of one step of the dense warm-up."""

    model: Qwen2_5_VLForConditionalGeneration
    heads: WarmUpHeads
    pool: DensePool
    part: DensePartConfig
    seed: int

    def __call__(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted loss and its parts; everything random from the step."""
        rng = np.random.default_rng([self.seed, 2, step])
        pictures = dense_batch(self.pool, self.part.mix, rng)
        images = [torch.from_numpy(augmented(p.pixels, rng))[None] for p in pictures]
        tokens = visual_tokens(self.model, images)
        parts = dense_loss(
            self.heads.dense(tokens),
            DenseTargets.of(pictures, self.pool.labels),
            known_cover_of(pictures),
            self.pool.labels,
        )
        parts["lengths"] = length_spread(tokens)
        weights = asdict(self.part.weights)
        if self.part.image != ImageWeights():
            parts |= image_loss(self.heads.image, tokens, pictures)
            weights |= asdict(self.part.image)
        loss = torch.stack([weight * parts[name] for name, weight in weights.items()]).sum()
        return loss, {name: float(part.detach()) for name, part in parts.items()}


@dataclass(frozen=True, slots=True)
class DensePool:
    """What the dense warm-up draws from; crops that show a fine attribute are in both lists."""

    views: list[Picture]
    crops: list[Picture]
    fine_crops: list[Picture]
    real: list[RealRadiograph]
    labels: LabelNames = CHEST_LABELS

    @classmethod
    def of(cls, materials: Materials) -> DensePool:
        """Sorts the pictures of the training phantoms."""
        labels = materials.labels
        columns = [tuple(labels.attributes).index(name) for name in labels.fine]
        crops = [
            picture
            for case in materials.train
            for variants in case.crops.values()
            for picture in variants
        ]
        return cls(
            [labelled_view(case, labels) for case in materials.train],
            crops,
            [labelled_crop(p, labels) for p in crops if (p.attributes[:, columns] >= 0).any()],
            materials.real_train,
            labels,
        )


def dense_batch(pool: DensePool, mix: DenseMixConfig, rng: np.random.Generator) -> list[Picture]:
    """The pictures of one batch, same-sized ones side by side: the tower takes these in one go."""

    def drawn(pictures: list[Picture], count: int) -> list[Picture]:
        if not pictures:
            return []
        return [pictures[int(rng.integers(len(pictures)))] for _ in range(count)]

    real = mix.real if pool.real else 0
    pictures = drawn(pool.views, mix.views + mix.real - real)
    pictures += drawn(pool.crops, mix.crops)
    pictures += [texture_alone(crop) for crop in drawn(pool.fine_crops, mix.fine_crops)]
    pictures += [
        texture_alone(window_of(crop, mix.window_cells, rng))
        for crop in drawn(pool.fine_crops, mix.fine_windows)
    ]
    for view in drawn(pool.views, mix.view_windows):
        covered = np.flatnonzero(view.cover[:, len(pool.labels.structures) :].any(axis=1))
        around = int(covered[rng.integers(len(covered))]) if len(covered) else None
        pictures.append(window_of(view, mix.window_cells, rng, around))
    for _ in range(real):
        radiograph = pool.real[int(rng.integers(len(pool.real)))]
        pictures.append(real_picture(*shifted_view(radiograph, rng), pool.labels))
    return sorted(pictures, key=lambda picture: picture.pixels.shape)


def texture_alone(crop: Picture) -> Picture:
    """A crop that teaches its attributes only.

    What it covers and where that ends, at several times the scale of a view, would teach the
    tower to find things of the wrong size.
    """
    return replace(
        crop,
        known_cover=np.zeros(crop.cover.shape, dtype=np.bool_),
        edges=np.full_like(crop.edges, np.nan),
    )


def known_cover_of(pictures: Sequence[Picture]) -> torch.Tensor:
    """Bool `(N, C)`: which coverages of a batch are known."""
    return torch.from_numpy(
        np.concatenate(
            [
                np.ones(p.cover.shape, dtype=np.bool_) if p.known_cover is None else p.known_cover
                for p in pictures
            ]
        )
    )
