"""Latent segments in training: records, masks, schedules, self-feeding, losses."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.decode import Decoder
from engine.engine import Engine
from engine.geometry import Box, PatchGrid
from engine.loading import assembled
from engine.manifest import Manifest, PixelBudget
from engine.processor import ImageProcessor
from engine.request import Budgets, DisplayImage, Request, Tracing
from engine.trace import LatentStep as LatentEvent
from engine.trace import TokenStep
from tests.unit.training.conftest import picture, question
from training.batches import Batch, collate
from training.features import FeatureBank
from training.language import Asked, MixConfig, drawn_record
from training.language_loss import hidden_states, language_loss, self_fed, slot_means
from training.latents import LatentConfig, bottleneck_mask
from training.network import LanguageNetwork, batch_loss, part_losses, planned
from training.records import ANSWER_WEIGHT, Record, RecordWriter
from training.roi import contrast_loss, roi_cells

STEPS = 3
CONFIG = LatentConfig(steps=STEPS)


@pytest.fixture(scope="module")
def records(tokenizer):
    writer = RecordWriter(tokenizer)
    return [
        writer.write(question(), "latent", picture(1, 84, 56), latent_steps=STEPS),
        writer.write(question(), "direct", picture(2, 84, 56)),
        writer.write(question(targets=()), "after_latent", picture(3, 84, 84), latent_steps=STEPS),
    ]


@pytest.fixture(scope="module")
def bank(model, records):
    bank = FeatureBank(model, seed=0)
    bank.add([p for record in records for p in record.pictures], variants=1)
    return bank


@pytest.fixture
def batch(records, bank, tokenizer) -> Batch:
    return collate(records, bank, tokenizer, np.random.default_rng(0), CONFIG)


def test_a_latent_record_learns_its_tags_and_text_but_no_slot(tokenizer, records) -> None:
    record = records[0]
    pairs = list(zip(record.ids, record.weights, strict=True))
    learned = tokenizer.decode([token for token, weight in pairs if weight > 0])
    assert learned == (
        "<|lat_start|><|lat_end|><think>Its margin is smooth.</think>\n<answer>B</answer><|im_end|>"
    )
    slot = tokenizer.convert_tokens_to_ids("<|lat|>")
    assert [weight for token, weight in pairs if token == slot] == [0.0] * STEPS
    assert "Method: latent." in tokenizer.decode(record.ids)
    probe = records[2]
    assert max(probe.weights) == ANSWER_WEIGHT
    assert "<think>" not in tokenizer.decode(probe.ids)


def test_questions_with_and_without_a_finding_get_a_segment(tokenizer) -> None:
    mix = MixConfig(zoom=0.5, probe=0.5, auto=0.5, real=0.0, latent=1.0)
    slot = tokenizer.convert_tokens_to_ids("<|lat|>")
    for seed, targets in enumerate([((0.25, 0.5, 0.5, 0.75),), ()] * 5):
        asked = Asked(question(targets=targets), picture(seed, 84, 56), {})
        rng = np.random.default_rng(seed)
        record = drawn_record(asked, mix, RecordWriter(tokenizer), rng, CONFIG)
        assert record.ids.count(slot) == STEPS
        assert record.roi == tuple(Box(*box) for box in targets)


def test_where_the_model_is_to_choose_it_is_asked_so_and_opens_the_segment_itself(
    tokenizer,
) -> None:
    """The same words and slots behind the prompt of `auto`, with the opening to be learned."""
    view, writer = picture(1, 84, 56), RecordWriter(tokenizer)
    opening = tokenizer.convert_tokens_to_ids("<|lat_start|>")

    def record(auto: float) -> Record:
        mix = MixConfig(zoom=0.0, probe=0.0, auto=auto, real=0.0, latent=1.0)
        asked = Asked(question(), view, {})
        return drawn_record(asked, mix, writer, np.random.default_rng(0), CONFIG)

    forced, free = record(0.0), record(1.0)
    prompt = writer.write(question(), "direct", view, method="auto").ids
    place = free.ids.index(opening)
    assert free.ids[:place] == prompt[:place] != forced.ids[:place]
    assert free.ids[place:] == forced.ids[forced.ids.index(opening) :]
    assert free.weights[place] > 0


def test_full_regions_have_as_many_slots_as_tokens() -> None:
    full = LatentConfig(target="roi_full")
    assert full.slots([Box(0.0, 0.0, 0.5, 0.5)], PatchGrid(8, 8)) == 16
    assert full.slots([], PatchGrid(3, 2)) == 6
    assert CONFIG.slots([], PatchGrid(8, 8)) == STEPS


def test_slots_hold_their_own_records_regions(batch, records, bank) -> None:
    assert batch.slots.sum(-1).tolist() == [STEPS, 0, STEPS]
    tokens = bank.draw(records[2].pictures, np.random.default_rng(0))[0].float()
    # Without a region it is the whole image, in three parts: 3 x 3 tokens, a row each or so.
    assert batch.slot_targets.shape == (2 * STEPS, tokens.shape[1])
    expected = tokens.reshape(3, 3, -1)
    row_means, column_means = expected.mean(1), expected.mean(0)
    found = batch.slot_targets[STEPS:]
    assert torch.allclose(found, row_means, atol=1e-5) or torch.allclose(
        found, column_means, atol=1e-5
    )


def test_a_batch_without_latent_settings_refuses_slots(records, bank, tokenizer) -> None:
    with pytest.raises(ValueError, match="configuration"):
        collate(records, bank, tokenizer, np.random.default_rng(0))


def test_padding_and_neighbours_do_not_change_latents(
    model, records, bank, tokenizer, batch
) -> None:
    alone = collate(records[:1], bank, tokenizer, np.random.default_rng(0), CONFIG)
    with torch.no_grad():
        together = self_fed(model, batch, differentiable=False)
        single = self_fed(model, alone, differentiable=False)
    torch.testing.assert_close(together[:STEPS], single, atol=1e-5, rtol=1e-5)


def test_self_fed_latents_feed_what_the_step_before_gave(model, batch) -> None:
    """A fixed point: fed with them, the model gives them again."""
    with torch.no_grad():
        latents = self_fed(model, batch, differentiable=False)
        again = slot_means(hidden_states(model, batch, latents), batch.slots)
    torch.testing.assert_close(again, latents, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(latents, batch.slot_targets, atol=1e-2)


def test_self_fed_latents_are_those_of_the_engine(model, tokenizer, records) -> None:
    """The loop that decodes and the passes that train feed the same vectors."""
    budget = PixelBudget(least=84 * 56, most=84 * 56)
    manifest = Manifest(
        prompt_style="compact", question_first=True, view=budget, crop=budget, embedded=True
    )
    loaded = assembled(
        model=copy.deepcopy(model),
        tokenizer=tokenizer,
        image_processor=ImageProcessor(),
        manifest=manifest,
        revision="",
    )
    pixels = records[0].pictures[0].pixels
    request = Request(
        image=DisplayImage(pixels=pixels),
        question=question().text,
        options=question().options,
        method="latent",
        budgets=Budgets(latent_steps=STEPS, max_new_tokens=2),
        tracing=Tracing(layers="none", belief=False),
    )
    events = list(Engine(loaded).stream(request))
    fed = [np.frombuffer(e.vector, "<f4") for e in events if isinstance(e, LatentEvent)]
    view = Decoder(loaded).encode(loaded.image_processor(pixels, budget))
    own = FeatureBank(model, seed=0)
    own.add(list(records[0].pictures), variants=1)
    batch = collate(records[:1], own, tokenizer, np.random.default_rng(0), CONFIG)
    batch.visual.copy_(view)
    with torch.no_grad():
        latents = self_fed(model, batch, differentiable=False)
    assert any(isinstance(e, TokenStep) for e in events)
    np.testing.assert_allclose(latents.numpy(), np.stack(fed), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("feeding", "reaches"), [("teacher", False), ("own", False), ("relaxed", True)]
)
def test_only_relaxation_lets_the_answer_shape_the_latents(
    model, batch, feeding: str, reaches: bool
) -> None:
    """The gradient of the text's loss with respect to what the slots are fed."""
    inputs = (
        batch.slot_targets
        if feeding == "teacher"
        else self_fed(model, batch, differentiable=feeding == "relaxed")
    )
    assert inputs.requires_grad is reaches


