"""Batches of records and the loss on them."""

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from engine.geometry import FULL_IMAGE, Box
from training.embedded import embedded_config, new_model, train_tokenizer
from training.language import (
    Asked,
    FeatureBank,
    MixConfig,
    collate,
    drawn_record,
    language_loss,
)
from training.out_of_distribution import Detector, area_under_curve, distances
from training.questions import Question
from training.records import RecordWriter, corpus
from training.world import ATTRIBUTES, BOX_GROUPS, COVER_NAMES, Picture

TARGET = (0.25, 0.5, 0.5, 0.75)


def question(kind: str = "fine", targets: tuple[tuple[float, ...], ...] = (TARGET,)) -> Question:
    return Question(
        family="nodule_margin",
        kind=kind,
        text="What is the margin of the nodule?",
        options=("spiculated", "smooth"),
        answer="smooth",
        target_boxes=targets,
        reasoning="Its margin is smooth.",
        reasoning_before_zoom="There is a nodule.",
        reasoning_after_zoom="Its margin is smooth.",
    )


def picture(seed: int, height: int, width: int) -> Picture:
    cells = height // 28 * (width // 28)
    return Picture(
        pixels=np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8),
        region=FULL_IMAGE,
        cover=np.zeros((cells, len(COVER_NAMES)), dtype=np.uint8),
        attributes=np.full((cells, len(ATTRIBUTES)), -1, dtype=np.int8),
        edges=np.full((cells, len(BOX_GROUPS), 4), np.nan, dtype=np.float16),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus([question()] * 3, np.random.default_rng(0)), vocabulary=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return new_model(embedded_config(tokenizer)).eval()


@pytest.fixture(scope="module")
def records(tokenizer):
    writer = RecordWriter(tokenizer)
    view, crop = picture(1, 84, 56), picture(2, 56, 84)
    return [
        writer.write(question(), "direct", view),
        writer.write(question(), "zoom", view, crop, Box(*TARGET)),
    ]


@pytest.fixture(scope="module")
def bank(model, records):
    bank = FeatureBank()
    bank.encode(model, [p for record in records for p in record.pictures], variants=1, seed=0)
    return bank


def test_loss_of_a_batch_equals_each_record_through_the_whole_model(
    model, tokenizer, records, bank
) -> None:
    """Padded together, against transformers' own forward on each record alone."""
    rng = np.random.default_rng(0)
    batch = collate(records, bank, tokenizer, rng)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        total = weight = 0.0
        for record in records:
            features = tuple(bank.draw(p, rng).float() for p in record.pictures)
            grids = torch.tensor(
                [[1, p.grid.rows * 2, p.grid.columns * 2] for p in record.pictures]
            )
            ids = torch.tensor([record.ids])
            positions, _ = model.model.get_rope_index(
                ids,
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
                image_grid_thw=grids,
            )
            logits = model(
                input_ids=ids,
                position_ids=positions,
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            ).logits[0]
            weights = torch.tensor(record.weights)[1:]
            losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
            total += float((losses * weights).sum())
            weight += float(weights.sum())
        loss, _ = language_loss(model, batch)
    # The training forward runs its matrix products in bfloat16.
    assert float(loss) == pytest.approx(total / weight, rel=0.02)


def test_padding_changes_nothing(model, tokenizer, records, bank) -> None:
    rng = np.random.default_rng(0)
    alone, _ = language_loss(model, collate(records[:1], bank, tokenizer, rng))
    batch = collate(records, bank, tokenizer, rng)
    batch.weights[1] = 0
    padded, _ = language_loss(model, batch)
    assert float(alone.detach()) == pytest.approx(float(padded.detach()), rel=2e-3)


def drawn(tokenizer, asked: Asked, **mix: float) -> list[str]:
    shares = {"zoom": 0.0, "probe": 0.0, "auto": 0.0, "real": 0.0} | mix
    writer = RecordWriter(tokenizer)
    return [
        tokenizer.decode(
            drawn_record(asked, MixConfig(**shares), writer, np.random.default_rng(seed)).ids
        )
        for seed in range(30)
    ]


def test_mix_decides_the_form(tokenizer) -> None:
    asked = Asked(question(), picture(1, 84, 56), {Box(*TARGET): (picture(2, 56, 56),)}, ())
    assert all("tool_call" not in text for text in drawn(tokenizer, asked))
    assert all("<tool_call>" in text for text in drawn(tokenizer, asked, zoom=1.0))
    early = drawn(tokenizer, asked, probe=1.0)
    assert all("assistant\n<answer>" in text for text in early)


def test_auto_zooms_on_details_and_answers_the_rest(tokenizer) -> None:
    crops = {Box(*TARGET): (picture(2, 56, 56),)}
    fine = Asked(question(), picture(1, 84, 56), crops, ())
    coarse = Asked(question("coarse", ()), picture(1, 84, 56), {}, ())
    for text in drawn(tokenizer, fine, zoom=1.0, auto=1.0):
        assert "Method: auto." in text
        assert "<tool_call>" in text
    for text in drawn(tokenizer, coarse, zoom=1.0, auto=1.0):
        assert "Method: auto." in text
        assert "<tool_call>" not in text


def test_questions_about_several_places_are_answered_from_the_view(tokenizer) -> None:
    both = question("coarse", (TARGET, (0.6, 0.5, 0.7, 0.6)))
    asked = Asked(both, picture(1, 84, 56), {Box(*TARGET): (picture(2, 56, 56),)}, ())
    assert all("<tool_call>" not in text for text in drawn(tokenizer, asked, zoom=1.0))


def test_mahalanobis_distance_by_hand() -> None:
    detector = Detector(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 1.0])).double(), 1.0)
    found = distances(detector, torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
    assert found.tolist() == pytest.approx([2.0, 3.0, 5.0**0.5])


def test_area_under_curve_by_hand() -> None:
    inside, outside = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])
    assert area_under_curve(inside, outside) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
