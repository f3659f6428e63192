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
    **kwargs: Any,  # noqa: ANN401 - whatever transformers passes on
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
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return output


def last_row(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of the last query over all keys: `(B, K, G, S)`, G query heads per key head.

    The query heads are grouped by the key head that they share, so keys are never repeated.
    """
    batch, key_heads, _, size = key.shape
    grouped = query[:, :, -1].reshape(batch, key_heads, -1, size)
    scores = torch.matmul(grouped, key.transpose(2, 3))
    scores = scores * (size**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, :, -1:], float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32)


def traced_layers(which: TracedLayers, layers: int) -> tuple[int, ...]:
    """The layers whose rows are kept: none, at most a third (and 8) evenly spread, or all.

    >>> traced_layers("default", 12)
    (2, 5, 8, 11)
    """
    if which == "none":
        return ()
    if which == "all":
        return tuple(range(layers))
    count = max(1, min(MOST_DEFAULT_LAYERS, layers // 3))
    return tuple((number + 1) * layers // count - 1 for number in range(count))


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
        """Writes the row of one layer, if that layer is traced."""
        slot = self._slots.get(int(module.layer_idx))  # type: ignore[arg-type]
        if slot is None or self._current is None:
            return
        row = last_row(query, key, attention_mask, scaling)[0]
        target = self._current[slot]
        offset = 0
        for span in self._spans:
            cells = span.stop - span.start
            target[offset : offset + cells] = row[..., span.start : span.stop].mean((0, 1))
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
