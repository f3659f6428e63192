"""Attention heads that all trainings of the embedded model leave as they are."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from training.averages import averages_keeper
from training.counts import counts_keeper


def heads_keeper(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    *,
    readings: bool = False,
) -> Callable[[], None] | None:
    """What puts those heads back after a step (`training.loop.Stage.after_step`).

    None where a model has none of them: heads that count columns and rows (`training.counts`) and
    one that looks at all visual tokens (`training.averages`).

    Args:
        model: its parameters must stay the same tensors, whole in this process.
        tokenizer: of the model.
        readings: whether what the last one reads is kept, too.
    """
    keepers = [
        keeper
        for keeper in (counts_keeper(model, tokenizer), averages_keeper(model, readings=readings))
        if keeper is not None
    ]
    if not keepers:
        return None

    def put_back() -> None:
        for keeper in keepers:
            keeper()

    return put_back
