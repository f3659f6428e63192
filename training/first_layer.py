"""The language model's first layer learns where every visual token lies, before it learns any word.

The tower's rotary embedding tells it how far apart two patches are and not where they lie: from the
anatomy alone it knows the place of a token to some six pixels of 224, a quarter of a nodule. The
language model's M-RoPE counts rows and columns from the text before the image, so that its layers
can know the place exactly; taught by coordinates that it writes, they did not learn to in thousands
of steps. So two heads of the first layer count columns and rows from the beginning, and keep to it
(`training.counts`), and the layer is taught by the same linear readings as the tower, of its own
output, and by one more: the corners of the box that a token belongs to. The layers above begin by
reading these (`training.detectors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from training.batches import Batch, collate
from training.corners import CornerHead, corner_loss
from training.counts import count_directions, counts_keeper
from training.dense_warmup import HEAD_RATE, HEADS, DenseWeights, WarmUpHeads
from training.embedded import EMBEDDING_DEVIATION
from training.features import FeatureBank
from training.image_labels import ImageWeights, centres_of, image_loss, labelled_view
from training.language_loss import input_states
from training.letter_heads import leave_room
from training.loop import (
    PartLoss,
    Report,
    Stage,
    StepsConfig,
    prefixed,
    run_stage,
    whole_steps,
)
from training.materials import Materials
from training.questions import questions_for
from training.records import RecordWriter
from training.vision import DenseTargets, dense_loss, length_error
from training.world import Case, Picture

# Weight of the rule that words stay what they are.
_WORDS_WEIGHT: Final = 0.5


# Weights of what detectors read behind the first layer (`training.detectors`).
_READINGS: Final = (
    ("weights", "cover"),
    ("weights", "attributes"),
    ("image", "places"),
    ("image", "centres"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDenseWeights(DenseWeights):
    """Weights of what every token covers; one that is left out keeps its value here.

    `lengths` is that of `training.vision.length_error`, and not of the spread alone.
    """

    cover: float = 1.0
    attributes: float = 1.0
    edges: float = 1.0
    extents: float = 1.0
    lengths: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstImageWeights(ImageWeights):
    """Weights of what the whole picture shows; one that is left out keeps its value here."""

    places: float = 1.0
    centres: float = 4.0
    answers: float = 1.0
    boxes: float = 2.0
    shares: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLayerConfig:
    """How the first layer is taught.

    Attributes:
        steps: optimiser and schedule.
        batch: views a step, each behind a question about it.
        corners: weight of the corners, in sides of their box.
        weights: of what every token covers.
        image: of what the whole picture shows.
    """

    steps: StepsConfig
    batch: int = 48
    corners: float = 4.0
    weights: FirstDenseWeights = field(default_factory=FirstDenseWeights)
    image: FirstImageWeights = field(default_factory=FirstImageWeights)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}.")
        read = {f"{part}.{name}": getattr(getattr(self, part), name) for part, name in _READINGS}
        read["corners"] = self.corners
        for name, weight in read.items():
            if not weight > 0:
                raise ValueError(
                    f"Give first_layer a weight for {name}: the layers above begin by reading it, "
                    "so the first layer has to teach it."
                )


def first_layer(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """What the first layer makes of prompts with their images: `(B, T, D)`."""
    language: Any = model.model.language_model
    states = input_states(model, batch)
    rotations = language.rotary_emb(states, batch.positions)
    # Padding stands on the right, so that a causal mask is all that is needed.
    found: torch.Tensor = language.layers[0](states, position_embeddings=rotations)
    return found


def said(ids: torch.Tensor, images: torch.Tensor, padding: int) -> torch.Tensor:
    """Where records say something, bool `(B, T)`: neither visual tokens nor padding.

    Args:
        ids: `(B, T)`.
        images: bool `(B, T)`, True at visual tokens.
        padding: id of what fills the records up; no record holds it.
    """
    return ~images & (ids != padding)


def teach_first_layer(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    heads: WarmUpHeads,
    config: FirstLayerConfig,
    materials: Materials,
    *,
    folder: Path,
    seed: int,
    report: Report,
) -> CornerHead:
    """Trains the first layer and the heads on the frozen tower's tokens; returns the new head.

    Args:
        model: with a trained tower whose tokens have their scale.
        tokenizer: of the model.
        heads: of the tower, which read the first layer's output from here on.
        config: schedule and weights.
        materials: phantoms.
        folder: of the state and the metrics.
        seed: of batches, questions and exposures.
        report: takes lines of progress.
    """
    labels = materials.labels
    corners = CornerHead(model.config.get_text_config().hidden_size, labels)
    bank = FeatureBank(model, seed)
    views = [labelled_view(case, labels) for case in materials.train]
    bank.add(views, variants=2)
    held = [labelled_view(case, labels) for case in materials.validation]
    bank.add(held, variants=1)
    reader = _Reader(model, tokenizer, heads, corners, config, bank)

    def loss_at(step: int) -> PartLoss:
        rng = np.random.default_rng([seed, 5, step])
        drawn = rng.integers(len(views), size=config.batch).tolist()
        return reader.loss([materials.train[i] for i in drawn], [views[i] for i in drawn], rng)

    def scores(_: int) -> dict[str, float]:
        with torch.no_grad():
            parts = reader.loss(materials.validation, held, np.random.default_rng(0))[1]
        return {f"validation {name}": value for name, value in parts.items()}

    put_back = counts_keeper(model, tokenizer, layers=1)

    def after_step() -> None:
        if put_back is not None:
            put_back()
        leave_room(model)

    stage = Stage(
        folder=folder,
        modules={
            "layer": model.model.language_model.layers[0],
            "heads": heads.dense,
            "image_heads": heads.image,
            "corners": corners,
        },
        config=config.steps,
        parts_at=whole_steps(loss_at),
        evaluate=scores,
        readings=dict.fromkeys((*HEADS, "corners"), HEAD_RATE),
        after_step=after_step,
    )
    run_stage(stage, prefixed(report, "first layer"))
    return corners


@dataclass(frozen=True, slots=True)
class _Reader:
    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    heads: WarmUpHeads
    corners: CornerHead
    config: FirstLayerConfig
    bank: FeatureBank

    def loss(
        self, cases: Sequence[Case], views: Sequence[Picture], rng: np.random.Generator
    ) -> PartLoss:
        """The weighted loss of views behind questions about them, and its parts."""
        writer = RecordWriter(self.tokenizer)
        records = []
        for case, view in zip(cases, views, strict=True):
            assert case.truth is not None
            questions = questions_for(case.truth, rng)
            records.append(writer.asked(questions[int(rng.integers(len(questions)))], view))
        batch = collate(records, self.bank, self.tokenizer, rng)
        states = first_layer(self.model, batch)
        images = batch.ids == self.model.config.image_token_id
        tokens = states[images]
        words = said(batch.ids, images, int(self.tokenizer.pad_token_id))
        added = states[words] - self.model.get_input_embeddings()(batch.ids[words])
        labels = self.heads.dense.labels
        targets = DenseTargets.of(views, labels)
        parts = dense_loss(self.heads.dense(tokens), targets, labels=labels)
        parts |= image_loss(self.heads.image, tokens, views)
        centres = torch.cat([centres_of(view.grid) for view in views])
        parts["corners"] = corner_loss(self.corners(tokens), targets.edges, centres)
        parts["words"] = self._words_loss(added)
        parts["lengths"] = length_error(tokens)
        weights = asdict(self.config.weights) | asdict(self.config.image)
        weights |= {"corners": self.config.corners, "words": _WORDS_WEIGHT}
        loss = torch.stack([weight * parts[name] for name, weight in weights.items()]).sum()
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    def _words_loss(self, added: torch.Tensor) -> torch.Tensor:
        """Energy of what the layer adds to words beside the counts, in that of a word.

        Words look like no finding from the beginning (`detectors.quieten_words`), and have to stay
        words. Asked for no more than that they look like none, the layer wrote over them, the same
        on all of them: of two words, equal ones were then hardly more alike than different ones.
        """
        counts = count_directions(self.model)
        added = added - added @ counts @ counts.T
        return added.square().mean() / EMBEDDING_DEVIATION**2


def behind_first_layer(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    most: int = 256,
) -> torch.Tensor:
    """Visual tokens of the views of some phantoms behind the first layer: `(N, D)`."""
    rng = np.random.default_rng(0)
    bank = FeatureBank(model, seed=0)
    writer = RecordWriter(tokenizer)
    records = [writer.asked(case.asked, case.view) for case in cases[:most] if case.asked]
    bank.add([record.pictures[0] for record in records], variants=1)
    batch = collate(records, bank, tokenizer, rng)
    with torch.no_grad():
        return first_layer(model, batch)[batch.ids == model.config.image_token_id]
