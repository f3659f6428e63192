"""Attention rows over the image, taken beside the fast kernel and never instead of it.

A registered attention function runs transformers' own SDPA and then, for the layers that are
traced, recomputes one row: the softmax of the last query against all keys. It is exact because
query and keys are the kernel's own inputs, and the kernel's output is untouched, so tracing
cannot change a token. The recorder travels as a keyword argument through the model, there is
no global state. The mask function is registered under the same name: a name that is missing
there would silently get no mask at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.geometry import PatchGrid
from engine.request import TracedLayers

ATTENTION_NAME: Final = "sdpa_with_rows"
MOST_DEFAULT_LAYERS: Final = 8
BLOCK_STEPS: Final = 32


def register_row_attention() -> str:
    """Registers the attention function and its mask; idempotent. Returns the name."""
    AttentionInterface.register(ATTENTION_NAME, sdpa_with_rows)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    return ATTENTION_NAME


def sdpa_with_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    recorder: AttentionRecorder | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA, and one recomputed row for a traced layer.

    Args:
        module: the attention module; it knows its layer.
        query: `(B, H, T, D)` after rotary embedding.
        key: `(B, K, S, D)`, the whole cache.
        value: `(B, K, S, D)`, the whole cache.
        attention_mask: bool `(B, 1, T, S)`, True where attention is allowed, or None.
        recorder: takes the row; None outside of traced runs.
        scaling: factor on the scores, `D ** -0.5` when None.
        **kwargs: for the kernel.

    Returns:
        Attention output `(B, T, H, D)` and None.
    """
    if recorder is not None:
        recorder.take(module, query, key, attention_mask, scaling)
    if query.shape[2] == 1 and attention_mask is None and query.device.type == "cpu":
        return _single_query(query, key, value, scaling), None
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return output


def _single_query(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """The kernel call that transformers makes for one query without a mask: `(B, 1, H, D)`.

    Same kernel, same arguments, same bits; what is left out is the way there, which for a
    small model costs as much as the kernel.
    """
    batch, heads, _, size = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, size)
    output = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, scale=scaling)
    return output.reshape(batch, 1, heads, size)


def row_scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Products of the last query with all keys: `(1, K, G, S)`, not yet scaled.

    Args:
        query: `(1, H, T, D)`; its heads are grouped by the key head that they share, so keys
            are never repeated.
        key: `(1, K, S, D)`.
    """
    grouped = query[:, :, -1].reshape(1, key.shape[1], -1, key.shape[3])
    return torch.matmul(grouped, key.mT)


def row_weights(scores: torch.Tensor, scaling: float, allowed: torch.Tensor | None) -> torch.Tensor:
    """Softmax of scaled scores over the last axis, float32; `allowed` is a bool row `(S,)`."""
    scores = scores.float() * scaling
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.softmax(scores, dim=-1)


def traced_layers(which: TracedLayers, layers: int) -> tuple[int, ...]:
    """The layers whose rows are kept: none, at most a third (and 8) evenly spread, or all.

    The layers are cut into that many runs, and the middle one of each is taken: the last layers of
    a model look least at what it speaks of.

    >>> traced_layers("default", 12)
    (1, 4, 7, 10)
    """
    if which == "none":
        return ()
    if which == "all":
        return tuple(range(layers))
    count = max(1, min(MOST_DEFAULT_LAYERS, layers // 3))
    return tuple(((2 * number + 1) * layers - count) // (2 * count) for number in range(count))


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where the visual tokens of one image lie among the keys of the cache.

    Attributes:
        image: 0 for the view of the whole image, n for crop n.
        start: the first column.
        grid: rows and columns of visual tokens, in raster order.
    """

    image: int
    start: int
    grid: PatchGrid

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + self.grid.cells


