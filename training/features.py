"""Visual tokens of pictures: computed once by a frozen tower, or anew by one that is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.vision import augmented, visual_tokens
from training.world import Picture

Seen = tuple[Picture, int]
"""A picture and the number of its variant."""


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
        self._pictures: dict[int, tuple[Picture, int]] = {}
        self._tokens: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def width(self) -> int:
        """Dimensions of a visual token."""
        return int(self._model.config.get_text_config().hidden_size)

    def add(self, pictures: Sequence[Picture], *, variants: int) -> None:
        """Registers pictures, to be seen as they are and with `variants - 1` other exposures."""
        for picture in pictures:
            self._numbers.setdefault(id(picture), len(self._numbers))
            self._pictures[id(picture)] = (picture, variants)

    def draw(self, pictures: Sequence[Picture], rng: np.random.Generator) -> list[torch.Tensor]:
        """One variant of each picture, float16 `(cells, D)` each.

        Raises:
            KeyError: a picture that was not added.
        """
        return self.tokens(self.choose(pictures, rng))

    def choose(self, pictures: Sequence[Picture], rng: np.random.Generator) -> list[Seen]:
        """Which variant of each picture is seen; costs nothing.

        Raises:
            KeyError: a picture that was not added.
        """
        return [
            (picture, int(rng.integers(self._pictures[id(picture)][1]))) for picture in pictures
        ]

    def encode_all(self) -> None:
        """Encodes everything now, for where the tower is out of reach later (sharded weights)."""
        for picture, variants in self._pictures.values():
            for variant in range(variants):
                self.tokens([(picture, variant)])

    def tokens(self, chosen: Sequence[Seen]) -> list[torch.Tensor]:
        """Visual tokens of chosen variants, float16 `(cells, D)` each, on the CPU."""
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
        images = [self._exposed(picture, variant) for (_, variant), picture in group.items()]
        with torch.no_grad():
            tokens = visual_tokens(self._model, [torch.from_numpy(np.stack(images))])
        cells = [picture.grid.cells for picture in group.values()]
        kept = tokens.to("cpu", torch.float16)
        for key, part in zip(group, torch.split(kept, cells), strict=True):
            self._tokens[key] = part.clone()

    def _exposed(self, picture: Picture, variant: int) -> npt.NDArray[np.float32]:
        """The pixels of a variant, 0 to 255; of the first one as they are."""
        if not variant:
            return picture.pixels.astype(np.float32)
        # From the picture's number, not from the step: a resumed run sees the same exposure.
        number = self._numbers[id(picture)]
        return augmented(picture.pixels, np.random.default_rng([self._seed, number, variant]))


class TrainedTower(FeatureBank):
    """Visual tokens of a tower that is trained, too: encoded each time, with gradients."""

    def tokens(self, chosen: Sequence[Seen]) -> list[torch.Tensor]:
        """Visual tokens of chosen variants, `(cells, D)` each, on the device of the model."""
        if not chosen:
            return []
        images = [torch.from_numpy(self._exposed(*seen))[None] for seen in chosen]
        cells = [picture.grid.cells for picture, _ in chosen]
        return list(torch.split(visual_tokens(self._model, images), cells))
