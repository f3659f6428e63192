"""Heads that find the letter of an option: where they look, how they begin, how they are taught."""

import copy
import json

import numpy as np
import pytest
import torch

from engine.attention import register_row_attention
from tests.unit.training.conftest import picture, question
from training.batches import collate
from training.config import ConfigError, build
from training.corners import KeptCorners
from training.counts import anchors
from training.embedded import embedded_config, new_model
from training.features import FeatureBank
from training.grounding import GROUNDED_LAYER
from training.language_loss import all_states, input_states
from training.letter_heads import (
    ANSWERING_LAYER,
    COPIED,
    LETTER_LAYER,
    MATCHING_LAYER,
    Pointer,
    PointerAttention,
    answered_letters,
    begin_copying,
    leave_room,
    name_pointers,
    pointers_of,
)
from training.looking import LookingConfig, teach_to_look
from training.materials import Materials
from training.network import batch_loss
from training.phantoms.label_names import CHEST_LABELS
from training.places import PlaceTerms
from training.records import RecordWriter
from training.world import WorldConfig, balanced_case, build_case

HEAD, WIDTH = 32, 192

# fmt: off
ASKED = [
    "Where", "?", "\n", "A", ".", " left", " upper", " zone",
    "\n", "B", ".", " right", " upper", " zone", "\n",
    "<|vision_start|>", "<|image_pad|>", "<|image_pad|>", "<|vision_end|>",
    "<think>", "It", " is", " in", " the", " right", " upper", " zone", ".", "</think>",
    "\n", "<answer>", "B", "</answer>",
]
# fmt: on


def test_pointers_by_hand() -> None:
    answer = ASKED.index("B", ASKED.index("<answer>"))
    assert answered_letters(ASKED, [0.0] * answer + [3.0, 3.0]) == [answer]
    assert answered_letters(ASKED, [0.0] * len(ASKED)) == []
    nothing, letters, before, second, matches, answered = pointers_of(ASKED, [answer])
    assert nothing == Pointer(LETTER_LAYER, -1, (16, 17), (15, 15))
    assert letters == Pointer(LETTER_LAYER, 0, (5, 6, 7, 11, 12, 13), (3, 3, 3, 9, 9, 9))
    # Words of the options, and of the sentence as far as it names one of them.
    assert before == Pointer(LETTER_LAYER, 1, (6, 7, 12, 13, 25, 26), (5, 6, 11, 12, 24, 25))
    assert second == Pointer(LETTER_LAYER, 2, (7, 13, 26), (5, 11, 24))
    assert matches == Pointer(MATCHING_LAYER, -1, (26,), (13,))
    assert answered == Pointer(ANSWERING_LAYER, -1, (answer - 1,), (26,))


def test_an_answer_that_names_no_option_points_at_nothing() -> None:
    texts = ["?", "\n", "A", ".", " yes", "\n", "B", ".", " no", "\n", "<think>", "There", " is"]
    texts += [" one", ".", "</think>", "<answer>", "A", "</answer>"]
    (letters,) = pointers_of(texts, [texts.index("<answer>") + 1])
    assert letters == Pointer(LETTER_LAYER, 0, (4, 8), (2, 6))


def test_the_last_list_of_several_is_pointed_at() -> None:
    one = ["\n", "A", ".", " left", "\n", "B", ".", " right", "\n", "<think>", " left", "</think>"]
    texts = [*one, "<answer>", "A", *one, "<answer>", "A"]
    answers = [13, 27]
    matches = next(p for p in pointers_of(texts, answers) if p.layer == MATCHING_LAYER)
    assert matches.tokens == (10, 24)
    assert matches.seen == (3, 17)


@pytest.fixture(scope="module")
def begun(tokenizer):
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    begin_copying(model, anchors(model, tokenizer))
    return model


