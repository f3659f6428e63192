"""Places while words are learned: corners that stay readable, attention that lies on boxes."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.attention import register_row_attention
from engine.geometry import Box, PatchGrid
from tests.unit.training.conftest import TARGET, picture, question
from training.batches import collate, held_shares, written_corners
from training.corners import KEPT_LAYERS, KEPT_LENGTHS, CornerHead, KeptCorners
from training.features import FeatureBank
from training.grounding import GROUNDED_LAYER, BoxAttention, Look
from training.language import LanguageConfig
from training.language_loss import all_states, hidden_states, input_states
from training.network import LanguageNetwork, batch_loss, part_losses, planned
from training.phantoms.label_names import CHEST_LABELS
from training.place_forms import BARE
from training.places import PlaceTerms
from training.records import RecordWriter, seen_box

WIDTH = 192


def boxed(seed: int = 1):
    """A view of three rows and two columns, whose tokens know of a box of the last group."""
    view = picture(seed, 84, 56)
    edges = view.edges.copy()
    edges[:, -1] = 0.25
    return replace(view, edges=edges)


@pytest.fixture(scope="module")
def records(tokenizer):
    writer = RecordWriter(tokenizer)
    view, crop = boxed(), picture(2, 56, 84)
    target = Box(*TARGET)
    places = [("heart", Box(0.0, 0.5, 1.0, 1.0), BARE), ("right lung", target, BARE)]
    return [
        writer.write(question(), "direct", view),
        writer.write(question(), "zoom", view, crop, target),
        writer.short_answers([question()], view, places),
    ]


@pytest.fixture(scope="module")
def bank(model, records):
    bank = FeatureBank(model, seed=0)
    bank.add([p for record in records for p in record.pictures], variants=1)
    return bank


def test_records_know_where_they_write_boxes(tokenizer, records) -> None:
    direct, zoom, short = records
    assert direct.written == ()
    assert [one.box for one in zoom.written] == [Box(*TARGET)]
    assert [one.box for one in short.written] == [Box(0.0, 0.5, 1.0, 1.0), Box(*TARGET)]
    for record in (zoom, short):
        for one in record.written:
            followed = tokenizer.decode(record.ids[one.start + 1 : one.stop])
            numbers = tuple(map(int, followed.split(",")))
            assert numbers == seen_box(one.box, record.pictures[0])
            assert "[" in tokenizer.decode(record.ids[one.start : one.start + 1])
            opened = tokenizer.decode(record.ids[one.begin : one.start + 1])
            assert opened.startswith("<tool_call>" if record is zoom else "?")
            assert "]" in tokenizer.decode(record.ids[one.stop : one.stop + 1])


def test_calls_that_are_not_learned_are_not_written(tokenizer) -> None:
    writer, target = RecordWriter(tokenizer), Box(*TARGET)
    view, crop = boxed(), picture(2, 56, 84)
    after = writer.write(question(), "after_zoom", view, crop, target)
    letters = writer.letters(question(), view, np.random.default_rng(0), crop, target)
    assert re.search(r"bbox_2d", tokenizer.decode(after.ids))
    assert after.written == letters.written == ()


def test_the_attention_that_is_taken_is_eager_attention(model, tokenizer, records, bank) -> None:
    batch = collate(records, bank, tokenizer, np.random.default_rng(0))
    assert [look.row for look in batch.looks] == [1, 2, 2]
    recorder = BoxAttention(batch.looks)
    try:
        model.set_attn_implementation(register_row_attention())
        with torch.no_grad():
            last = all_states(model, batch, recorder=recorder)[-1]
            found = float(recorder.loss())
        model.set_attn_implementation("eager")
        with torch.no_grad():
            outputs = model.model.language_model(
                inputs_embeds=input_states(model, batch),
                position_ids=batch.positions,
                use_cache=False,
                output_attentions=True,
            )
    finally:
        model.set_attn_implementation("sdpa")
    rows = outputs.attentions[GROUNDED_LAYER]
    wanted = 0.0
    images = batch.ids == model.config.image_token_id
    for row, record in enumerate(records):
        view = images[row].nonzero().flatten()[: record.pictures[0].grid.cells]
        for one in record.written:
            cells = list(record.pictures[0].grid.cells_of(one.box))
            shares = held_shares(record.pictures[0].grid, one.box)
            on_box = rows[row][:, one.begin : one.stop][:, :, view[cells]] * shares
            mass = on_box.sum(-1).mean(0)
            wanted -= float((mass + 1e-4).log().sum())
    assert found == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(last, outputs.last_hidden_state, rtol=1e-3, atol=1e-4)


def test_attention_on_a_box_by_hand() -> None:
    """Two heads, three keys of which the last is not allowed: masses of 1/4 and 3/4."""
    query = torch.zeros(1, 2, 3, 1)
    query[0, :, 1, 0] = torch.tensor([1.0, -1.0])
    key = torch.tensor([np.log(3.0), 0.0, 50.0]).float().reshape(1, 1, 3, 1)
    recorder = BoxAttention((Look(0, torch.tensor([1]), torch.tensor([1]), torch.tensor([1])),))
    recorder.take(SimpleNamespace(layer_idx=GROUNDED_LAYER - 1), query, key, None, 1.0)
    with pytest.raises(ValueError, match="no layer"):
        recorder.loss()
    recorder.take(SimpleNamespace(layer_idx=GROUNDED_LAYER), query, key, None, 1.0)
    assert float(recorder.loss()) == pytest.approx(-np.log(0.5001), rel=1e-6)
    allowed = torch.tensor([[True, False, False]] * 3).reshape(1, 1, 3, 3)
    recorder.take(SimpleNamespace(layer_idx=GROUNDED_LAYER), query, key, allowed, 1.0)
    assert float(recorder.loss()) == pytest.approx(-np.log(1e-4), rel=1e-6)


def test_shares_of_a_box_by_hand() -> None:
    """Of two by two tokens: 0.4 by 0.2 and 0.2 by 0.2 above, nothing below."""
    shares = held_shares(PatchGrid(2, 2), Box(0.1, 0.1, 0.7, 0.3))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(held_shares(PatchGrid(2, 2), Box(0.2, 0.2, 0.8, 0.8)), torch.ones(4))


def test_attention_counts_by_what_a_token_holds_of_the_box() -> None:
    """Attention of 1/4 and 3/4 on tokens that hold half as much and most: 1/8 + 3/4."""
    query, key = torch.ones(1, 1, 2, 1), torch.tensor([0.0, np.log(3.0)]).float()
    look = Look(
        0, torch.tensor([1]), torch.tensor([1]), torch.tensor([0, 1]), None, torch.tensor([0.5, 1])
    )
    recorder = BoxAttention((look,))
    layer = SimpleNamespace(layer_idx=GROUNDED_LAYER)
    recorder.take(layer, query, key.reshape(1, 1, 2, 1), None, 1.0)
    assert float(recorder.loss()) == pytest.approx(-np.log(0.8751), rel=1e-6)
    # What is reported is all that lies on the box.
    assert float(recorder.masses[0]) == pytest.approx(1.0)


def test_attention_that_lies_elsewhere_has_a_gradient() -> None:
    query = torch.ones(1, 1, 2, 1)
    key = torch.tensor([0.0, 12.0]).reshape(1, 1, 2, 1).requires_grad_()
    recorder = BoxAttention((Look(0, torch.tensor([1]), torch.tensor([1]), torch.tensor([0])),))
    recorder.take(SimpleNamespace(layer_idx=GROUNDED_LAYER), query, key, None, 1.0)
    recorder.loss().backward()
    assert key.grad is not None
    assert key.grad[0, 0, 0] < 0 < key.grad[0, 0, 1]


def test_corners_are_read_from_the_tokens_of_the_view_alone() -> None:
    """A reading that knows the corners makes no error, whatever stands in other columns."""
    view = boxed()
    kept = KeptCorners(WIDTH, CHEST_LABELS)
    for head in kept.heads:
        head.norm = torch.nn.Identity()
        torch.nn.init.zeros_(head.corners.weight)
        torch.nn.init.zeros_(head.corners.bias)
        with torch.no_grad():
            head.corners.weight[-4:, :4] = torch.eye(4)
    # Sides of the view in shares of the longer one are 1 and 2/3.
    x = torch.tensor([1, 3] * 3) / 6.0
    y = torch.tensor([1, 1, 3, 3, 5, 5]) / 6.0
    wide, high = 0.25 * 2 / 3, 0.25
    truth = torch.stack([x - wide, y - high, x + wide, y + high], -1)

    def of_one_length(corners: torch.Tensor) -> torch.Tensor:
        """Tokens that begin with the corners; their last dimension makes mean squares 1."""
        tokens = torch.zeros(len(corners), WIDTH)
        tokens[:, :4] = corners
        tokens[:, -1] = (WIDTH - corners.square().sum(-1)).sqrt()
        return tokens

    images = torch.zeros(2, 14, dtype=torch.bool)
    images[0, 3:9] = True
    # Of a crop behind the view.
    images[0, 10:12] = True
    states = [torch.full((2, 14, WIDTH), 9.0) for _ in range(4)]
    for layer in KEPT_LAYERS:
        states[layer + 1][0, 3:9] = of_one_length(truth)
    assert kept(states, images, [view, None]).item() == pytest.approx(0.0, abs=1e-3)
    first = KEPT_LAYERS[0] + 1
    states[first][0, 3:9] = of_one_length(truth + torch.tensor([0.0, 0.1, 0.0, 0.0]))
    # A fifth of a side of 0.5, in one of four corners, behind one of two layers.
    assert kept(states, images, [view, None]).item() == pytest.approx(0.2 / 4 / 2, rel=1e-2)
    assert kept(states, images, [None, None]).item() == 0.0
    # Half of the tokens e times as long: logarithms of mean squares of 2 and 0, behind one layer.
    states[first][0, 3:9] = of_one_length(truth)
    states[first][0, 3:6, 4:] *= math.e
    longer = KEPT_LENGTHS * (2**2 + 0) / 2 / 2
    assert kept(states, images, [view, None]).item() == pytest.approx(longer, rel=1e-2)
    # All of them: lengths alike are not enough.
    states[first][0, 6:9, 4:] *= math.e
    assert kept(states, images, [view, None]).item() == pytest.approx(2 * longer, rel=1e-2)


def test_looks_know_the_corners_that_are_written(tokenizer, records, bank) -> None:
    batch = collate(records, bank, tokenizer, np.random.default_rng(0))
    boxes = [one for record in records for one in record.written]
    assert len(batch.looks) == len(boxes) == 3
    for look, written in zip(batch.looks, boxes, strict=True):
        # The view has 84 rows and 56 columns.
        x0, y0, x1, y1 = written.box.as_tuple()
        assert look.corners == pytest.approx((x0 * 56 / 84, y0, x1 * 56 / 84, y1))
        followed = batch.ids[look.row, look.coordinates[::3] + 1].tolist()
        numbers = [int(tokenizer.decode([token])) for token in followed]
        assert numbers == [round(84 * corner) for corner in look.corners]


def test_coordinates_of_several_tokens_have_no_corners(records) -> None:
    """Qwen's own tokenizer writes digits one by one."""
    (one,) = records[1].written
    longer = replace(records[1], written=(replace(one, stop=one.stop + 1),))
    assert written_corners(longer.written[0], longer.pictures[0]) is None
    assert written_corners(one, longer.pictures[0]) is not None


