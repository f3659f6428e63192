"""Records padded into a batch, with visual tokens, latent slots and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from engine.geometry import Box, PatchGrid
from engine.positions import PositionCursor
from engine.prompt import IMAGE_PAD, LATENT_SLOT
from training.embedded import single_id
from training.features import FeatureBank, Seen
from training.grounding import Look, Written
from training.latents import LatentConfig, bottleneck_mask
from training.letter_heads import Pointer
from training.numbers import FreeNumber, number_ids
from training.records import Record, seen_size
from training.roi import roi_cells, roi_targets
from training.world import Picture


@dataclass(frozen=True, slots=True, eq=False)
class SlotRegion:
    """Slots of one record, and what they should point into.

    Attributes:
        first, count: of the slots of the batch, row by row.
        tokens: `(N, D)`, visual tokens of the view.
        cells: of them, those of the region.
    """

    first: int
    count: int
    tokens: torch.Tensor
    cells: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded records.

    Attributes:
        ids: int64 `(B, T)`.
        weights: `(B, T)`, of every token as a target; 0 on padding.
        positions: int64 `(3, B, T)`.
        visual: `(N, D)`, visual tokens of all images in order.
        slots: bool `(B, T)`, True at latent slots.
        slot_targets: `(S, D)`, what each slot is to hold, row by row; also the teacher's input.
        mask: bool `(B, 1, T, T)`, or None where plain causal attention is right.
        views: the first picture of each record, None where it has none.
        looks: tokens that write coordinates, and where their box lies.
        regions: what the slots of a record with boxes should point into.
        free: rows of coordinates of which any number that makes a box will do, with them.
        numbers: ids of the numbers from 0 on, where some are free.
        pointers: where tokens are to look, with their rows.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor
    slots: torch.Tensor
    slot_targets: torch.Tensor
    mask: torch.Tensor | None = None
    views: tuple[Picture | None, ...] = ()
    looks: tuple[Look, ...] = ()
    regions: tuple[SlotRegion, ...] = ()
    free: tuple[tuple[int, FreeNumber], ...] = ()
    numbers: tuple[int, ...] = ()
    pointers: tuple[tuple[int, Pointer], ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            ids=self.ids.to(device),
            weights=self.weights.to(device),
            positions=self.positions.to(device),
            visual=self.visual.to(device),
            slots=self.slots.to(device),
            slot_targets=self.slot_targets.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            views=self.views,
            looks=self.looks,
            regions=self.regions,
            free=self.free,
            numbers=self.numbers,
            pointers=self.pointers,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Padded records before their visual tokens are fetched: cheap, and all that is drawn.

    Attributes:
        records: in order.
        seen: variants of their pictures, in order.
        ids, weights, positions, slots, mask, looks, numbers: as in `Batch`.
    """

    records: tuple[Record, ...]
    seen: list[Seen]
    ids: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor | None
    looks: tuple[Look, ...]
    numbers: tuple[int, ...] = ()


def collate(
    records: Sequence[Record],
    bank: FeatureBank,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    latents: LatentConfig | None = None,
    bottleneck: float = 0.0,
) -> Batch:
    """Pads records and gathers their visual tokens; padding has weight 0 and is never seen.

    Right padding under a causal mask needs no attention mask: no token attends to what
    follows it.

    Args:
        records: to be padded.
        bank: holds their visual tokens.
        tokenizer: of the records.
        rng: draws exposures, and which records are bottled.
        latents: what the slots of records with latent segments are to hold.
        bottleneck: probability that a record with a latent segment may not look at its image
            after it.
    """
    return filled(lay_out(records, bank, tokenizer, rng, bottleneck), bank, latents)


def lay_out(
    records: Sequence[Record],
    bank: FeatureBank,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    bottleneck: float = 0.0,
) -> Layout:
    """Pads records and draws everything that is random about them (arguments as in `collate`)."""
    image_id, slot_id = single_id(tokenizer, IMAGE_PAD), single_id(tokenizer, LATENT_SLOT)
    length = max(len(record.ids) for record in records)
    ids = torch.full((len(records), length), int(tokenizer.pad_token_id))
    weights = torch.zeros(len(records), length)
    positions = torch.zeros(3, len(records), length, dtype=torch.int64)
    for row, record in enumerate(records):
        count = len(record.ids)
        ids[row, :count] = torch.tensor(record.ids)
        weights[row, :count] = torch.tensor(record.weights)
        grids = [picture.grid for picture in record.pictures]
        positions[:, row, :count] = PositionCursor().sequence(record.ids, image_id, grids)
    seen = bank.choose([picture for record in records for picture in record.pictures], rng)
    slots = ids == slot_id
    mask = bottleneck_mask(ids == image_id, slots, bottleneck, rng)
    looks = _looks(records, ids == image_id)
    numbers = tuple(number_ids(tokenizer)) if any(record.free for record in records) else ()
    return Layout(tuple(records), seen, ids, weights, positions, slots, mask, looks, numbers)


