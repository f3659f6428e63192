"""Questions: truth behind the answers, balance, wording."""

from collections import Counter

import numpy as np
import pytest

from tests.unit.training.wording import vocabulary, words
from training.phantoms import (
    CHEST,
    FINDING_KINDS,
    FindingRequest,
    PhantomConfig,
    seed_for,
    truth_for,
)
from training.phantoms.truth import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    LEFT,
    LINE,
    NODULE,
    PNEUMOTHORAX,
    RIGHT,
    TUBE,
)
from training.questions import (
    COARSE_FAMILIES,
    FAMILIES,
    FINE_FAMILIES,
    LOOK_CLOSER,
    balanced_questions,
    case_for,
    lung_question,
    lung_questions,
    questions_for,
)

PRESENCE = {
    "nodule_present": NODULE,
    "consolidation_present": CONSOLIDATION,
    "effusion_present": EFFUSION,
    "pneumothorax_present": PNEUMOTHORAX,
    "cardiomegaly_present": CARDIOMEGALY,
    "tube_present": TUBE,
    "line_present": LINE,
}


@pytest.fixture(scope="module")
def cases():
    return list(balanced_questions(len(FAMILIES) * 12, seed=3, split="validation"))


class TestBalance:
    def test_families_and_answers_come_equally_often(self, cases):
        families = Counter(c.question.family for c in cases)
        assert set(families.values()) == {12}
        for name, family in FAMILIES.items():
            answers = Counter(c.question.answer for c in cases if c.question.family == name)
            assert set(answers) == set(family.answers)
            assert max(answers.values()) == min(answers.values())

    def test_the_right_option_stands_everywhere(self):
        cases = list(balanced_questions(400, 0, "train", families=["nodule_zone", "heart_size"]))
        for family, size in (("nodule_zone", 4), ("heart_size", 3)):
            places = Counter(c.question.answer_index for c in cases if c.question.family == family)
            assert set(places) == set(range(size))
            assert min(places.values()) > 0.6 * 200 / size

    def test_seeds_belong_to_the_split_and_differ(self, cases):
        assert len({c.phantom_seed for c in cases}) == len(cases)
        assert {c.truth().split for c in cases[:20]} == {"validation"}

    def test_same_seed_same_cases(self, cases):
        again = list(balanced_questions(20, seed=3, split="validation"))
        assert again == cases[:20]

    def test_a_family_named_twice_is_asked_twice_as_often_with_balanced_answers(self):
        names = ["tube_present", "nodule_margin", "nodule_margin"]
        cases = list(balanced_questions(60, 2, "test", families=names))
        assert Counter(c.question.family for c in cases) == {
            "tube_present": 20,
            "nodule_margin": 40,
        }
        margins = [c.question.answer for c in cases if c.question.family == "nodule_margin"]
        assert set(Counter(margins).values()) == {20}

    def test_open_fraction(self):
        opened = [c.question.open for c in balanced_questions(200, 1, "test", open_fraction=0.5)]
        assert 70 < sum(opened) < 130
        assert not any(c.question.open for c in balanced_questions(30, 1, "test"))

    def test_answers_say_nothing_about_the_number_of_other_findings(self):
        cases = balanced_questions(400, 5, "train", families=["tube_present"])
        others = {"yes": [], "no": []}
        for case in cases:
            found = case.truth().findings
            others[case.question.answer].append(sum(f.kind != TUBE for f in found))
        assert abs(np.mean(others["yes"]) - np.mean(others["no"])) < 0.3


