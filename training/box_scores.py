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
        expected_overlap: the same of the means of all numbers, weighted with their probabilities.
            Far above ``overlap``, it says that the likeliest numbers are drawn from many.
        attention: mean share of the attention of the layer that looks at boxes which lies on the
            true one, over heads and what is written.
    """

    name: str
    finding: bool
    overlap: float
    expected_overlap: float
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
        written = _written(model, tokenizer, [record for *_, record in some], bank)
        for (name, is_finding, view, box, _), numbers in zip(some, written, strict=True):
            overlap, expected = (
                _overlap(coordinates, box, seen_size(view))
                for coordinates in (numbers.greedy, numbers.expected)
            )
            found.append(AskedBox(name, is_finding, overlap, expected, numbers.attention))
    return found


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What was written of one box.

    Attributes:
        greedy: the four numbers, -1 where there is none.
        expected: their means, each behind the greedy ones before it.
        attention: on the box.
    """

    greedy: list[int]
    expected: list[float]
    attention: float


def _written(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    bank: FeatureBank,
) -> list[_Numbers]:
    """The four numbers of each record."""
    listed_ids = number_ids(tokenizer)
    counted = torch.arange(len(listed_ids), dtype=torch.float32, device=model.device)
    values = {token: value for value, token in enumerate(listed_ids)}
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
    expected = []
    for number in range(4):
        states = all_states(model, replace(batch, ids=ids))[-1]
        before = torch.stack([states[row, columns[row][number] - 1] for row in rows])
        logits = model.lm_head(before)
        expected.append(logits[:, listed_ids].float().softmax(-1) @ counted)
        for row, token in enumerate(logits.argmax(-1).tolist()):
            ids[row, columns[row][number]] = token
    # Once more, with all that was written in its place.
    all_states(model, replace(batch, ids=ids), recorder=boxes)
    return [
        _Numbers(
            [values.get(int(ids[row, at]), -1) for at in columns[row]],
            [float(means[row]) for means in expected],
            mass.mean().item(),
        )
        for row, mass in zip(rows, boxes.masses, strict=True)
    ]


def _overlap(numbers: Sequence[float], box: Box, size: tuple[int, int]) -> float:
    """Overlap of what was written, in pixels of a picture of a size, with the true box."""
    height, width = size
    x0, y0, x1, y1 = numbers
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        return 0.0
    ends = (min(x1 / width, 1.0), min(y1 / height, 1.0))
    if x0 / width >= ends[0] or y0 / height >= ends[1]:
        return 0.0
    return Box(x0 / width, y0 / height, *ends).intersection_over_union(box)