class AttentionRecorder:
    """Keeps the rows of one branch: mean over heads, image columns only, fp16.

    Memory grows in blocks that are allocated ahead; one row of one layer costs exactly two
    bytes per visual token in context.
    """

    def __init__(self, layers: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self.layers = layers
        self._slots = {layer: slot for slot, layer in enumerate(layers)}
        self._device = device
        self._spans: tuple[ImageSpan, ...] = ()
        self._tokens = 0
        self._blocks: list[torch.Tensor] = []
        self._used: list[int] = []
        self._current: torch.Tensor | None = None
        self._scores: list[torch.Tensor] = []

    def begin_step(self, spans: tuple[ImageSpan, ...]) -> None:
        """Opens the row of the next forward; `spans` are the images it can attend to."""
        if spans != self._spans:
            self._trim()
            self._spans = spans
            self._tokens = sum(span.grid.cells for span in spans)
            self._blocks.append(self._new_block())
            self._used.append(0)
        elif self._used[-1] == len(self._blocks[-1]):
            self._blocks.append(self._new_block())
            self._used.append(0)
        self._current = self._blocks[-1][self._used[-1]]
        self._used[-1] += 1

    def take(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        """Takes the row of one layer, if that layer is traced.

        Only the scores are computed here, one product a layer; the last traced layer turns
        those of all layers into rows at once, so that tracing costs few small kernels.
        """
        slot = self._slots.get(module.layer_idx)  # type: ignore[call-overload]
        if slot is None or self._current is None:
            return
        if slot == 0:
            self._scores.clear()
        self._scores.append(row_scores(query, key))
        if slot == len(self.layers) - 1:
            allowed = None if attention_mask is None else attention_mask[0, 0, -1]
            factor = query.shape[-1] ** -0.5 if scaling is None else scaling
            self._write(self._current, row_weights(torch.cat(self._scores), factor, allowed))

    def _write(self, target: torch.Tensor, weights: torch.Tensor) -> None:
        """Mean over heads of `(layers, K, G, S)` into the image columns of the block."""
        offset = 0
        for span in self._spans:
            cells = span.grid.cells
            part = weights[..., span.start : span.start + cells]
            target[:, offset : offset + cells] = part.mean((1, 2))
            offset += cells

    def copy_step(self, other: AttentionRecorder) -> None:
        """Takes over the row of a branch that was the same until now."""
        if self._current is not None and other._current is not None:
            self._current.copy_(other._current)

    @property
    def spans(self) -> tuple[ImageSpan, ...]:
        """The images of the current step."""
        return self._spans

    def mean_row(self) -> torch.Tensor:
        """Mean over the traced layers of the current step: float32 `(image tokens,)`."""
        if self._current is None or not self.layers:
            return torch.zeros(0, device=self._device)
        return self._current.mean(0, dtype=torch.float32)

    @property
    def steps(self) -> int:
        """How many rows have been taken."""
        return sum(self._used)

    def rows(self) -> list[torch.Tensor]:
        """All rows, one fp16 tensor `(steps, layers, image tokens)` per set of images."""
        merged: list[torch.Tensor] = []
        for block, used in zip(self._blocks, self._used, strict=True):
            part = block[:used]
            if merged and merged[-1].shape[2] == part.shape[2]:
                merged[-1] = torch.cat([merged[-1], part])
            else:
                merged.append(part)
        return merged

    def finish(self) -> None:
        """Gives back the memory that was allocated ahead and not used."""
        self._trim()

    def bytes_kept(self) -> int:
        """Bytes of storage that the rows hold."""
        return sum(block.untyped_storage().nbytes() for block in self._blocks)

    def _new_block(self) -> torch.Tensor:
        return torch.empty(
            BLOCK_STEPS, len(self.layers), self._tokens, dtype=torch.float16, device=self._device
        )

    def _trim(self) -> None:
        if self._blocks and self._used[-1] < len(self._blocks[-1]):
            self._blocks[-1] = self._blocks[-1][: self._used[-1]].clone()
            self._current = self._blocks[-1][-1] if self._used[-1] else None


class BatchRecorder:
    """One recorder per branch of a batch, behind the interface of one."""

    def __init__(self, recorders: list[AttentionRecorder]) -> None:
        self.recorders = recorders

    def take(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        """Gives every branch its own part of the batch."""
        for index, recorder in enumerate(self.recorders):
            one = slice(index, index + 1)
            mask = None if attention_mask is None else attention_mask[one]
            recorder.take(module, query[one], key[one], mask, scaling)
