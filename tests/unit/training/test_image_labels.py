"""Labels of whole pictures: from truth to targets, and the loss that reads them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.geometry import PatchGrid
from tests.unit.training.conftest import picture
from training.image_labels import (
    ImageHeads,
    answer_scores,
    answers_of,
    box_names_of,
    centres_of,
    image_loss,
    labelled_crop,
    labelled_view,
    number_scores,
)
from training.phantoms import FindingRequest, PhantomConfig, truth_for
from training.phantoms.label_names import CHEST_LABELS
from training.phantoms.truth import CONSOLIDATION, EFFUSION, NODULE
from training.world import Case, ImageLabels, Picture, cover_of, touched_cells

WIDTH = 8
ANSWERS = answers_of(CHEST_LABELS)
BOX_NAMES = box_names_of(CHEST_LABELS)


def _case(*requests: FindingRequest) -> Case:
    """A phantom with what is asked for and nothing else; its pixels do not matter here."""
    truth = truth_for(4, PhantomConfig(require=requests, extras=(1.0,)))
    view = picture(0, 224, 224)
    return Case(truth=truth, view=replace(view, cover=cover_of(truth, view.region, view.grid)))


def _answer(labels: ImageLabels | None, family: str) -> str | None:
    assert labels is not None
    index = int(labels.answers[tuple(ANSWERS).index(family)])
    return None if index < 0 else ANSWERS[family][index]


def test_answers_are_those_of_the_questions() -> None:
    request = FindingRequest(NODULE, side="left", level="upper")
    labels = labelled_view(_case(request)).labels
    assert _answer(labels, "nodule_present") == "yes"
    assert _answer(labels, "effusion_present") == "no"
    assert _answer(labels, "nodule_side") == "left"
    assert _answer(labels, "nodule_zone") == "left upper zone"
    assert _answer(labels, "which_finding") == NODULE
    assert _answer(labels, "nodule_count") == "one"
    # Neither asked for in an image without them, nor readable in a view.
    assert _answer(labels, "effusion_side") is None
    assert _answer(labels, "margin") is None


def test_a_box_is_known_where_the_finding_is_the_only_one_of_its_kind() -> None:
    one = labelled_view(_case(FindingRequest(NODULE))).labels
    two = labelled_view(_case(FindingRequest(NODULE), FindingRequest(NODULE))).labels
    assert one is not None
    assert two is not None
    row = BOX_NAMES.index(NODULE)
    case = _case(FindingRequest(NODULE))
    assert case.truth is not None
    np.testing.assert_allclose(one.boxes[row], case.truth.of_kind(NODULE)[0].box, atol=1e-6)
    assert np.isnan(two.boxes[row]).all()
    assert np.isnan(one.boxes[BOX_NAMES.index(EFFUSION)]).all()
    assert not np.isnan(one.boxes[BOX_NAMES.index("heart")]).any()


def test_places_cover_the_cells_of_their_finding_alone() -> None:
    case = _case(
        FindingRequest(NODULE, side="left", level="upper"),
        FindingRequest(CONSOLIDATION, side="right", level="lower"),
    )
    labels = labelled_view(case).labels
    assert labels is not None
    assert labels.places is not None
    assert case.truth is not None
    filled = {CHEST_LABELS.places[index] for index in np.flatnonzero(labels.places.any(axis=0))}
    assert filled == {
        (NODULE, "left"),
        (NODULE, "left upper zone"),
        (CONSOLIDATION, "right"),
        (CONSOLIDATION, "right lower zone"),
    }
    centres = centres_of(case.view.grid).numpy()
    column = labels.places[:, CHEST_LABELS.places.index((NODULE, "left"))]
    box = np.array(case.truth.of_kind(NODULE)[0].box) * np.tile(case.view.sides, 2)
    x0, y0, x1, y1 = box
    half = 0.5 / 8
    for x, y in centres[column > 0]:
        assert x0 - half <= x <= x1 + half
        assert y0 - half <= y <= y1 + half
    assert 0 < column.max() <= 1


def test_the_shares_of_what_is_counted_add_up_to_its_number_whatever_its_size() -> None:
    case = _case(
        FindingRequest(NODULE, side="left", size="large"),
        FindingRequest(NODULE, side="left", size="small"),
        FindingRequest(NODULE, side="right", size="small"),
        FindingRequest(CONSOLIDATION, side="right"),
    )
    assert case.truth is not None
    labels = labelled_view(case).labels
    assert labels is not None
    assert labels.shares is not None
    assert CHEST_LABELS.counted == ((NODULE, "right"), (NODULE, "left"))
    np.testing.assert_allclose(labels.shares.sum(0), (1, 2), atol=1e-5)
    # A cell has the share of what is covered of it: no other nodule is near, and a consolidation
    # is none.
    (small,) = case.truth.of_kind(NODULE, "right")
    touched = touched_cells(small.box, case.view.grid)
    covered = case.view.cover[touched, CHEST_LABELS.covers.index(NODULE)].astype(float)
    np.testing.assert_allclose(labels.shares[touched, 0], covered / covered.sum(), atol=1e-6)
    others = np.setdiff1d(np.arange(case.view.grid.cells), touched)
    assert not labels.shares[others, 0].any()


def test_two_findings_in_one_cell_share_it_and_count_as_two() -> None:
    case = _case(FindingRequest(NODULE, side="left"), FindingRequest(NODULE, side="left"))
    assert case.truth is not None
    column = CHEST_LABELS.covers.index(NODULE)
    one, other = case.truth.of_kind(NODULE, "left")
    near = replace(other, box=one.box)
    truth = replace(case.truth, findings=(one, near))
    first, *others = touched_cells(one.box, case.view.grid)
    cover = np.zeros_like(case.view.cover)
    cover[first, column], cover[others[0], column] = 30, 90
    labels = labelled_view(Case(truth=truth, view=replace(case.view, cover=cover))).labels
    assert labels is not None
    assert labels.shares is not None
    np.testing.assert_allclose(labels.shares[[first, others[0]], 1], (0.5, 1.5), atol=1e-6)
    assert labels.shares.sum() == pytest.approx(2)


def test_a_finding_too_small_to_cover_a_cell_counts_all_the_same() -> None:
    case = _case(FindingRequest(NODULE, side="left"))
    assert case.truth is not None
    bare = replace(case.view, cover=np.zeros_like(case.view.cover))
    labels = labelled_view(replace(case, view=bare)).labels
    assert labels is not None
    assert labels.shares is not None
    touched = touched_cells(case.truth.of_kind(NODULE)[0].box, case.view.grid)
    np.testing.assert_allclose(labels.shares[touched, 1], 1 / len(touched), rtol=1e-6)
    assert labels.shares.sum() == pytest.approx(1)


def test_a_view_without_what_is_counted_has_no_share_of_it() -> None:
    labels = labelled_view(_case(FindingRequest(CONSOLIDATION))).labels
    assert labels is not None
    assert labels.shares is not None
    assert labels.shares.shape == (64, 2)
    assert not labels.shares.any()


def test_centres_run_along_rows_in_shares_of_the_longer_side() -> None:
    centres = centres_of(PatchGrid(2, 4))
    assert centres[0].tolist() == [0.125, 0.125]
    assert centres[3].tolist() == [0.875, 0.125]
    assert centres[4].tolist() == [0.125, 0.375]


def test_a_crop_is_labelled_where_its_cells_agree() -> None:
    crop = picture(0, 56, 56)
    margin = tuple(CHEST_LABELS.attributes).index("margin")
    agreed, mixed = crop.attributes.copy(), crop.attributes.copy()
    agreed[1:3, margin] = 1
    mixed[1, margin], mixed[2, margin] = 0, 1
    labels = labelled_crop(replace(crop, attributes=agreed)).labels
    assert _answer(labels, "margin") == "spiculated"
    assert _answer(labels, "calcification") is None
    assert _answer(labelled_crop(replace(crop, attributes=mixed)).labels, "margin") is None
    assert labels is not None
    assert labels.places is None
    assert np.isnan(labels.boxes).all()


def _constant_heads() -> ImageHeads:
    """Heads whose readings are their biases."""
    heads = ImageHeads(WIDTH)
    for linear in (heads.places, heads.centres, heads.answers, heads.boxes, heads.shares):
        assert linear is not None
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return heads


def test_the_loss_by_hand() -> None:
    heads = _constant_heads()
    view = picture(0, 28, 56)
    answers = np.full(len(ANSWERS), -1, dtype=np.int8)
    answers[tuple(ANSWERS).index("nodule_zone")] = 2
    boxes = np.full((len(BOX_NAMES), 4), np.nan, dtype=np.float32)
    boxes[0] = (0.1, 0.2, 0.3, 0.4)
    places = np.zeros((2, len(CHEST_LABELS.places)), dtype=np.float32)
    labelled = replace(view, labels=ImageLabels(answers, boxes, places))
    with torch.no_grad():
        parts = image_loss(heads, torch.randn(4, WIDTH), [labelled, view])
    assert float(parts["answers"]) == pytest.approx(np.log(6))
    # The view is twice as wide as it is high: 0.1, 0.2 / 2, 0.3 and 0.4 / 2 of its width.
    assert float(parts["boxes"]) == pytest.approx(0.175)
    # Centres 0.25 and 0.75 in x, 0.25 in y, all read as 0.
    assert float(parts["centres"]) == pytest.approx(0.375)
    assert float(parts["places"]) == pytest.approx(len(CHEST_LABELS.places) * np.log(2), rel=1e-5)


def _counting_view(shares: list[list[float]]) -> Picture:
    """A view of two cells with these shares of nodules in the right and the left lung."""
    answers = np.full(len(ANSWERS), -1, dtype=np.int8)
    boxes = np.full((len(BOX_NAMES), 4), np.nan, dtype=np.float32)
    places = np.zeros((2, len(CHEST_LABELS.places)), dtype=np.float32)
    labels = ImageLabels(answers, boxes, places, np.array(shares, dtype=np.float32))
    return replace(picture(0, 28, 56), labels=labels)


def test_the_loss_of_shares_by_hand() -> None:
    heads = _constant_heads()
    assert heads.shares is not None
    with torch.no_grad():
        heads.shares.bias.copy_(torch.tensor([4.0, 0.0]))
        first = _counting_view([[1.0, 0.0], [0.0, 0.0]])
        second = _counting_view([[0.5, 0.25], [0.5, 0.75]])
        parts = image_loss(heads, torch.randn(4, WIDTH), [first, second])
    # An eighth of it is 0.5 of a nodule in each cell of the right lung: both cells of the first
    # view are off by a half, and those of the second are right. In the left lung of the second
    # view cells are off by 0.25 and 0.75.
    assert float(parts["shares"]) == pytest.approx((0.5 + 0.0625 + 0.5625) / 2)


def test_numbers_are_scored_where_there_is_something_to_count() -> None:
    heads = _constant_heads()
    assert heads.shares is not None
    with torch.no_grad():
        heads.shares.bias.copy_(torch.tensor([3.2, 7.2]))
    views = [
        _counting_view([[1.0, 0.0], [0.0, 0.0]]),
        _counting_view([[1.0, 0.5], [1.0, 0.5]]),
        _counting_view([[0.0, 0.0], [0.0, 0.0]]),
    ]
    # Read are 0.8 on the right and 1.8 on the left, which is one and two.
    assert number_scores(heads, torch.randn(6, WIDTH), views) == {
        "counted nodule right": [1.0, 0.0],
        "counted nodule left": [0.0, 0.0],
    }


def test_a_batch_without_labels_costs_nothing() -> None:
    parts = image_loss(ImageHeads(WIDTH), torch.randn(2, WIDTH), [picture(0, 28, 56)])
    assert {name: float(value) for name, value in parts.items()} == dict.fromkeys(parts, 0.0)


def test_answers_are_scored_where_they_are_known() -> None:
    heads = _constant_heads()
    answers = np.full(len(ANSWERS), -1, dtype=np.int8)
    answers[0], answers[1] = 0, 1
    labelled = replace(
        picture(0, 28, 28),
        labels=ImageLabels(answers, np.full((len(BOX_NAMES), 4), np.nan, dtype=np.float32)),
    )
    # Every logit is equal, and the first of equals is read.
    scores = answer_scores(heads, torch.randn(1, WIDTH), [labelled])
    first, second = tuple(ANSWERS)[:2]
    assert scores == {f"answer {first}": [1.0], f"answer {second}": [0.0]}
