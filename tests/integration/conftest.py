"""Random-weight models and plain references for the engine's equivalence tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.engine import Engine
from engine.loading import LoadedModel
from engine.request import Budgets, DisplayImage, Interventions, Request, Tracing
from engine.rollout import Start
from engine.tiny import tiny_model

MakeRequest = Callable[..., Request]


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """A random-weight model; do not change it."""
    return tiny_model()


@pytest.fixture
def engine(loaded: LoadedModel) -> Engine:
    return Engine(loaded)


def picture(seed: int = 0, height: int = 300, width: int = 400) -> np.ndarray:
    """A grey image with structure at several scales."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 20 + 1, width // 20 + 1))
    image = np.kron(coarse, np.ones((20, 20)))[:height, :width]
    return np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def make_request() -> MakeRequest:
    """A request with defaults; keyword arguments replace its fields or parts of them."""

    def make(*, seed_of_image: int = 0, **changes: Any) -> Request:
        budgets = Budgets(
            max_new_tokens=changes.pop("max_new_tokens", 24),
            max_crops=changes.pop("max_crops", 2),
            latent_steps=changes.pop("latent_steps", 4),
        )
        tracing = Tracing(
            layers=changes.pop("layers", "all"),
            alternatives=changes.pop("alternatives", 5),
            belief=changes.pop("belief", True),
        )
        interventions = Interventions(
            **{
                name: changes.pop(name)
                for name in ("latents", "latent_donor", "skip_crops", "move_crops", "occlude")
                if name in changes
            }
        )
        image = changes.pop("image", None) or DisplayImage(pixels=picture(seed_of_image))
        defaults: dict[str, Any] = {
            "question": "Where is the nodule?",
            "options": ("left lung", "right lung", "none"),
        }
        return Request(
            image=image,
            budgets=budgets,
            tracing=tracing,
            interventions=interventions,
            **{**defaults, **changes},
        )

    return make


class Reference:
    """transformers' own outer wrapper on the same prompt: nothing of the engine's loop."""

    def __init__(self, loaded: LoadedModel, attention: str = "sdpa") -> None:
        self.loaded = loaded
        self.model = copy.deepcopy(loaded.model)
        self.model.set_attn_implementation(attention)
        self.model.model.rope_deltas = None

    def inputs(self, ids: list[int], images: list[Any]) -> dict[str, torch.Tensor]:
        """Arguments of the wrapper for expanded ids and the images in them."""
        row = torch.tensor([ids])
        pad = self.loaded.vocabulary.image_pad
        return {
            "input_ids": row,
            "attention_mask": torch.ones_like(row),
            "mm_token_type_ids": (row == pad).int(),
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.cat([image.grid_thw for image in images]),
        }

    @torch.no_grad()
    def logits(self, ids: list[int], images: list[Any], **extra: Any) -> Any:
        self.model.model.rope_deltas = None
        return self.model(**self.inputs(ids, images), **extra)

    @torch.no_grad()
    def generate(self, ids: list[int], images: list[Any], **extra: Any) -> list[int]:
        out = self.model.generate(**self.inputs(ids, images), **extra)
        return out[0, len(ids) :].tolist()


@pytest.fixture(scope="session")
def reference(loaded: LoadedModel) -> Reference:
    return Reference(loaded)


@pytest.fixture(scope="session")
def eager_reference(loaded: LoadedModel) -> Reference:
    return Reference(loaded, "eager")


def prompt_ids(loaded: LoadedModel, start: Start) -> list[int]:
    """The prompt of a prepared run as ids, found from the text alone."""
    from engine.processor import expanded_ids
    from engine.prompt import request_prompt

    text = request_prompt(loaded.manifest, start.request)
    return expanded_ids(loaded.tokenizer, text, [start.seen.grid])
