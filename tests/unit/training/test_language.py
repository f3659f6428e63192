"""Batches of records and the loss on them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from engine.geometry import Box
from engine.reground import SKIPPED_MESSAGE
from tests.unit.training.conftest import TARGET, picture, question
from training.batches import collate
from training.drawn_words import DRAWN_OPTIONS, of_drawn_words
from training.features import FeatureBank
from training.language import (
    Asked,
    MixConfig,
    closeup_of,
    drawn_record,
    letter_record,
    phantom_record,
    short_questions,
    zoom_would_tell,
)
from training.language_loss import language_loss
from training.network import batch_loss
from training.out_of_distribution import Detector, area_under_curve, distances
from training.questions import ALL_FAMILIES, case_for
from training.records import Record, RecordWriter
from training.world import Case


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
    bank = FeatureBank(model, seed=0)
    bank.add([p for record in records for p in record.pictures], variants=1)
    return bank


def test_loss_of_a_batch_equals_each_record_through_the_whole_model(
    model, tokenizer, records, bank
) -> None:
    """Padded together, against transformers' own forward on each record alone."""
    rng = np.random.default_rng(0)
    batch = collate(records, bank, tokenizer, rng)
    with torch.no_grad():
        total = weight = 0.0
        for record in records:
            features = tuple(tokens.float() for tokens in bank.draw(record.pictures, rng))
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
        loss = language_loss(model, batch)
    assert float(loss.total) / loss.weight == pytest.approx(total / weight, rel=1e-5)


def test_padding_changes_nothing(model, tokenizer, records, bank) -> None:
    rng = np.random.default_rng(0)
    alone = language_loss(model, collate(records[:1], bank, tokenizer, rng))
    batch = collate(records, bank, tokenizer, rng)
    batch.weights[1] = 0
    padded = language_loss(model, batch)
    assert alone.weight == padded.weight
    assert float(alone.total.detach()) == pytest.approx(float(padded.total.detach()), rel=1e-5)


