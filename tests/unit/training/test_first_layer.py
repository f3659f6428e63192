"""The first layer of the language model: counts of rows and columns, and corners of boxes."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.geometry import FULL_IMAGE, PatchGrid
from training.batches import Batch, collate
from training.config import ConfigError, build
from training.corners import corner_loss
from training.counts import counts_columns, counts_keeper, number_rows_and_columns
from training.dense_warmup import DenseWeights, WarmUpHeads
from training.detectors import quieten_words
from training.embedded import embedded_config, new_model, train_tokenizer
from training.features import FeatureBank
from training.first_layer import (
    FirstLayerConfig,
    first_layer,
    said,
    teach_first_layer,
)
from training.image_labels import ImageHeads, centres_of
from training.materials import Materials
from training.phantoms.label_names import CHEST_LABELS
from training.questions import Question
from training.records import RecordWriter
from training.vision import DenseHeads
from training.world import Picture, WorldConfig, balanced_case, build_case

GRID = PatchGrid(8, 7)
STEPS = {"steps": {"steps": 1, "learning_rate": 0.1}}


def test_a_weight_that_is_set_leaves_the_others_as_they_were() -> None:
    whole = build(FirstLayerConfig, STEPS)
    part = build(FirstLayerConfig, {**STEPS, "weights": {"cover": 2.0}, "image": {"boxes": 0.0}})
    assert asdict(part.weights) == {**asdict(whole.weights), "cover": 2.0}
    assert asdict(part.image) == {**asdict(whole.image), "boxes": 0.0}
    assert asdict(whole.weights) == dict.fromkeys(asdict(DenseWeights()), 1.0)
    assert asdict(whole.image) == {
        "places": 1.0,
        "centres": 4.0,
        "answers": 1.0,
        "boxes": 2.0,
        "shares": 2.0,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": {"cover": 0}}, r"weights\.cover"),
        ({"weights": {"attributes": 0}}, r"weights\.attributes"),
        ({"image": {"places": 0}}, r"image\.places"),
        ({"image": {"centres": 0}}, r"image\.centres"),
        ({"corners": 0}, "corners"),
    ],
)
def test_a_first_layer_that_leaves_untaught_what_is_read_behind_it_is_refused(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"Give first_layer a weight for {said}: "):
        build(FirstLayerConfig, {**STEPS, **changes})


def asked(text: str) -> Question:
    return Question(
        family="nodule_side",
        kind="coarse",
        text=text,
        options=("left", "right"),
        answer="left",
        target_boxes=(),
        reasoning="It is left.",
        reasoning_before_zoom="",
        reasoning_after_zoom="",
    )


@pytest.fixture(scope="module")
def batch_and_model():
    tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    view = Picture(
        pixels=np.zeros((28 * GRID.rows, 28 * GRID.columns), dtype=np.uint8),
        region=FULL_IMAGE,
        cover=np.zeros((GRID.cells, len(CHEST_LABELS.covers)), dtype=np.uint8),
        attributes=np.zeros((GRID.cells, len(CHEST_LABELS.attributes)), dtype=np.int8),
        edges=np.zeros((GRID.cells, len(CHEST_LABELS.box_groups), 4), dtype=np.float16),
    )
    bank = FeatureBank(model, seed=0)
    bank.add([view], variants=1)
    writer = RecordWriter(tokenizer)
    texts = ("On which side is the nodule?", "On which side is the nodule? " * 12)
    records = [writer.asked(asked(text), view) for text in texts]
    batch = collate(records, bank, tokenizer, np.random.default_rng(0))
    noise = 0.5 * torch.randn(len(batch.visual), 192)
    # Visual tokens lie in half of their dimensions, as those of a trained tower nearly do.
    noise[:, 96:] *= 0.02
    number_rows_and_columns(model, tokenizer, noise, GRID)
    return Batch(
        batch.ids, batch.weights, batch.positions, noise, batch.slots, batch.slot_targets
    ), model


def test_two_heads_count_columns_and_rows_whatever_stands_before(batch_and_model) -> None:
    batch, model = batch_and_model
    with torch.no_grad():
        states = first_layer(model, batch)
    images = batch.ids == model.config.image_token_id
    added = (states[images] - batch.visual).view(2, GRID.rows, GRID.columns, 192)
    # One direction grows with the column and another with the row, by about equal steps.
    mean = added.mean(0)
    by_column, by_row = mean.mean(0), mean.mean(1)
    for steps, others in ((by_column, by_row), (by_row, by_column)):
        direction = steps[-1] - steps[0]
        along = steps @ direction / direction.norm()
        rises = along.diff()
        assert (rises > 0).all()
        assert float(rises.max() / rises.min()) < 2.5
        across = others @ direction / direction.norm()
        assert float(across.max() - across.min()) < 0.1 * float(along[-1] - along[0])
        counts = added @ direction / direction.norm()
        assert float((counts[0] - counts[1]).abs().max()) < 0.25 * float(rises.min())


def test_the_counts_survive_steps_that_move_every_weight(batch_and_model) -> None:
    """What the layer adds is the same, to the bit, and what is no part of the counts has moved."""
    batch, model = batch_and_model
    model = copy.deepcopy(model)
    tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
    attention = model.model.language_model.layers[0].self_attn
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    put_back = counts_keeper(model, tokenizer)
    assert put_back is not None
    with torch.no_grad():
        counted = first_layer(model, batch)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        # Nothing else is written, so that the counts are all that can be seen.
        model.model.language_model.layers[0].mlp.down_proj.weight.zero_()
        attention.o_proj.weight.zero_()
        moved = first_layer(model, batch)
        put_back()
        kept = first_layer(model, batch)
    images = batch.ids == model.config.image_token_id
    assert not torch.allclose(moved[images], counted[images])
    # Words have changed under the counts, and what little attention they have with them.
    torch.testing.assert_close(kept[images], counted[images], atol=2e-3, rtol=0)
    assert counts_columns(model)
    width = attention.head_dim
    same = (
        attention.q_proj.weight == before["model.language_model.layers.0.self_attn.q_proj.weight"]
    )
    assert same[: 2 * width].all()
    assert not same[2 * width :].any()


def test_layers_that_a_stage_does_not_train_are_not_cleared(batch_and_model) -> None:
    """They are in no state of the stage: one that goes on would begin the next with others."""
    _, model = batch_and_model
    model = copy.deepcopy(model)
    tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
    second = model.model.language_model.layers[1]
    writers = (second.self_attn.o_proj.weight, second.mlp.down_proj.weight)
    before = [writer.detach().clone() for writer in writers]
    counts_keeper(model, tokenizer, layers=1)()
    assert all(map(torch.equal, writers, before))
    counts_keeper(model, tokenizer)()
    assert not any(map(torch.equal, writers, before))


def test_a_model_whose_first_layer_does_not_count_keeps_nothing(batch_and_model) -> None:
    _, model = batch_and_model
    tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
    assert counts_columns(model)
    fresh = new_model(model.config)
    assert not counts_columns(fresh)
    assert counts_keeper(fresh, tokenizer) is None
    asks = model.model.language_model.layers[0].self_attn.q_proj
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.model.language_model.layers[0].self_attn.q_proj.weight[3, 5] = 0.01
    assert asks.weight[3, 5] == 0
    assert not counts_columns(damaged)


def test_words_still_look_like_no_finding_where_visual_tokens_have_much() -> None:
    """The counts take directions of which visual tokens have least; findings read the others."""
    tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    heads, image = DenseHeads(192), ImageHeads(192)
    tokens = torch.randn(512, 192)
    tokens[:, 96:] *= 0.02
    with torch.no_grad():
        for readings in (heads.cover, image.places, image.centres):
            readings.weight[:, 96:] = 0.0
    words = model.get_input_embeddings().weight

    def most() -> float:
        findings = [CHEST_LABELS.covers.index(name) for name in CHEST_LABELS.findings]
        seen = torch.cat([heads.cover.weight[findings], image.places.weight]).detach()
        seen -= seen.mean(dim=1, keepdim=True)
        seen /= seen.norm(dim=1, keepdim=True)
        found = words.detach() / words.detach().norm(dim=1, keepdim=True)
        return float((found @ seen.T).abs().max())

    quieten_words(model, heads, image, tokens)
    assert most() < 1e-5
    number_rows_and_columns(model, tokenizer, tokens, GRID)
    assert most() < 0.05


def test_the_layer_adds_nothing_else_until_it_has_learned(batch_and_model) -> None:
    batch, model = batch_and_model
    with torch.no_grad():
        states = first_layer(model, batch)
    images = batch.ids == model.config.image_token_id
    added = states[images] - batch.visual
    assert torch.linalg.matrix_rank(added, atol=1e-3) == 2


def test_the_layer_is_the_models_own(batch_and_model) -> None:
    """The same as the second of the hidden states that transformers returns."""
    batch, model = batch_and_model
    words = model.get_input_embeddings()(batch.ids)
    images = (batch.ids == model.config.image_token_id).unsqueeze(-1)
    with torch.no_grad():
        found = model.model.language_model(
            inputs_embeds=words.masked_scatter(images, batch.visual),
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states[1]
        torch.testing.assert_close(first_layer(model, batch), found)


def test_all_but_padding_and_visual_tokens_is_said(batch_and_model) -> None:
    batch, model = batch_and_model
    images = batch.ids == model.config.image_token_id
    padding = model.config.get_text_config().pad_token_id
    found = said(batch.ids, images, padding)
    lengths = (batch.ids != padding).sum(dim=1) - GRID.cells
    assert lengths[0] < lengths[1]
    assert found.sum(dim=1).tolist() == lengths.tolist()
    assert not (found & images).any()


def test_padding_is_no_word_that_must_stay_what_it_is(tmp_path: Path) -> None:
    """What the words lose is the same whatever stands behind the shorter records."""
    cases = [build_case(balanced_case(WorldConfig(seed=4), index), 1) for index in (0, 7)]
    lost = []
    for name, scale in (("quiet", 0.0), ("loud", 30.0)):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
        model = new_model(embedded_config(tokenizer)).eval()
        heads = WarmUpHeads(DenseHeads(192), ImageHeads(192))
        with torch.no_grad():
            words = model.get_input_embeddings().weight
            words[tokenizer.pad_token_id] = scale * heads.dense.cover.weight[0]
        teach_first_layer(
            model,
            tokenizer,
            heads,
            build(FirstLayerConfig, {**STEPS, "batch": 6}),
            Materials(cases, cases, [], []),
            folder=tmp_path / name,
            seed=0,
            report=lambda _: None,
        )
        line = (tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]
        lost.append(json.loads(line)["words"])
    assert lost[0] == pytest.approx(lost[1], rel=1e-5)


def test_words_lose_nothing_where_only_counts_are_written(tmp_path: Path) -> None:
    cases = [build_case(balanced_case(WorldConfig(seed=4), index), 1) for index in (0, 7)]
    lost = []
    for name in ("counts", "random"):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(["On which side is the nodule?"] * 3, vocabulary=400)
        model = new_model(embedded_config(tokenizer)).eval()
        if name == "counts":
            number_rows_and_columns(model, tokenizer, torch.randn(256, 192), GRID)
        teach_first_layer(
            model,
            tokenizer,
            WarmUpHeads(DenseHeads(192), ImageHeads(192)),
            build(FirstLayerConfig, {**STEPS, "batch": 2}),
            Materials(cases, cases, [], []),
            folder=tmp_path / name,
            seed=0,
            report=lambda _: None,
        )
        line = (tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]
        lost.append(json.loads(line)["words"])
    assert lost[0] < 1e-9
    assert lost[1] > 0.01


def test_errors_of_corners_count_in_sides_of_their_box() -> None:
    grid = PatchGrid(2, 2)
    edges = torch.full((4, 2, 4), torch.nan)
    # A box from 0.125 to 0.375 in x and from 0 to 0.5 in y, known to the first token alone.
    edges[0, 1] = torch.tensor([0.125, 0.25, 0.125, 0.25])
    corners = torch.zeros(4, 2, 4)
    corners[0, 1] = torch.tensor([0.125, 0.0, 0.375, 0.5])
    assert float(corner_loss(corners, edges, centres_of(grid))) == pytest.approx(0.0)
    corners[0, 1, 0] += 0.05
    assert float(corner_loss(corners, edges, centres_of(grid))) == pytest.approx(0.05 / 0.25 / 4)
    corners[0, 1, 3] += 0.05
    wrong = (0.05 / 0.25 + 0.05 / 0.5) / 4
    assert float(corner_loss(corners, edges, centres_of(grid))) == pytest.approx(wrong)
    assert float(corner_loss(corners, edges * torch.nan, centres_of(grid))) == 0.0