def _looks(records: Sequence[Record], images: torch.Tensor) -> tuple[Look, ...]:
    """Every box that the records write, among the visual tokens of its view.

    Args:
        records: in the order of the rows.
        images: bool `(B, T)`, True at visual tokens.
    """
    return tuple(
        Look(
            row,
            torch.arange(written.begin, written.stop),
            torch.arange(written.start, written.stop),
            images[row]
            .nonzero()
            .flatten()[torch.tensor(record.pictures[0].grid.cells_of(written.box))],
            written_corners(written, record.pictures[0]),
            held_shares(record.pictures[0].grid, written.box),
        )
        for row, record in enumerate(records)
        for written in record.written
    )


def held_shares(grid: PatchGrid, box: Box) -> torch.Tensor:
    """How much of a box each visual token that it touches holds, of what one holds at most."""
    held = []
    for cell in grid.cells_of(box):
        own = grid.box_of(*divmod(cell, grid.columns))
        width = min(box.x1, own.x1) - max(box.x0, own.x0)
        height = min(box.y1, own.y1) - max(box.y0, own.y0)
        held.append(max(width, 0.0) * max(height, 0.0))
    # A box without an area is held by the one token that it lies in.
    most = max(held)
    return torch.tensor([one / most if most else 1.0 for one in held])


def written_corners(written: Written, view: Picture) -> tuple[float, ...] | None:
    """Left, top, right and bottom of a written box, in shares of the view's longer side.

    None where its coordinates are of several tokens each, as Qwen's own tokenizer has them.
    """
    # A bracket and a number; a comma, a space and a number, three times.
    if written.stop - written.start != 11:
        return None
    size = seen_size(view)
    height, width = size
    sides = (width, height, width, height)
    box = written.box.as_tuple()
    return tuple(share * side / max(size) for share, side in zip(box, sides, strict=True))


def filled(layout: Layout, bank: FeatureBank, latents: LatentConfig | None = None) -> Batch:
    """A layout with its visual tokens (arguments as in `collate`)."""
    # Before they are joined: autocast joins nothing in half precision.
    visual = [tokens.float() for tokens in bank.tokens(layout.seen)]
    return Batch(
        ids=layout.ids,
        weights=layout.weights,
        positions=layout.positions,
        visual=torch.cat(visual) if visual else torch.zeros(0, bank.width),
        slots=layout.slots,
        slot_targets=_slot_targets(layout.records, visual, layout.slots, latents, bank.width),
        mask=layout.mask,
        views=tuple(next(iter(record.pictures), None) for record in layout.records),
        looks=layout.looks,
        regions=_slot_regions(layout.records, visual, layout.slots, latents),
        free=tuple((row, one) for row, record in enumerate(layout.records) for one in record.free),
        numbers=layout.numbers,
        pointers=tuple(
            (row, one) for row, record in enumerate(layout.records) for one in record.pointers
        ),
    )


def _slot_regions(
    records: Sequence[Record],
    visual: Sequence[torch.Tensor],
    slots: torch.Tensor,
    latents: LatentConfig | None,
) -> tuple[SlotRegion, ...]:
    """Of the records that have boxes; none where nothing competes."""
    if latents is None or not latents.contrast:
        return ()
    found, view, first = [], 0, 0
    for row, record in enumerate(records):
        count = int(slots[row].sum())
        if count and record.roi:
            cells = tuple(roi_cells(record.roi, record.pictures[0].grid))
            found.append(SlotRegion(first, count, visual[view].detach(), cells))
        first += count
        view += len(record.pictures)
    return tuple(found)


def _slot_targets(
    records: Sequence[Record],
    visual: Sequence[torch.Tensor],
    slots: torch.Tensor,
    latents: LatentConfig | None,
    width: int,
) -> torch.Tensor:
    """Targets of all slots, row by row: `(S, D)`."""
    found = [torch.zeros(0, width)]
    view = 0
    for row, record in enumerate(records):
        count = int(slots[row].sum())
        if count:
            if latents is None:
                raise ValueError("Records with latent steps need a configuration of them.")
            grid = record.pictures[0].grid
            found.append(
                # Targets stand still, also where the tower is trained.
                roi_targets(
                    visual[view].detach().cpu(),
                    grid,
                    record.roi,
                    latents.target,
                    latents.steps,
                )
            )
        view += len(record.pictures)
    return torch.cat(found)
