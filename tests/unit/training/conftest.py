"""A question, pictures of noise, and a fresh model with a tokenizer that knows the question."""

import numpy as np
import pytest
import torch

from engine.geometry import FULL_IMAGE, Box
from training.embedded import embedded_config, new_model, train_tokenizer
from training.phantoms.label_names import CHEST_LABELS
from training.questions import Question
from training.records import corpus
from training.world import Picture

TARGET = (0.25, 0.5, 0.5, 0.75)


def question(kind: str = "fine", targets: tuple[tuple[float, ...], ...] = (TARGET,)) -> Question:
    return Question(
        family="nodule_margin",
        kind=kind,
        text="What is the margin of the nodule?",
        options=("spiculated", "smooth"),
        answer="smooth",
        target_boxes=targets,
        reasoning="Its margin is smooth.",
        reasoning_before_zoom="There is a nodule.",
        reasoning_after_zoom="Its margin is smooth.",
    )


def picture(
    seed: int = 0, height: int = 224, width: int = 196, region: Box = FULL_IMAGE
) -> Picture:
    cells = height // 28 * (width // 28)
    return Picture(
        pixels=np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8),
        region=region,
        cover=np.zeros((cells, len(CHEST_LABELS.covers)), dtype=np.uint8),
        attributes=np.full((cells, len(CHEST_LABELS.attributes)), -1, dtype=np.int8),
        edges=np.full((cells, len(CHEST_LABELS.box_groups), 4), np.nan, dtype=np.float16),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus([question()] * 3, np.random.default_rng(0)), vocabulary=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    # A fresh model is sure that a word comes twice, and of nothing could be told that it matters.
    with torch.no_grad():
        model.model.language_model.norm.weight.mul_(0.2)
    return model
