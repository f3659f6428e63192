"""A language model and its loss as one module, which several processes can wrap.

The records of a step are cut into parts; every process plans all parts, at next to no cost, and
computes its share. A part's losses are divided by the weights of the whole step, which its plan
knows, so that parts add up to the step's loss whoever computes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from training.batches import Layout, filled, lay_out
from training.features import FeatureBank
from training.grounding import BOX_COORDINATES
from training.language_loss import LanguageLoss, language_loss
from training.latents import Feeding, LatentConfig, LatentPhase
from training.loop import PartLoss
from training.places import NO_PLACES, PlaceTerms
from training.records import Record


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step: padded records, and what goes into their latent slots."""

    layout: Layout
    feeding: Feeding


class LanguageNetwork(nn.Module):
    """The loss of a language model on parts of a step.

    Args:
        model: trained, in part or whole.
        bank: visual tokens of the records.
        latents: what latent slots are to hold; None: there are none.
        bf16: compute in bfloat16 by autocast; losses stay in float32.
        head_chunk: tokens whose logits are held at a time; 0: all.
        spread: whether weights are spread over processes, and gathered when they are needed.
        places: what is asked of places beside the words.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        bank: FeatureBank,
        latents: LatentConfig | None = None,
        *,
        bf16: bool = False,
        head_chunk: int = 0,
        spread: bool = False,
        places: PlaceTerms = NO_PLACES,
    ) -> None:
        super().__init__()
        self.model = model
        # As a module of its own, so that wrapping moves and shares its weights.
        self.corners = places.corners
        self._places = places
        self._bank, self._latents = bank, latents
        self._bf16, self._head_chunk, self._spread = bf16, head_chunk, spread

    def forward(self, part: Part) -> LanguageLoss:
        """Sums of losses over a part, not yet divided."""
        # Encoding belongs inside: a tower that is trained has to be called through the wrapper.
        device = self.model.device
        casts = None
        if self._bf16:
            # Autocast keeps a weight's copy for the passes that follow. Of one gathered anew for
            # each, it would keep a copy without gradients (self-fed latents), or several.
            casts = torch.autocast(device.type, torch.bfloat16, cache_enabled=not self._spread)
        with casts or contextlib.nullcontext():
            batch = filled(part.layout, self._bank, self._latents).to(device)
            kind = self._latents.loss if self._latents else "cosine"
            return language_loss(
                self.model,
                batch,
                part.feeding,
                kind,
                head_chunk=self._head_chunk,
                places=self._places,
                contrast=self._latents.contrast if self._latents else 0.0,
            )


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over a whole step, as `LanguageLoss` has them over a part."""

    weight: float
    targets: int
    answers: int
    slots: int
    records: int
    looking: int
    pointed: int
    coordinates: int

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Totals:
        """Counts of all parts together."""
        return cls(
            sum(float(part.layout.weights.sum()) for part in parts),
            sum(int((part.layout.weights[:, 1:] != 0).sum()) for part in parts),
            sum(int((part.layout.weights[:, 1:] > 1).sum()) for part in parts),
            sum(int(part.layout.slots.sum()) for part in parts),
            sum(len(part.layout.records) for part in parts),
            sum(len(look.tokens) for part in parts for look in part.layout.looks),
            sum(bool(record.pointers) for part in parts for record in part.layout.records),
            sum(look.corners is not None for part in parts for look in part.layout.looks)
            * BOX_COORDINATES,
        )


def planned(
    records: Sequence[Record],
    bank: FeatureBank,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    size: int,
    latents: LatentPhase | None = None,
) -> list[Part]:
    """Cuts the records of a step into parts of similar length, and draws all that is random.

    Args:
        records: of the step.
        bank: of visual tokens.
        tokenizer: of the records.
        rng: of the step.
        size: records of a part.
        latents: settings of the step.
    """
    ordered = sorted(records, key=lambda record: len(record.ids))
    parts = []
    for first in range(0, len(ordered), size):
        bottleneck = latents.bottleneck if latents else 0.0
        layout = lay_out(ordered[first : first + size], bank, tokenizer, rng, bottleneck)
        parts.append(Part(layout, latents.feeding(rng) if latents else "teacher"))
    return parts


def part_losses(
    network: Callable[[Part], LanguageLoss],
    parts: Sequence[Part],
    latents: LatentPhase | None = None,
    places: PlaceTerms = NO_PLACES,
) -> list[Callable[[], PartLoss]]:
    """The losses of a step's parts, ready to be computed; they add up to the step's loss.

    The numbers of a part add up to means over the step: `answer_tokens_right`; `entropy` of the
    tokens to be written, nats; with latents `text`, `roi` and `contrast`, the parts of the loss,
    and `latent_norm` and `latent_error`, the length of what the model would feed into a slot and
    its distance from what the slot is to hold.

    Args:
        network: a `LanguageNetwork`, wrapped or not.
        parts: of the whole step.
        latents: settings of the step.
        places: what the network is asked of places.
    """
    totals = Totals.of(parts)

    def loss_of(part: Part) -> PartLoss:
        found = network(part)
        loss = found.total / totals.weight
        numbers = {
            "answer_tokens_right": found.right / max(1, totals.answers),
            "entropy": found.entropy / max(1, totals.targets),
            "tokens": float(sum(len(record.ids) for record in part.layout.records)),
        }
        if latents is not None and totals.slots:
            roi = found.roi / totals.slots
            numbers |= {"text": float(loss.detach()), "roi": float(roi.detach())}
            numbers["latent_norm"] = found.lengths / totals.slots
            numbers["latent_error"] = found.distances / totals.slots
            if latents.config.contrast:
                numbers["contrast"] = float(found.contrast.detach()) / totals.slots
            loss = loss + latents.roi_weight * roi
        corners = found.corners / totals.records
        grounding = found.grounding / max(1, totals.looking)
        pointing = found.pointing / max(1, totals.pointed)
        distance = found.distance / max(1, totals.coordinates)
        terms = (corners, grounding, pointing, distance)
        return places.added(loss, numbers, *terms), numbers

    return [lambda part=part: loss_of(part) for part in parts]  # type: ignore[misc]


def batch_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    records: Sequence[Record],
    bank: FeatureBank,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    *,
    chunk: int = 8,
    latents: LatentPhase | None = None,
    places: PlaceTerms = NO_PLACES,
) -> PartLoss:
    """The mean loss of records in one go, `chunk` of similar length at a time: next to no padding.

    Equal to the loss of one padded batch (tested), but for kept corners: their errors are means
    over the boxes of a chunk.
    """
    network = LanguageNetwork(model, bank, latents.config if latents else None, places=places)
    parts = planned(records, bank, tokenizer, rng, chunk, latents)
    losses, numbers = [], dict[str, float]()
    for part in part_losses(network, parts, latents, places):
        loss, more = part()
        losses.append(loss)
        for name, number in more.items():
            numbers[name] = numbers.get(name, 0.0) + number
    return torch.stack(losses).sum(), numbers