def test_errors_of_what_comes_next_by_hand() -> None:
    """Read as 0.5 everywhere: of a box of 0.2 by 0.4 at (0.4, 0.3), each edge is off by half."""
    kept = KeptCorners(WIDTH, CHEST_LABELS)
    with torch.no_grad():
        kept.next.weight.zero_()
        kept.next.bias.fill_(0.5)
    columns = torch.arange(1, 12)
    look = Look(0, columns, columns, torch.tensor([1]), (0.4, 0.3, 0.6, 0.7))
    states = [torch.randn(1, 12, WIDTH) for _ in range(GROUNDED_LAYER + 2)]
    images = torch.zeros(1, 12, dtype=torch.bool)
    images[0, :6] = True
    view = boxed()
    plain = kept(states, images, [view]).item()
    with_it = kept(states, images, [view], [look]).item()
    assert 3 * with_it == pytest.approx(2 * plain + 0.5, rel=1e-5)
    untold = replace(look, corners=None)
    assert kept(states, images, [view], [untold]).item() == pytest.approx(plain)


def test_readings_begin_as_those_of_the_first_layer() -> None:
    begin = CornerHead(WIDTH)
    kept = KeptCorners(WIDTH, CHEST_LABELS, begin)
    for head in kept.heads:
        assert torch.equal(head.corners.weight, begin.corners.weight)
        assert head.corners.weight is not begin.corners.weight


