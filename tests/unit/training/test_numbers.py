"""Numbers of one token: their ids, the curve they begin on, and targets that are spread."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from engine.geometry import Box
from engine.tiny import tiny_tokenizer
from tests.unit.training.conftest import TARGET, picture, question
from training.batches import collate
from training.embedded import (
    EMBEDDING_DEVIATION,
    WHOLE_NUMBERS,
    embedded_config,
    new_model,
    order_numbers,
)
from training.features import FeatureBank
from training.language_loss import coordinate_sides, coordinate_targets, target_logits
from training.network import batch_loss
from training.numbers import (
    NumberScale,
    drawn_numbers,
    free_losses,
    number_ids,
    numbers_keeper,
    slow_waves,
    smooth_curve,
)
from training.place_forms import BARE
from training.places import PlaceTerms
from training.records import RecordWriter

SPREAD = 2.0


def pieces(tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([one]) for one in tokenizer(text)["input_ids"]]


def test_every_number_of_a_view_is_one_token(tokenizer) -> None:
    ids = number_ids(tokenizer)
    assert len(ids) == len(set(ids)) == WHOLE_NUMBERS
    assert all(tokenizer.decode([one]) == str(number) for number, one in enumerate(ids))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[12, 104, 0, 224]", ["[", "12", ",", " ", "104", ",", " ", "0", ",", " ", "224", "]"]),
        ("512", ["5", "12"]),
        ("1955", ["195", "5"]),
        ("007", ["0", "0", "7"]),
        ("0.75", ["0", ".", "75"]),
    ],
)
def test_what_is_no_such_number_is_written_in_parts(tokenizer, text: str, expected) -> None:
    assert pieces(tokenizer, text) == expected
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_numbers_stay_whole_in_a_saved_checkpoint(tokenizer, tmp_path) -> None:
    """The class of Qwen2's tokenizer would take digits one by one again when it is opened."""
    tokenizer.save_pretrained(tmp_path)
    embedded_config(tokenizer).save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    text = '<tool_call>{"bbox_2d": [12, 104, 98, 224]}</tool_call><|im_end|>'
    assert opened(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert number_ids(opened) == number_ids(tokenizer)


def test_a_tokenizer_of_digits_is_refused() -> None:
    digits = tiny_tokenizer()
    assert len(number_ids(digits)) == 10
    with pytest.raises(ValueError, match="one token each"):
        NumberScale(digits, SPREAD)


def test_near_numbers_begin_alike() -> None:
    torch.manual_seed(0)
    drawn = drawn_numbers(256, 4096)
    assert drawn.square().mean().item() == pytest.approx(1.0, abs=0.02)
    alike = torch.nn.functional.cosine_similarity(drawn[100:101], drawn)
    expected = [
        0.25 * sum(math.exp(-(apart**2) / (2 * length**2)) for length in (3, 12, 48))
        for apart in (1, 8, 40)
    ]
    assert alike[[101, 108, 140]].tolist() == pytest.approx(expected, abs=0.06)
    assert alike[[99, 92, 60]].tolist() == pytest.approx(expected, abs=0.06)


def test_slow_waves_are_cosines_of_at_least_24_numbers() -> None:
    waves = slow_waves(512)
    torch.testing.assert_close(waves.T @ waves, torch.eye(43), rtol=0.0, atol=1e-5)
    middles = torch.arange(10, 512, dtype=torch.float64) + 0.5
    for period, share in ((1024 / 42, 1.0), (8.0, 0.0)):
        wave = torch.cos(2 * torch.pi * middles / period).float()
        # On a part of the numbers a fast wave is a little like slow ones.
        assert float((waves.T @ wave).norm() / wave.norm()) == pytest.approx(share, abs=0.1)


def _ordered(tokenizer):
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer))
    order_numbers(model, tokenizer)
    return model


def test_smoothed_numbers_lie_on_slow_waves_and_near_where_they_were(tokenizer) -> None:
    model, ids = _ordered(tokenizer), number_ids(tokenizer)
    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    smooth_curve(model, tokenizer)
    after, waves = weight.detach(), slow_waves(512)
    curve = after[ids[10:]]
    torch.testing.assert_close(waves @ (waves.T @ curve), curve, rtol=0.0, atol=1e-5)
    # What numbers begin with of their own, a quarter, and most of what only the next ones share.
    left = float(curve.square().sum() / before[ids[10:]].square().sum())
    assert 0.5 < left < 0.75
    torch.testing.assert_close(waves.T @ curve, waves.T @ before[ids[10:]], rtol=0.0, atol=1e-4)


