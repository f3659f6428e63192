"""The loss of the language model on batches of records: text, and latents against their regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

from engine.decode import RowTaker
from training.batches import Batch
from training.grounding import COORDINATE_STRIDE, BoxAttention, together
from training.latents import Feeding
from training.letter_heads import PointerAttention
from training.numbers import free_losses
from training.places import NO_PLACES, PlaceTerms
from training.records import seen_size
from training.roi import RoiLoss, contrast_loss, roi_loss
from training.vision import LEAST_SIDE


# Without slots: DeepSpeed looks for the tensors in what a network returns by `vars`.
@dataclass(frozen=True)
class LanguageLoss:
    """Sums over the targets of a batch; batches are added before they are divided.

    Attributes:
        total: weighted cross-entropies.
        weight: their weights.
        right: answer tokens that the model would have written.
        answers: answer tokens.
        entropy: of the model's distributions over the weighted targets, in nats.
        roi: losses of the latent slots against their targets, weighted contrasts among them.
        contrast: of it, the contrasts without their weight.
        slots: how many slots there are.
        lengths: of what the model would feed into the slots.
        distances: of that from the slots' targets.
        corners: mean error of the kept corners, times the records; 0 where none are kept.
        records: of the batch.
        grounding: minus the logarithms of the attention on boxes; 0 where it is not asked.
        looking: tokens that should look at a box.
        pointing: minus the logarithms of the attention on what is pointed at; 0 where not asked.
        pointed: records that point.
        distance: how far coordinates are off, in sides of their box; 0 where it is not asked.
    """

    total: torch.Tensor
    weight: float
    right: int
    answers: int
    entropy: float
    roi: torch.Tensor
    contrast: torch.Tensor
    slots: int
    lengths: float
    distances: float
    corners: torch.Tensor
    records: int
    grounding: torch.Tensor
    looking: int
    pointing: torch.Tensor
    pointed: int
    distance: torch.Tensor


def input_states(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    slot_inputs: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the language model reads: words, visual tokens and latents, `(B, T, D)`.

    Args:
        model: the tower is not run: visual tokens are in the batch.
        batch: padded records.
        slot_inputs: `(S, D)`, fed into the latent slots; None: their targets (the teacher's).
    """
    embeddings = model.get_input_embeddings()(batch.ids)
    mask = batch.ids == model.config.image_token_id
    visual = batch.visual.to(embeddings.dtype)
    embeddings = embeddings.masked_scatter(mask.unsqueeze(-1), visual)
    if len(batch.slot_targets):
        inputs = batch.slot_targets if slot_inputs is None else slot_inputs
        inputs = inputs.to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(batch.slots.unsqueeze(-1), inputs)
    states: torch.Tensor = embeddings
    return states