def test_chunks_by_length_give_the_loss_and_gradient_of_one_batch(
    model, tokenizer, records, bank
) -> None:
    rng = np.random.default_rng(0)
    parameter = model.model.language_model.norm.weight
    found = []
    # The shortest has no image: alone it makes a batch without visual tokens.
    ids = tokenizer.encode("A. smooth B. spiculated")
    together = [*records, records[0], Record(ids, [0.0] + [1.0] * (len(ids) - 1), ())]
    for chunk in (1, 3):
        loss, numbers = batch_loss(model, together, bank, tokenizer, rng, chunk=chunk)
        (gradient,) = torch.autograd.grad(loss, parameter)
        found.append((float(loss.detach()), numbers, gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert found[0][1]["entropy"] > 0
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-3, atol=1e-6)


def test_the_bank_encodes_each_variant_once_and_the_same_in_every_order(model, records) -> None:
    pictures = [p for record in records for p in record.pictures]
    banks = [FeatureBank(model, seed=3) for _ in range(2)]
    for bank in banks:
        bank.add(pictures, variants=3)
    draws = [np.random.default_rng(seed) for seed in range(12)]
    one = [banks[0].draw(pictures, np.random.default_rng(seed)) for seed in range(12)]
    two = [banks[1].draw(pictures, draws[seed]) for seed in reversed(range(12))][::-1]
    for left, right in zip(one, two, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    again = banks[0].draw(pictures, np.random.default_rng(0))
    assert all(a is b for a, b in zip(again, one[0], strict=True))
    with pytest.raises(KeyError):
        banks[0].draw([picture(9, 56, 56)], np.random.default_rng(0))


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
    asked = Asked(question(), picture(1, 84, 56), {Box(*TARGET): (picture(2, 56, 56),)})
    assert all("tool_call" not in text for text in drawn(tokenizer, asked))
    assert all("<tool_call>" in text for text in drawn(tokenizer, asked, zoom=1.0))
    assert all(SKIPPED_MESSAGE in text for text in drawn(tokenizer, asked, zoom=1.0, withheld=1.0))
    some = [SKIPPED_MESSAGE in text for text in drawn(tokenizer, asked, zoom=1.0, withheld=0.3)]
    assert 0 < sum(some) < len(some)
    early = drawn(tokenizer, asked, probe=1.0)
    assert all("assistant\n<answer>" in text for text in early)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_letters_are_asked_behind_a_zoom_as_often_as_the_mix_zooms(tokenizer, share: float) -> None:
    view, crop = picture(1, 84, 56), picture(2, 56, 56)
    mix = MixConfig(zoom=share, probe=0.0, auto=0.0, real=0.0)
    writer = RecordWriter(tokenizer)
    asked = Asked(question(), view, {Box(*TARGET): (crop,)})
    records = [
        letter_record(asked, mix, writer, np.random.default_rng(seed)) for seed in range(200)
    ]
    assert {record.pictures for record in records} <= {(view,), (view, crop)}
    zoomed = sum(len(record.pictures) == 2 for record in records) / len(records)
    assert zoomed == pytest.approx(share, abs=0.08)
    # Where there is no one place to look at, never.
    nowhere = Asked(question(targets=()), view, {Box(*TARGET): (crop,)})
    record = letter_record(nowhere, mix, writer, np.random.default_rng(0))
    assert record.pictures == (view,)


def test_letters_of_drawn_words_have_nothing_of_the_family(tokenizer) -> None:
    view, crop = picture(1, 84, 56), picture(2, 56, 56)
    asked = Asked(question(), view, {Box(*TARGET): (crop,)})
    writer = RecordWriter(tokenizer)
    mix = MixConfig(zoom=0.5, probe=0.0, auto=0.0, real=0.0, letters=1, words=0.4)
    rng = np.random.default_rng(0)
    texts = [tokenizer.decode(letter_record(asked, mix, writer, rng).ids) for _ in range(300)]
    drawn_words = [text for text in texts if "<think>It is " in text]
    assert len(drawn_words) / 300 == pytest.approx(0.4, abs=0.08)
    for text in drawn_words:
        assert question().reasoning_after_zoom not in text
        assert len(re.findall(r"<answer>[A-D]</answer>", text)) == 3
    assert 0 < sum("<tool_call>" in text for text in drawn_words) < len(drawn_words)


def test_the_letter_of_drawn_words_stands_before_the_words_that_were_named(tokenizer) -> None:
    writer = RecordWriter(tokenizer)
    assert {"nodule", "margin"} <= set(writer.words)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        one = of_drawn_words(question(), writer.words, rng)
        assert len(set(one.options)) == DRAWN_OPTIONS
        assert one.reasoning == one.reasoning_after_zoom == f"It is {one.answer}."
        words = {word for option in one.options for word in option.split()}
        assert words <= set(writer.words)
        text = tokenizer.decode(writer.letters(one, picture(1, 84, 56), rng).ids)
        turns = text.split("<|im_start|>user\n")[1:]
        assert len(turns) == 3
        for turn in turns:
            listed = dict(re.findall(r"^([A-D])\. (.+?)(?:<\||$)", turn, re.MULTILINE))
            named = re.search(r"<think>It is (.+)\.</think>", turn)
            letter = re.search(r"<answer>([A-D])</answer>", turn)
            assert listed[letter.group(1)] == named.group(1)


def test_auto_zooms_on_details_and_answers_the_rest(tokenizer) -> None:
    crops = {Box(*TARGET): (picture(2, 56, 56),)}
    fine = Asked(question(), picture(1, 84, 56), crops)
    coarse = Asked(question("coarse", ()), picture(1, 84, 56), {})
    for text in drawn(tokenizer, fine, zoom=1.0, auto=1.0):
        assert "Method: auto." in text
        assert "<tool_call>" in text
    for text in drawn(tokenizer, coarse, zoom=1.0, auto=1.0):
        assert "Method: auto." in text
        assert "<tool_call>" not in text


def test_questions_about_several_places_are_answered_from_the_view(tokenizer) -> None:
    both = question("coarse", (TARGET, (0.6, 0.5, 0.7, 0.6)))
    asked = Asked(both, picture(1, 84, 56), {Box(*TARGET): (picture(2, 56, 56),)})
    texts = drawn(tokenizer, asked, zoom=1.0)
    assert all("<tool_call>" not in text for text in texts)
    # Under `zoom` as well: left untaught, they were zoomed for there, at nothing.
    assert 0 < sum("Method: zoom." in text for text in texts) < len(texts)


def test_one_place_whose_crop_is_not_there_is_no_reason_to_stay(tokenizer) -> None:
    asked = Asked(question("coarse", (TARGET,)), picture(1, 84, 56), {})
    assert all("Method: zoom." not in text for text in drawn(tokenizer, asked, zoom=1.0))


def test_whether_a_zoom_is_shown_never_tells_the_answer(tokenizer) -> None:
    """Of every family either all answers have one place to look at, or none is zoomed for."""
    zoomed = 0
    for name, family in ALL_FAMILIES.items():
        places = {}
        for answer in family.answers:
            asked = case_for(name, answer, 5).question
            places[answer] = len(asked.target_boxes) == 1 and not zoom_would_tell(asked)
        assert len(set(places.values())) == 1, (name, places)
        zoomed += any(places.values())
    assert zoomed > 10

    there = replace(
        question("coarse"), family="nodule_present", answer="yes", options=("no", "yes")
    )
    asked = Asked(there, picture(1, 84, 56), {Box(*TARGET): (picture(2, 56, 56),)})
    texts = drawn(tokenizer, asked, zoom=1.0)
    assert all("<tool_call>" not in text for text in texts)
    # As where nothing is found, some of the prompts offer a zoom all the same.
    assert 0 < sum("Method: zoom." in text for text in texts) < len(texts)


def test_mahalanobis_distance_by_hand() -> None:
    detector = Detector(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 1.0])).double(), 1.0)
    found = distances(detector, torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
    assert found.tolist() == pytest.approx([2.0, 3.0, 5.0**0.5])


def test_area_under_curve_by_hand() -> None:
    inside, outside = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])
    assert area_under_curve(inside, outside) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_short_questions_ask_what_is_there_first() -> None:
    truth = case_for("nodule_margin", "smooth", 8).truth()
    case = Case(truth=truth, view=picture(1, 84, 56))
    for seed in range(5):
        asked = short_questions(case, np.random.default_rng(seed))
        present = [question.family.endswith("_present") for question in asked]
        assert len(asked) == 12
        assert present == sorted(present, reverse=True)
        assert all(question.kind == "coarse" for question in asked)
        assert len({question.text for question in asked}) == 12


