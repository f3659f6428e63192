"""Records: what is written, what is learned, and how boxes become coordinates."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from engine.geometry import Box
from engine.prompt import IMAGE_PAD, ZOOM_TOOL_NAME, tool_message_text
from engine.reground import SKIPPED_MESSAGE
from tests.unit.training.conftest import picture
from training.embedded import embedded_config, train_tokenizer
from training.place_forms import BARE, CALLED, drawn_form
from training.questions import Question, case_for
from training.records import (
    ANSWER_WEIGHT,
    COORDINATE_WEIGHT,
    PLACE_WEIGHT,
    RecordWriter,
    corpus,
    reasonings_of,
    seen_box,
)
from training.reports import REPORT_QUESTIONS, places_of, report_text

QUESTION = Question(
    family="nodule_margin",
    kind="fine",
    text="What is the margin of the nodule?",
    options=("spiculated", "smooth"),
    answer="smooth",
    target_boxes=((0.25, 0.5, 0.5, 0.75),),
    reasoning="There is a nodule in the left lower zone. Its margin is smooth.",
    reasoning_before_zoom="There is a nodule in the left lower zone. A closer look is needed.",
    reasoning_after_zoom="Its margin is smooth.",
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus([QUESTION] * 3, np.random.default_rng(0)), vocabulary=400)


def learned(tokenizer, record) -> str:
    return tokenizer.decode(
        [token for token, weight in zip(record.ids, record.weights, strict=True) if weight > 0]
    )


def test_direct_record_learns_reasoning_and_answer_only(tokenizer) -> None:
    record = RecordWriter(tokenizer).write(QUESTION, "direct", picture())
    assert learned(tokenizer, record) == (
        "<think>There is a nodule in the left lower zone. Its margin is smooth.</think>\n"
        "<answer>B</answer><|im_end|>"
    )
    assert record.ids.count(tokenizer.convert_tokens_to_ids(IMAGE_PAD)) == 8 * 7


def test_zoom_record_never_learns_the_tool_response(tokenizer) -> None:
    crop = picture(0, 196, 252, Box(0.2, 0.4, 0.6, 0.8))
    target = Box(*QUESTION.target_boxes[0])
    record = RecordWriter(tokenizer).write(QUESTION, "zoom", picture(), crop, target)
    text = learned(tokenizer, record)
    assert '"bbox_2d": [49, 112, 98, 168]' in text
    assert "tool_response" not in text
    assert "user" not in text
    assert text.endswith("<think>Its margin is smooth.</think>\n<answer>B</answer><|im_end|>")
    assert record.ids.count(tokenizer.convert_tokens_to_ids(IMAGE_PAD)) == 56 + 63
    assert record.pictures[1] is crop


def test_behind_a_crop_that_is_withheld_an_answer_is_learned_and_no_call(tokenizer) -> None:
    target = Box(*QUESTION.target_boxes[0])
    record = RecordWriter(tokenizer).withheld(QUESTION, picture(), target)
    assert learned(tokenizer, record) == (
        "<think>Its margin is smooth.</think>\n<answer>B</answer><|im_end|>"
    )
    text = tokenizer.decode(record.ids)
    assert '"bbox_2d": [49, 112, 98, 168]' in text
    # As the engine answers a call whose crop is skipped.
    assert tool_message_text(SKIPPED_MESSAGE) in text
    assert len(record.pictures) == 1
    assert not record.written


@pytest.mark.parametrize("form", ["early", "before_zoom", "after_zoom"])
def test_probes_learn_the_answer_alone(tokenizer, form: str) -> None:
    record = RecordWriter(tokenizer).write(
        QUESTION, form, picture(), picture(), Box(*QUESTION.target_boxes[0])
    )
    assert learned(tokenizer, record) == "<answer>B</answer>"
    assert max(record.weights) == ANSWER_WEIGHT


def test_a_conversation_holds_its_image_once_and_learns_every_answer(tokenizer) -> None:
    record = RecordWriter(tokenizer).conversation([QUESTION, QUESTION.as_open()], picture())
    turn = "<think>There is a nodule in the left lower zone. Its margin is smooth.</think>\n"
    assert learned(tokenizer, record) == (
        f"{turn}<answer>B</answer><|im_end|>{turn}<answer>smooth</answer><|im_end|>"
    )
    text = tokenizer.decode(record.ids)
    assert record.ids.count(tokenizer.convert_tokens_to_ids(IMAGE_PAD)) == 8 * 7
    assert text.count("Method: direct.") == 1
    assert text.count("A. spiculated\nB. smooth") == 1
    assert "<|im_end|>\n<|im_start|>user\nWhat is the margin of the nodule?<|im_end|>\n" in text
    # The first question stands before the image, so that its record is a record alone.
    alone = RecordWriter(tokenizer).write(QUESTION, "direct", picture())
    assert record.ids[: len(alone.ids)] == alone.ids
    assert record.weights[: len(alone.weights)] == alone.weights


def test_a_report_is_learned_whole(tokenizer) -> None:
    truth = case_for("nodule_margin", "smooth", 8).phantom().truth
    record = RecordWriter(tokenizer).report(truth, picture(), "Describe the image.")
    said = learned(tokenizer, record)
    assert said == report_text(truth, (224, 196)) + "<|im_end|>"
    light = [i for i, w in zip(record.ids, record.weights, strict=True) if w == COORDINATE_WEIGHT]
    boxes = re.findall(r"\[[0-9, ]+\]", said)
    assert len(boxes) > 3
    assert tokenizer.decode(light) == "".join(boxes)


def test_short_answers_are_learned_and_their_questions_are_not(tokenizer) -> None:
    record = RecordWriter(tokenizer).short_answers([QUESTION, QUESTION], picture())
    assert learned(tokenizer, record) == " smooth.\n smooth.\n<|im_end|>"
    assert tokenizer.decode(record.ids).count("What is the margin of the nodule? smooth.\n") == 2
    assert len(record.pictures) == 1


def test_letters_follow_from_the_reasoning_that_is_given(tokenizer) -> None:
    view = picture()
    record = RecordWriter(tokenizer).letters(QUESTION, view, np.random.default_rng(0))
    assert record.pictures == (view,)
    text = tokenizer.decode(record.ids)
    assert text.index("A. ") < text.index("<|image_pad|>") < text.index("<think>")
    turns = re.findall(
        r"A\. (\w+)\nB\. (\w+)\n?.*?Its margin is (\w+)\.</think>\n<answer>(.)</answer>",
        text,
        re.DOTALL,
    )
    assert len(turns) == 2
    for first, second, given, letter in turns:
        assert {first, second} == {"smooth", "spiculated"}
        assert given == {"A": first, "B": second}[letter]
    assert re.sub("[AB]", "", learned(tokenizer, record)) == "<answer></answer>" * 2
    with pytest.raises(ValueError, match="no letter"):
        RecordWriter(tokenizer).letters(QUESTION.as_open(), view, np.random.default_rng(0))


def test_letters_behind_a_crop_follow_from_what_the_crop_is_said_to_show(tokenizer) -> None:
    view, crop = picture(), picture(1)
    box, rng = Box(*QUESTION.target_boxes[0]), np.random.default_rng(0)
    writer = RecordWriter(tokenizer)
    zoom = writer.write(QUESTION, "zoom", view, crop, box)
    call = re.findall(r"<tool_call>.*?</tool_call>", tokenizer.decode(zoom.ids), re.DOTALL)
    ends = set()
    for _ in range(60):
        record = writer.letters(QUESTION, view, rng, crop, box)
        assert record.pictures == (view, crop)
        text = tokenizer.decode(record.ids)
        assert re.findall(r"<tool_call>.*?</tool_call>", text, re.DOTALL)[-1:] == call[-1:]
        first, second = re.search(r"A\. (\w+)\nB\. (\w+)", text).groups()
        behind = text[text.rindex("<|vision_end|>") :]
        given, letter = re.search(
            r"<think>Its margin is (\w+)\.</think>\n<answer>(.)</answer>", behind
        ).groups()
        assert given == {"A": first, "B": second}[letter]
        assert re.sub("[AB]", "", learned(tokenizer, record)) == "<answer></answer>" * 2
        ends.add((given, letter))
    assert len(ends) == 4
    with pytest.raises(ValueError, match="needs its box"):
        writer.letters(QUESTION, view, rng, crop)


def test_earlier_letters_tell_nothing_of_a_letter(tokenizer) -> None:
    writer, rng, view = RecordWriter(tokenizer), np.random.default_rng(0), picture()
    given = [
        re.findall("[AB]", learned(tokenizer, writer.letters(QUESTION, view, rng)))
        for _ in range(300)
    ]
    assert 110 < sum(first == "A" for first, _ in given) < 190
    assert 110 < sum(first == second for first, second in given) < 190


def test_a_prompt_alone_teaches_nothing(tokenizer) -> None:
    view = picture()
    record = RecordWriter(tokenizer).asked(QUESTION, view)
    whole = RecordWriter(tokenizer).write(QUESTION, "direct", view)
    assert record.pictures == (view,)
    assert not any(record.weights)
    assert whole.ids[: len(record.ids)] == record.ids
    assert tokenizer.decode(record.ids).endswith("assistant\n")


@pytest.mark.parametrize(
    ("answer", "options", "reasoning", "others"),
    [
        (
            "one",
            ("two", "one"),
            "Nodules: one. The number is one.",
            ["Nodules: one. The number is two."],
        ),
        ("no", ("yes", "no"), "Both lungs are searched. There is no nodule.", []),
        ("none", ("none", "nodule"), "All is searched. There is no finding.", []),
        ("nodule", ("none", "nodule"), "All is searched. There is a nodule.", []),
        ("left", ("left", "right"), "It is the left side of the left lung.", []),
    ],
)
def test_only_the_answer_of_the_last_sentence_is_exchanged(
    answer, options, reasoning, others
) -> None:
    question = replace(QUESTION, answer=answer, options=options, reasoning=reasoning)
    found = reasonings_of(question, reasoning)
    assert (options.index(answer), reasoning) in found
    assert [text for _, text in found if text != reasoning] == others
    assert all(f" {options[number]}" in f" {text}" for number, text in found if len(found) > 1)


@pytest.mark.parametrize(
    ("family", "answer", "ends"),
    [
        ("which_device", "central line", {"There is an endotracheal tube."}),
        ("which_device", "endotracheal tube", {"There is a central line."}),
        ("which_finding", "cardiomegaly", {"There is a nodule.", "There is a pleural effusion."}),
        ("which_finding", "nodule", {"There is cardiomegaly.", "There is a pneumothorax."}),
        ("modality", "x-ray", {"It is a ct.", "It is an mri.", "It is an ultrasound."}),
        ("lung_name", "left lung", {"It is the right lung."}),
        ("head_modality", "ct", {"It is x-ray.", "It is mri."}),
        ("mass_shape", "oval", {"Its shape is irregular."}),
    ],
)
def test_an_answer_is_exchanged_with_its_article(family: str, answer: str, ends: set[str]) -> None:
    found = set()
    for seed in range(12):
        question = case_for(family, answer, seed).question
        own = question.reasoning
        for index, text in reasonings_of(question, own):
            before, _, last = text.rpartition(". ")
            assert own.startswith(before)
            assert question.options[index] in last
            found.add(last)
    assert ends <= found
    assert not [text for text in found if re.search(r"\ban [^aeioumx]|\ba [aeiou]", text)]
    assert not [text for text in found if "a cardiomegaly" in text]


def test_a_report_names_structures_and_every_kind_of_finding() -> None:
    truth = case_for("nodule_margin", "smooth", 8).phantom().truth
    report = report_text(truth, (224, 196))
    nodules = truth.of_kind("nodule")
    assert nodules
    for nodule in nodules:
        x0, y0, x1, y1 = seen_box(Box(*nodule.box), picture())
        assert f"Nodule: {nodule.zone}, [{x0}, {y0}, {x1}, {y1}]." in report
    assert report.startswith("The right lung lies at [")
    assert f"{truth.heart_size} in size." in report
    for kind in ("consolidation", "pleural effusion", "pneumothorax", "central line"):
        shown = f"{kind.capitalize()}:" in report
        assert shown == bool(truth.of_kind(kind))
        assert (f"No {kind}." in report) != shown


def test_open_question_is_answered_in_words(tokenizer) -> None:
    record = RecordWriter(tokenizer).write(QUESTION.as_open(), "early", picture())
    assert learned(tokenizer, record) == "<answer>smooth</answer>"


def test_zoom_without_a_crop_is_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match="needs a crop"):
        RecordWriter(tokenizer).write(QUESTION, "zoom", picture())


@pytest.mark.parametrize(
    ("box", "written"),
    [
        ((0.0, 0.5, 1.0, 1.0), (0, 112, 196, 224)),
        ((0.5, 0.5, 0.501, 0.501), (98, 112, 99, 113)),
        ((0.999, 0.999, 1.0, 1.0), (195, 223, 196, 224)),
        ((0.26, 0.26, 0.74, 0.51), (51, 58, 145, 114)),
    ],
)
def test_coordinates_are_whole_pixels_of_what_the_model_sees(box, written) -> None:
    """By hand, in 196 columns and 224 rows."""
    assert seen_box(Box(*box), picture(0, 224, 196)) == written


def test_a_report_knows_where_it_writes_boxes(tokenizer) -> None:
    truth = case_for("nodule_margin", "smooth", 3).truth()
    view = picture(0, 224, 196)
    record = RecordWriter(tokenizer).report(truth, view, REPORT_QUESTIONS[0])
    assert len(record.written) >= 4
    for one in record.written:
        named = tokenizer.decode(record.ids[one.start + 1 : one.stop + 1])
        # The last token of a list may end a sentence or an enumeration as well.
        pixels = tuple(int(value) for value in re.findall("[0-9]+", named))
        assert pixels == seen_box(one.box, view)
    boxes = [seen_box(Box(*truth.anatomy[name].box), view) for name in ("right_lung", "left_lung")]
    assert [seen_box(one.box, view) for one in record.written[:2]] == boxes


def test_places_are_what_there_is_one_of() -> None:
    truth = case_for("nodule_count", "two", 3).truth()
    assert len(truth.of_kind("nodule")) == 2
    places = dict(places_of(truth))
    assert "nodule" not in places
    assert {"right lung", "left lung", "heart"} <= places.keys()
    assert places["right lung"] == Box(*truth.anatomy["right_lung"].box)
    tube = case_for("tube_present", "yes", 3).truth()
    assert dict(places_of(tube))["endotracheal tube"] == Box(
        *tube.of_kind("endotracheal tube")[0].focus
    )


def test_places_are_asked_behind_all_questions_and_answered_as_a_call_does(tokenizer) -> None:
    places = [
        ("heart", Box(0.25, 0.5, 0.5, 1.0), BARE),
        ("left lung", Box(0.5, 0.0, 1.0, 0.9), BARE),
    ]
    record = RecordWriter(tokenizer).short_answers([QUESTION], picture(), places)
    assert learned(tokenizer, record) == (
        ' smooth.\n {"bbox_2d": [49, 112, 98, 224]}\n {"bbox_2d": [98, 0, 196, 202]}\n<|im_end|>'
    )
    text = tokenizer.decode(record.ids)
    assert text.index(QUESTION.text) < text.index("Box of the heart?")
    assert text.index("Box of the heart?") < text.index("Box of the left lung?")
    assert sorted(set(record.weights)) == [0.0, PLACE_WEIGHT, 1.0]


def test_a_place_as_an_argument_is_written_as_a_call_is_but_calls_nothing(tokenizer) -> None:
    box = Box(0.25, 0.5, 0.5, 1.0)
    for form in CALLED:
        record = RecordWriter(tokenizer).short_answers(
            [QUESTION], picture(), [("heart", box, form)]
        )
        written = learned(tokenizer, record)
        assert written == (
            f' smooth.\n{{"name": "{form.function}", "arguments": '
            '{"bbox_2d": [49, 112, 98, 224]}}\n<|im_end|>'
        )
        text = tokenizer.decode(record.ids)
        assert "heart" in text.split("<think>")[1].split("</think>")[0]
        assert "<tool_call>" not in text
        assert ZOOM_TOOL_NAME not in text
        (place,) = record.written
        assert tokenizer.decode(record.ids[place.start : place.stop]) == "[49, 112, 98, 224"


def test_the_share_of_places_that_are_arguments_is_the_mix_s() -> None:
    rng = np.random.default_rng(0)
    drawn = [drawn_form(0.75, rng) for _ in range(2000)]
    assert sum(form is not BARE for form in drawn) / 2000 == pytest.approx(0.75, abs=0.03)
    assert set(drawn) == {BARE, *CALLED}
    untouched = rng.bit_generator.state
    assert drawn_form(0.0, rng) is BARE
    assert rng.bit_generator.state == untouched


def test_tags_and_control_tokens_are_single_tokens(tokenizer) -> None:
    for token in ("<answer>", "</think>", "<tool_call>", "<|im_end|>", "<|lat|>", "<|image_pad|>"):
        assert len(tokenizer(token)["input_ids"]) == 1
    assert tokenizer("224")["input_ids"] == [tokenizer.convert_tokens_to_ids("224")]


def test_text_round_trips(tokenizer) -> None:
    text = "Zoom in: 12, 34\nÄ “quoted” <think>é</think>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_embedded_model_stays_below_ten_megabytes_in_half_precision(tokenizer) -> None:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(embedded_config(tokenizer))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters * 2 < 10_000_000