def hidden_states(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    slot_inputs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Last hidden states `(B, T, D)` (arguments as in `input_states`)."""
    return all_states(model, batch, slot_inputs)[-1]


def all_states(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    slot_inputs: torch.Tensor | None = None,
    *,
    between: bool = False,
    recorder: RowTaker | None = None,
) -> tuple[torch.Tensor, ...]:
    """The last hidden states `(B, T, D)`, behind those `between` layers where they are asked for.

    Args:
        model: see `input_states`, as for the next two.
        batch: padded records.
        slot_inputs: fed into the latent slots.
        between: also what goes into every layer, in order.
        recorder: takes attention on the way; None: nothing does.
    """
    found = model.model.language_model(
        inputs_embeds=input_states(model, batch, slot_inputs),
        position_ids=batch.positions,
        attention_mask=None if batch.mask is None else {"full_attention": batch.mask},
        use_cache=False,
        output_hidden_states=between,
        **({"recorder": recorder} if recorder is not None else {}),
    )
    last: torch.Tensor = found.last_hidden_state
    # transformers' own list ends with the last states, too.
    return (*found.hidden_states[:-1], last) if between else (last,)


def slot_means(hidden: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The hidden states one column before every slot, row by row: `(S, D)`."""
    rows, columns = torch.nonzero(slots, as_tuple=True)
    return hidden[rows, columns - 1]


def self_fed(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, *, differentiable: bool
) -> torch.Tensor:
    """What the model feeds into its slots by itself, `(S, D)`.

    As many passes as a segment has slots: after the k-th the first k slots are exact.

    Args:
        model: the policy.
        batch: padded records.
        differentiable: let gradients flow through the last pass, so that the answer's loss
            reaches what makes the latents (truncated to one step of the recurrence).
    """
    most = int(batch.slots.sum(-1).max())
    inputs = batch.slot_targets
    for index in range(most):
        with torch.set_grad_enabled(differentiable and index == most - 1):
            inputs = slot_means(hidden_states(model, batch, inputs), batch.slots)
    return inputs


def target_logits(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits before every weighted target: `(N, V)`, with the row and column of that target."""
    hidden = hidden_states(model, batch)
    rows, columns = torch.nonzero(batch.weights[:, 1:], as_tuple=True)
    return model.lm_head(hidden[rows, columns]), rows, columns + 1


def language_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    feeding: Feeding = "teacher",
    roi: RoiLoss = "cosine",
    *,
    head_chunk: int = 0,
    places: PlaceTerms = NO_PLACES,
    contrast: float = 0.0,
) -> LanguageLoss:
    """Weighted cross-entropy of the next token, and the latents' loss against their regions.

    Args:
        model: in training.
        batch: padded records.
        feeding: what goes into latent slots: the `teacher`'s targets, the model's `own`
            latents, or its own with gradients (`relaxed`).
        roi: loss of the latents.
        head_chunk: tokens whose logits are held at a time; 0: all.
        places: what is asked of places beside the words.
        contrast: weight, beside `roi`, of the tokens that compete for a latent.
    """
    inputs = None
    if feeding != "teacher" and len(batch.slot_targets):
        inputs = self_fed(model, batch, differentiable=feeding == "relaxed")
    corners = places.corners
    boxes = BoxAttention(batch.looks) if places.grounding and batch.looks else None
    letters = PointerAttention(batch.pointers) if places.pointing and batch.pointers else None
    recorder = together(boxes, letters)
    states = all_states(model, batch, inputs, between=corners is not None, recorder=recorder)
    hidden = states[-1]
    rows, columns = torch.nonzero(batch.weights[:, 1:], as_tuple=True)
    weights, targets = batch.weights[rows, columns + 1], batch.ids[rows, columns + 1]
    losses, hits, entropies = token_losses(
        model.lm_head, hidden[rows, columns], targets, head_chunk
    )
    losses, distance = _coordinate_losses(model, batch, hidden, losses, places)
    answers = weights > 1
    slots = len(batch.slot_targets)
    latent = rivals = hidden.new_zeros(())
    lengths = distances = 0.0
    if slots:
        means = slot_means(hidden, batch.slots)
        latent = slots * roi_loss(means, batch.slot_targets, roi)
        would_feed = means.detach().float()
        lengths = float(would_feed.norm(dim=-1).sum())
        distances = float((would_feed - batch.slot_targets).norm(dim=-1).sum())
        for region in batch.regions:
            own = means[region.first : region.first + region.count]
            tokens = region.tokens.to(own.device)
            rivals = rivals + region.count * contrast_loss(own, tokens, region.cells)
        latent = latent + contrast * rivals
    kept = hidden.new_zeros(())
    if corners is not None:
        images = batch.ids == model.config.image_token_id
        kept = len(batch.ids) * corners(states, images, batch.views, batch.looks)
    return LanguageLoss(
        (losses * weights).sum(),
        float(weights.sum()),
        int(hits[answers].sum()),
        int(answers.sum()),
        float(entropies.sum()),
        latent,
        rivals,
        slots,
        lengths,
        distances,
        kept,
        len(batch.ids),
        boxes.loss() if boxes is not None else hidden.new_zeros(()),
        sum(len(look.tokens) for look in batch.looks),
        letters.loss() if letters is not None else hidden.new_zeros(()),
        len({row for row, _ in batch.pointers}),
        distance,
    )


def _coordinate_losses(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    hidden: torch.Tensor,
    losses: torch.Tensor,
    places: PlaceTerms,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of all targets with those of coordinates in their place, and how far these are.

    Args:
        model: whose head writes.
        batch: padded records.
        hidden: `(B, T, D)`, last states.
        losses: `(N,)`, cross-entropies of the weighted targets.
        places: what is asked of coordinates.
    """
    rows, columns = torch.nonzero(batch.weights[:, 1:], as_tuple=True)
    distance = hidden.new_zeros(())
    if places.numbers is not None:
        spots = coordinate_targets(batch, rows, columns)
        rows_of, before = rows[spots], columns[spots]
        logits = model.lm_head(hidden[rows_of, before]).float()
        targets = batch.ids[rows_of, before + 1]
        losses = losses.index_copy(0, spots, places.numbers.losses(logits, targets))
        if places.distance:
            sides = coordinate_sides(batch, rows_of, before)
            ends = sides.isfinite()
            distance = places.numbers.distances(logits[ends], targets[ends], sides[ends]).sum()
    if batch.free:
        bounds = free_bounds(batch, rows, columns)
        spots = (bounds[:, 0] >= 0).nonzero().flatten()
        logits = model.lm_head(hidden[rows[spots], columns[spots]]).float()
        losses = losses.index_copy(0, spots, free_losses(logits, batch.numbers, bounds[spots]))
    return losses, distance


def coordinate_targets(batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Which of the predicting tokens write coordinates: int64 `(M,)`.

    Args:
        batch: padded records.
        rows: int64 `(N,)`, of the predicting tokens.
        columns: int64 `(N,)`, theirs as well.
    """
    writes = torch.zeros_like(batch.ids, dtype=torch.bool)
    for look in batch.looks:
        writes[look.row, look.coordinates.to(writes.device)] = True
    return writes[rows, columns].nonzero().flatten()


def coordinate_sides(batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Sides, in pixels of the view, that the coordinates behind some tokens are an end of: `(N,)`.

    Infinite where no coordinate of a single token is written.

    Args:
        batch: padded records.
        rows: int64 `(N,)`, of the predicting tokens.
        columns: int64 `(N,)`, theirs as well.
    """
    sides = torch.full(batch.ids.shape, torch.inf, device=batch.ids.device)
    for look in batch.looks:
        view = batch.views[look.row]
        if look.corners is None or view is None:
            continue
        left, top, right, bottom = look.corners
        size = sides.new_tensor([right - left, bottom - top]).clamp(min=LEAST_SIDE)
        ends = look.coordinates[::COORDINATE_STRIDE].to(sides.device)
        sides[look.row, ends] = size.repeat(2) * max(seen_size(view))
    return sides[rows, columns]


def free_bounds(batch: Batch, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Lowest and highest number that may follow a predicting token, int64 `(N, 2)`.

    -1 where it is not free.

    Args:
        batch: padded records.
        rows: int64 `(N,)`, of the predicting tokens.
        columns: int64 `(N,)`, theirs as well.
    """
    bounds = batch.ids.new_full((*batch.ids.shape, 2), -1)
    for row, one in batch.free:
        bounds[row, one.column - 1] = bounds.new_tensor([one.least, one.most])
    return bounds[rows, columns]


def token_losses(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, chunk: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropies, whether the greedy token was right, entropies: `(N,)` each, in nats.

    In chunks, whose logits are computed again in the backward pass, memory does not grow with
    the number of tokens times the vocabulary (1.2 GB for 2,000 tokens of Qwen2.5-VL).

    Args:
        head: `(N, D)` to `(N, V)`.
        hidden: `(N, D)`.
        targets: int64 `(N,)`.
        chunk: tokens at a time; 0: all, without computing anything twice.
    """

    def judged(
        part: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = head(part).float()
        losses = functional.cross_entropy(logits, wanted, reduction="none")
        with torch.no_grad():
            # log sum exp(l) - sum p l: one more tensor as large as the logits, and not three.
            scale = losses + logits.gather(-1, wanted[:, None])[:, 0]
            means = torch.bmm(logits.softmax(-1)[:, None], logits[..., None])[:, 0, 0]
        return losses, logits.detach().argmax(-1) == wanted, scale - means

    if chunk < 1 or len(hidden) <= chunk:
        return judged(hidden, targets)
    parts = [
        checkpoint(judged, part, wanted, use_reentrant=False)
        for part, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True)  # type: ignore[no-untyped-call]
    ]
    losses, hits, entropies = (torch.cat(found) for found in zip(*parts, strict=True))
    return losses, hits, entropies
