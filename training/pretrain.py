"""`python -m training pretrain`: the vision tower first, then the language model.

Stage 1, dense warm-up: every visual token predicts what it covers (`training.vision`).
Stage 2: the tower is frozen, its tokens are computed once, and the language model learns
answers with short reasoning (`training.language`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from training.dense_scores import dense_scores
from training.embedded import embedded_config, new_model, train_tokenizer
from training.export import ExportConfig, export_checkpoint
from training.language import (
    FeatureBank,
    MixConfig,
    asked_of,
    asked_of_real,
    collate,
    drawn_record,
    language_loss,
    real_cases,
)
from training.loop import StepsConfig, run_steps
from training.out_of_distribution import fit_detector
from training.questions import questions_for
from training.real_images import RealRadiograph, load_radiographs, real_picture, shifted_view
from training.records import RecordWriter, corpus
from training.vision import DenseHeads, DenseTargets, augmented, dense_loss, visual_tokens
from training.world import Case, Picture, WorldConfig, load_world

Report = Callable[[str], None]
# Weights of the dense loss: edges are shares of the picture, some ten times smaller numbers.
ATTRIBUTE_WEIGHT: Final = 0.5
EDGE_WEIGHT: Final = 8.0


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
    steps: StepsConfig
    mix: MixConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Everything of a pretraining run.

    Attributes:
        out: folder of caches, checkpoints, metrics, and the exported checkpoint.
        seed: of weights, batches and augmentation; worlds have their own.
        train, validation: which phantoms.
        real_images: folder of `cxr_lungbox_ccby`; left out when it is not there.
        real_share: of the pictures in a batch of the dense warm-up.
        features: what the language model sees of each picture.
    """

    out: Path
    seed: int
    train: WorldConfig
    validation: WorldConfig
    vision: StepsConfig
    language: StepsConfig
    mix: MixConfig
    real_images: Path | None = None
    real_share: float = 0.1
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
    detector = fit_detector(model, materials.train, materials.validation)
    return export_checkpoint(config.out / "checkpoint", model, tokenizer, config.export, detector)


def train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    config: PretrainConfig,
    materials: Materials,
    report: Report,
) -> None:
    """The dense warm-up; the heads are kept beside the checkpoint and not exported."""
    heads = DenseHeads(model.config.get_text_config().hidden_size)
    crops = [
        [picture for variants in case.crops.values() for picture in variants]
        for case in materials.train
    ]

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([config.seed, 2, step])
        pictures = _dense_batch(config, materials, crops, rng)
        images = [torch.from_numpy(augmented(p.pixels, rng))[None] for p in pictures]
        with torch.autocast("cpu", torch.bfloat16):
            outputs = heads(visual_tokens(model, images))
        parts = dense_loss(outputs, DenseTargets.of(pictures), known_cover_of(pictures))
        loss = (
            parts["cover"] + ATTRIBUTE_WEIGHT * parts["attributes"] + EDGE_WEIGHT * parts["edges"]
        )
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    def evaluate(step: int) -> dict[str, float]:
        del step
        return dense_scores(model, heads, materials.validation, materials.real_validation)

    tower = model.model.visual
    run_steps(
        folder=config.out / "vision",
        modules={"tower": tower, "heads": heads},
        config=config.vision,
        loss_at=loss_at,
        report=lambda line: report(f"vision: {line}"),
        evaluate=evaluate,
        evaluate_every=300,
    )


def _dense_batch(
    config: PretrainConfig,
    materials: Materials,
    crops: list[list[Picture]],
    rng: np.random.Generator,
) -> list[Picture]:
    """Views, crops and real radiographs in the shares of the configuration."""
    pictures = []
    for _ in range(config.vision.batch):
        if materials.real_train and rng.random() < config.real_share:
            radiograph = materials.real_train[int(rng.integers(len(materials.real_train)))]
            pictures.append(real_picture(*shifted_view(radiograph, rng)))
            continue
        index = int(rng.integers(len(materials.train)))
        if crops[index] and rng.random() < 0.55:
            pictures.append(crops[index][int(rng.integers(len(crops[index])))])
        else:
            pictures.append(materials.train[index].view)
    # Same-sized pictures side by side: the tower takes them in one go.
    return sorted(pictures, key=lambda picture: picture.pixels.shape)


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
    bank = FeatureBank()
    report("language: encoding all pictures once")
    views = [case.view for case in materials.train]
    crops = [p for case in materials.train for variants in case.crops.values() for p in variants]
    bank.encode(model, views, variants=features.view_variants, seed=stage.seed)
    bank.encode(model, crops, variants=1, seed=stage.seed + 1)
    real = real_cases(materials.real_train, features.real_variants, stage.seed)
    for view, _, parts in real:
        bank.encode(model, [view, *(p for v in parts.values() for p in v)], variants=1, seed=0)
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
        return language_loss(model, collate(records, bank, tokenizer, rng))

    run_steps(
        folder=stage.folder,
        modules={"language": model.model.language_model},
        config=stage.steps,
        loss_at=loss_at,
        report=lambda line: report(f"language: {line}"),
    )
