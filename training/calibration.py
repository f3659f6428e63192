"""The entropy above which a reasoning token asks for a second look, from validation phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.sampling import entropy_nats
from training.batches import collate
from training.features import FeatureBank
from training.language_loss import target_logits
from training.phantoms import to_view8
from training.questions import FAMILIES, balanced_questions
from training.real_images import real_picture
from training.records import RecordWriter
from training.world import Case

# Share of the reasoning tokens about coarse questions, which the view answers, that may ask.
NEEDLESS_LOOKS: Final = 0.02
_BATCH: Final = 16
_DRAWN: Final = 240


def entropy_threshold(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    validation: Sequence[Case],
    most: int = 240,
) -> float:
    """Nats that `NEEDLESS_LOOKS` of the tokens pass where no second look is needed.

    Read along the true reasoning of coarse questions, method `direct`.

    Args:
        model: trained.
        tokenizer: its own.
        validation: phantoms that were not trained on.
        most: questions read.

    Raises:
        ValueError: no validation phantom has a coarse question.
    """
    writer = RecordWriter(tokenizer)
    asked = [case for case in validation if case.asked and case.asked.kind == "coarse"][:most]
    if not asked:
        raise ValueError("No validation phantom has a coarse question.")
    bank = FeatureBank(model, seed=0)
    bank.add([case.view for case in asked], variants=1)
    records = [
        writer.write(case.asked, "direct", case.view) for case in asked if case.asked is not None
    ]
    found = []
    for first in range(0, len(records), _BATCH):
        batch = collate(records[first : first + _BATCH], bank, tokenizer, np.random.default_rng(0))
        with torch.no_grad():
            logits, rows, columns = target_logits(model, batch)
        # Reasoning weighs 1, the answer more, the prompt nothing.
        found.append(entropy_nats(logits[batch.weights[rows, columns] == 1.0]))
    return float(torch.quantile(torch.cat(found), 1 - NEEDLESS_LOOKS))


def coarse_cases(count: int = _DRAWN) -> list[Case]:
    """Coarse questions about chest phantoms of the validation split, families in turn.

    For a stage whose own validation asks none.
    """
    families = [name for name, family in FAMILIES.items() if family.kind == "coarse"]
    return [
        Case(truth=None, view=real_picture(to_view8(drawn.phantom()), {}), asked=drawn.question)
        for drawn in balanced_questions(count, 0, "validation", families)
    ]
