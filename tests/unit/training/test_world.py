"""The prepared images: resizing, coverage, edges, and their file."""

from pathlib import Path

import numpy as np
import pytest

from engine.geometry import FULL_IMAGE, Box, PatchGrid
from engine.processor import ImageProcessor
from training.world import (
    BOX_GROUPS,
    COVER_NAMES,
    VIEW_BUDGET,
    Case,
    WorldConfig,
    balanced_case,
    build_case,
    cover_of,
    fill_edges,
    jittered,
    load_cases,
    resized,
    save_cases,
)


@pytest.fixture(scope="module")
def case() -> Case:
    """A phantom made for a question about a nodule's margin."""
    index = 26
    ordered = balanced_case(WorldConfig(), index)
    assert ordered.question.family == "nodule_margin"
    return build_case(ordered, crops=2)


@pytest.mark.parametrize("shape", [(896, 896), (1024, 896), (133, 70), (61, 400)])
def test_resizing_equals_the_image_processor(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    processor = ImageProcessor()
    seen = processor(pixels, VIEW_BUDGET)
    assert np.array_equal(processor.seen_pixels(seen)[:, :, 0], resized(pixels))


def test_coverage_peaks_inside_the_finding(case: Case) -> None:
    nodule = case.truth.of_kind("nodule")[0]
    if len(case.truth.of_kind("nodule")) == 1:
        column = case.view.cover[:, COVER_NAMES.index("nodule")]
        assert int(column.argmax()) in case.view.grid.cells_of(Box(*nodule.box))
        assert column.max() > 0


def test_coverage_of_the_whole_image_equals_block_means(case: Case) -> None:
    """Against plain block means of the mask, whose grid divides the cells evenly."""
    grid = PatchGrid(8, 8)
    mask = case.truth.anatomy["heart"].mask.astype(float)
    means = mask.reshape(8, 16, 8, 16).mean(axis=(1, 3)).ravel()
    found = cover_of(case.truth, FULL_IMAGE, grid)[:, COVER_NAMES.index("heart")] / 255
    assert np.abs(found - means).max() < 0.05


def test_edges_rebuild_the_box_from_any_of_its_cells() -> None:
    grid = PatchGrid(8, 7)
    box = (0.2, 0.3, 0.7, 0.55)
    empty = np.full((grid.cells, len(BOX_GROUPS), 4), np.nan, dtype=np.float32)
    edges = fill_edges(empty, [(box, 1)], grid)
    cells = grid.cells_of(Box(*box))
    for cell in cells:
        x = (cell % grid.columns + 0.5) / grid.columns
        y = (cell // grid.columns + 0.5) / grid.rows
        left, top, right, bottom = edges[cell, 1].astype(float)
        assert (x - left, y - top, x + right, y + bottom) == pytest.approx(box, abs=1e-3)
    assert np.isnan(edges[:, 0]).all()
    assert int((~np.isnan(edges[:, 1, 0])).sum()) == len(cells)


def test_details_are_taught_on_crops_and_never_on_the_view(case: Case) -> None:
    assert (case.view.attributes[:, :3] == -1).all()
    target = Box(*case.asked.target_boxes[0])
    assert len(case.crops[target]) == 2
    assert (case.crops[target][0].attributes[:, 0] >= 0).any()


def test_file_round_trip(case: Case, tmp_path: Path) -> None:
    save_cases(tmp_path / "shard.npz", [case, case])
    for copy in load_cases(tmp_path / "shard.npz"):
        assert copy.asked == case.asked
        assert copy.truth.to_json(masks=False) == case.truth.to_json(masks=False)
        assert np.array_equal(copy.view.pixels, case.view.pixels)
        assert copy.crops.keys() == case.crops.keys()
        for box, pictures in case.crops.items():
            for one, other in zip(pictures, copy.crops[box], strict=True):
                assert np.array_equal(one.cover, other.cover)
                assert np.array_equal(one.edges, other.edges, equal_nan=True)
                assert one.region == other.region
    assert [path.name for path in tmp_path.iterdir()] == ["shard.npz"]


def test_jitter_keeps_most_of_the_box() -> None:
    rng = np.random.default_rng(3)
    box = Box(0.4, 0.4, 0.6, 0.6)
    overlaps = [box.intersection_over_union(jittered(box, rng, 0.15)) for _ in range(200)]
    assert min(overlaps) > 0.4
    assert np.mean(overlaps) > 0.7


def test_balanced_cases_take_families_and_answers_in_turn() -> None:
    one, other = balanced_case(WorldConfig(), 7), balanced_case(WorldConfig(), 7 + 29)
    assert one.question.family == other.question.family
    assert one.question.answer != other.question.answer
