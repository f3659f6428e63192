"""`python -m training pretrain`: the vision tower first, then the language model.

Stage 1, dense warm-up: every visual token predicts what it covers (`training.dense_warmup`).
Stage 2: the tower is frozen, its tokens are computed once, and the language model's first layer
learns where each of them lies (`training.first_layer`).
Stage 3: it learns where to look for letters and boxes (`training.looking`).
Stage 4: the language model learns answers with short reasoning (`training.language`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
)

from engine.attention import register_row_attention
from engine.loading import load_checkpoint
from engine.manifest import CheckpointError
from training.average_readings import begin_averaging
from training.calibration import entropy_threshold
from training.cold_start import check_boxes
from training.config import ConfigError
from training.corners import KeptCorners
from training.counts import anchors, number_rows_and_columns
from training.dense_warmup import HEAD_RATE, DensePartConfig, warm_up
from training.detectors import attend_to_findings, quieten_words
from training.embedded import (
    embedded_config,
    new_model,
    order_numbers,
    scale_visual_tokens,
    train_tokenizer,
)
from training.export import ExportConfig, Thresholds, export_checkpoint
from training.features import FeatureBank
from training.first_layer import (
    FirstLayerConfig,
    behind_first_layer,
    teach_first_layer,
)
from training.kept_weights import weights_keeper
from training.language import LanguageConfig, MixConfig
from training.latents import LatentConfig
from training.letter_heads import begin_copying
from training.looking import LookingConfig, teach_to_look
from training.loop import Report, Stage, prefixed, run_stage, whole_steps
from training.materials import Materials, load_materials
from training.metrics import require_tensorboard
from training.network import batch_loss
from training.numbers import NumberScale
from training.out_of_distribution import fit_detector
from training.places import PlaceTerms
from training.processes import require_one_process
from training.questions import questions_for
from training.record_draw import RecordDraw
from training.records import corpus, seen_size
from training.reports import report_text
from training.world import (
    Case,
    WorldConfig,
)

# Weights of the warm-up whose heads `attend_to_findings` reads.
_READINGS: Final = (
    ("weights", "cover"),
    ("weights", "attributes"),
    ("weights", "edges"),
    ("image", "places"),
    ("image", "centres"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """What the language model sees of each picture.

    Attributes:
        view_variants: exposures of the view of a phantom, the plain one among them.
        real_variants: shifted views of each real radiograph.
    """

    view_variants: int = 2
    real_variants: int = 24

    def __post_init__(self) -> None:
        for name in ("view_variants", "real_variants"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class LanguageStage:
    """One stage of the language model: where it is kept, its seed, schedule and mix.

    Attributes:
        latents: how latent segments are trained; None: the stage has none.
    """

    folder: Path
    seed: int
    steps: LanguageConfig
    mix: MixConfig
    latents: LatentConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Everything of a pretraining run.

    Attributes:
        out: folder of caches, checkpoints, metrics, and the exported checkpoint.
        seed: of weights, batches and augmentation; worlds have their own.
        train, validation: which phantoms.
        real_images: folder of `cxr_lungbox_ccby`; left out when it is not there.
        tower: folder of an embedded checkpoint whose vision tower is taken as it is. Of `vision`
            the last part alone is run, to teach its readings. None: a new tower is trained.
        vision: parts of the dense warm-up, in order. Finding things in views comes first, and
            alone: beside the textures of crops it was hardly learned at all.
        first_layer: how the language model's first layer learns where visual tokens lie.
        looking: how the language model learns where to look, before any word.
        language: schedule of the language model.
        mix: record forms of the language model.
        features: what the language model sees of each picture.
    """

    out: Path
    seed: int
    train: WorldConfig
    validation: WorldConfig
    vision: tuple[DensePartConfig, ...]
    first_layer: FirstLayerConfig
    looking: LookingConfig
    language: LanguageConfig
    mix: MixConfig
    real_images: Path | None = None
    tower: Path | None = None
    features: FeatureConfig = field(default_factory=FeatureConfig)
    threads: int = 2
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        for section, name in _READINGS:
            if not any(getattr(getattr(part, section), name) for part in self.warm_up_parts):
                raise ValueError(
                    f"Give some part of vision a weight for {section}.{name}: the language model "
                    "begins by reading it, so the warm-up has to teach it."
                )
        # Said at once: the language model, whose records tell it too, comes after hours.
        if self.mix.own:
            raise ValueError("mix.own is for fine-tuning (sft): set it to 0 in pretraining.")
        check_boxes(self.train, self.validation, self.mix, self.language)

    @property
    def warm_up_parts(self) -> tuple[DensePartConfig, ...]:
        """The parts of `vision` that are run."""
        return self.vision if self.tower is None else self.vision[-1:]


def make_tokenizer(config: PretrainConfig, cases: Sequence[Case]) -> PreTrainedTokenizerFast:
    """The tokenizer, learned from the questions of the training phantoms."""
    rng = np.random.default_rng([config.seed, 1])
    questions = [
        question
        for case in cases[:400]
        if case.truth
        for question in questions_for(case.truth, rng)
    ]
    questions += [case.asked for case in cases[:2000] if case.asked]
    reports = [report_text(case.truth, seen_size(case.view)) for case in cases[:400] if case.truth]
    return train_tokenizer(corpus(questions, rng) + reports)


