"""The heads that find letters are taught where to look, before the language model learns any word.

Only queries and keys of the three layers move (`training.letter_heads`): what the heads copy stays
a copy while they do not find anything yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.attention import register_row_attention
from training.batches import collate
from training.counts import counts_keeper
from training.features import FeatureBank
from training.language import MixConfig, asked_for_letters, letter_record
from training.language_loss import all_states
from training.letter_heads import (
    ANSWERING_LAYER,
    LETTER_LAYER,
    MATCHING_LAYER,
    PointerAttention,
)
from training.loop import (
    PartLoss,
    Report,
    Stage,
    StepsConfig,
    prefixed,
    run_stage,
    whole_steps,
)
from training.records import RecordWriter
from training.world import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class LettersConfig:
    """How the heads that find letters are taught.

    Attributes:
        steps: optimiser and schedule.
        batch: records a step.
    """

    steps: StepsConfig
    batch: int = 16

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}.")


def teach_letters(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    config: LettersConfig,
    mix: MixConfig,
    cases: Sequence[Case],
    *,
    folder: Path,
    seed: int,
    report: Report,
) -> None:
    """Trains queries and keys of the heads that find letters.

    Args:
        model: whose heads begin as copies (`letter_heads.begin_copying`); its kernel of attention
            is exchanged for one that a recorder can watch.
        tokenizer: of the model.
        config: schedule.
        mix: what letters are asked about.
        cases: phantoms.
        folder: of the state and the metrics.
        seed: of batches and exposures.
        report: takes lines of progress.
    """
    model.set_attn_implementation(register_row_attention())
    bank = FeatureBank(model, seed)
    bank.add([case.view for case in cases], variants=1)
    writer = RecordWriter(tokenizer)
    # Behind the whole image alone: its crops are not encoded here.
    plain = replace(mix, zoom=0.0)

    def loss_at(step: int) -> PartLoss:
        rng = np.random.default_rng([seed, 6, step])
        drawn = [cases[i] for i in rng.integers(len(cases), size=config.batch)]
        records = [
            letter_record(asked_for_letters(case, rng), plain, writer, rng) for case in drawn
        ]
        batch = collate(records, bank, tokenizer, rng)
        recorder = PointerAttention(batch.pointers)
        all_states(model, batch, recorder=recorder)
        loss = recorder.loss() / len(records)
        return loss, {"pointing": float(loss.detach())}

    language: Any = model.model.language_model
    attentions = [
        language.layers[number].self_attn
        for number in (LETTER_LAYER, MATCHING_LAYER, ANSWERING_LAYER)
    ]
    heads = nn.ModuleList([part for a in attentions for part in (a.q_proj, a.k_proj)])
    trained = {id(p) for p in heads.parameters()}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        stage = Stage(
            folder=folder,
            modules={"heads": heads},
            config=config.steps,
            parts_at=whole_steps(loss_at),
            after_step=counts_keeper(model, tokenizer, layers=0),
        )
        run_stage(stage, prefixed(report, "letters"))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