def test_the_loss_of_the_regions_is_that_of_the_states_before_the_slots(model, batch) -> None:
    from training.roi import roi_loss

    with torch.no_grad():
        found = language_loss(model, batch)
        hidden = hidden_states(model, batch)
        expected = roi_loss(slot_means(hidden, batch.slots), batch.slot_targets, "cosine")
        at_slots = roi_loss(hidden[batch.slots], batch.slot_targets, "cosine")
    assert float(found.roi) / found.slots == pytest.approx(float(expected), rel=1e-5)
    assert float(at_slots) != pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_weight_of_the_regions(model, records, bank, tokenizer, weight: float) -> None:
    config = LatentConfig(steps=STEPS, weight=weight, self_fed=0.0)
    rng = np.random.default_rng(0)
    loss, numbers = batch_loss(
        model, records, bank, tokenizer, rng, chunk=2, latents=config.at(0.0)
    )
    assert float(loss.detach()) == pytest.approx(
        numbers["text"] + weight * numbers["roi"], rel=1e-5
    )


def test_each_loss_on_regions_has_a_weight_of_its_own() -> None:
    """LVR takes 0.1 of its squared error; what is configured comes first, nothing included."""
    assert LatentConfig(loss="mse").at(0.0).roi_weight == 0.1
    assert LatentConfig(loss="cosine").at(0.0).roi_weight == 1.0
    assert LatentConfig(loss="mse", weight=2.0).at(0.0).roi_weight == 2.0
    assert LatentConfig(weight=0.0).at(0.0).roi_weight == 0.0
    assert LatentConfig(loss="mse", relaxation=0.5).at(0.7).roi_weight == 0.0