def pretrain(config: PretrainConfig, report: Report) -> Path:
    """Runs all stages and exports a checkpoint folder, whose path is returned."""
    require_one_process()
    stages = (
        *(part.steps for part in config.vision),
        config.first_layer.steps,
        config.looking.steps,
        config.language,
    )
    require_tensorboard(any(stage.tensorboard for stage in stages))
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    materials = load_materials(
        config.out / "world", config.train, config.validation, config.real_images, report
    )
    tokenizer = make_tokenizer(config, materials.train)
    model = new_model(embedded_config(tokenizer))
    order_numbers(model, tokenizer)
    if config.tower is not None:
        take_tower(model, config.tower)
    heads = warm_up(model, config.warm_up_parts, config.out, config.seed, materials, report)
    scale_visual_tokens(model, some_tokens(model, materials.train))
    tokens = some_tokens(model, materials.train)
    quieten_words(model, heads.dense, heads.image, tokens)
    number_rows_and_columns(model, tokenizer, tokens, materials.train[0].view.grid)
    corners = teach_first_layer(
        model,
        tokenizer,
        heads,
        config.first_layer,
        materials,
        folder=config.out / "first",
        seed=config.seed,
        report=report,
    )
    tokens = behind_first_layer(model, tokenizer, materials.train)
    attend_to_findings(model, heads.dense, heads.image, corners, tokens)
    begin_averaging(model, tokenizer, materials, config.seed, report)
    begin_copying(model, anchors(model, tokenizer))
    kept = KeptCorners(model.config.get_text_config().hidden_size, materials.labels, corners)
    teach_to_look(
        model,
        tokenizer,
        kept,
        config.looking,
        materials,
        folder=config.out / "looking",
        seed=config.seed,
        report=report,
    )
    train_language(
        model,
        tokenizer,
        LanguageStage(config.out / "language", config.seed, config.language, config.mix),
        config.features,
        materials,
        report,
        begin=kept,
    )
    return calibrated_checkpoint(config.out, model, tokenizer, config.export, materials)


def take_tower(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Gives a model the vision tower of a checkpoint, and freezes it.

    Raises:
        ConfigError: the checkpoint is missing or cannot be used, or its tower is of another size.
    """
    try:
        tower = load_checkpoint(folder, "cpu", torch.float32).model.model.visual
        model.model.visual.load_state_dict(tower.state_dict())
    except CheckpointError as error:
        raise ConfigError(f"{error} Give the tower of another, or leave it out.") from error
    except RuntimeError as error:
        raise ConfigError(
            f"The tower of {folder.name} is of another size than that of the embedded model: "
            "leave it out, and a new one is trained."
        ) from error
    model.model.visual.requires_grad_(False)


def some_tokens(
    model: Qwen2_5_VLForConditionalGeneration, cases: Sequence[Case], most: int = 256
) -> torch.Tensor:
    """Visual tokens of the views of some phantoms: `(N, D)`."""
    bank = FeatureBank(model, seed=0)
    views = [case.view for case in cases[:most]]
    bank.add(views, variants=1)
    return torch.cat(bank.draw(views, np.random.default_rng(0))).float()


def calibrated_checkpoint(
    out: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    export: ExportConfig,
    materials: Materials,
) -> Path:
    """Sets both thresholds on validation phantoms and writes the checkpoint folder."""
    thresholds = calibrated(model, tokenizer, materials)
    return export_checkpoint(out / "checkpoint", model, tokenizer, export, thresholds)


def calibrated(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    materials: Materials,
) -> Thresholds:
    """Both thresholds, set on validation phantoms."""
    return Thresholds(
        fit_detector(model, materials.train, materials.validation),
        entropy_threshold(model, tokenizer, materials.validation),
    )


def place_terms(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    config: LanguageConfig,
    materials: Materials,
    begin: KeptCorners | None = None,
) -> PlaceTerms:
    """What a stage asks of places; lets the model's attention be taken where it is asked for.

    Args:
        model: its kernel of attention is exchanged for one that a recorder can watch.
        tokenizer: its own.
        config: weights of the stage.
        materials: phantoms.
        begin: readings of corners that have been learned; None: new ones.
    """
    if config.grounding or config.pointing:
        model.set_attn_implementation(register_row_attention())
    corners = None
    if config.corners:
        width = model.config.get_text_config().hidden_size
        corners = begin or KeptCorners(width, materials.labels)
    numbers = NumberScale(tokenizer, config.spread) if config.spread else None
    return PlaceTerms(
        corners, config.corners, config.grounding, config.pointing, numbers, config.distance
    )


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    stage: LanguageStage,
    features: FeatureConfig,
    materials: Materials,
    report: Report,
    *,
    begin: KeptCorners | None = None,
) -> None:
    """Trains the language model on the frozen tower's tokens with a mix of record forms.

    Args:
        model: of which the tower stays as it is.
        tokenizer: of the records.
        stage: schedule, mix and folder.
        features: what it sees of each picture.
        materials: phantoms and real radiographs.
        report: takes lines of progress.
        begin: readings of corners that have been learned; None: new ones.
    """
    model.model.visual.requires_grad_(False)
    bank = FeatureBank(model, stage.seed)
    draw = RecordDraw(
        materials, stage.mix, tokenizer, stage.latents, features.real_variants, stage.seed
    )
    draw.register(bank, features.view_variants)

    modules: dict[str, nn.Module] = {"language": model.model.language_model}
    places = place_terms(model, tokenizer, stage.steps, materials, begin)
    if places.corners is not None:
        modules["corners"] = places.corners

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([stage.seed, 3, step])
        records = draw.records(stage.steps.batch, rng)
        latents = stage.latents.at(step / stage.steps.steps) if stage.latents else None
        return batch_loss(
            model,
            records,
            bank,
            tokenizer,
            rng,
            latents=latents,
            places=places,
        )

    language = Stage(
        folder=stage.folder,
        modules=modules,
        config=stage.steps,
        parts_at=whole_steps(loss_at),
        readings={"corners": HEAD_RATE},
        after_step=weights_keeper(model, tokenizer),
    )
    run_stage(language, prefixed(report, "language"))
