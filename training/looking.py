"""The language model is taught where to look, before it learns any word.

Where letters stand (`training.letter_heads`); and what a box is of, and where that lies in the
image (`training.grounding`). A box is copied from what is looked at, so that until attention lies
on it nothing can be learned of coordinates. Beside words this took thousands of steps: the heads
that look at boxes are two layers above the words that say of what, nothing told the layers between
to bring these up, and so each head came to look at one structure whatever was asked for.

In the layers that find letters only queries and keys move, those of all their heads: what is copied
stays a copy while nothing is found yet. The layers behind the first, up to the one that looks at
boxes, move as a whole, and with them what that makes of a box, the coordinate that comes next
(`training.corners`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.attention import register_row_attention
from training.batches import collate
from training.corners import KeptCorners
from training.dense_warmup import HEAD_RATE
from training.features import FeatureBank
from training.grounding import GROUNDED_LAYER, BoxAttention, together
from training.kept_weights import weights_keeper
from training.language import MixConfig, asked_for_letters, drawn_places, letter_record
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
from training.materials import Materials
from training.records import RecordWriter
from training.world import Case

# Phantoms in which it is learned.
MOST_PHANTOMS: Final = 1000
# Of validation phantoms, at the end.
VALIDATION_BATCHES: Final = 8
# Weight of what tokens are to point at, beside the attention that is to lie on boxes.
POINTING_WEIGHT: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class LookingConfig:
    """How the language model is taught where to look.

    Attributes:
        steps: optimiser and schedule.
        letters: records a step that ask for letters.
        words: of these, the share whose options are words drawn from the vocabulary, whatever the
            mix of the stages behind has.
        places: records a step that ask for boxes.
        boxes: that such a record asks for.
        called: of these, the share that is written as an argument of a function.
    """

    steps: StepsConfig
    letters: int = 8
    words: float = 0.5
    places: int = 16
    boxes: int = 8
    called: float = 0.5

    def __post_init__(self) -> None:
        for name in ("letters", "places", "boxes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("words", "called"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in 0 to 1, not {getattr(self, name)}.")


def teach_to_look(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    corners: KeptCorners,
    config: LookingConfig,
    materials: Materials,
    *,
    folder: Path,
    seed: int,
    report: Report,
) -> None:
    """Trains queries and keys that find letters, and the layers that look at boxes.

    Args:
        model: whose heads begin as copies (`letter_heads.begin_copying`); its kernel of attention
            is exchanged for one that a recorder can watch.
        tokenizer: of the model.
        corners: readings of places, which are trained as well.
        config: schedule.
        materials: phantoms, at least one of each split, with something to ask the box of; on the
            validation ones what was learned is logged at the end.
        folder: of the state and the metrics.
        seed: of batches and exposures.
        report: takes lines of progress.
    """
    model.set_attn_implementation(register_row_attention())
    cases, held = materials.train[:MOST_PHANTOMS], materials.validation[:MOST_PHANTOMS]
    bank = FeatureBank(model, seed)
    bank.add([case.view for case in (*cases, *held)], variants=1)
    writer = RecordWriter(tokenizer)
    # Behind the whole image alone: its crops are not encoded here.
    mix = MixConfig(zoom=0.0, probe=0.0, auto=0.0, real=0.0, words=config.words)

    def loss_of(cases: Sequence[Case], rng: np.random.Generator) -> PartLoss:
        drawn = [cases[i] for i in rng.integers(len(cases), size=config.letters + config.places)]
        records = [
            letter_record(asked_for_letters(case, rng), mix, writer, rng)
            for case in drawn[: config.letters]
        ]
        for case in drawn[config.letters :]:
            assert case.truth is not None
            asked = drawn_places(case.truth, config.boxes, config.called, rng)
            records.append(writer.short_answers([], case.view, asked))
        batch = collate(records, bank, tokenizer, rng).to(model.device)
        pointers, boxes = PointerAttention(batch.pointers), BoxAttention(batch.looks)
        states = all_states(model, batch, between=True, recorder=together(pointers, boxes))
        images = batch.ids == model.config.image_token_id
        terms = {
            "pointing": pointers.loss() / len(records),
            "grounding": boxes.loss() / sum(len(look.tokens) for look in batch.looks),
            "corners": corners(states, images, batch.views, batch.looks),
        }
        loss = POINTING_WEIGHT * terms["pointing"] + terms["grounding"] + terms["corners"]
        return loss, {name: float(term.detach()) for name, term in terms.items()}

    def loss_at(step: int) -> PartLoss:
        return loss_of(cases, np.random.default_rng([seed, 6, step]))

    @torch.no_grad()
    def scores(_: int) -> dict[str, float]:
        found = [
            loss_of(held, np.random.default_rng([seed, 7, number]))[1]
            for number in range(VALIDATION_BATCHES)
        ]
        return {
            f"validation {name}": float(np.mean([one[name] for one in found])) for name in found[0]
        }

    layers: Any = model.model.language_model.layers
    attentions = [
        layers[number].self_attn for number in (LETTER_LAYER, MATCHING_LAYER, ANSWERING_LAYER)
    ]
    modules: dict[str, nn.Module] = {
        "heads": nn.ModuleList([part for a in attentions for part in (a.q_proj, a.k_proj)]),
        "layers": nn.ModuleList(layers[LETTER_LAYER + 1 : GROUNDED_LAYER + 1]),
    }
    trained = {id(p) for module in modules.values() for p in module.parameters()}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        stage = Stage(
            folder=folder,
            modules=modules | {"corners": corners},
            config=config.steps,
            parts_at=whole_steps(loss_at),
            evaluate=scores,
            readings={"corners": HEAD_RATE},
            after_step=weights_keeper(model, tokenizer, readings=True),
        )
        run_stage(stage, prefixed(report, "where to look"))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
