"""How well a model writes boxes that are asked for, and how well it looks at them.

Outside of zooms, in the forms that pretraining teaches (`training.place_forms`): what of a bad zoom
is a bad box, and what is a bad thought, cannot be told from the zoom itself.
`training evaluate --benchmark boxes` asks it of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.geometry import Box
from engine.loading import LoadedModel
from training.batches import collate
from training.features import FeatureBank
from training.grounding import BoxAttention
from training.language_loss import all_states
from training.numbers import number_ids
from training.phantoms import labels_of, modality_of
from training.place_forms import BARE, CALLED
from training.records import Record, RecordWriter, seen_size
from training.reports import places_of
from training.world import Case, Picture

_AT_A_TIME: Final = 24
_FORMS: Final = (BARE, CALLED[0])


@dataclass(frozen=True, slots=True)
class AskedBox:
    """What came of one box that was asked for.

    Attributes:
        name: of what it is of.
        finding: whether that is a finding, and no organ.
        overlap: intersection over union with the true box; 0 where no box was written.
        attention: mean share of the attention of the layer that looks at boxes which lies on the
            true one, over heads and what is written.
    """

    name: str
    finding: bool
    overlap: float
    attention: float


@torch.inference_mode()
def asked_boxes(loaded: LoadedModel, cases: Sequence[Case]) -> list[AskedBox]:
    """Boxes of all structures and findings that there are one of, in both forms.

    The form stands, and the four numbers are written greedily, each behind those before it.

    Args:
        loaded: a checkpoint of the embedded model, whose coordinates are one token each.
        cases: phantoms with their truth.

    Raises:
        ValueError: its tokenizer writes coordinates in several tokens.
    """
    model: Qwen2_5_VLForConditionalGeneration = loaded.model
    tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
    bank, writer = FeatureBank(model, seed=0), RecordWriter(tokenizer)
    bank.add([case.view for case in cases], variants=1)
    asked: list[tuple[str, bool, Picture, Box, Record]] = []
    for case in cases:
        assert case.truth is not None
        findings = labels_of(modality_of(case.truth)).findings
        for name, box in places_of(case.truth):
            for form in _FORMS:
                record = writer.short_answers([], case.view, [(name, box, form)])
                asked.append((name, name in findings, case.view, box, record))
    found = []
    for first in range(0, len(asked), _AT_A_TIME):
        some = asked[first : first + _AT_A_TIME]
        written, masses = _written(model, tokenizer, [record for *_, record in some], bank)
        for (name, is_finding, view, box, _), numbers, mass in zip(
            some, written, masses, strict=True
        ):
            overlap = _overlap(numbers, box, seen_size(view))
            found.append(AskedBox(name, is_finding, overlap, mass))
    return found


def _written(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    bank: FeatureBank,
) -> tuple[list[list[int]], list[float]]:
    """The four numbers of each record, -1 where there is none, and the attention on its box."""
    values = {token: value for value, token in enumerate(number_ids(tokenizer))}
    batch = collate(records, bank, tokenizer, np.random.default_rng(0)).to(model.device)
    ids, rows = batch.ids.clone(), range(len(records))
    columns = []
    for record in records:
        (place,) = record.written
        listed = [at for at in range(place.start, place.stop + 1) if record.ids[at] in values]
        if len(listed) != 4:
            raise ValueError(
                "Boxes are scored of checkpoints that write a coordinate as one token: this one "
                "takes several."
            )
        columns.append(listed)
    boxes = BoxAttention(batch.looks)
    for number in range(4):
        states = all_states(model, replace(batch, ids=ids))[-1]
        before = torch.stack([states[row, columns[row][number] - 1] for row in rows])
        for row, token in enumerate(model.lm_head(before).argmax(-1).tolist()):
            ids[row, columns[row][number]] = token
    # Once more, with all that was written in its place.
    all_states(model, replace(batch, ids=ids), recorder=boxes)
    masses = [mass.mean().item() for mass in boxes.masses]
    numbers = [[values.get(int(ids[row, at]), -1) for at in columns[row]] for row in rows]
    return numbers, masses


def _overlap(numbers: Sequence[int], box: Box, size: tuple[int, int]) -> float:
    """Overlap of what was written, in pixels of a picture of a size, with the true box."""
    height, width = size
    x0, y0, x1, y1 = numbers
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        return 0.0
    ends = (min(x1 / width, 1.0), min(y1 / height, 1.0))
    if x0 / width >= ends[0] or y0 / height >= ends[1]:
        return 0.0
    return Box(x0 / width, y0 / height, *ends).intersection_over_union(box)
