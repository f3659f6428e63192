"""`python -m training pretrain`: the vision tower first, then the language model.

Stage 1, dense warm-up: every visual token predicts what it covers (`training.vision`).
Stage 2: the tower is frozen, its tokens are computed once, and the language model learns
answers with short reasoning (`training.language`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from training.calibration import entropy_threshold
from training.dense_scores import dense_scores
from training.embedded import embedded_config, new_model, train_tokenizer
from training.export import ExportConfig, export_checkpoint
from training.language import (
    FeatureBank,
    LanguageConfig,
    MixConfig,
    asked_of,
    asked_of_real,
    batch_loss,
    drawn_record,
    real_cases,
)
from training.loop import StepsConfig, run_steps
from training.out_of_distribution import fit_detector
from training.questions import questions_for
from training.real_images import RealRadiograph, load_radiographs, real_picture, shifted_view
from training.records import RecordWriter, corpus
from training.vision import (
    DenseHeads,
    DenseTargets,
    augmented,
    dense_loss,
    visual_tokens,
    window_of,
)
from training.world import (
    ATTRIBUTES,
    FINE_ATTRIBUTES,
    STRUCTURES,
    Case,
    Picture,
    WorldConfig,
    load_world,
)

Report = Callable[[str], None]
# Linear heads stand a larger learning rate than the tower under them.
HEAD_RATE: Final = 3.0


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
        edges: of a mean over distances, in shares of a picture.
    """

    cover: float = 0.0
    attributes: float = 0.0
    edges: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePartConfig:
    """One part of the dense warm-up: what is learned, from which pictures, for how long.

    Attributes:
        name: of the folder that keeps its state.
    """

    name: str
    steps: StepsConfig
    mix: DenseMixConfig
    weights: DenseWeights

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"The name of a part must be one word, not {self.name!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """What the language model sees of each picture.

    Attributes:
        view_variants: exposures of the view of a phantom, the plain one among them.
        real_variants: shifted views of each real radiograph.
    """

    view_variants: int = 2
    real_variants: int = 24


@dataclass(frozen=True, slots=True)
class LanguageStage:
    """One stage of the language model: where it is kept, its seed, schedule and mix."""

    folder: Path
    seed: int
    steps: LanguageConfig
    mix: MixConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Everything of a pretraining run.

    Attributes:
        out: folder of caches, checkpoints, metrics, and the exported checkpoint.
        seed: of weights, batches and augmentation; worlds have their own.
        train, validation: which phantoms.
        real_images: folder of `cxr_lungbox_ccby`; left out when it is not there.
        vision: parts of the dense warm-up, in order. Finding things in views comes first, and
            alone: beside the textures of crops it took ten times as long.
        language: schedule of the language model.
        mix: record forms of the language model.
        real_images: folder of `cxr_lungbox_ccby`; left out when it is not there.
        texture: schedule of the first part of the dense warm-up, fine attributes alone: beside
            coverage they were not learned before it, and they cost minutes.
        vision: schedule of the second part, everything.
        language: schedule of the language model.
        mix: record forms of the language model.
        dense: pictures of one batch of the second part.
        features: what the language model sees of each picture.
    """

    out: Path
    seed: int
    train: WorldConfig
    validation: WorldConfig
    vision: tuple[DensePartConfig, ...]
    language: LanguageConfig
    mix: MixConfig
    real_images: Path | None = None
    features: FeatureConfig = field(default_factory=FeatureConfig)
    threads: int = 2
    export: ExportConfig = field(default_factory=ExportConfig)


@dataclass(frozen=True, slots=True)
class Materials:
    """What every stage draws from."""

    train: list[Case]
    validation: list[Case]
    real_train: list[RealRadiograph]
    real_validation: list[RealRadiograph]


def load_materials(
    folder: Path,
    train: WorldConfig,
    validation: WorldConfig,
    real: Path | None,
    report: Report,
) -> Materials:
    """Phantoms (built once, then read) and, where they are at hand, real radiographs."""
    if real is not None and not real.is_dir():
        report("The real radiographs are not there: training goes on with phantoms alone.")
        real = None
    return Materials(
        load_world(folder, train, report),
        load_world(folder, validation, report),
        load_radiographs(real, "train") if real else [],
        load_radiographs(real, "validation") if real else [],
    )


def make_tokenizer(config: PretrainConfig, cases: Sequence[Case]) -> Qwen2Tokenizer:
    """The tokenizer, learned from the questions of the training phantoms."""
    rng = np.random.default_rng([config.seed, 1])
    questions = [
        question
        for case in cases[:400]
        if case.truth
        for question in questions_for(case.truth, rng)
    ]
    questions += [case.asked for case in cases[:2000] if case.asked]
    return train_tokenizer(corpus(questions, rng))