def test_digits_and_words_are_left_alone(tokenizer) -> None:
    """ "bbox_2d" is a word: on the curve its digit would be as good as any other."""
    model, ids = _ordered(tokenizer), number_ids(tokenizer)
    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    smooth_curve(model, tokenizer)
    changed = (before != weight.detach()).any(-1).nonzero().flatten().tolist()
    assert changed == sorted(ids[10:])
    assert all(tokenizer.decode([one]).isdigit() for one in ids[:10])


def test_numbers_stay_on_their_curve(tokenizer) -> None:
    """After a step what was learned of slow waves stays, and what tells neighbours apart goes."""
    model, ids = _ordered(tokenizer), number_ids(tokenizer)
    smooth_curve(model, tokenizer)
    put_back = numbers_keeper(model, tokenizer)
    assert put_back is not None
    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    middles = torch.arange(10, 512) + 0.5
    slow, fast = (
        torch.cos(torch.pi * middles / 512 * waves)[:, None] @ torch.randn(1, weight.shape[1])
        for waves in (5, 200)
    )
    with torch.no_grad():
        weight.add_(1.0)
        weight[ids[10:]] += slow + fast
    put_back()
    after = weight.detach()
    left = after[ids[10:]] - before[ids[10:]] - 1.0 - slow
    assert float(left.square().mean()) < 0.01 * float(fast.square().mean())
    others = torch.ones(len(after), dtype=torch.bool)
    others[ids[10:]] = False
    assert torch.equal(after[others], before[others] + 1.0)


def test_a_curve_in_half_precision_is_smooth(tokenizer) -> None:
    model = _ordered(tokenizer)
    smooth_curve(model, tokenizer)
    assert numbers_keeper(model.half().float(), tokenizer) is not None


def test_numbers_that_are_not_smooth_are_left_free(tokenizer) -> None:
    """So they are in pretraining, and in a checkpoint from before."""
    assert numbers_keeper(_ordered(tokenizer), tokenizer) is None


def test_frozen_embeddings_and_digits_have_no_curve(tokenizer) -> None:
    frozen = _ordered(tokenizer)
    smooth_curve(frozen, tokenizer)
    frozen.requires_grad_(False)
    digits = tiny_tokenizer()
    written_in_digits = new_model(embedded_config(digits))
    for model, words in ((frozen, tokenizer), (written_in_digits, digits)):
        assert numbers_keeper(model, words) is None
        with pytest.raises(ValueError, match="set it to false"):
            smooth_curve(model, words)


def test_only_numbers_are_drawn_anew(tokenizer) -> None:
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer))
    before = model.get_input_embeddings().weight.detach().clone()
    order_numbers(model, tokenizer)
    after = model.get_input_embeddings().weight.detach()
    changed = (before != after).any(-1).nonzero().flatten().tolist()
    assert changed == sorted(number_ids(tokenizer))
    assert after[changed].std().item() == pytest.approx(EMBEDDING_DEVIATION, rel=0.1)


def test_targets_are_spread_over_neighbours(tokenizer) -> None:
    """Against the same computed number by number."""
    ids = number_ids(tokenizer)
    logits = torch.randn(3, len(tokenizer), generator=torch.Generator().manual_seed(0))
    comma = tokenizer(",")["input_ids"][0]
    found = NumberScale(tokenizer, SPREAD).losses(logits, torch.tensor([ids[0], comma, ids[100]]))
    said = torch.log_softmax(logits, -1)
    for row, value in ((0, 0), (2, 100)):
        weights = [math.exp(-((n - value) ** 2) / (2 * SPREAD**2)) for n in range(len(ids))]
        expected = -sum(w * said[row, one].item() for w, one in zip(weights, ids, strict=True))
        assert found[row].item() == pytest.approx(expected / sum(weights), rel=1e-4)
    assert found[1].item() == pytest.approx(-said[1, comma].item(), rel=1e-5)


def test_a_near_number_costs_less_than_a_far_one(tokenizer) -> None:
    ids = number_ids(tokenizer)
    scale = NumberScale(tokenizer, SPREAD)

    def loss(written: int) -> float:
        logits = torch.zeros(1, len(tokenizer))
        logits[0, ids[written]] = 5.0
        return scale.losses(logits, torch.tensor([ids[99]])).item()

    assert loss(99) < loss(98) < loss(96) < loss(90)
    assert loss(90) == pytest.approx(loss(12), abs=1e-3)


