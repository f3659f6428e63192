"""Looking again: from a box to a crop of the original pixels, ready to be appended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.geometry import Box
from engine.manifest import Manifest
from engine.processor import ImageProcessor, SeenImage, crop_pixels
from engine.prompt import IM_END, assistant_head, turn
from engine.rasters import encoded_png
from engine.request import Interventions
from engine.trace import Reground, Trigger

SKIPPED_MESSAGE: Final = "The region cannot be shown."
NO_ZOOMS_LEFT: Final = "No more zooms are left. Answer now."
MOST_FAILED_CALLS: Final = 2
# After a turn that ended without an answer (methods notes, 3.8).
ANSWER_TURN: Final = f"{IM_END}\n{turn('user', 'Answer now.')}{assistant_head()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One look at a region.

    Attributes:
        box: the region that was asked for (or the one an intervention put in its place).
        source_px: the pixels that were cut: `box` with the checkpoint's padding, outwards.
        seen: the crop as the vision tower takes it.
        skipped: whether an intervention keeps it from the model.
    """

    number: int
    box: Box
    clamped: bool
    source_px: tuple[int, int, int, int]
    seen: SeenImage
    png: bytes
    skipped: bool

    def event(
        self, trigger: Trigger, seen_width: int, seen_height: int, seconds: float
    ) -> Reground:
        """The event of this look; `seen_*` is the size of the view in pixels."""
        return Reground(
            seconds=seconds,
            number=self.number,
            box=self.box.as_tuple(),
            box_source_px=self.source_px,
            box_seen_px=self.box.to_pixels(seen_width, seen_height),
            clamped=self.clamped,
            skipped=self.skipped,
            trigger=trigger,
            rows=self.seen.grid.rows,
            columns=self.seen.grid.columns,
            crop_width=self.seen.width,
            crop_height=self.seen.height,
            crop_png=self.png,
        )


def refusal(complaint: str, failed_calls: int, crops_left: int) -> str:
    """What the model is told about a call that cannot be carried out.

    Args:
        complaint: what is wrong with the call.
        failed_calls: how many calls have failed, this one included.
        crops_left: how many zooms the budget still holds.
    """
    if failed_calls > MOST_FAILED_CALLS or crops_left <= 0:
        return NO_ZOOMS_LEFT
    return complaint


def cut_crop(
    *,
    pixels: npt.NDArray[np.uint8],
    number: int,
    box: Box,
    clamped: bool,
    processor: ImageProcessor,
    manifest: Manifest,
    interventions: Interventions,
) -> Crop:
    """Cuts and prepares the crop of a box, under the interventions on its number.

    Args:
        pixels: the displayed original at full size, `(H, W)` or `(H, W, 3)`.
        number: of the crop, from 1.
        box: what was asked for.
        clamped: whether it had to be cut at the image edge.
        processor: prepares the crop for the vision tower.
        manifest: padding and pixel budget of crops.
        interventions: may skip the crop or move it.
    """
    moved = dict(interventions.move_crops).get(number)
    if moved is not None:
        box, clamped = moved, False
    padded = box.padded(manifest.crop_padding)
    height, width = pixels.shape[:2]
    seen = processor(crop_pixels(pixels, padded), manifest.crop)
    return Crop(
        number=number,
        box=box,
        clamped=clamped,
        source_px=padded.to_pixels_outward(width, height),
        seen=seen,
        png=encoded_png(processor.seen_pixels(seen)),
        skipped=number in interventions.skip_crops,
    )