class TestTruth:
    def test_every_answer_is_an_option_and_no_option_comes_twice(self, cases):
        for case in cases:
            question = case.question
            assert question.answer in question.options
            assert question.options[question.answer_index] == question.answer
            assert len(set(question.options)) == len(question.options)
            assert 2 <= len(question.options) <= 4
            assert set(question.options) <= set(FAMILIES[question.family].answers) | {
                "ct",
                "mri",
                "ultrasound",
                "abdomen",
                "head",
                "knee",
            }

    def test_presence_is_true(self, cases):
        for case in cases:
            kind = PRESENCE.get(case.question.family)
            if kind:
                present = bool(case.truth().of_kind(kind))
                assert case.question.answer == ("yes" if present else "no")

    def test_zones_sides_grades_and_counts_are_true(self, cases):
        for case in cases:
            truth, question = case.truth(), case.question
            family, _, what = question.family.rpartition("_")
            kind = {"effusion": EFFUSION}.get(family, family)
            if what in {"zone", "side"} and kind in FINDING_KINDS:
                found = truth.of_kind(kind)
                assert {getattr(f, what) for f in found} == {question.answer}
            if question.family == "effusion_grade":
                assert truth.of_kind(EFFUSION)[0].attributes["grade"] == question.answer
            if question.family == "heart_size":
                assert truth.heart_size == question.answer
            if question.family == "nodule_count":
                assert ("one", "two", "three").index(question.answer) + 1 == len(
                    truth.of_kind(NODULE)
                )
            if question.family in {"nodule_count", "more_nodules"}:
                # Both lungs, also one without: the first is no reason to stop counting.
                words = ("none", "one", "two", "three")
                right, left = (words[len(truth.of_kind(NODULE, s))] for s in (RIGHT, LEFT))
                said = f"Nodules: {right} in the right lung and {left} in the left lung."
                assert question.reasoning.startswith(said)

    def test_comparisons_are_true_and_clear(self, cases):
        for case in cases:
            truth, question = case.truth(), case.question
            if question.family == "larger_nodule":
                radius = {
                    side: truth.of_kind(NODULE, side)[0].measures["radius_px"]
                    for side in (RIGHT, LEFT)
                }
                larger = max(radius, key=radius.__getitem__)
                assert question.answer == f"{larger} lung"
                assert max(radius.values()) >= 1.5 * min(radius.values())
            if question.family == "more_nodules":
                right, left = (len(truth.of_kind(NODULE, s)) for s in (RIGHT, LEFT))
                assert question.answer == ("right lung" if right > left else "left lung")
                assert right != left

    def test_fine_answers_are_true_of_the_only_referent(self, cases):
        seen = 0
        for case in cases:
            truth, question = case.truth(), case.question
            if question.kind != "fine":
                continue
            kind = CONSOLIDATION if question.family == "air_bronchogram" else NODULE
            matches = [f for f in truth.of_kind(kind) if f.box == question.target_boxes[0]]
            assert len(matches) == 1
            finding = matches[0]
            if len(truth.of_kind(kind)) > 1:
                assert f"in the {finding.side} lung" in question.text
                assert len(truth.of_kind(kind, finding.side)) == 1
            expected = {
                "nodule_margin": finding.attributes.get("margin"),
                "nodule_calcification": "yes"
                if finding.attributes.get("calcification") == "calcified"
                else "no",
                "air_bronchogram": finding.attributes.get("air bronchogram"),
            }[question.family]
            assert question.answer == expected
            seen += 1
        assert seen == 12 * len(FINE_FAMILIES)

    def test_two_nodules_in_one_lung_are_never_asked_about_as_one(self):
        config = PhantomConfig(require=(FindingRequest(NODULE, side=LEFT),) * 2, extras=(1.0,))
        truth = truth_for(seed_for("test", 0), config)
        asked = {q.family for q in questions_for(truth, np.random.default_rng(0))}
        assert not asked & {"nodule_margin", "nodule_calcification", "nodule_zone"}
        assert "nodule_count" in asked

    def test_a_heart_under_fluid_is_not_graded(self):
        config = PhantomConfig(require=(FindingRequest(EFFUSION, grade="large"),), extras=(1.0,))
        truth = truth_for(seed_for("test", 1), config)
        asked = {q.family for q in questions_for(truth, np.random.default_rng(0))}
        assert not asked & {"heart_size", "cardiomegaly_present", "which_finding"}

    def test_target_boxes_lie_in_the_image(self, cases):
        for case in cases:
            for x0, y0, x1, y1 in case.question.target_boxes:
                assert 0 <= x0 < x1 <= 1
                assert 0 <= y0 < y1 <= 1
            if case.question.kind == "fine":
                assert len(case.question.target_boxes) == 1