def test_a_latent_competes_within_its_own_view(model, records, bank, tokenizer) -> None:
    """Records with boxes only, each against its own visual tokens."""
    config = LatentConfig(steps=STEPS, weight=2.0, contrast=0.5, self_fed=0.0)
    rng = np.random.default_rng(0)
    batch = collate(records, bank, tokenizer, rng, config)
    boxed = [row for row, record in enumerate(records) if record.roi and batch.slots[row].any()]
    assert boxed
    with torch.no_grad():
        plain = language_loss(model, batch)
        found = language_loss(model, batch, contrast=0.5)
        hidden = hidden_states(model, batch)
    wanted = 0.0
    images = batch.ids == model.config.image_token_id
    visual = torch.zeros(*batch.ids.shape, batch.visual.shape[-1])
    visual[images] = batch.visual
    for row in boxed:
        grid = records[row].pictures[0].grid
        columns = images[row].nonzero().flatten()[: grid.cells]
        own = torch.nonzero(batch.slots[row]).flatten() - 1
        cells = roi_cells(records[row].roi, grid)
        wanted += STEPS * float(contrast_loss(hidden[row, own], visual[row, columns], cells))
    assert float(found.roi - plain.roi) == pytest.approx(0.5 * wanted, rel=1e-4)
    loss, numbers = batch_loss(
        model, records, bank, tokenizer, np.random.default_rng(0), latents=config.at(0.0)
    )
    assert loss.item() == pytest.approx(numbers["text"] + 2.0 * numbers["roi"], rel=1e-5)
    assert numbers["roi"] == pytest.approx(float(found.roi) / found.slots, rel=1e-4)
    # By itself and without its weight, so that the two parts can be told apart in a log.
    assert numbers["contrast"] == pytest.approx(wanted / found.slots, rel=1e-4)


