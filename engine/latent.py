"""The latent visual segment: hidden states fed back as inputs, K times, closed by force.

The hardened loop of the methods notes (2.4): the segment opens with `<|lat_start|>`, whose
hidden state is the first latent; every slot is written as `<|lat|>` and fed the hidden state
before it; after K slots `<|lat_end|>` is written by the engine. Nothing can be drawn inside,
so a stop token, a tool call or an answer inside a segment is impossible.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from engine.attention import ImageSpan
from engine.geometry import PatchGrid
from engine.sampling import InvalidLogitsError
from engine.trace import EvidenceMap, LatentStep, quantised_map

LatentDraw = Callable[[torch.Tensor], torch.Tensor]
"""From the hidden state `(D,)` before a slot to the vector `(D,)` that the slot is fed."""


def bottleneck_columns(first_image: int, first_slot: int, last_slot: int) -> tuple[slice, slice]:
    """The evidence bottleneck (`Request.bottleneck`), in the columns of one branch.

    Past its latents a branch attends neither to the image nor to the text that has read it, the
    token that opens the segment included. The slots themselves see everything.

    Args:
        first_image: the first column of its first image.
        first_slot: of the segment.
        last_slot: of the segment.

    Returns:
        The queries that are narrowed, and the keys that are hidden from them.
    """
    return slice(last_slot + 1, None), slice(first_image, first_slot)


class LatentSegment:
    """Where one branch stands in its latent segment.

    Attributes:
        steps: how many slots the segment has.
        fed: how many slots have been fed.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.fed = 0
        self._previous: torch.Tensor | None = None

    @property
    def open(self) -> bool:
        """Whether another slot is to be fed."""
        return self.fed < self.steps

    def record(
        self,
        latent: torch.Tensor,
        view: torch.Tensor,
        grid: PatchGrid,
        attention: tuple[EvidenceMap, ...],
        seconds: float,
    ) -> LatentStep:
        """The event of a slot that has just been fed.

        Args:
            latent: `(D,)`, what was fed.
            view: `(N, D)`, the visual tokens of the view, each of unit length.
            grid: the grid of the view.
            attention: where the slot's query looked.
            seconds: since the start of the run.

        Raises:
            InvalidLogitsError: when the latent is not finite.
        """
        vector = latent.detach().to("cpu", torch.float32)
        norm = float(vector.norm())
        if not math.isfinite(norm):
            raise InvalidLogitsError
        cosine = None if self._previous is None else _cosine(vector, self._previous)
        self._previous = vector
        self.fed += 1
        return LatentStep(
            seconds=seconds,
            step=self.fed,
            steps=self.steps,
            attention=attention,
            similarity=similarity_map(latent, view, grid),
            norm=norm,
            cosine_to_previous=cosine,
            vector=vector.numpy().astype("<f4").tobytes(),
        )


def similarity_map(latent: torch.Tensor, view: torch.Tensor, grid: PatchGrid) -> EvidenceMap:
    """Cosine of a latent `(D,)` to unit-length visual tokens `(N, D)`; negatives count as 0."""
    values = view.float() @ unit(latent.float())
    return quantised_map(values.cpu().numpy().reshape(grid.rows, grid.columns), 0)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors over the last axis scaled to length 1; zeros stay zeros."""
    return torch.nn.functional.normalize(vectors, dim=-1, eps=1e-12)


def attention_maps(row: torch.Tensor, spans: tuple[ImageSpan, ...]) -> tuple[EvidenceMap, ...]:
    """One map per image from a row over all their tokens, float32 `(image tokens,)` on a CPU."""
    values = row.numpy()
    maps: list[EvidenceMap] = []
    offset = 0
    for span in spans:
        cells = span.grid.cells
        part = values[offset : offset + cells].reshape(span.grid.rows, span.grid.columns)
        maps.append(quantised_map(part, span.image))
        offset += cells
    return tuple(maps)


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.dot(unit(one), unit(other)).clamp(-1.0, 1.0))