def test_heads_begin_as_copies_and_equal_words_match(begun, tokenizer) -> None:
    layers = begun.model.language_model.layers
    words = begun.model.language_model.embed_tokens.weight.detach()
    for number in (LETTER_LAYER, MATCHING_LAYER, ANSWERING_LAYER):
        attention = layers[number].self_attn
        seen = attention.v_proj.weight.detach()[HEAD:]
        for head in (3, 4, 5):
            written = attention.o_proj.weight.detach()[:, head * HEAD : (head + 1) * HEAD] @ seen
            # A projection: what is copied twice is the same.
            torch.testing.assert_close(written @ written, COPIED * written, atol=1e-5, rtol=0)
            assert float(written.trace()) == pytest.approx(COPIED * HEAD, rel=1e-4)
            kept_out = anchors(begun, tokenizer) @ written.T
            assert float(kept_out.abs().max()) < 1e-5
    attention = layers[MATCHING_LAYER].self_attn
    some = words[200:232] / words[200:232].square().mean(dim=1, keepdim=True).sqrt()
    with torch.no_grad():
        for head in (3, 4, 5):
            query = attention.q_proj(some)[:, head * HEAD : (head + 1) * HEAD]
            scores = query @ attention.k_proj(some)[:, HEAD:].T / HEAD**0.5
            # Half of a head's dimensions do not turn with the distance.
            assert (scores.argmax(dim=1) == torch.arange(32)).float().mean() > 0.9


def test_other_heads_are_left_alone(tokenizer) -> None:
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    begin_copying(model, anchors(model, tokenizer))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[3] for name in changed} == {"0", "3", "4"}
    for name in changed:
        after, old = dict(model.named_parameters())[name], before[name]
        untouched = (after == old).all(dim=-1 if "o_proj" not in name else 0)
        rows = HEAD if ("k_proj" in name or "v_proj" in name) else 3 * HEAD
        assert untouched[:rows].all(), name
        assert not untouched[rows:].any(), name


def test_what_is_copied_does_not_hang_on_what_was_drawn_before(tokenizer) -> None:
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        other = copy.deepcopy(model)
        begin_copying(other, anchors(other, tokenizer))
        found.append(other.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_too_small_models_are_refused(tokenizer) -> None:
    config = embedded_config(tokenizer)
    config.text_config.num_hidden_layers = ANSWERING_LAYER
    model = new_model(config)
    with pytest.raises(ValueError, match="there are fewer"):
        begin_copying(model, torch.zeros(0, WIDTH))
    model = new_model(embedded_config(tokenizer))
    with pytest.raises(ValueError, match="do not fit into 192"):
        begin_copying(model, torch.eye(WIDTH)[:150])


def test_room_is_left_for_the_copies(begun) -> None:
    model = copy.deepcopy(begun)
    leave_room(model)
    written = model.model.language_model.layers[0].self_attn.o_proj.weight
    assert not written[:, 3 * HEAD :].any()
    assert written[:, : 3 * HEAD].any()


@pytest.fixture(scope="module")
def records(tokenizer):
    writer, view = RecordWriter(tokenizer), picture(1, 84, 56)
    rng = np.random.default_rng(0)
    return [writer.write(question(), "direct", view), writer.letters(question(), view, rng)]


def test_the_attention_that_is_taken_is_eager_attention(begun, tokenizer, records) -> None:
    bank = FeatureBank(begun, seed=0)
    bank.add([p for record in records for p in record.pictures], variants=1)
    batch = collate(records, bank, tokenizer, np.random.default_rng(0))
    assert {row for row, _ in batch.pointers} == {1}
    assert {pointer.layer for _, pointer in batch.pointers} == {0, 3, 4}
    recorder = PointerAttention(batch.pointers)
    try:
        begun.set_attn_implementation(register_row_attention())
        with torch.no_grad():
            all_states(begun, batch, recorder=recorder)
            found = float(recorder.loss())
        begun.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = begun.model.language_model(
                inputs_embeds=input_states(begun, batch),
                position_ids=batch.positions,
                use_cache=False,
                output_attentions=True,
            ).attentions
    finally:
        begun.set_attn_implementation("sdpa")
    wanted = 0.0
    for row, pointer in batch.pointers:
        heads = [3, 4, 5] if pointer.head < 0 else [3 + pointer.head]
        pairs = zip(pointer.tokens, pointer.seen, strict=True)
        masses = [attentions[pointer.layer][row, heads, t, s].mean() for t, s in pairs]
        wanted -= float((torch.stack(masses) + 1e-4).log().mean())
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_term_is_a_mean_over_records_that_point(begun, tokenizer, records) -> None:
    bank = FeatureBank(begun, seed=0)
    bank.add([p for record in records for p in record.pictures], variants=1)
    found = []
    try:
        begun.set_attn_implementation(register_row_attention())
        for more in ([], [records[1]]):
            given = [*records, *more]
            rng = np.random.default_rng(0)
            plain, _ = batch_loss(begun, given, bank, tokenizer, rng)
            rng = np.random.default_rng(0)
            places = PlaceTerms(pointing=0.5)
            loss, numbers = batch_loss(begun, given, bank, tokenizer, rng, chunk=1, places=places)
            added = 0.5 * numbers["pointing"]
            assert loss.item() == pytest.approx(plain.item() + added, rel=1e-5)
            found.append(numbers["pointing"])
    finally:
        begun.set_attn_implementation("sdpa")
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] > 1.0


