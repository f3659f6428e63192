"""Writing a checkpoint folder that `engine.loading` opens: weights, tokenizer, manifest."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)

from engine.manifest import MANIFEST_FILE, Manifest
from training.out_of_distribution import Detector
from training.world import CROP_PADDING, VIEW_BUDGET

DETECTOR_FILE: Final = "ood.safetensors"
# Qwen2.5-VL's template has no system prompt of its own that the embedded model knows, so the
# shipped one writes the turns and nothing else.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What the manifest says.

    Attributes:
        name: shown on the page.
        stage: of training.
        trained_methods: what the checkpoint was trained for.
        embedded: whether it is one of the project's small models, which know phantoms alone:
            they carry a detector of other images and thresholds, and are written in float16.
        notices: sentences that the page shows beside every answer.
    """

    name: str = "Lightbox base"
    stage: str = "base"
    trained_methods: tuple[str, ...] = ("direct",)
    embedded: bool = True
    notices: tuple[str, ...] = (
        "This small model knows drawn chest radiographs (phantoms) and where the lungs lie on "
        "real ones. What it says of anything else is a guess.",
    )


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is set on validation phantoms.

    Attributes:
        detector: of images that the model was not trained on.
        entropy: nats above which a reasoning token asks for a second look.
    """

    detector: Detector
    entropy: float


# How records are written and pictures are made for the embedded model (`training.records`).
AS_TRAINED: Final = Manifest(
    prompt_style="compact",
    question_first=True,
    view=VIEW_BUDGET,
    crop=VIEW_BUDGET,
    crop_padding=CROP_PADDING,
)


def export_checkpoint(
    folder: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    config: ExportConfig,
    thresholds: Thresholds | None,
    spoken: Manifest = AS_TRAINED,
) -> Path:
    """Writes the folder anew, in half precision, and puts it in place in one step.

    Args:
        folder: of the checkpoint; replaced as a whole.
        model: trained.
        tokenizer: its own.
        config: what the manifest says.
        thresholds: None for a checkpoint that is not embedded.
        spoken: how prompts, pictures and coordinates were in training.
    """
    partial = _fresh(folder)
    half = torch.float16 if config.embedded else torch.bfloat16
    weights = {
        name: tensor.detach().to("cpu", half).contiguous().clone()
        for name, tensor in model.state_dict().items()
        # A tied head is the embedding again.
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = half
    model.config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    model.config.save_pretrained(partial)
    generation = GenerationConfig.from_dict(
        {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    )
    generation.save_pretrained(partial)
    if config.embedded:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(partial)
    return _finished(partial, folder, config, thresholds, spoken)


def export_adapter(
    folder: Path,
    adapter: PeftModel,
    config: ExportConfig,
    thresholds: Thresholds | None,
    spoken: Manifest = AS_TRAINED,
) -> Path:
    """Writes the folder of an adapter, which names its base and opens like any checkpoint.

    Args:
        folder: replaced as a whole.
        adapter: trained (`training.adapters.add_adapter`).
        config: what the manifest says.
        thresholds: None for a checkpoint that is not embedded.
        spoken: how prompts, pictures and coordinates were in training.
    """
    partial = _fresh(folder)
    # Without asking for embedding layers peft would look the base up on the hub.
    adapter.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
    return _finished(partial, folder, config, thresholds, spoken)


def _fresh(folder: Path) -> Path:
    """An empty folder beside the one that is to be written."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _finished(
    partial: Path,
    folder: Path,
    config: ExportConfig,
    thresholds: Thresholds | None,
    spoken: Manifest,
) -> Path:
    """Adds what the checkpoint says of itself, and puts the folder in place."""
    manifest = replace(
        spoken,
        name=config.name,
        stage=config.stage,
        embedded=config.embedded,
        trained_methods=config.trained_methods,
        entropy_threshold=None,
        notices=config.notices,
    )
    if thresholds is not None:
        manifest = replace(manifest, entropy_threshold=round(thresholds.entropy, 3))
        save_file(thresholds.detector.tensors(), partial / DETECTOR_FILE)
    (partial / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    former = folder.with_name(folder.name + ".former")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        os.replace(folder, former)
    os.replace(partial, folder)
    shutil.rmtree(former, ignore_errors=True)
    return folder
