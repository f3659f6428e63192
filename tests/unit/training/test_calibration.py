"""The threshold of the entropy rule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.geometry import FULL_IMAGE
from training.calibration import entropy_threshold
from training.embedded import embedded_config, new_model, train_tokenizer
from training.phantoms import to_view8
from training.phantoms.truth import seed_for
from training.questions import case_for
from training.records import corpus
from training.world import Case, seen_picture


@pytest.fixture(scope="module")
def case() -> Case:
    ordered = case_for("effusion_side", "left", seed_for("validation", 0))
    phantom = ordered.phantom()
    view = seen_picture(to_view8(phantom), FULL_IMAGE, phantom.truth)
    return Case(truth=phantom.truth, view=view, asked=ordered.question)


@pytest.fixture(scope="module")
def tokenizer(case: Case):
    return train_tokenizer(corpus([case.asked] * 3, np.random.default_rng(0)), vocabulary=400)


def test_a_model_that_knows_nothing_is_unsure_by_the_whole_vocabulary(case, tokenizer) -> None:
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    with torch.no_grad():
        # Tied to the head: every next token is then equally likely.
        model.get_input_embeddings().weight.zero_()
    entries = model.config.get_text_config().vocab_size
    assert entropy_threshold(model, tokenizer, [case]) == pytest.approx(math.log(entries), rel=1e-4)


def test_fine_questions_alone_set_no_threshold(case, tokenizer) -> None:
    model = new_model(embedded_config(tokenizer)).eval()
    fine = replace(case, asked=replace(case.asked, kind="fine"))
    with pytest.raises(ValueError, match="coarse question"):
        entropy_threshold(model, tokenizer, [fine])
