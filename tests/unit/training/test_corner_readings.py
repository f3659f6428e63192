"""Readings of places that are learned before a stage begins."""

import copy

import numpy as np
import torch

from engine.attention import register_row_attention
from training.batches import collate
from training.corner_readings import learn_to_read
from training.corners import KeptCorners
from training.embedded import embedded_config, new_model
from training.features import FeatureBank
from training.language import drawn_places
from training.language_loss import all_states
from training.phantoms.label_names import CHEST_LABELS
from training.records import RecordWriter
from training.world import WorldConfig, balanced_case, build_case


def test_readings_learn_and_the_network_stays(tokenizer) -> None:
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer))
    model.set_attn_implementation(register_row_attention())
    before = copy.deepcopy(model.state_dict())
    cases = [build_case(balanced_case(WorldConfig(seed=5), index), 0) for index in range(6)]
    corners = KeptCorners(model.config.get_text_config().hidden_size, CHEST_LABELS)

    def error() -> float:
        rng = np.random.default_rng(0)
        bank, writer = FeatureBank(model, seed=0), RecordWriter(tokenizer)
        bank.add([case.view for case in cases], variants=1)
        records = [
            writer.short_answers([], case.view, drawn_places(case.truth, 4, 0.0, rng))
            for case in cases
        ]
        batch = collate(records, bank, tokenizer, rng)
        with torch.no_grad():
            states = all_states(model, batch, between=True)
            images = batch.ids == model.config.image_token_id
            return float(corners(states, images, batch.views, batch.looks))

    fresh = error()
    said = learn_to_read(model, tokenizer, corners, cases, seed=1)
    # Forms and exposures differ from those that it learned on.
    assert error() < 0.8 * fresh
    assert 0 < said < fresh
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
