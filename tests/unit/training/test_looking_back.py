"""Heads of the first layer that begin by looking at the last tokens of a text."""

import copy

import torch

from engine.attention import register_row_attention
from engine.geometry import PatchGrid
from training.counts import counts_columns, number_rows_and_columns
from training.embedded import embedded_config, new_model, train_tokenizer
from training.looking_back import look_back


class Rows:
    """Keeps the attention of the first layer."""

    def take(self, module, query, key, attention_mask, scaling) -> None:
        if module.layer_idx == 0:
            shared = query.shape[1] // key.shape[1]
            scores = query @ key.repeat_interleave(shared, 1).mT * query.shape[-1] ** -0.5
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            self.weights = scores.masked_fill(later, float("-inf")).softmax(-1)[0]


def fresh():
    tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    model.set_attn_implementation(register_row_attention())
    return model


def first_attention(model, length: int) -> torch.Tensor:
    """Of text: `(heads, T, T)`."""
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (1, length))
    rows = Rows()
    with torch.no_grad():
        model.model.language_model(
            input_ids=ids, attention_mask=None, use_cache=False, recorder=rows
        )
    return rows.weights


def test_each_head_looks_as_far_back_as_its_number() -> None:
    model = fresh()
    before = first_attention(model, 400)
    look_back(model)
    weights = first_attention(model, 400)
    late = torch.arange(200, 400)
    for head in range(2, 6):
        own = weights[head, late, late - (head - 1)]
        assert float(own.mean()) > 0.7
        # Wherever it stands, and whatever stands there.
        assert float(own.quantile(0.05)) > 0.4
        assert float(before[head, late, late - (head - 1)].mean()) < 0.1


def test_heads_that_count_go_on_counting() -> None:
    model = fresh()
    tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
    number_rows_and_columns(model, tokenizer, torch.randn(300, 192), PatchGrid(8, 8))
    counting = copy.deepcopy(model)
    look_back(model)
    assert counts_columns(model)
    own, former = (first_attention(one, 100)[:2] for one in (model, counting))
    torch.testing.assert_close(own, former)