def test_parts_add_up_to_the_step_however_slots_fall_into_them(
    model, records, bank, tokenizer
) -> None:
    """Every slot of a step counts the same; one record has none."""
    config = LatentConfig(steps=STEPS, weight=2.0, self_fed=0.0)
    phase = config.at(0.0)
    network = LanguageNetwork(model, bank, config)
    totals, slots = [], []
    for size in (1, 2, 3):
        parts = planned(records, bank, tokenizer, np.random.default_rng(0), size, phase)
        slots.append([int(part.layout.slots.sum()) for part in parts])
        with torch.no_grad():
            totals.append(sum(float(part()[0]) for part in part_losses(network, parts, phase)))
    assert sorted(slots[0]) == [0, STEPS, STEPS]
    whole, _ = batch_loss(model, records, bank, tokenizer, np.random.default_rng(0), latents=phase)
    assert totals == pytest.approx([float(whole.detach())] * 3, rel=1e-5)


# --- the bottleneck -----------------------------------------------------------------------


def test_the_mask_by_hand() -> None:
    """Columns: question, image, image, opening, slot, slot, answer, padding."""
    images = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]).bool()
    slots = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0], [0] * 8]).bool()
    mask = bottleneck_mask(images, slots, 1.0, np.random.default_rng(0))
    assert mask is not None
    assert mask.shape == (2, 1, 8, 8)
    causal = torch.ones(8, 8).tril().bool()
    assert (mask[1, 0] == causal).all()
    assert (mask[0, 0, :6] == causal[:6]).all()
    assert mask[0, 0, 6].tolist() == [True, False, False, False, True, True, True, False]
    assert bottleneck_mask(images, slots, 0.0, np.random.default_rng(0)) is None
    assert bottleneck_mask(images, slots[1:].repeat(2, 1), 1.0, np.random.default_rng(0)) is None


def test_its_probability_is_a_share_of_the_records() -> None:
    images = torch.tensor([[0, 1, 0, 0, 0]]).bool().repeat(400, 1)
    slots = torch.tensor([[0, 0, 0, 1, 0]]).bool().repeat(400, 1)
    mask = bottleneck_mask(images, slots, 0.7, np.random.default_rng(0))
    assert mask is not None
    bottled = (~mask[:, 0, 4, 1]).float().mean()
    assert float(bottled) == pytest.approx(0.7, abs=0.07)


def test_a_bottled_answer_knows_the_image_through_its_latents_only(
    model, records, bank, tokenizer
) -> None:
    """Once the slots themselves are kept from the image too, nothing of it is left."""
    rng = np.random.default_rng(0)
    batch = collate(records[:1], bank, tokenizer, rng, CONFIG, bottleneck=1.0)
    slots = torch.nonzero(batch.slots[0]).flatten()
    image = torch.nonzero(batch.ids[0] == model.config.image_token_id).flatten()
    assert batch.mask is not None
    blind = batch.mask.clone()
    blind[0, 0, slots, int(image[0]) : int(slots[0])] = False
    fixed = torch.randn_like(batch.slot_targets)
    visual = (batch.visual.clone(), torch.randn_like(batch.visual))

    def answers(mask: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for tokens in visual:
            seen = replace(batch, visual=tokens, mask=mask)
            with torch.no_grad():
                found.append(hidden_states(model, seen, fixed)[0, int(slots[-1]) + 1 :])
        return found

    one, other = answers(blind)
    torch.testing.assert_close(one, other)
    one, other = answers(batch.mask)
    assert not torch.allclose(one, other, atol=1e-3, rtol=0)


# --- schedules ----------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    config = LatentConfig(
        self_fed=0.5, bottleneck_first=0.2, bottleneck_last=0.8, relaxation=0.2, weight=3.0
    )
    start, middle, end = config.at(0.0), config.at(0.4), config.at(0.9)
    assert (start.own, start.bottleneck, start.roi_weight) == (0.0, pytest.approx(0.2), 3.0)
    assert (middle.own, middle.bottleneck) == (pytest.approx(0.25), pytest.approx(0.44))
    assert (end.relaxed, end.roi_weight) == (True, 0.0)
    rng = np.random.default_rng(0)
    assert {end.feeding(rng) for _ in range(5)} == {"relaxed"}
    assert {start.feeding(rng) for _ in range(5)} == {"teacher"}
    assert {config.at(0.79).feeding(rng) for _ in range(30)} == {"teacher", "own"}


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"weight": -1.0}, {"self_fed": 1.1}, {"relaxation": -0.1}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LatentConfig(**wrong)  # type: ignore[arg-type]