def test_a_close_up_is_all_that_is_seen_and_names_no_place(tokenizer) -> None:
    truth = case_for("nodule_margin", "smooth", 8).truth()
    crop = picture(2, 56, 84)
    crops = {Box(*nodule.box): (crop,) for nodule in truth.of_kind("nodule")}
    case = Case(truth=truth, view=picture(1, 84, 56), crops=crops)
    writer = RecordWriter(tokenizer)
    mix = MixConfig(zoom=0.0, probe=0.0, auto=0.0, real=0.0, closeup=1.0)
    for seed in range(8):
        found = closeup_of(case, np.random.default_rng(seed))
        assert found is not None
        assert found.view is crop
        assert found.question.kind == "fine"
        assert not any(place in found.question.reasoning for place in ("zone", "left", "right"))
        record = phantom_record(case, mix, writer, np.random.default_rng(seed))
        assert record.pictures == (crop,)
        assert record.written == ()


def test_what_has_no_crop_has_no_close_up(tokenizer) -> None:
    truth = case_for("nodule_margin", "smooth", 8).truth()
    case = Case(
        truth=truth, view=picture(1, 84, 56), asked=case_for("nodule_margin", "smooth", 8).question
    )
    assert closeup_of(case, np.random.default_rng(0)) is None
    assert closeup_of(replace(case, truth=None), np.random.default_rng(0)) is None
    mix = MixConfig(zoom=0.0, probe=0.0, auto=0.0, real=0.0, closeup=1.0)
    record = phantom_record(case, mix, RecordWriter(tokenizer), np.random.default_rng(0))
    assert record.pictures == (case.view,)


def test_shares_of_whole_records_are_at_most_one() -> None:
    with pytest.raises(ValueError, match="closeup must not be more than 1 together"):
        MixConfig(zoom=0.0, probe=0.0, auto=0.0, real=0.0, report=0.5, closeup=0.6)


def test_places_that_no_record_has_are_refused() -> None:
    with pytest.raises(ValueError, match="places does nothing without short"):
        MixConfig(zoom=0.0, probe=0.0, auto=0.0, real=0.0, places=3)
