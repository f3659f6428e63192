"""The model behind the loop: a batch of branches, extended position by position.

Everything that the loop needs of the model goes through `Decoder`: encode an image, lay out
text and images as embeddings with explicit positions, extend branches by a segment or by one
step, fork. The state of a batch is a plain value (`DecodeState`), so any number of runs can
share one model. The language model is called below transformers' outer wrapper, with the same
embeddings, positions and masks that the wrapper would make; tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from transformers import DynamicCache

from engine.attention import ImageSpan
from engine.cache import expand, fork, join, merge, select
from engine.geometry import PatchGrid
from engine.loading import LoadedModel
from engine.positions import PositionCursor
from engine.processor import SeenImage, expanded_ids

POSITION_BLOCK: Final = 1024


class RowTaker(Protocol):
    """What the attention function calls for every layer (see `engine.attention`)."""

    def take(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        """Takes the last query's row of one layer."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A segment of text and images, ready to be sent through the language model.

    Attributes:
        embeddings: `(1, T, D)`.
        positions: int64 `(3, T)`.
        images: the spans of its images, columns counted from the start of the segment.
        next_position: where the text goes on.
        ids: its tokens, images expanded to runs of the image pad.
    """

    embeddings: torch.Tensor
    positions: torch.Tensor
    images: tuple[ImageSpan, ...]
    next_position: int
    ids: tuple[int, ...]


@dataclass(slots=True)
class DecodeState:
    """A batch of branches, each with everything fed so far.

    Attributes:
        cache: keys and values of all columns.
        hidden: `(B, D)`, the last hidden state (after the final norm) of every branch.
        logits: `(B, V)`, the next-token logits of every branch.
        next_positions: the next text position of every branch.
        images: the images in the context of every branch.
        real: bool `(B, S)`, False where a column is padding; None when none is.
    """

    cache: DynamicCache
    hidden: torch.Tensor
    logits: torch.Tensor
    next_positions: list[int]
    images: list[tuple[ImageSpan, ...]]
    real: torch.Tensor | None

    @property
    def length(self) -> int:
        """How many columns the cache has."""
        return int(self.cache.get_seq_length())


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """A moment of a branch that another branch can go on from.

    Attributes:
        columns: how long the cache was.
        hidden: `(D,)`, its last hidden state then.
        logits: `(V,)`, its next-token logits then.
        next_position: its next text position then.
    """

    columns: int
    hidden: torch.Tensor
    logits: torch.Tensor
    next_position: int


class Rotation:
    """Cosines and sines of text positions, taken from the model's own rotary module.

    Text repeats one number in all three M-RoPE ids, so its angles depend on that number alone
    and are looked up; types of rotary embedding whose angles change with the length of the
    sequence are computed anew every time.
    """

    def __init__(self, language: Any, device: torch.device) -> None:  # noqa: ANN401
        self._rotary = language.rotary_emb
        self._device = device
        self._fixed = self._rotary.rope_type == "default"
        self._table: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self, positions: list[int], like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `(B, 1, D)` of one text position per branch."""
        if not self._fixed:
            ids = torch.tensor(positions, device=self._device)[None, :, None].expand(3, -1, -1)
            computed: tuple[torch.Tensor, torch.Tensor] = self._rotary(like, ids)
            return computed
        if self._table is None or max(positions) >= self._table[0].shape[1]:
            size = -(-(max(positions) + 1) // POSITION_BLOCK) * POSITION_BLOCK
            ids = torch.arange(size, device=self._device).expand(3, 1, -1)
            self._table = self._rotary(like, ids)
        cosines, sines = self._table
        if len(positions) == 1:
            place = slice(positions[0], positions[0] + 1)
            return cosines[:, place], sines[:, place]
        index = torch.tensor(positions, device=self._device)
        return cosines[0, index][:, None], sines[0, index][:, None]


class Decoder:
    """Runs the model of one checkpoint for one run.

    Attributes:
        forwarded: how many positions have been sent through the language model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.device = loaded.device
        self.forwarded = 0
        self._inner = loaded.model.model
        self._language = loaded.model.model.language_model
        self._head = loaded.model.lm_head
        self._embedding = loaded.model.get_input_embeddings()
        self._rotation = Rotation(self._language, self.device)

    @property
    def attention(self) -> str:
        """Name of the attention function that the language model runs."""
        name: str = self._language.config._attn_implementation
        return name

    @torch.inference_mode()
    def encode(self, seen: SeenImage) -> torch.Tensor:
        """Merged visual tokens of one image: `(rows * columns, D)`."""
        features = self._inner.get_image_features(
            seen.pixel_values.to(self.device), seen.grid_thw.to(self.device), return_dict=True
        )
        tokens: torch.Tensor = features.pooler_output[0]
        return tokens

    @torch.inference_mode()
    def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Token embeddings `(1, T, D)`."""
        ids = torch.tensor([token_ids], device=self.device)
        embeddings: torch.Tensor = self._embedding(ids)
        return embeddings

    @torch.inference_mode()
    def lay_out(
        self,
        text: str,
        images: list[tuple[int, torch.Tensor, PatchGrid]],
        start: int,
    ) -> Layout:
        """Text with image pads as embeddings and positions.

        Args:
            text: each image stands as one pad.
            images: number, visual tokens `(N, D)` and grid of each image, in order.
            start: the position of the first token.
        """
        grids = [grid for _, _, grid in images]
        ids = expanded_ids(self.loaded.tokenizer, text, grids)
        pad = self.loaded.vocabulary.image_pad
        cursor = PositionCursor(start)
        positions = cursor.sequence(ids, pad, grids).to(self.device)
        embeddings = self.embed(ids)
        spans: list[ImageSpan] = []
        column = 0
        for number, tokens, grid in images:
            column = ids.index(pad, column)
            embeddings[0, column : column + grid.cells] = tokens.to(embeddings.dtype)
            spans.append(ImageSpan(number, column, grid))
            column += grid.cells
        return Layout(embeddings, positions, tuple(spans), cursor.next, tuple(ids))

    def text_layout(self, token_ids: list[int], start: int) -> Layout:
        """Text tokens as embeddings and positions."""
        cursor = PositionCursor(start)
        positions = cursor.text(len(token_ids)).to(self.device)
        return Layout(self.embed(token_ids), positions, (), cursor.next, tuple(token_ids))

    @torch.inference_mode()
    def prefill(self, layout: Layout, recorder: RowTaker | None = None) -> DecodeState:
        """Runs a prompt and returns a batch of one branch."""
        cache = DynamicCache()
        hidden = self._forward(layout.embeddings, layout.positions[:, None], cache, None, recorder)
        return DecodeState(
            cache=cache,
            hidden=hidden[:, -1],
            logits=self._head(hidden[:, -1]),
            next_positions=[layout.next_position],
            images=[layout.images],
            real=None,
        )

    @torch.inference_mode()
    def logits_at(self, layout: Layout, columns: list[int]) -> torch.Tensor:
        """One pass over a whole sequence; next-token logits `(N, V)` at the given columns."""
        hidden = self._forward(layout.embeddings, layout.positions[:, None], DynamicCache(), None)
        logits: torch.Tensor = self._head(hidden[0, columns])
        return logits

    @torch.inference_mode()
    def append(
        self, state: DecodeState, row: int, layout: Layout, recorder: RowTaker | None = None
    ) -> None:
        """Extends one branch by a segment, without running anything before it again.

        The other branches get masked columns, so that the batch stays rectangular.
        """
        start, batch = state.length, len(state.next_positions)
        alone = batch == 1
        cache = state.cache if alone else fork(state.cache, row=row)
        count = layout.embeddings.shape[1]
        real = None if state.real is None else state.real[row : row + 1]
        mask = self._segment_mask(start, count, real)
        hidden = self._forward(layout.embeddings, layout.positions[:, None], cache, mask, recorder)
        self._set_row(state, row, hidden[:, -1])
        state.next_positions[row] = layout.next_position
        state.images[row] += tuple(
            ImageSpan(span.image, span.start + start, span.grid) for span in layout.images
        )
        if not alone:
            state.cache = merge(state.cache, cache, [row])
            state.real = self._widened(state.real, batch, start, count, [row])
        elif state.real is not None:
            state.real = self._widened(state.real, batch, start, count, [0])

    @torch.inference_mode()
    def step(
        self,
        state: DecodeState,
        inputs: torch.Tensor,
        recorder: RowTaker | None = None,
        blind: Mapping[int, int] | None = None,
    ) -> None:
        """Feeds one position to every branch.

        Args:
            state: updated in place.
            inputs: `(B, 1, D)` embeddings.
            recorder: takes attention rows.
            blind: branches whose new position may not attend to any image, nor to what has read
                one: by row, the first column behind these that it may attend to.
        """
        batch, length = len(state.next_positions), state.length
        if state.real is not None:
            state.real = self._widened(state.real, batch, length, 1, list(range(batch)))
        mask = None if state.real is None else state.real[:, None, None, :]
        if blind:
            mask = self._blinded(mask, state, length + 1, blind)
        state.hidden = self._step_forward(inputs, state, mask, recorder)
        state.logits = self._head(state.hidden)
        for row in range(batch):
            state.next_positions[row] += 1

    @torch.inference_mode()
    def embed_step(self, token_ids: list[int]) -> torch.Tensor:
        """Embeddings of one token per branch: `(B, 1, D)`."""
        ids = torch.tensor(token_ids, device=self.device)[:, None]
        embeddings: torch.Tensor = self._embedding(ids)
        return embeddings

    def branched(self, state: DecodeState, row: int, drop: int = 0) -> DecodeState:
        """One branch as a batch of its own, over shared tensors, without its last columns.

        Only text or latent columns may be dropped; `hidden` and `logits` are then stale until
        something is fed.
        """
        real = None if state.real is None else state.real[row : row + 1]
        kept = state.length - drop
        dropped = drop if real is None else int(real[:, kept:].sum())
        return DecodeState(
            cache=fork(state.cache, drop, row),
            hidden=state.hidden[row : row + 1],
            logits=state.logits[row : row + 1],
            next_positions=[state.next_positions[row] - dropped],
            images=[state.images[row]],
            real=None if real is None else real[:, :kept],
        )

    @torch.inference_mode()
    def expanded(self, state: DecodeState, count: int) -> DecodeState:
        """A group: every branch `count` times in a row, the prompt run once."""
        real = state.real
        return DecodeState(
            cache=expand(state.cache, count),
            hidden=state.hidden.repeat_interleave(count, 0),
            logits=state.logits.repeat_interleave(count, 0),
            next_positions=[p for p in state.next_positions for _ in range(count)],
            images=[spans for spans in state.images for _ in range(count)],
            real=None if real is None else real.repeat_interleave(count, 0),
        )

    def point_of(self, state: DecodeState, row: int) -> ForkPoint:
        """The present moment of a branch."""
        return ForkPoint(
            columns=state.length,
            hidden=state.hidden[row].clone(),
            logits=state.logits[row].clone(),
            next_position=state.next_positions[row],
        )

    def forked(self, state: DecodeState, row: int, point: ForkPoint) -> DecodeState:
        """A branch that goes on from an earlier moment of another, as a batch of its own.

        Nothing is run again and nothing is copied: it sees the tensors of the batch up to that
        moment, until it is fed something or `joined` to the batch.

        Args:
            state: the batch as it is now.
            row: of the other branch in it.
            point: the moment.
        """
        columns = point.columns
        return DecodeState(
            cache=fork(state.cache, state.length - columns, row),
            hidden=point.hidden[None],
            logits=point.logits[None],
            next_positions=[point.next_position],
            images=[tuple(span for span in state.images[row] if span.start < columns)],
            real=None if state.real is None else state.real[row : row + 1, :columns],
        )

    @torch.inference_mode()
    def joined(self, states: list[DecodeState]) -> DecodeState:
        """The branches of several batches as one, in order, over one copy of their tensors.

        What a branch lacks in columns is padding, hidden from it.
        """
        length = max(state.length for state in states)
        real = torch.cat(
            [
                torch.nn.functional.pad(self._real(state), (0, length - state.length))
                for state in states
            ]
        )
        return DecodeState(
            cache=join([state.cache for state in states]),
            hidden=torch.cat([state.hidden for state in states]),
            logits=torch.cat([state.logits for state in states]),
            next_positions=[position for state in states for position in state.next_positions],
            images=[spans for state in states for spans in state.images],
            real=real,
        )

    def hide(self, state: DecodeState, row: int, columns: slice) -> None:
        """Keeps everything that a branch is fed from now on from attending to some columns."""
        real = self._real(state)
        hidden = torch.zeros_like(real)
        hidden[row, columns] = True
        state.real = real & ~hidden

    def _real(self, state: DecodeState) -> torch.Tensor:
        """Bool `(B, S)`: which columns are no padding."""
        if state.real is not None:
            return state.real
        batch = len(state.next_positions)
        return torch.ones(batch, state.length, dtype=torch.bool, device=self.device)

    def selected(self, state: DecodeState, rows: list[int]) -> DecodeState:
        """Only the given branches, in the given order."""
        index = torch.tensor(rows, device=self.device)
        return DecodeState(
            cache=select(state.cache, rows),
            hidden=state.hidden[index],
            logits=state.logits[index],
            next_positions=[state.next_positions[row] for row in rows],
            images=[state.images[row] for row in rows],
            real=None if state.real is None else state.real[index],
        )

    def _forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache,
        mask: torch.Tensor | None,
        recorder: RowTaker | None = None,
    ) -> torch.Tensor:
        self.forwarded += embeddings.shape[0] * embeddings.shape[1]
        extra = {} if recorder is None else {"recorder": recorder}
        # A mapping says that the masks are ready: transformers then makes none. No mask is
        # right for a whole prompt (the kernel is causal by itself) and for a single query.
        hidden: torch.Tensor = self._language(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=True,
            **extra,
        ).last_hidden_state
        return hidden

    def _step_forward(
        self,
        inputs: torch.Tensor,
        state: DecodeState,
        mask: torch.Tensor | None,
        recorder: RowTaker | None,
    ) -> torch.Tensor:
        """One position through the model's own layers; the last hidden states `(B, D)`.

        The same layers in the same order as the language model's forward, without what that
        does anew for every token although it never changes within a run: collecting outputs,
        making masks, computing rotary angles. For a small model this is a third of the time.
        """
        self.forwarded += inputs.shape[0]
        extra = {} if recorder is None else {"recorder": recorder}
        rotation = self._rotation(state.next_positions, inputs)
        hidden = inputs
        for layer in self._language.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotation,
                past_key_values=state.cache,
                use_cache=True,
                **extra,
            )
        last: torch.Tensor = self._language.norm(hidden)[:, -1]
        return last

    def _segment_mask(
        self, start: int, count: int, real: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Causal mask `(1, 1, T, S + T)` of a segment behind `start` cached columns.

        It must be explicit: without one, transformers' SDPA takes several queries for a whole
        prompt and cuts the cache off.
        """
        if count == 1 and real is None:
            return None
        mask = torch.ones(count, start + count, dtype=torch.bool, device=self.device).tril(start)
        if real is not None:
            mask[:, :start] &= real
        return mask[None, None]

    def _blinded(
        self,
        mask: torch.Tensor | None,
        state: DecodeState,
        length: int,
        rows: Mapping[int, int],
    ) -> torch.Tensor:
        batch = len(state.next_positions)
        blinded = torch.ones(batch, 1, 1, length, dtype=torch.bool, device=self.device)
        if mask is not None:
            blinded &= mask
        for row, sees_from in rows.items():
            # What stands between the image and the slots has read the image.
            first = min(span.start for span in state.images[row])
            blinded[row, ..., first:sees_from] = False
        return blinded

    def _widened(
        self, real: torch.Tensor | None, batch: int, length: int, count: int, rows: list[int]
    ) -> torch.Tensor:
        if real is None:
            real = torch.ones(batch, length, dtype=torch.bool, device=self.device)
        added = torch.zeros(batch, count, dtype=torch.bool, device=self.device)
        added[rows] = True
        return torch.cat([real, added], dim=1)

    def _set_row(self, state: DecodeState, row: int, hidden: torch.Tensor) -> None:
        logits = self._head(hidden)
        if len(state.next_positions) == 1:
            state.hidden, state.logits = hidden, logits
            return
        state.hidden, state.logits = state.hidden.clone(), state.logits.clone()
        state.hidden[row], state.logits[row] = hidden[0], logits[0]
