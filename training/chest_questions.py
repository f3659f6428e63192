"""Question families about chest radiographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from training.phantoms import FindingRequest, PhantomConfig
from training.phantoms.truth import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    EFFUSION_GRADES,
    HEART_SIZES,
    LEFT,
    LEVELS,
    LINE,
    MARGINS,
    NODULE,
    PNEUMOTHORAX,
    RIGHT,
    SIDES,
    TIP_LEVELS,
    TUBE,
    ZONES,
    Finding,
    Truth,
)
from training.question_forms import (
    COARSE,
    COUNTS,
    FINE,
    MODALITY_NAMES,
    NO,
    NONE,
    PRESENCE_TEXTS,
    YES,
    Family,
    Generator,
    Item,
    article,
    side_item,
    with_article,
)

_HIDES_HEART: Final = ("moderate", "large")


def _any_config(
    require: Sequence[FindingRequest] = (), forbid: Sequence[str] = ()
) -> PhantomConfig:
    return PhantomConfig(require=tuple(require), forbid=tuple(forbid), extras=(0.35, 0.4, 0.25))


# --- what is shown ---------------------------------------------------------------------------


def _modality(truth: Truth) -> list[Item]:
    del truth
    return [
        Item(
            (
                "Which imaging modality is this?",
                "How was this image acquired?",
                "What type of image is shown?",
            ),
            MODALITY_NAMES,
            "x-ray",
            (),
            "The image is a projection of the whole chest.",
            "It is an x-ray.",
        )
    ]


def _body_part(truth: Truth) -> list[Item]:
    del truth
    return [
        Item(
            ("Which part of the body is shown?", "What body region does the image show?"),
            ("chest", "abdomen", "head", "knee"),
            "chest",
            (),
            "Two lungs and the heart are seen.",
            "It is the chest.",
        )
    ]


def _free(answer: str, rng: Generator) -> PhantomConfig:
    del answer, rng
    return PhantomConfig()


def _lung(truth: Truth) -> list[Item]:
    return [side_item("lung", side, truth.anatomy[f"{side}_lung"].box) for side in SIDES]


def _lung_name(truth: Truth) -> list[Item]:
    items = []
    for side, place in ((RIGHT, "left"), (LEFT, "right")):
        items.append(
            Item(
                (
                    f"Which lung lies on the {place} side of the image?",
                    f"Which lung is seen on the {place} side of the image?",
                ),
                ("right lung", "left lung"),
                f"{side} lung",
                (truth.anatomy[f"{side}_lung"].box,),
                f"The {place} side of the image is the {side} side of the patient.",
                f"It is the {side} lung.",
            )
        )
    return items


# --- disease ---------------------------------------------------------------------------------


def _presence(kind: str) -> Family:
    """Yes or no for one finding; extras are equally likely for both answers."""

    def ask(truth: Truth) -> list[Item]:
        found = truth.of_kind(kind)
        if kind == CARDIOMEGALY and _heart_is_hidden(truth):
            return []
        texts = tuple(text.format(a=with_article(kind)) for text in PRESENCE_TEXTS)
        if not found:
            return [Item(texts, (YES, NO), NO, (), _looked_at(kind), f"There is no {kind}.")]
        after = f"There is {with_article(kind)}."
        boxes = tuple(f.box for f in found)
        return [Item(texts, (YES, NO), YES, boxes, _looked_at(kind), after)]

    def order(answer: str, rng: Generator) -> PhantomConfig:
        del rng
        hidden = (EFFUSION,) if kind == CARDIOMEGALY else ()
        if answer == YES:
            return _any_config([FindingRequest(kind)], hidden)
        return _any_config((), (kind, *hidden))

    return Family(COARSE, (YES, NO), ask, order)


def _looked_at(kind: str) -> str:
    if kind == CARDIOMEGALY:
        return "The width of the heart is compared with the chest."
    if kind in (TUBE, LINE):
        return "The image is searched for tubes and lines."
    return "Both lungs are searched."


_DISEASES: Final = (NODULE, CONSOLIDATION, EFFUSION, PNEUMOTHORAX, CARDIOMEGALY)


def _which_finding(truth: Truth) -> list[Item]:
    shown = {f.kind for f in truth.findings if f.kind in _DISEASES}
    if len(shown) > 1 or _heart_is_hidden(truth):
        return []
    answer = next(iter(shown), NONE)
    boxes = tuple(f.box for f in truth.findings if f.kind == answer)
    after = "There is no finding." if answer == NONE else f"There is {with_article(answer)}."
    return [
        Item(
            (
                "Which finding is present?",
                "Which finding does the chest show?",
                "Which disease is seen?",
            ),
            (*_DISEASES, NONE),
            answer,
            boxes,
            "The lungs, the pleura and the heart are searched.",
            after,
        )
    ]


def _order_which(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    forbid = tuple(kind for kind in _DISEASES if kind != answer)
    if answer == NONE:
        return _any_config((), forbid)
    request = (
        FindingRequest(answer, grade="small") if answer == EFFUSION else FindingRequest(answer)
    )
    return _any_config([request], forbid)


def _heart_is_hidden(truth: Truth) -> bool:
    return any(f.attributes["grade"] in _HIDES_HEART for f in truth.of_kind(EFFUSION))


def _side(kind: str) -> Family:
    """Right or left of a finding that is on one side only."""

    def ask(truth: Truth) -> list[Item]:
        sides = {f.side for f in truth.of_kind(kind)}
        if len(sides) != 1:
            return []
        side = sides.pop()
        place = "left" if side == RIGHT else "right"
        return [
            Item(
                (f"On which side is the {kind}?", f"Which side shows the {kind}?"),
                SIDES,
                side,
                tuple(f.box for f in truth.of_kind(kind)),
                f"There is {article(kind)} on the {place} side of the image.",
                f"It is on the {side} side of the patient.",
            )
        ]

    def order(answer: str, rng: Generator) -> PhantomConfig:
        del rng
        return _any_config([FindingRequest(kind, side=answer)])

    return Family(COARSE, SIDES, ask, order)


def _zone(kind: str) -> Family:
    """One of six zones of the only finding of its kind."""

    def ask(truth: Truth) -> list[Item]:
        found = truth.of_kind(kind)
        if len(found) != 1:
            return []
        zone = found[0].zone
        return [
            Item(
                (
                    f"In which zone is the {kind}?",
                    f"Where is the {kind}?",
                    f"Which lung zone shows the {kind}?",
                ),
                ZONES,
                zone,
                (found[0].box,),
                f"There is {article(kind)}.",
                f"It lies in the {zone}.",
            )
        ]

    def order(answer: str, rng: Generator) -> PhantomConfig:
        del rng
        side, level, _ = answer.split()
        return _any_config([FindingRequest(kind, side=side, level=level)])

    return Family(COARSE, ZONES, ask, order)


# --- grading, counting, comparing ------------------------------------------------------------


def _effusion_grade(truth: Truth) -> list[Item]:
    found = truth.of_kind(EFFUSION)
    if len(found) != 1:
        return []
    grade = found[0].attributes["grade"]
    return [
        Item(
            ("How large is the pleural effusion?", "What is the size of the pleural effusion?"),
            EFFUSION_GRADES,
            grade,
            (found[0].box,),
            f"There is a pleural effusion on the {found[0].side} side.",
            f"It is {grade}.",
        )
    ]


def _order_effusion_grade(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(EFFUSION, grade=answer)])


def _heart_size(truth: Truth) -> list[Item]:
    if _heart_is_hidden(truth):
        return []
    size = truth.heart_size
    return [
        Item(
            ("How large is the heart?", "What is the size of the heart?", "Grade the heart size."),
            HEART_SIZES,
            size,
            (truth.anatomy["heart"].box,),
            "The width of the heart is compared with the chest.",
            f"The heart size is {size}.",
        )
    ]


def _order_heart_size(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    if answer == HEART_SIZES[0]:
        return _any_config((), (CARDIOMEGALY, EFFUSION))
    return _any_config([FindingRequest(CARDIOMEGALY, grade=answer)], (EFFUSION,))


def _nodules_by_side(truth: Truth) -> str:
    """Both lungs, also one without: that the other has none is no reason to stop counting."""
    counts = {side: len(truth.of_kind(NODULE, side)) for side in SIDES}
    found = [f"{COUNTS[n - 1] if n else 'none'} in the {s} lung" for s, n in counts.items()]
    return f"Nodules: {' and '.join(found)}."


def _count(truth: Truth) -> list[Item]:
    found = truth.of_kind(NODULE)
    if not 1 <= len(found) <= len(COUNTS):
        return []
    answer = COUNTS[len(found) - 1]
    return [
        Item(
            ("How many nodules are there?", "What is the number of nodules?"),
            COUNTS,
            answer,
            tuple(f.box for f in found),
            _nodules_by_side(truth),
            f"The number of nodules is {answer}.",
        )
    ]


def _order_count(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(NODULE)] * (COUNTS.index(answer) + 1))


def _radius(finding: Finding) -> float:
    return finding.measures["radius_px"]


def _larger(truth: Truth) -> list[Item]:
    right, left = truth.of_kind(NODULE, RIGHT), truth.of_kind(NODULE, LEFT)
    if len(right) != 1 or len(left) != 1:
        return []
    ratio = _radius(right[0]) / _radius(left[0])
    if max(ratio, 1 / ratio) < 1.5:
        return []
    side = RIGHT if ratio > 1 else LEFT
    return [
        Item(
            (
                "Which nodule is larger?",
                "Is the nodule in the right lung or the nodule in the left lung larger?",
            ),
            ("right lung", "left lung"),
            f"{side} lung",
            (right[0].box, left[0].box),
            "There is a nodule in each lung.",
            f"The nodule in the {side} lung is larger.",
        )
    ]


def _order_larger(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    side = answer.split(maxsplit=1)[0]
    other = LEFT if side == RIGHT else RIGHT
    return _any_config(
        [
            FindingRequest(NODULE, side=side, size="large"),
            FindingRequest(NODULE, side=other, size="small"),
        ]
    )


def _more(truth: Truth) -> list[Item]:
    counts = {side: len(truth.of_kind(NODULE, side)) for side in SIDES}
    if counts[RIGHT] == counts[LEFT]:
        return []
    side = RIGHT if counts[RIGHT] > counts[LEFT] else LEFT
    return [
        Item(
            ("Which lung has more nodules?", "In which lung are there more nodules?"),
            ("right lung", "left lung"),
            f"{side} lung",
            tuple(f.box for f in truth.of_kind(NODULE)),
            _nodules_by_side(truth),
            f"The {side} lung has more.",
        )
    ]


def _order_more(answer: str, rng: Generator) -> PhantomConfig:
    side = answer.split(maxsplit=1)[0]
    other = LEFT if side == RIGHT else RIGHT
    more = [FindingRequest(NODULE, side=side)] * 2
    return _any_config(more + [FindingRequest(NODULE, side=other)] * int(rng.integers(2)))


# --- devices ---------------------------------------------------------------------------------


def _which_device(truth: Truth) -> list[Item]:
    shown = [f for f in truth.findings if f.kind in (TUBE, LINE)]
    if len(shown) > 1:
        return []
    answer = shown[0].kind if shown else NONE
    after = f"There is {article(answer)}." if shown else "There is no tube and no line."
    return [
        Item(
            ("Which device is present?", "Which tube or line is seen?"),
            (TUBE, LINE, NONE),
            answer,
            tuple(f.box for f in shown),
            _looked_at(TUBE),
            after,
        )
    ]


def _order_device(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    forbid = tuple(kind for kind in (TUBE, LINE) if kind != answer)
    return _any_config([] if answer == NONE else [FindingRequest(answer)], forbid)


def _tip(truth: Truth) -> list[Item]:
    found = truth.of_kind(TUBE)
    if len(found) != 1:
        return []
    tip = found[0].attributes["tip"]
    return [
        Item(
            (
                "Where is the tip of the endotracheal tube?",
                "Where does the endotracheal tube end?",
            ),
            TIP_LEVELS,
            tip,
            (found[0].focus,),
            "There is an endotracheal tube.",
            f"Its tip is {tip}.",
        )
    ]


def _order_tip(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(TUBE, tip=answer)])


def _line_side(truth: Truth) -> list[Item]:
    found = truth.of_kind(LINE)
    if len(found) != 1:
        return []
    side = found[0].side
    return [
        Item(
            (
                "From which side does the central line come?",
                "On which side does the central line enter?",
            ),
            SIDES,
            side,
            (found[0].box,),
            "There is a central line.",
            f"It comes from the {side} side of the patient.",
        )
    ]


def _order_line_side(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(LINE, side=answer)])


# --- fine attributes -------------------------------------------------------------------------


def _referents(truth: Truth, kind: str) -> list[tuple[str, str, Finding]]:
    """(name in a question, place in a sentence, finding) wherever there is one referent."""
    found = truth.of_kind(kind)
    if len(found) == 1:
        return [(f"the {kind}", f"in the {found[0].zone}", found[0])]
    named = []
    for side in SIDES:
        on_side = truth.of_kind(kind, side)
        if len(on_side) == 1:
            named.append(
                (f"the {kind} in the {side} lung", f"in the {on_side[0].zone}", on_side[0])
            )
    return named


def _nodule_requests(rng: Generator, **wanted: str | bool) -> list[FindingRequest]:
    """One nodule with an attribute, or one in each lung of which either may be asked about."""
    side = SIDES[int(rng.integers(2))]
    level = LEVELS[int(rng.integers(3))]
    asked = replace(FindingRequest(NODULE, side=side, level=level), **wanted)  # type: ignore[arg-type]
    if rng.random() < 0.7:
        return [asked]
    return [asked, FindingRequest(NODULE, side=LEFT if side == RIGHT else RIGHT)]


def _margin(truth: Truth) -> list[Item]:
    items = []
    for name, place, nodule in _referents(truth, NODULE):
        margin = nodule.attributes["margin"]
        items.append(
            Item(
                (
                    f"What is the margin of {name}?",
                    f"Which margin does {name} have?",
                    f"How is the margin of {name}?",
                ),
                MARGINS,
                margin,
                (nodule.box,),
                f"There is a nodule {place}.",
                f"Its margin is {margin}.",
            )
        )
    return items


def _order_margin(answer: str, rng: Generator) -> PhantomConfig:
    return _any_config(_nodule_requests(rng, margin=answer))


def _calcification(truth: Truth) -> list[Item]:
    items = []
    for name, place, nodule in _referents(truth, NODULE):
        calcified = nodule.attributes["calcification"] == "calcified"
        items.append(
            Item(
                (f"Is {name} calcified?", f"Does {name} contain calcification?"),
                (YES, NO),
                YES if calcified else NO,
                (nodule.box,),
                f"There is a nodule {place}.",
                # "No" as the answer says it: letters are found by words that are said.
                "It contains calcification." if calcified else "It contains no calcification.",
            )
        )
    return items


def _order_calcification(answer: str, rng: Generator) -> PhantomConfig:
    return _any_config(_nodule_requests(rng, calcified=answer == YES))


def _bronchogram(truth: Truth) -> list[Item]:
    items = []
    for name, place, patch in _referents(truth, CONSOLIDATION):
        answer = patch.attributes["air bronchogram"]
        items.append(
            Item(
                (
                    f"Is there an air bronchogram in {name}?",
                    f"Does {name} contain an air bronchogram?",
                ),
                (YES, NO),
                answer,
                (patch.box,),
                f"There is a consolidation {place}.",
                "It contains an air bronchogram."
                if answer == YES
                else "It contains no air bronchogram.",
            )
        )
    return items


def _order_bronchogram(answer: str, rng: Generator) -> PhantomConfig:
    del rng
    return _any_config([FindingRequest(CONSOLIDATION, bronchogram=answer == YES)])


CHEST_FAMILIES: Final[dict[str, Family]] = {
    "modality": Family(COARSE, ("x-ray",), _modality, _free),
    "body_part": Family(COARSE, ("chest",), _body_part, _free),
    "lung": Family(COARSE, ("left side of the image", "right side of the image"), _lung, _free),
    "lung_name": Family(COARSE, ("right lung", "left lung"), _lung_name, _free),
    "nodule_present": _presence(NODULE),
    "consolidation_present": _presence(CONSOLIDATION),
    "effusion_present": _presence(EFFUSION),
    "pneumothorax_present": _presence(PNEUMOTHORAX),
    "cardiomegaly_present": _presence(CARDIOMEGALY),
    "tube_present": _presence(TUBE),
    "line_present": _presence(LINE),
    "which_finding": Family(COARSE, (*_DISEASES, NONE), _which_finding, _order_which),
    "nodule_side": _side(NODULE),
    "consolidation_side": _side(CONSOLIDATION),
    "effusion_side": _side(EFFUSION),
    "pneumothorax_side": _side(PNEUMOTHORAX),
    "nodule_zone": _zone(NODULE),
    "consolidation_zone": _zone(CONSOLIDATION),
    "effusion_grade": Family(COARSE, EFFUSION_GRADES, _effusion_grade, _order_effusion_grade),
    "heart_size": Family(COARSE, HEART_SIZES, _heart_size, _order_heart_size),
    "nodule_count": Family(COARSE, COUNTS, _count, _order_count),
    "larger_nodule": Family(COARSE, ("right lung", "left lung"), _larger, _order_larger),
    "more_nodules": Family(COARSE, ("right lung", "left lung"), _more, _order_more),
    "which_device": Family(COARSE, (TUBE, LINE, NONE), _which_device, _order_device),
    "tube_tip": Family(COARSE, TIP_LEVELS, _tip, _order_tip),
    "line_side": Family(COARSE, SIDES, _line_side, _order_line_side),
    "nodule_margin": Family(FINE, MARGINS, _margin, _order_margin),
    "nodule_calcification": Family(FINE, (YES, NO), _calcification, _order_calcification),
    "air_bronchogram": Family(FINE, (YES, NO), _bronchogram, _order_bronchogram),
}