def test_a_model_that_was_not_run_has_no_such_loss() -> None:
    recorder = PointerAttention([(0, Pointer(LETTER_LAYER, 0, (1,), (0,)))])
    with pytest.raises(ValueError, match="too few layers"):
        recorder.loss()


def test_only_what_looks_learns_where_to_look(begun, tokenizer, tmp_path) -> None:
    model = copy.deepcopy(begun)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    cases = [build_case(balanced_case(WorldConfig(seed=4), index), 1) for index in range(4)]
    steps = {"steps": 12, "learning_rate": 0.003, "warmup": 1, "save_every": 12, "log_every": 1}
    corners = KeptCorners(model.config.get_text_config().hidden_size, CHEST_LABELS)
    teach_to_look(
        model,
        tokenizer,
        corners,
        build(LookingConfig, {"steps": steps, "letters": 2, "places": 2}),
        Materials(cases, cases[:2], [], []),
        folder=tmp_path,
        seed=0,
        report=lambda _: None,
    )
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    heads = {
        f"model.language_model.layers.{layer}.self_attn.{part}_proj.{kind}"
        for layer in (LETTER_LAYER, MATCHING_LAYER, ANSWERING_LAYER)
        for part in "qk"
        for kind in ("weight", "bias")
    }
    between = {
        name
        for name in before
        for layer in range(LETTER_LAYER + 1, GROUNDED_LAYER + 1)
        if name.startswith(f"model.language_model.layers.{layer}.")
    }
    assert changed <= heads | between
    wanted = ("q_proj.weight", "mlp.up_proj.weight", "v_proj.weight")
    assert {name for name in heads | between if name.endswith(wanted)} <= changed
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    *found, at_the_end = [json.loads(line) for line in lines]
    assert at_the_end["validation grounding"] > 0
    for name in ("pointing", "grounding"):
        values = [line[name] for line in found]
        assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3]), name


@pytest.mark.parametrize(
    ("setting", "refused"),
    [
        ({"letters": 0}, "letters must be at least 1"),
        ({"places": 0}, "places must be at least 1"),
        ({"boxes": 0}, "boxes must be at least 1"),
        ({"words": -0.1}, "words must lie in 0 to 1"),
        ({"called": 1.5}, "called must lie in 0 to 1"),
    ],
)
def test_looking_is_learned_of_something(setting: dict[str, float], refused: str) -> None:
    with pytest.raises(ConfigError, match=refused):
        build(LookingConfig, {"steps": {"steps": 1, "learning_rate": 0.1}, **setting})


def test_what_writes_a_box_looks_at_its_name() -> None:
    """By hand: both words of "left lung", the last one of "heart", each where it stood last."""
    texts = ["<|vision_start|>", "<|image_pad|>", " left", " lung", "?", " [", "1", "]", " heart"]
    texts += [" lung", " heart", "?", " [", "2", "]"]
    nothing, last, before = name_pointers(
        texts, [(range(5, 7), "left lung"), (range(12, 14), "heart")]
    )
    assert (nothing.head, nothing.tokens, nothing.seen) == (-1, (1,), (0,))
    assert (last.head, last.tokens, last.seen) == (0, (5, 6, 12, 13), (3, 3, 10, 10))
    assert (before.head, before.tokens, before.seen) == (1, (5, 6), (2, 2))
    with pytest.raises(ValueError, match="'trachea' does not stand before its box"):
        name_pointers(texts, [(range(5, 7), "trachea")])
