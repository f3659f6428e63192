"""Readings of places are learned before the stage that asks for them moves anything.

They are no part of a checkpoint. Begun as nothing, they pulled the network along while they
learned: a zoom stage that went on from corners read to 0.07 sides of their box, and attention that
lay on the box to 99.6%, had them at 1.2 sides in its first 25 steps, and the attention at 93%.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from training.batches import collate
from training.corners import KeptCorners
from training.features import FeatureBank
from training.language import drawn_places
from training.language_loss import all_states
from training.records import RecordWriter
from training.world import Case

_BATCHES: Final = 16
# Phantoms, and how many places each is asked for at most.
_BATCH: Final = 16
_PLACES: Final = 12
# Times that all of them are gone through.
_ROUNDS: Final = 24
_RATE: Final = 0.003


def learn_to_read(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    corners: KeptCorners,
    cases: Sequence[Case],
    seed: int,
) -> float:
    """Trains the readings on what the network makes of phantoms; returns their last mean loss.

    Args:
        model: left as it is.
        tokenizer: of the model.
        corners: trained in place; on the device of the model.
        cases: phantoms, with their truth; at least one.
        seed: of which phantoms, and of the forms in which boxes are asked for.
    """
    rng = np.random.default_rng([seed, 8])
    writer, bank = RecordWriter(tokenizer), FeatureBank(model, seed)
    drawn = [cases[i] for i in rng.permutation(len(cases))[: _BATCHES * _BATCH]]
    bank.add([case.view for case in drawn], variants=1)
    seen = []
    for first in range(0, len(drawn), _BATCH):
        records = []
        for case in drawn[first : first + _BATCH]:
            assert case.truth is not None
            places = drawn_places(case.truth, _PLACES, 0.5, rng)
            records.append(writer.short_answers([], case.view, places))
        batch = collate(records, bank, tokenizer, rng).to(model.device)
        with torch.no_grad():
            states = all_states(model, batch, between=True)
        # Of a large model all layers together would not fit: those that nobody reads are let go.
        kept = tuple(
            state if number in corners.read_states else state.new_zeros(0)
            for number, state in enumerate(states)
        )
        seen.append((kept, batch.ids == model.config.image_token_id, batch.views, batch.looks))
    optimizer = torch.optim.AdamW(corners.parameters(), lr=_RATE, weight_decay=0.0)
    losses: list[float] = []
    for number in range(_ROUNDS):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - number / _ROUNDS)
        losses = []
        for one in seen:
            optimizer.zero_grad()
            loss = corners(*one)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses) / len(losses)
