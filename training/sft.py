"""`python -m training sft`: fine-tunes a checkpoint on a mix of record forms.

With tool calls in the mix it is the cold start of the zoom format: a correct call, the crop,
an answer. The vision tower stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from training.export import ExportConfig
from training.language import LanguageConfig, MixConfig
from training.latents import LatentConfig
from training.loop import Report
from training.materials import load_materials
from training.pretrain import (
    FeatureConfig,
    LanguageStage,
    calibrated_checkpoint,
    train_language,
)
from training.world import WorldConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Everything of a fine-tuning run.

    Attributes:
        out: folder of the training state and of the exported checkpoint.
        base: checkpoint folder to begin with.
        world: folder of prepared phantoms; built where they are missing.
        seed: of batches.
        latents: how latent segments are trained; needed when the mix holds any.
    """

    out: Path
    base: Path
    world: Path
    seed: int
    train: WorldConfig
    validation: WorldConfig
    language: LanguageConfig
    mix: MixConfig
    latents: LatentConfig | None = None
    real_images: Path | None = None
    features: FeatureConfig = field(default_factory=FeatureConfig)
    threads: int = 2
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        if (self.mix.latent > 0) != (self.latents is not None):
            raise ValueError("The section latents and a share mix.latent above 0 go together.")


def finetune(config: FinetuneConfig, report: Report) -> Path:
    """Runs the stage and exports a checkpoint folder, whose path is returned.

    Raises:
        FileNotFoundError: when the base checkpoint is not there.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if not (config.base / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no checkpoint in {config.base}; run the stage before this one first."
        )
    tokenizer = AutoTokenizer.from_pretrained(config.base)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(config.base, dtype=torch.float32)
    materials = load_materials(
        config.world, config.train, config.validation, config.real_images, report
    )
    train_language(
        model,
        tokenizer,
        LanguageStage(
            config.out / "language", config.seed, config.language, config.mix, config.latents
        ),
        config.features,
        materials,
        report,
    )
    return calibrated_checkpoint(config.out, model, tokenizer, config.export, materials)
