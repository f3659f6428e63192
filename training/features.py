"""Visual tokens of pictures, computed once by a frozen tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.vision import augmented, visual_tokens
from training.world import Picture


class FeatureBank:
    """Visual tokens of pictures, encoded by the frozen tower when first drawn; kept as float16.

    Args:
        model: its tower must not change any more.
        seed: of the exposures of variants.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._numbers: dict[int, int] = {}
        self._variants: dict[int, int] = {}
        self._tokens: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def width(self) -> int:
        """Dimensions of a visual token."""
        return int(self._model.config.get_text_config().hidden_size)

    def add(self, pictures: Sequence[Picture], *, variants: int) -> None:
        """Registers pictures, to be seen as they are and with `variants - 1` other exposures."""
        for picture in pictures:
            self._numbers.setdefault(id(picture), len(self._numbers))
            self._variants[id(picture)] = variants

    def draw(self, pictures: Sequence[Picture], rng: np.random.Generator) -> list[torch.Tensor]:
        """One variant of each picture, float16 `(cells, D)` each.

        Raises:
            KeyError: a picture that was not added.
        """
        chosen = [(picture, int(rng.integers(self._variants[id(picture)]))) for picture in pictures]
        missing: dict[tuple[int, ...], dict[tuple[int, int], Picture]] = {}
        for picture, variant in chosen:
            key = (self._numbers[id(picture)], variant)
            if key not in self._tokens:
                missing.setdefault(picture.pixels.shape, {})[key] = picture
        for group in missing.values():
            self._encode(group)
        return [self._tokens[self._numbers[id(picture)], variant] for picture, variant in chosen]

    def _encode(self, group: dict[tuple[int, int], Picture]) -> None:
        """Encodes same-sized pictures in one go."""
        images = [
            # From the picture's number, not from the step: a resumed run sees the same exposure.
            augmented(picture.pixels, np.random.default_rng([self._seed, number, variant]))
            if variant
            else picture.pixels.astype(np.float32)
            for (number, variant), picture in group.items()
        ]
        with torch.no_grad():
            tokens = visual_tokens(self._model, [torch.from_numpy(np.stack(images))])
        cells = [picture.grid.cells for picture in group.values()]
        for key, part in zip(group, torch.split(tokens.to(torch.float16), cells), strict=True):
            self._tokens[key] = part.clone()