def test_only_coordinates_of_boxes_are_spread(tokenizer, model) -> None:
    writer = RecordWriter(tokenizer)
    view, crop = picture(1, 84, 56), picture(2, 56, 84)
    records = [
        writer.write(question(), "direct", view),
        writer.write(question(), "zoom", view, crop, Box(*TARGET)),
    ]
    bank = FeatureBank(model, seed=0)
    bank.add([one for record in records for one in record.pictures], variants=1)
    batch = collate(records, bank, tokenizer, np.random.default_rng(0))
    rows, columns = torch.nonzero(batch.weights[:, 1:], as_tuple=True)
    spots = coordinate_targets(batch, rows, columns)
    assert set(rows[spots].tolist()) == {1}
    written = tokenizer.decode(batch.ids[rows[spots], columns[spots] + 1])
    # Of a view of 56 by 84 pixels; the last token closes the list, and the object around it.
    assert written == "14, 42, 28, 63]}"
    plain, _ = batch_loss(model, records, bank, tokenizer, np.random.default_rng(0))
    places = PlaceTerms(numbers=NumberScale(tokenizer, 1e-3))
    same, _ = batch_loss(model, records, bank, tokenizer, np.random.default_rng(0), places=places)
    assert same.item() == pytest.approx(plain.item(), rel=1e-5)
    places = PlaceTerms(numbers=NumberScale(tokenizer, SPREAD))
    wide, _ = batch_loss(model, records, bank, tokenizer, np.random.default_rng(0), places=places)
    assert wide.item() != pytest.approx(plain.item(), rel=1e-5)


def test_a_distance_is_that_of_the_expected_number(tokenizer) -> None:
    """By hand: a quarter on 10, three quarters on 30, another word beside them."""
    ids = number_ids(tokenizer)
    logits = torch.full((1, len(tokenizer)), -torch.inf)
    comma = tokenizer(",")["input_ids"][0]
    for one, share in ((ids[10], 0.25), (ids[30], 0.75), (comma, 2.0)):
        logits[0, one] = math.log(share)
    scale = NumberScale(tokenizer, SPREAD)
    found = scale.distances(logits, torch.tensor([ids[31]]), torch.tensor([12.0]))
    assert found.tolist() == pytest.approx([(31 - 25) / 12])


def test_coordinates_are_measured_in_sides_of_their_box(tokenizer, model) -> None:
    """Against the expected numbers, taken from the model's own logits one by one."""
    writer = RecordWriter(tokenizer)
    # 56 wide and 84 high; boxes of 14 by 21 pixels, and of 56 by 2, which count as 0.04 of 84.
    view = picture(1, 84, 56)
    asked = [
        ("heart", Box(0.25, 0.5, 0.5, 0.75), BARE),
        ("line", Box(0, 0.5, 1, 44 / 84), BARE),
    ]
    records = [writer.short_answers([], view, asked), writer.write(question(), "direct", view)]
    bank = FeatureBank(model, seed=0)
    bank.add([view], variants=1)
    batch = collate(records, bank, tokenizer, np.random.default_rng(0))
    rows, columns = torch.nonzero(batch.weights[:, 1:], as_tuple=True)
    sides = coordinate_sides(batch, rows, columns)
    written = sides.isfinite().nonzero().flatten()
    assert sides[written].tolist() == pytest.approx([14, 21, 14, 21, 56, 3.36, 56, 3.36])
    ids = number_ids(tokenizer)
    with torch.no_grad():
        logits = target_logits(model, batch)[0][written][:, ids]
    expected = torch.softmax(logits, -1) @ torch.arange(len(ids), dtype=torch.float)
    true = torch.tensor([14, 42, 28, 63, 0, 42, 56, 44])
    off = ((expected - true).abs() / sides[written]).mean().item()
    numbers = NumberScale(tokenizer, SPREAD)
    losses = []
    for weight in (0.0, 2.0):
        # In two parts, as a step is cut.
        loss, found = batch_loss(
            model,
            records,
            bank,
            tokenizer,
            np.random.default_rng(0),
            chunk=1,
            places=PlaceTerms(numbers=numbers, distance=weight),
        )
        losses.append(loss.item())
        assert found.get("distance", 0.0) == pytest.approx(off if weight else 0.0, rel=1e-4)
    assert losses[1] - losses[0] == pytest.approx(2 * off, rel=1e-3)


def test_any_number_that_is_allowed_will_do() -> None:
    """By hand: three numbers and another word."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(3, 1)
    found = free_losses(logits, [2, 0, 1], torch.tensor([[0, 2], [1, 2], [0, 1]]))
    assert found.exp().tolist() == pytest.approx([1 / 0.6, 1 / 0.3, 1 / 0.4], rel=1e-5)


def test_what_is_allowed_grows_in_proportion_to_what_it_is(tokenizer) -> None:
    """The gradient by hand: no allowed number is preferred to another."""
    ids = number_ids(tokenizer)
    logits = torch.randn(1, len(tokenizer), generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    free_losses(logits, ids, torch.tensor([[5, 223]])).sum().backward()
    said = torch.softmax(logits.detach()[0], -1)
    allowed = said[ids[5:224]] / said[ids[5:224]].sum()
    expected = said.clone()
    expected[ids[5:224]] -= allowed
    torch.testing.assert_close(logits.grad[0], expected, atol=1e-6, rtol=1e-4)
