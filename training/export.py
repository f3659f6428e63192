"""Writing a checkpoint folder that `engine.loading` opens: weights, tokenizer, manifest."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
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
        notices: sentences that the page shows beside every answer.
    """

    name: str = "Lightbox base"
    stage: str = "base"
    trained_methods: tuple[str, ...] = ("direct",)
    notices: tuple[str, ...] = (
        "This small model knows drawn chest radiographs (phantoms) and where the lungs lie on "
        "real ones. What it says of anything else is a guess.",
    )


def export_checkpoint(
    folder: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    config: ExportConfig,
    detector: Detector,
    entropy_threshold: float,
) -> Path:
    """Writes the folder anew, in half precision, and puts it in place in one step.

    Args:
        folder: of the checkpoint; replaced as a whole.
        model: trained.
        tokenizer: its own.
        config: what the manifest says.
        detector: of images that the model was not trained on.
        entropy_threshold: nats, from validation phantoms.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    half = {
        name: tensor.detach().to(torch.float16).contiguous().clone()
        for name, tensor in model.state_dict().items()
        # The head is the embedding again (tied).
        if name != "lm_head.weight"
    }
    save_file(half, partial / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = torch.float16
    model.config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    model.config.save_pretrained(partial)
    generation = GenerationConfig.from_dict(
        {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    )
    generation.save_pretrained(partial)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(partial)
    manifest = Manifest(
        name=config.name,
        stage=config.stage,
        embedded=True,
        trained_methods=config.trained_methods,
        prompt_style="compact",
        question_first=True,
        view=VIEW_BUDGET,
        crop=VIEW_BUDGET,
        crop_padding=CROP_PADDING,
        entropy_threshold=round(entropy_threshold, 3),
        notices=config.notices,
    )
    (partial / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    save_file(detector.tensors(), partial / DETECTOR_FILE)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return folder
