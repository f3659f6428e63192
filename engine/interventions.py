"""Changes to the evidence, named exactly, to ask whether what is shown matters.

`zero`, `noise` and `shuffle` change what is fed into a latent slot; `blind` feeds zeros and
also keeps the slot from attending to any image and to what has read one (a slot with a zeroed
input still reads the image by itself); `skip` is a segment of no slots (K = 0). Regions are
occluded before anything is encoded, so neither the view nor a crop can show them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from engine.geometry import Box
from engine.request import Interventions, LatentIntervention, RequestError

# Keeps the noise of an intervention apart from the draw of tokens under the same seed.
NOISE_STREAM = 0x6C617465


def occluded(pixels: npt.NDArray[np.uint8], boxes: tuple[Box, ...]) -> npt.NDArray[np.uint8]:
    """The image `(H, W)` or `(H, W, 3)` with every box painted in the image's mean."""
    if not boxes:
        return pixels
    height, width = pixels.shape[:2]
    painted = pixels.copy()
    mean = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
    for box in boxes:
        x0, y0, x1, y1 = box.to_pixels_outward(width, height)
        painted[y0:y1, x0:x1] = mean
    return painted


class LatentChange:
    """Turns the vector that a slot would be fed into the one that it is fed."""

    def __init__(self, interventions: Interventions, seed: int, width: int) -> None:
        self.kind: LatentIntervention = interventions.latents
        self._generator = torch.Generator().manual_seed((seed ^ NOISE_STREAM) % 2**63)
        self._donor = [_donated(raw, width) for raw in interventions.latent_donor]

    @property
    def blind(self) -> bool:
        """Whether slots are kept from attending to the images, and to what has read them."""
        return self.kind == "blind"

    def apply(self, latent: torch.Tensor, step: int) -> torch.Tensor:
        """The vector `(D,)` to feed at slot `step` (from 0) instead of `latent`.

        Noise has the norm of the vector it replaces, so only its direction is lost.
        """
        if self.kind in ("zero", "blind"):
            return torch.zeros_like(latent)
        if self.kind == "shuffle":
            return self._donor[step % len(self._donor)].to(latent)
        if self.kind == "noise":
            shape, generator = latent.shape, self._generator
            noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(latent)
            scaled: torch.Tensor = noise * (latent.norm() / noise.norm())
            return scaled
        return latent


def _donated(raw: bytes, width: int) -> torch.Tensor:
    if len(raw) != 4 * width:
        raise RequestError(
            f"A latent of another run has {len(raw) // 4} numbers; this model needs {width}: "
            "take the latents from a run of the same checkpoint."
        )
    return torch.from_numpy(np.frombuffer(raw, dtype="<f4").copy())
