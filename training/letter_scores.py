"""How often a model writes the right letter when its reasoning is given.

A wrong answer is a wrong thought, or the wrong letter for a right one: this tells the second alone.
`training evaluate --benchmark letters` asks it of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.loading import LoadedModel
from training.batches import collate
from training.features import FeatureBank
from training.language import asked_for_letters
from training.language_loss import hidden_states
from training.letter_heads import answered_letters
from training.records import RecordWriter
from training.world import Case

_AT_A_TIME: Final = 8


@torch.inference_mode()
def letter_hits(
    loaded: LoadedModel, cases: Sequence[Case], seed: int = 0
) -> dict[str, tuple[int, int]]:
    """Right letters and all letters, by the family of the question that a phantom was made for.

    Every question is asked as often as it has options, three times at most, with the options in
    another order each time, behind reasoning that ends in any of them (`RecordWriter.letters`).

    Args:
        loaded: a checkpoint.
        cases: phantoms with questions of their own.
        seed: of orders and reasonings.
    """
    model: Qwen2_5_VLForConditionalGeneration = loaded.model
    tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
    rng = np.random.default_rng(seed)
    bank, writer = FeatureBank(model, seed=0), RecordWriter(tokenizer)
    bank.add([case.view for case in cases], variants=1)
    asked = [asked_for_letters(case, rng) for case in cases]
    # An open question has no letters.
    asked = [one for one in asked if one.question.options]
    found: dict[str, tuple[int, int]] = {}
    for first in range(0, len(asked), _AT_A_TIME):
        some = asked[first : first + _AT_A_TIME]
        records = [writer.letters(one.question, one.view, rng) for one in some]
        batch = collate(records, bank, tokenizer, rng).to(model.device)
        written = model.lm_head(hidden_states(model, batch)).argmax(-1).cpu()
        for row, (one, record) in enumerate(zip(some, records, strict=True)):
            texts = [str(tokenizer.decode([token])) for token in record.ids]
            columns = answered_letters(texts, record.weights)
            right = sum(int(written[row, at - 1]) == record.ids[at] for at in columns)
            before = found.get(one.question.family, (0, 0))
            found[one.question.family] = (before[0] + right, before[1] + len(columns))
    return found
