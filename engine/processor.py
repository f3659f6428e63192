"""Images to what the vision tower takes, and text with images to token ids.

Uses transformers' own PIL image processor (no torchvision) and a tokenizer; the expansion of
image placeholders is ours, because `Qwen2_5_VLProcessor` cannot be built without torchvision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.geometry import Box, PatchGrid
from engine.manifest import PixelBudget
from engine.prompt import IMAGE_PAD

PATCH_SIZE = 14
MERGE_SIZE = 2
TOKEN_SIZE = PATCH_SIZE * MERGE_SIZE
MOST_EXTREME_ASPECT = 200


class ImageShapeError(ValueError):
    """An image that the model cannot take; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenImage:
    """One image as the vision tower takes it.

    Attributes:
        pixel_values: float32 `(patches, 1176)`, normalised, in the tower's patch order.
        grid_thw: int64 `(1, 3)`: one frame, patch rows, patch columns.
        grid: the grid of visual tokens after merging 2 x 2 patches.
        width, height: the resized image in pixels.
        is_grey: whether its channels were one before they were normalised.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    grid: PatchGrid
    width: int
    height: int
    is_grey: bool = False


class ImageProcessor:
    """Resizes, normalises and patches images with transformers' PIL backend."""

    def __init__(self, processor: Qwen2VLImageProcessorPil | None = None) -> None:
        self._processor = processor or Qwen2VLImageProcessorPil()

    def __call__(self, pixels: npt.NDArray[np.uint8], budget: PixelBudget) -> SeenImage:
        """Prepares one 8-bit image, `(H, W)` or `(H, W, 3)`.

        Raises:
            ImageShapeError: when one side is over 200 times the other.
        """
        height, width = pixels.shape[:2]
        if max(height, width) > MOST_EXTREME_ASPECT * min(height, width):
            raise ImageShapeError(
                f"The image is {width} x {height} pixels: one side is more than "
                f"{MOST_EXTREME_ASPECT} times the other, which the model cannot read."
            )
        rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
        features = self._processor(
            images=[rgb],
            size={"shortest_edge": budget.least, "longest_edge": budget.most},
            input_data_format="channels_last",
            return_tensors="pt",
        )
        grid_thw = features["image_grid_thw"].to(torch.int64)
        _, rows, columns = (int(value) for value in grid_thw[0])
        return SeenImage(
            pixel_values=features["pixel_values"],
            grid_thw=grid_thw,
            grid=PatchGrid(rows // MERGE_SIZE, columns // MERGE_SIZE),
            width=columns * PATCH_SIZE,
            height=rows * PATCH_SIZE,
            is_grey=pixels.ndim == 2,
        )

    def seen_pixels(self, seen: SeenImage) -> npt.NDArray[np.uint8]:
        """The resized 8-bit image, recovered from the patches: `(H, W, 3)`; grey `(H, W)`."""
        values = distinct_values(seen)
        blocks = (seen.grid.rows, seen.grid.columns, MERGE_SIZE, MERGE_SIZE)
        channels = values.shape[1]
        patches = values.reshape(*blocks, channels, PATCH_SIZE, PATCH_SIZE)
        image = patches.permute(0, 2, 5, 1, 3, 6, 4)
        # Named, since torch's own default is another while a model is read in half precision.
        mean = torch.tensor(self._processor.image_mean[:channels], dtype=torch.float32)
        std = torch.tensor(self._processor.image_std[:channels], dtype=torch.float32)
        levels = (image.reshape(seen.height, seen.width, channels) * std + mean) * 255.0
        recovered: npt.NDArray[np.uint8] = levels.round().clamp(0, 255).to(torch.uint8).numpy()
        return recovered[..., 0] if seen.is_grey else recovered


def distinct_values(seen: SeenImage) -> torch.Tensor:
    """The values of an image that are not there twice: float32 `(patches, channels, 196)`.

    The tower takes a still image for two frames, and a grey one for three channels, which differ
    by nothing but how they were normalised.
    """
    values = seen.pixel_values.reshape(len(seen.pixel_values), 3, 2, -1)[:, :, 0]
    return values[:, :1] if seen.is_grey else values


def crop_pixels(pixels: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """The part of an image under a normalised box, rounded outwards to whole pixels."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = box.to_pixels_outward(width, height)
    return pixels[y0:y1, x0:x1]


def expanded_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, grids: list[PatchGrid]
) -> list[int]:
    """Token ids of a text, each image pad repeated once per visual token of its grid.

    Raises:
        ValueError: when the text has another number of images than there are grids.
    """
    pad = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    if not isinstance(pad, int):
        raise ValueError(f"The tokenizer does not know {IMAGE_PAD}.")
    ids: list[int] = []
    waiting = list(grids)
    for token_id in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if token_id != pad:
            ids.append(token_id)
            continue
        if not waiting:
            raise ValueError("The text holds more images than were given.")
        ids += [pad] * waiting.pop(0).cells
    if waiting:
        raise ValueError("The text holds fewer images than were given.")
    return ids
