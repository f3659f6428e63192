"""Questions about head CT slices and breast ultrasound images: truth, balance, wording."""

from collections import Counter

import numpy as np
import pytest

from tests.unit.training.wording import vocabulary, words
from training.phantoms import SECTIONS, SectionConfig, SectionRequest, seed_for, truth_for
from training.phantoms.breast_ultrasound import words as breast
from training.phantoms.head_ct import words as head
from training.question_forms import LOOK_CLOSER
from training.questions import (
    ALL_FAMILIES,
    FAMILIES,
    FAMILIES_OF,
    balanced_questions,
    case_for,
    questions_for,
)

PRESENT = {
    "intraparenchymal_present": (head.INTRAPARENCHYMAL,),
    "subdural_present": (head.SUBDURAL,),
    "epidural_present": (head.EPIDURAL,),
    "cyst_present": (breast.CYST,),
    "mass_present": breast.SOLID,
    "malignant_present": (breast.MALIGNANT,),
}
SIDES = {
    "intraparenchymal_side": (head.INTRAPARENCHYMAL,),
    "subdural_side": (head.SUBDURAL,),
    "epidural_side": (head.EPIDURAL,),
    "cyst_side": (breast.CYST,),
    "mass_side": breast.SOLID,
}
COARSE_ATTRIBUTES = {
    "haemorrhage_size": ((head.INTRAPARENCHYMAL,), head.SIZE),
    "subdural_thickness": ((head.SUBDURAL,), head.THICKNESS),
    "mass_shape": (breast.SOLID, breast.SHAPE),
    "mass_orientation": (breast.SOLID, breast.ORIENTATION),
    "posterior_features": (breast.SOLID, breast.FEATURES),
    "echo_pattern": (breast.KINDS, breast.ECHO),
    "lesion_size": (breast.KINDS, breast.SIZE),
}
FINE_ATTRIBUTES = {
    "haemorrhage_swirl": ((head.INTRAPARENCHYMAL,), head.SWIRL),
    "epidural_swirl": ((head.EPIDURAL,), head.SWIRL),
    "subdural_level": ((head.SUBDURAL,), head.FLUID_LEVEL),
    "mass_margin": ((breast.MALIGNANT,), breast.MARGIN),
    "mass_microcalcifications": (breast.SOLID, breast.MICROCALCIFICATIONS),
}
TRAITS = {
    "slice_level": head.SLICE_LEVEL,
    "midline_shift": head.SHIFT,
    "shift_side": head.SHIFT_SIDE,
    "image_format": breast.FORMAT,
    "breast_composition": breast.COMPOSITION,
}


@pytest.fixture(scope="module", params=SECTIONS)
def study(request):
    return request.param


@pytest.fixture(scope="module")
def cases(study):
    """Six cases of every family with their truth."""
    families = tuple(FAMILIES_OF[study])
    made = balanced_questions(6 * len(families), 3, "validation", families)
    return [(case, case.truth()) for case in made]


def of_kinds(truth, kinds):
    return [finding for finding in truth.findings if finding.kind in kinds]


def test_every_kind_of_question_is_asked_of_every_modality():
    for families in FAMILIES_OF.values():
        assert {family.kind for family in families.values()} == {"coarse", "fine"}
        names = " ".join(families)
        for part in ("modality", "present", "which", "side", "count", "larger", "size"):
            assert part in names, part
    assert len(ALL_FAMILIES) == sum(len(families) for families in FAMILIES_OF.values())
    assert ALL_FAMILIES.items() >= FAMILIES.items()


def test_families_and_answers_come_equally_often(study, cases):
    assert set(Counter(c.question.family for c, _ in cases).values()) == {6}
    for name, family in FAMILIES_OF[study].items():
        answers = Counter(c.question.answer for c, _ in cases if c.question.family == name)
        if len(family.answers) <= 6:
            assert set(answers) == set(family.answers)
        assert max(answers.values()) - min(answers.values()) <= 1


def test_cases_belong_to_the_split_and_have_their_own_phantoms(study, cases):
    assert {truth.split for _, truth in cases} == {"validation"}
    assert {truth.study for _, truth in cases} == {study}
    assert len({case.phantom_seed for case, _ in cases}) == len(cases)
    names = tuple(FAMILIES_OF[study])
    again = list(balanced_questions(4, 3, "validation", names))
    assert again == [case for case, _ in cases[:4]]


def test_every_answer_is_an_option(study, cases):
    for case, _ in cases:
        question = case.question
        assert question.options[question.answer_index] == question.answer
        assert 2 <= len(set(question.options)) == len(question.options) <= 4
        opened = question.as_open()
        assert opened.open
        assert opened.answer == question.answer
        for x0, y0, x1, y1 in question.target_boxes:
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
        if question.kind == "fine":
            assert len(question.target_boxes) == 1