class TestReasoning:
    def test_the_answer_of_a_fine_question_comes_only_after_the_zoom(self, cases):
        for case in cases:
            question = case.question
            if question.kind == "fine":
                assert question.reasoning_before_zoom.endswith(LOOK_CLOSER)
                for value in ("spiculated", "smooth", "calcified", "contains"):
                    assert value not in question.reasoning_before_zoom
                assert question.reasoning.endswith(question.reasoning_after_zoom)
            assert question.reasoning_after_zoom

    def test_what_is_said_before_the_zoom_is_the_same_for_both_fine_answers(self):
        for family in FINE_FAMILIES:
            said = {}
            for answer in FAMILIES[family].answers:
                made = [case_for(family, answer, seed_for("train", i, 8)) for i in range(40)]
                said[answer] = {words(c.question.reasoning_before_zoom)[3] for c in made}
            assert len(set(map(frozenset, said.values()))) == 1


class TestWording:
    def test_vocabulary_is_small_and_complete(self, cases):
        known = vocabulary(CHEST)
        assert 80 < len(known) < 400
        for case in cases:
            question = case.question
            used = " ".join((question.text, question.answer, *question.options, question.reasoning))
            assert set(words(used)) <= known, set(words(used)) - known

    def test_answers_are_plain_lower_case(self):
        for family in FAMILIES.values():
            for answer in family.answers:
                assert answer == answer.lower().strip()
                assert not answer.endswith(".")

    def test_each_family_has_two_or_three_wordings(self):
        rng = np.random.default_rng(0)
        for name, family in FAMILIES.items():
            case = case_for(name, family.answers[0], seed_for("demo", 0))
            texts = {
                q.text
                for _ in range(30)
                for q in questions_for(case.truth(), rng)
                if q.family == name
            }
            assert len(texts) >= 2

    def test_both_kinds_are_there(self):
        assert len(COARSE_FAMILIES) >= 12
        assert set(FINE_FAMILIES) == {"nodule_margin", "nodule_calcification", "air_bronchogram"}


class TestSampling:
    def test_open_form_keeps_everything_but_the_options(self, cases):
        question = cases[0].question
        opened = question.as_open()
        assert opened.open
        assert opened.answer_index is None
        assert (opened.text, opened.answer) == (question.text, question.answer)

    def test_questions_for_covers_what_the_truth_allows(self):
        truth = truth_for(*_two_findings())
        families = {q.family for q in questions_for(truth, np.random.default_rng(0))}
        assert {"nodule_margin", "nodule_zone", "effusion_grade", "effusion_side"} <= families
        assert "tube_tip" not in families

    def test_nothing_is_asked_about_a_finding_that_is_not_there(self):
        truth = truth_for(seed_for("test", 0), PhantomConfig(extras=(1.0,)))
        families = {q.family for q in questions_for(truth, np.random.default_rng(0))}
        assert "nodule_margin" not in families
        assert families

    def test_lung_questions_work_without_a_phantom(self):
        rng = np.random.default_rng(0)
        box = (0.1, 0.2, 0.4, 0.8)
        question = lung_question("right", box, rng)
        assert question.target_boxes == (box,)
        assert question.answer == "left side of the image"
        assert "right lung" in question.text
        both = lung_questions({"right": box, "left": (0.5, 0.2, 0.9, 0.8)}, rng)
        assert [q.answer for q in both] == ["left side of the image", "right side of the image"]

    @pytest.mark.parametrize(
        "call",
        [
            lambda: list(balanced_questions(-1, 0, "train")),
            lambda: list(balanced_questions(1, 0, "train", families=["colour"])),
            lambda: list(balanced_questions(1, 0, "train", families=[])),
            lambda: case_for("modality", "ct", 4),
            lambda: case_for("colour", "red", 4),
        ],
    )
    def test_bad_requests_are_refused(self, call):
        with pytest.raises(ValueError, match=r"negative|Unknown|least one|no answer"):
            call()


def _two_findings():
    config = PhantomConfig(
        require=(FindingRequest(NODULE), FindingRequest(EFFUSION, grade="small")), extras=(1.0,)
    )
    return seed_for("test", 3), config