def test_parts_add_up_to_the_loss_of_the_step(model, tokenizer, records, bank) -> None:
    torch.manual_seed(0)
    places = PlaceTerms(KeptCorners(WIDTH, CHEST_LABELS), 0.5, 0.25)
    model.set_attn_implementation(register_row_attention())
    try:
        plain, _ = batch_loss(model, records, bank, tokenizer, np.random.default_rng(0))
        loss, numbers = batch_loss(
            model, records, bank, tokenizer, np.random.default_rng(0), chunk=2, places=places
        )
        added = 0.5 * numbers["corners"] + 0.25 * numbers["grounding"]
        assert loss.item() == pytest.approx(plain.item() + added, rel=1e-5)
        network = LanguageNetwork(model, bank, places=places)
        assert any(name.startswith("corners.") for name, _ in network.named_parameters())
        parts = planned(records, bank, tokenizer, np.random.default_rng(0), 2)
        found = [part() for part in part_losses(network, parts, places=places)]
    finally:
        model.set_attn_implementation("sdpa")
    assert sum(part.item() for part, _ in found) == pytest.approx(loss.item(), rel=1e-5)
    for name in ("corners", "grounding"):
        assert sum(said[name] for _, said in found) == pytest.approx(numbers[name], rel=1e-5)


def test_both_terms_can_be_learned(model, tokenizer, records, bank) -> None:
    """Some steps on one batch, of the layers up to the grounded one alone."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    places = PlaceTerms(KeptCorners(WIDTH, CHEST_LABELS), 1.0, 1.0)
    layers = model.model.language_model.layers
    trained = [p for layer in layers[: GROUNDED_LAYER + 1] for p in layer.parameters()]
    optimizer = torch.optim.AdamW([*trained, *places.corners.parameters()], lr=3e-3)
    said = []
    model.set_attn_implementation(register_row_attention())
    try:
        for _ in range(12):
            rng = np.random.default_rng(0)
            loss, numbers = batch_loss(model, records, bank, tokenizer, rng, places=places)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            said.append(numbers)
    finally:
        model.set_attn_implementation("sdpa")
        model.load_state_dict(state)
    assert said[-1]["corners"] < 0.7 * said[0]["corners"]
    assert said[-1]["grounding"] < 0.7 * said[0]["grounding"]


def test_states_between_layers_end_with_the_last(model, tokenizer, records, bank) -> None:
    batch = collate(records, bank, tokenizer, np.random.default_rng(0))
    with torch.no_grad():
        states = all_states(model, batch, between=True)
        assert len(states) == model.config.get_text_config().num_hidden_layers + 1
        assert torch.equal(states[0], input_states(model, batch))
        assert torch.equal(states[-1], hidden_states(model, batch))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["corners", "grounding", "spread", "distance"])
def test_weights_that_are_no_numbers_from_0_on_are_refused(name: str, value: float) -> None:
    given = {"steps": 1, "learning_rate": 0.1, "warmup": 0, "save_every": 1, "log_every": 1}
    with pytest.raises(ValueError, match=f"{name} must be a number"):
        LanguageConfig(batch=1, **given, **{name: value})


def test_a_distance_without_a_spread_is_refused() -> None:
    given = {"steps": 1, "learning_rate": 0.1, "warmup": 0, "save_every": 1, "log_every": 1}
    with pytest.raises(ValueError, match="distance does nothing without spread"):
        LanguageConfig(batch=1, **given, distance=1.0)
