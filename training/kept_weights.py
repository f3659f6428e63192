"""What all trainings of the embedded model leave as it is."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from training.averages import averages_keeper
from training.counts import counts_keeper
from training.numbers import numbers_keeper


def weights_keeper(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    *,
    readings: bool = False,
) -> Callable[[], None] | None:
    """What puts it back after a step (`training.loop.Stage.after_step`).

    Heads that count columns and rows (`training.counts`), one that looks at all visual tokens
    (`training.averages`), and that numbers lie on a smooth curve (`training.numbers`). None where
    a model has none of these.

    Args:
        model: its parameters must stay the same tensors, whole in this process.
        tokenizer: of the model.
        readings: whether what the head of averages reads is kept, too.
    """
    keepers = [
        keeper
        for keeper in (
            counts_keeper(model, tokenizer),
            averages_keeper(model, readings=readings),
            numbers_keeper(model, tokenizer),
        )
        if keeper is not None
    ]
    if not keepers:
        return None

    def put_back() -> None:
        for keeper in keepers:
            keeper()

    return put_back
