"""The cold start of the zoom: boxes of dice, and not a word of where anything is."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.geometry import Box
from tests.unit.training.conftest import picture, question
from training.batches import collate
from training.cold_start import (
    ANSWERED_AT_ONCE,
    aside,
    blind_record,
    check_blind,
    closer_look,
)
from training.config import ConfigError, load_config
from training.features import FeatureBank
from training.language import Asked, MixConfig, asked_of
from training.language_loss import hidden_states
from training.materials import Materials
from training.network import batch_loss
from training.numbers import number_ids
from training.phantoms.truth import seed_for
from training.pretrain import PretrainConfig
from training.questions import LOOK_CLOSER, QuestionCase, case_for
from training.record_draw import RecordDraw
from training.records import Record, RecordWriter, ZoomCalls, seen_box
from training.sft import FinetuneConfig
from training.world import Case, build_case, load_cases, random_box, save_cases

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"
SEEING = "mix.calls=learned"
RANDOM = ["train.boxes=random", "validation.boxes=random"]
NO_PLACES = ["mix.places=0", "mix.called=0"]
SEED = seed_for("train", 5, 77)
MIX = MixConfig(zoom=1.0, probe=0.0, auto=0.0, real=0.0)


def ordered(family: str, answer: str) -> QuestionCase:
    return case_for(family, answer, SEED)


@pytest.fixture(scope="module")
def case() -> Case:
    """A phantom with a nodule whose margin is asked for."""
    return build_case(ordered("nodule_margin", "spiculated"), 4, "random")


@pytest.fixture(scope="module")
def drawn(case: Case, tokenizer) -> list[Record]:
    writer = RecordWriter(tokenizer)
    return [blind_record(case, MIX, writer, np.random.default_rng(seed)) for seed in range(80)]


def called(text: str) -> list[tuple[int, ...]]:
    """The boxes of all tool calls in a text."""
    lists = re.findall(r'"bbox_2d": \[([^\]]*)\]', text)
    return [tuple(map(int, numbers.split(","))) for numbers in lists]


def test_every_call_names_a_box_of_dice_and_is_answered_with_its_crop(
    case: Case, drawn: list[Record], tokenizer
) -> None:
    known = {seen_box(box, case.view): variants for box, variants in case.crops.items()}
    found = [(record, called(tokenizer.decode(record.ids))) for record in drawn]
    zooms = [(record, boxes) for record, boxes in found if boxes]
    assert len(zooms) > 40
    for record, boxes in zooms:
        (box,) = boxes
        assert record.pictures[0] is case.view
        assert record.pictures[1] in known[box]
        (asked,) = record.roi
        assert seen_box(asked, case.view) == box
    assert {boxes[0] for _, boxes in zooms} == set(known)


def test_no_record_holds_a_true_box_or_a_place_before_its_call(
    case: Case, drawn: list[Record], tokenizer
) -> None:
    true = [Box(*finding.box) for finding in case.truth.findings]
    true += [Box(*box) for box in case.asked.target_boxes]
    assert true
    # Were a true box among the dice, the next assertion would say nothing.
    assert max(one.intersection_over_union(other) for one in true for other in case.crops) < 0.9
    for record in drawn:
        text = tokenizer.decode(record.ids)
        for box in called(text):
            seen = Box(*(value / 224 for value in box))
            assert max(seen.intersection_over_union(other) for other in true) < 0.9
            written = text.split("assistant\n")[1].split("<tool_call>")[0]
            assert written == f"<think>{LOOK_CLOSER}</think>\n"


def test_the_dice_do_not_know_what_the_phantom_shows() -> None:
    """The same seed with other findings in other places gives the same boxes."""
    cases = [
        build_case(ordered(family, answer), 3, "random")
        for family, answer in (("nodule_zone", "left upper zone"), ("effusion_side", "right"))
    ]
    assert tuple(cases[0].crops) == tuple(cases[1].crops)
    findings = [{finding.box for finding in case.truth.findings} for case in cases]
    assert findings[0] != findings[1]


def test_boxes_of_dice_are_whole_pixels_of_every_place_and_size() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(224, 196, rng).as_tuple() for _ in range(3000)])
    pixels = boxes * [224, 196, 224, 196]
    assert np.allclose(pixels, np.rint(pixels), atol=1e-9)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert 0.09 < sides.min() < 0.11
    assert 0.49 < sides.max() < 0.51
    assert np.allclose((boxes[:, :2] + boxes[:, 2:]).mean(axis=0) / 2, 0.5, atol=0.02)
    assert boxes.min() == 0
    assert boxes.max() == 1


def test_answers_without_a_zoom_hold_no_box(case: Case, tokenizer) -> None:
    writer = RecordWriter(tokenizer)
    for mix in (replace(MIX, conversation=1.0), replace(MIX, short=1.0)):
        text = tokenizer.decode(blind_record(case, mix, writer, np.random.default_rng(0)).ids)
        assert text.count("?") > 1
        assert "[" not in text


def test_some_questions_are_answered_at_once(case: Case) -> None:
    rngs = [np.random.default_rng(seed) for seed in range(400)]
    asked = [aside(asked_of(case, rng), case, rng) for rng in rngs]
    share = sum(not one.question.target_boxes for one in asked) / 400
    assert share == pytest.approx(ANSWERED_AT_ONCE, abs=0.07)


def test_letters_behind_a_blind_zoom_tell_nothing_of_where_to_look(case: Case, tokenizer) -> None:
    draw = RecordDraw(
        Materials([case], [], [], []), replace(MIX, letters=60), tokenizer, None, 1, 0
    )
    records = draw.records(0, np.random.default_rng(0))
    assert len(records) == 60
    zoomed = [record for record in records if len(record.pictures) == 2]
    assert 15 < len(zoomed) < 60
    known = {seen_box(box, case.view): variants for box, variants in case.crops.items()}
    for record in zoomed:
        text = tokenizer.decode(record.ids)
        *_, box = called(text)
        assert record.pictures[1] in known[box]
        assert f"<think>{LOOK_CLOSER}</think>" in text


def test_what_tells_is_refused(tokenizer) -> None:
    for name in ("report", "real", "latent", "places", "closeup", "withheld"):
        with pytest.raises(ValueError, match=rf"mix\.{name} must be 0"):
            check_blind(replace(MIX, short=0.1, **{name: 0.1}))
    box = Box(0.25, 0.25, 0.5, 0.5)
    blind = Case(None, picture(1, 84, 56), {box: (picture(2, 56, 56),)}, question(), blind=True)
    materials = Materials([blind], [], [], [])
    with pytest.raises(ValueError, match=r"mix\.report must be 0"):
        RecordDraw(materials, replace(MIX, report=0.1), tokenizer, None, 1, 0)
    RecordDraw(materials, MIX, tokenizer, None, 1, 0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mix.closeup=0.1", "mix.closeup"),
        ("mix.report=0.1", "mix.report"),
    ],
)
def test_what_tells_is_refused_before_anything_is_drawn(override: str, said: str) -> None:
    path = CONFIGS / "cold-start.yaml"
    given = load_config(FinetuneConfig, path, [])
    assert (given.mix.calls, given.train.boxes) == ("given", "targets")
    with pytest.raises(ConfigError, match=r"mix\.calls: drawn draws boxes itself"):
        load_config(FinetuneConfig, path, [*RANDOM, "mix.calls=drawn", "language.corners=0.3"])
    for changes in ([override], [override, SEEING, *RANDOM, *NO_PLACES]):
        with pytest.raises(ConfigError, match=rf"{said} must be 0 where"):
            load_config(FinetuneConfig, path, changes)
    load_config(FinetuneConfig, path, [override, SEEING])
    # Places that are asked for are no step, and refused only where random boxes are learned.
    assert given.mix.places
    with pytest.raises(ConfigError, match=r"mix\.places must be 0"):
        load_config(FinetuneConfig, path, [SEEING, *RANDOM])
    with pytest.raises(ConfigError, match=r"language\.grounding must be 0"):
        load_config(FinetuneConfig, path, [SEEING, *RANDOM, *NO_PLACES])
    blind = [SEEING, *RANDOM, *NO_PLACES, "language.grounding=0"]
    load_config(FinetuneConfig, path, blind)
    # So are corners, which keep what is known of places outside of calls.
    load_config(FinetuneConfig, path, ["language.corners=0.3"])
    with pytest.raises(ConfigError, match=r"language\.corners must be 0"):
        load_config(FinetuneConfig, path, [*blind, "language.corners=0.3"])
    with pytest.raises(ConfigError, match=r"validation\.boxes must be the same"):
        load_config(FinetuneConfig, path, RANDOM[:1])


def test_a_pretraining_on_random_boxes_tells_nothing_either() -> None:
    changes = [*RANDOM, "mix.report=0", "mix.real=0", "mix.places=0", "mix.closeup=0"]
    path = CONFIGS / "pretrain.yaml"
    with pytest.raises(ConfigError, match=r"mix\.report must be 0"):
        load_config(PretrainConfig, path, changes[:2])
    with pytest.raises(ConfigError, match=r"language\.corners must be 0"):
        load_config(PretrainConfig, path, changes)
    load_config(PretrainConfig, path, [*changes, "language.corners=0", "language.grounding=0"])


def test_a_pretraining_with_given_calls_is_refused_before_the_tower() -> None:
    """Said by the draw of records alone, it would come after an hour."""
    with pytest.raises(ConfigError, match=r"mix\.report must be 0"):
        load_config(PretrainConfig, CONFIGS / "pretrain.yaml", ["mix.calls=given"])


def test_a_file_keeps_who_is_blind(tmp_path: Path, case: Case) -> None:
    seeing = Case(case.truth, case.view, {}, case.asked)
    save_cases(tmp_path / "cases.npz", [case, seeing])
    assert [one.blind for one in load_cases(tmp_path / "cases.npz")] == [True, False]


@pytest.fixture(scope="module")
def seeing() -> Case:
    """The same phantom with crops of what is asked about."""
    return build_case(ordered("nodule_margin", "spiculated"), 2)


def test_a_given_call_goes_anywhere_and_shows_what_is_asked(seeing: Case) -> None:
    (target,) = [Box(*box) for box in seeing.asked.target_boxes]
    asked = Asked(seeing.asked, seeing.view, seeing.crops)
    found = [aside(asked, seeing, np.random.default_rng(seed)) for seed in range(200)]
    sent = [one for one in found if one.question.target_boxes]
    assert 1 - len(sent) / 200 == pytest.approx(ANSWERED_AT_ONCE, abs=0.08)
    boxes = [Box(*one.question.target_boxes[0]) for one in sent]
    assert len({box.as_tuple() for box in boxes}) == len(sent)
    overlaps = [target.intersection_over_union(box) for box in boxes]
    assert np.mean(overlaps) < 0.05
    for one, box in zip(sent, boxes, strict=True):
        assert one.crops == {box: seeing.crops[target]}
        assert one.question.reasoning_before_zoom == "A closer look at the nodule is needed."


@pytest.mark.parametrize(
    ("family", "answer", "name"),
    [
        ("nodule_margin", "spiculated", "nodule"),
        ("air_bronchogram", "yes", "consolidation"),
        ("consolidation_zone", "right upper zone", "consolidation"),
        ("heart_size", "normal", "heart"),
    ],
)
def test_a_call_says_what_it_is_about(family: str, answer: str, name: str) -> None:
    one = build_case(ordered(family, answer), 1)
    assert closer_look(one.asked, one) == f"A closer look at the {name} is needed."


def test_a_call_about_a_lung_names_the_side_and_one_about_nothing_nothing(seeing: Case) -> None:
    asked = replace(seeing.asked, text="Where is the left lung in the image?")
    assert closer_look(asked, seeing) == "A closer look at the left lung is needed."
    assert closer_look(replace(asked, text="What is this?"), seeing) == LOOK_CLOSER


def test_what_has_no_crop_is_not_sent_aside(seeing: Case) -> None:
    asked = Asked(seeing.asked, seeing.view, {})
    assert aside(asked, seeing, np.random.default_rng(0)) is asked


def test_nothing_is_learned_from_given_coordinates_alone(seeing: Case, tokenizer) -> None:
    writer = RecordWriter(tokenizer, calls="given")
    mix = replace(MIX, calls="given")
    drawn = [blind_record(seeing, mix, writer, np.random.default_rng(seed)) for seed in range(60)]
    zooms = [record for record in drawn if len(record.pictures) == 2]
    assert len(zooms) > 15
    for record in zooms:
        assert record.written == ()
        pairs = list(zip(record.ids, record.weights, strict=True))
        learned = tokenizer.decode([token for token, weight in pairs if weight])
        # The call with its numbers, of which any will do; what is read from the crop; the answer.
        assert "<think>A closer look " in learned
        assert "</tool_call>" in learned
        assert "<answer>" in learned
        (box,) = called(tokenizer.decode(record.ids))
        x0, y0, x1, y1 = box
        assert x0 < x1
        assert y0 < y1
        assert tokenizer.decode([record.ids[one.column] for one in record.free]) == "".join(
            str(value) for value in box
        )
        assert [one.least for one in record.free] == [0, 0, x0 + 1, y0 + 1]
        height, width = record.pictures[0].pixels.shape
        assert [one.most for one in record.free] == [width - 1, height - 1, width, height]


def test_drawn_coordinates_are_learned_and_the_crop_shows_what_is_asked_about(
    seeing: Case, tokenizer
) -> None:
    writer = RecordWriter(tokenizer, calls="drawn")
    mix = replace(MIX, calls="drawn")
    drawn = [blind_record(seeing, mix, writer, np.random.default_rng(seed)) for seed in range(60)]
    zooms = [record for record in drawn if len(record.pictures) == 2]
    assert len(zooms) > 15
    true = [crop for crops in seeing.crops.values() for crop in crops]
    boxes = set()
    for record in zooms:
        # No attention is asked to lie on such a box, and no number is as good as any other.
        assert record.written == record.free == ()
        assert any(record.pictures[1] is crop for crop in true)
        (box,) = called(tokenizer.decode(record.ids))
        boxes.add(box)
        texts = [tokenizer.decode([token]) for token in record.ids]
        first = texts.index(str(box[0]), texts.index("<tool_call>"))
        numbers = [at for at in range(first, first + 12) if texts[at].strip().isdigit()][:4]
        assert [int(texts[at]) for at in numbers] == list(box)
        assert all(record.weights[at] == 1.0 for at in numbers)
    assert len(boxes) > 10


@pytest.mark.parametrize("calls", ["given", "drawn"])
def test_the_draw_of_a_cold_start_sends_everything_aside(
    seeing: Case, tokenizer, calls: ZoomCalls
) -> None:
    mix = replace(MIX, calls=calls, letters=40)
    with pytest.raises(ValueError, match=r"mix\.report must be 0"):
        RecordDraw(Materials([seeing], [], [], []), replace(mix, report=0.2), tokenizer, None, 1, 0)
    draw = RecordDraw(Materials([seeing], [], [], []), mix, tokenizer, None, 1, 0)
    true = {seen_box(box, seeing.view) for box in seeing.crops}
    for record in draw.records(30, np.random.default_rng(0)):
        assert not set(called(tokenizer.decode(record.ids))) & true
        assert record.written == ()


def test_the_loss_of_a_record_asks_for_any_box(seeing: Case, tokenizer, model) -> None:
    """Weighed by hand: what is free costs the probability of everything that is allowed."""
    writer = RecordWriter(tokenizer, calls="given")
    asked = Asked(seeing.asked, seeing.view, seeing.crops)
    asked = aside(asked, seeing, np.random.default_rng(1))
    (target,) = asked.crops
    crop = asked.crops[target][0]
    record = writer.write(asked.question, "zoom", asked.view, crop, target)
    bank = FeatureBank(model, seed=0)
    bank.add(record.pictures, variants=1)
    loss, _ = batch_loss(model, [record], bank, tokenizer, np.random.default_rng(0))
    batch = collate([record], bank, tokenizer, np.random.default_rng(0))
    with torch.no_grad():
        said = torch.log_softmax(model.lm_head(hidden_states(model, batch)[0]), -1)
    ids = number_ids(tokenizer)
    free = {one.column: slice(one.least, one.most + 1) for one in record.free}
    total = 0.0
    for column in range(1, len(record.ids)):
        before = said[column - 1]
        wanted = ids[free[column]] if column in free else [record.ids[column]]
        total -= record.weights[column] * before[wanted].logsumexp(-1).item()
    assert loss.item() == pytest.approx(total / sum(record.weights), rel=1e-4)