def test_answers_are_true(study, cases):
    seen = set()
    for case, truth in cases:
        family, answer = case.question.family, case.question.answer
        seen.add(family)
        if family in PRESENT:
            assert answer == ("yes" if of_kinds(truth, PRESENT[family]) else "no")
        elif family in SIDES:
            assert {f.side for f in of_kinds(truth, SIDES[family])} == {answer}
        elif family in COARSE_ATTRIBUTES:
            kinds, name = COARSE_ATTRIBUTES[family]
            (finding,) = of_kinds(truth, kinds)
            assert finding.attributes[name] == answer
        elif family in FINE_ATTRIBUTES:
            kinds, name = FINE_ATTRIBUTES[family]
            (asked,) = [
                f for f in of_kinds(truth, kinds) if f.focus == case.question.target_boxes[0]
            ]
            assert asked.attributes[name] == answer
            if len(of_kinds(truth, kinds)) > 1:
                assert asked.side in case.question.text
        elif family in TRAITS:
            assert truth.traits[TRAITS[family]] == answer
        elif family in OTHERS:
            assert OTHERS[family](truth) == answer
        else:
            assert family == "hemisphere"
    assert seen == set(FAMILIES_OF[study])


def _larger(truth, kinds, measure):
    """The side of the larger of two, which must be clearly larger."""
    sizes = {f.side: f.measures[measure] for f in of_kinds(truth, kinds)}
    assert len(sizes) == 2
    assert max(sizes.values()) >= 1.5 * min(sizes.values())
    return max(sizes, key=sizes.__getitem__)


def _count(findings):
    return ("one", "two", "three")[len(findings) - 1]


def _kind(truth):
    assert len({f.kind for f in truth.findings}) <= 1
    return truth.findings[0].kind if truth.findings else "none"


def _collection(truth):
    (finding,) = of_kinds(truth, (head.SUBDURAL, head.EPIDURAL))
    return {head.SUBDURAL: "crescent", head.EPIDURAL: "biconvex"}[finding.kind]


CLOT = (head.INTRAPARENCHYMAL,)
OTHERS = {
    "head_modality": lambda truth: {"CT": "ct"}[truth.modality],
    "breast_modality": lambda truth: {"US": "ultrasound"}[truth.modality],
    "head_region": lambda truth: truth.study.split("_")[0],
    "breast_region": lambda truth: truth.study.split("_")[0],
    "which_haemorrhage": _kind,
    "which_lesion": _kind,
    "intraparenchymal_lobe": lambda truth: of_kinds(truth, CLOT)[0].zone,
    "collection_shape": _collection,
    "haemorrhage_count": lambda truth: _count(of_kinds(truth, CLOT)),
    "lesion_count": lambda truth: _count(truth.findings),
    "larger_haemorrhage": lambda truth: _larger(truth, CLOT, "radius_mm"),
    "larger_lesion": lambda truth: _larger(truth, breast.KINDS, "radius_px"),
    "lesion_depth": lambda truth: truth.findings[0].zone,
    "mass_diagnosis": lambda truth: of_kinds(truth, breast.SOLID)[0].kind.split()[0],
}


def test_hemispheres_lie_where_the_answer_says():
    for index in range(4):
        truth = truth_for(seed_for("test", index), SectionConfig(head.STUDY))
        for question in questions_for(truth, np.random.default_rng(index)):
            if question.family == "hemisphere":
                x = (question.target_boxes[0][0] + question.target_boxes[0][2]) / 2
                assert question.answer == f"{'left' if x < 0.5 else 'right'} side of the image"


def test_a_fine_answer_comes_only_after_the_zoom(study, cases):
    said = {}
    for case, _ in cases:
        question = case.question
        if question.kind == "fine":
            assert question.reasoning_before_zoom.endswith(LOOK_CLOSER)
            assert question.reasoning.endswith(question.reasoning_after_zoom)
            before = said.setdefault(question.family, {}).setdefault(question.answer, set())
            before.add(tuple(words(question.reasoning_before_zoom)[:4]))
    for by_answer in said.values():
        assert len(set(map(frozenset, by_answer.values()))) == 1


def test_the_midline_is_asked_about_beside_one_bleeding_whatever_the_answer():
    for answer in head.SHIFTS:
        kinds = Counter()
        for index in range(9):
            truth = case_for("midline_shift", answer, seed_for("train", index, 4)).truth()
            assert len(truth.findings) == 1
            kinds[truth.findings[0].kind] += 1
        assert len(kinds) > 1


def test_vocabulary_is_small_and_complete(study, cases):
    known = vocabulary(study)
    assert 60 < len(known) < 250
    for case, _ in cases:
        question = case.question
        used = " ".join((question.text, question.answer, *question.options, question.reasoning))
        assert set(words(used)) <= known, set(words(used)) - known


def test_each_family_has_several_wordings(study):
    rng = np.random.default_rng(0)
    for name, family in FAMILIES_OF[study].items():
        truth = case_for(name, family.answers[0], seed_for("demo", 0)).truth()
        texts = {
            question.text
            for _ in range(20)
            for question in questions_for(truth, rng)
            if question.family == name
        }
        assert len(texts) >= 2, name


def test_questions_are_those_of_the_modality(study):
    config = SectionConfig(study)
    for index in range(5):
        truth = truth_for(seed_for("test", index), config)
        asked = {q.family for q in questions_for(truth, np.random.default_rng(0))}
        assert asked <= FAMILIES_OF[study].keys()


def test_two_masses_on_one_side_are_never_asked_about_as_one():
    wanted = (SectionRequest(breast.BENIGN, side=breast.IMAGE_LEFT),) * 2
    truth = truth_for(seed_for("test", 0), SectionConfig(breast.STUDY, wanted, extras=(1.0,)))
    asked = {q.family for q in questions_for(truth, np.random.default_rng(0))}
    assert not asked & {"mass_microcalcifications", "mass_shape", "mass_diagnosis"}
    assert {"lesion_count", "mass_side"} <= asked