def pretrain(config: PretrainConfig, report: Report) -> Path:
    """Runs both stages and exports a checkpoint folder, whose path is returned."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    materials = load_materials(
        config.out / "world", config.train, config.validation, config.real_images, report
    )
    tokenizer = make_tokenizer(config, materials.train)
    model = new_model(embedded_config(tokenizer))
    train_vision(model, config, materials, report)
    train_language(
        model,
        tokenizer,
        LanguageStage(config.out / "language", config.seed, config.language, config.mix),
        config.features,
        materials,
        report,
    )
    return calibrated_checkpoint(config.out, model, tokenizer, config.export, materials)


def calibrated_checkpoint(
    out: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    export: ExportConfig,
    materials: Materials,
) -> Path:
    """Sets both thresholds on validation phantoms and writes the checkpoint folder."""
    return export_checkpoint(
        out / "checkpoint",
        model,
        tokenizer,
        export,
        fit_detector(model, materials.train, materials.validation),
        entropy_threshold(model, tokenizer, materials.validation),
    )


def train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    config: PretrainConfig,
    materials: Materials,
    report: Report,
) -> None:
    """The dense warm-up; the heads are kept beside the checkpoint and not exported."""
    heads = DenseHeads(model.config.get_text_config().hidden_size)
    pool = DensePool.of(materials)
    for part in config.vision:
        run_steps(
            folder=config.out / part.name,
            modules={"tower": model.model.visual, "heads": heads},
            rates={"heads": HEAD_RATE},
            config=part.steps,
            loss_at=DenseStep(model, heads, pool, part, config.seed),
            report=prefixed(report, part.name),
            evaluate=lambda _: dense_scores(
                model, heads, materials.validation, materials.real_validation
            ),
            evaluate_every=250,
        )


def prefixed(report: Report, name: str) -> Report:
    """A report whose lines begin with the name of a part."""

    def said(line: str) -> None:
        report(f"{name}: {line}")

    return said


@dataclass(frozen=True, slots=True)
class DenseStep:
    """The loss of one step of the dense warm-up."""

    model: Qwen2_5_VLForConditionalGeneration
    heads: DenseHeads
    pool: DensePool
    part: DensePartConfig
    seed: int

    def __call__(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted loss and its parts; everything random from the step."""
        rng = np.random.default_rng([self.seed, 2, step])
        pictures = dense_batch(self.pool, self.part.mix, rng)
        images = [torch.from_numpy(augmented(p.pixels, rng))[None] for p in pictures]
        outputs = self.heads(visual_tokens(self.model, images))
        parts = dense_loss(outputs, DenseTargets.of(pictures), known_cover_of(pictures))
        weights = self.part.weights
        loss = (
            weights.cover * parts["cover"]
            + weights.attributes * parts["attributes"]
            + weights.edges * parts["edges"]
        )
        return loss, {name: float(part.detach()) for name, part in parts.items()}


@dataclass(frozen=True, slots=True)
class DensePool:
    """What the dense warm-up draws from; crops that show a fine attribute are in both lists."""

    views: list[Picture]
    crops: list[Picture]
    fine_crops: list[Picture]
    real: list[RealRadiograph]

    @classmethod
    def of(cls, materials: Materials) -> DensePool:
        """Sorts the pictures of the training phantoms."""
        columns = [tuple(ATTRIBUTES).index(name) for name in FINE_ATTRIBUTES]
        crops = [
            picture
            for case in materials.train
            for variants in case.crops.values()
            for picture in variants
        ]
        return cls(
            [case.view for case in materials.train],
            crops,
            [p for p in crops if (p.attributes[:, columns] >= 0).any()],
            materials.real_train,
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
        covered = np.flatnonzero(view.cover[:, len(STRUCTURES) :].any(axis=1))
        around = int(covered[rng.integers(len(covered))]) if len(covered) else None
        pictures.append(window_of(view, mix.window_cells, rng, around))
    for _ in range(real):
        radiograph = pool.real[int(rng.integers(len(pool.real)))]
        pictures.append(real_picture(*shifted_view(radiograph, rng)))
    return sorted(pictures, key=lambda picture: picture.pixels.shape)


def texture_alone(crop: Picture) -> Picture:
    """A crop that teaches its attributes only.

    What it covers, at several times the scale of a view, would teach the tower to find things
    of the wrong size.
    """
    return replace(crop, known_cover=np.zeros(crop.cover.shape, dtype=np.bool_))


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


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    stage: LanguageStage,
    features: FeatureConfig,
    materials: Materials,
    report: Report,
) -> None:
    """Trains the language model on the frozen tower's tokens with a mix of record forms."""
    model.model.visual.requires_grad_(False)
    bank = FeatureBank(model, stage.seed)
    bank.add([case.view for case in materials.train], variants=features.view_variants)
    crops = [p for case in materials.train for variants in case.crops.values() for p in variants]
    bank.add(crops, variants=1)
    real = real_cases(materials.real_train, features.real_variants, stage.seed)
    for view, _, parts in real:
        bank.add([view, *(p for variants in parts.values() for p in variants)], variants=1)
    writer = RecordWriter(tokenizer)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([stage.seed, 3, step])
        records = []
        for _ in range(stage.steps.batch):
            if real and rng.random() < stage.mix.real:
                asked = asked_of_real(real[int(rng.integers(len(real)))], rng)
            else:
                asked = asked_of(materials.train[int(rng.integers(len(materials.train)))], rng)
            records.append(drawn_record(asked, stage.mix, writer, rng))
        return batch_loss(model, records, bank, tokenizer, rng)

    run_steps(
        folder=stage.folder,
        modules={"language": model.model.language_model},
        config=stage.steps,
        loss_at=loss_at,
        report=prefixed(report, "language"),
    )
