"""The dense warm-up: patches, targets, losses."""

import math

import numpy as np
import pytest
import torch

from engine.geometry import FULL_IMAGE, PatchGrid
from engine.processor import ImageProcessor
from training.dense_warmup import known_cover_of, texture_alone
from training.phantoms.label_names import CHEST_LABELS
from training.vision import (
    LEAST_SIDE,
    STRUCTURE_WEIGHT,
    DenseHeads,
    DenseTargets,
    attribute_losses,
    augmented,
    dense_loss,
    extent_loss,
    grid_thw_of,
    patches_of,
    window_of,
)
from training.world import (
    VIEW_BUDGET,
    Picture,
    fill_edges,
)

NODULE = CHEST_LABELS.covers.index("nodule")


def picture(**changes: np.ndarray) -> Picture:
    fields = {
        "cover": np.zeros((4, len(CHEST_LABELS.covers)), dtype=np.uint8),
        "attributes": np.full((4, len(CHEST_LABELS.attributes)), -1, dtype=np.int8),
        "edges": np.full((4, len(CHEST_LABELS.box_groups), 4), np.nan, dtype=np.float16),
    }
    return Picture(
        pixels=np.zeros((56, 56), dtype=np.uint8), region=FULL_IMAGE, **(fields | changes)
    )


def test_patches_equal_the_image_processor() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    seen = ImageProcessor()(pixels, VIEW_BUDGET)
    batch = torch.from_numpy(pixels.astype(np.float32))[None]
    assert torch.allclose(patches_of(batch), seen.pixel_values, atol=1e-5)
    assert torch.equal(grid_thw_of(batch), seen.grid_thw)


def test_patches_of_oblong_images_keep_their_order() -> None:
    """Against a loop over merge blocks, patches and pixels."""
    pixels = torch.arange(56 * 84, dtype=torch.float32).reshape(1, 56, 84) % 251
    rows = []
    for block_row in range(2):
        for block_column in range(3):
            for row in (0, 14):
                for column in (0, 14):
                    y, x = block_row * 28 + row, block_column * 28 + column
                    rows.append(pixels[0, y : y + 14, x : x + 14].flatten())
    mean, std = 0.48145466, 0.26862954
    expected = (torch.stack(rows) / 255 - mean) / std
    assert torch.allclose(patches_of(pixels)[:, :196], expected, atol=1e-5)


def test_small_findings_count_in_full_where_they_enter_a_cell() -> None:
    cover = np.zeros((4, len(CHEST_LABELS.covers)), dtype=np.uint8)
    cover[0, NODULE], cover[1, NODULE], cover[2, 0] = 51, 20, 51
    targets = DenseTargets.of([picture(cover=cover)])
    assert targets.cover[0, NODULE] == 1.0
    assert targets.cover[1, NODULE] == pytest.approx(6 * 20 / 255)
    assert targets.cover[2, 0] == pytest.approx(0.2)


def test_loss_is_small_for_right_readings_and_ignores_what_is_unknown() -> None:
    attributes = np.full((4, len(CHEST_LABELS.attributes)), -1, dtype=np.int8)
    attributes[0, 0] = 1
    edges = np.full((4, len(CHEST_LABELS.box_groups), 4), np.nan, dtype=np.float16)
    edges[0, 3] = 0.25
    targets = DenseTargets.of([picture(attributes=attributes, edges=edges)])
    sizes = [len(values) for values in CHEST_LABELS.attributes.values()]
    right = tuple(torch.zeros(4, size) for size in sizes)
    right[0][0] = torch.tensor([-20.0, 20.0])
    outputs = (torch.full((4, len(CHEST_LABELS.covers)), -20.0), right, torch.full((4, 4, 4), 0.25))
    parts = dense_loss(outputs, targets)
    assert all(float(part) < 1e-6 for part in parts.values())
    wrong = (torch.full((4, len(CHEST_LABELS.covers)), 20.0), right, torch.full((4, 4, 4), 0.75))
    parts = dense_loss(wrong, targets)
    weights = len(CHEST_LABELS.findings) + STRUCTURE_WEIGHT * len(CHEST_LABELS.structures)
    assert float(parts["cover"]) == pytest.approx(20.0 * weights, rel=1e-5)
    assert float(parts["edges"]) == pytest.approx(0.5)
    assert float(parts["extents"]) == pytest.approx(1.0)
    unknown = torch.zeros(4, len(CHEST_LABELS.covers), dtype=torch.bool)
    assert float(dense_loss(wrong, targets, unknown)["cover"]) == 0.0


def test_extents_are_counted_in_sides_of_the_box_and_groups_alike() -> None:
    """By hand: one token of a finding 0.1 wide and 0.2 high, three of an organ of 0.5."""
    true = torch.full((4, 2, 4), torch.nan)
    true[0, 0] = torch.tensor([0.04, 0.15, 0.06, 0.05])
    true[1:, 1] = torch.tensor([0.1, 0.2, 0.4, 0.3])
    read = true.nan_to_num()
    read[0, 0] += torch.tensor([0.01, 0.04, 0.0, 0.0])
    read[2, 1] += torch.tensor([0.0, 0.0, -0.25, 0.0])
    read[3, 0] = 7.0  # That token lies in no finding.
    finding = (0.01 / 0.1 + 0.04 / 0.2) / 4
    organ = 0.25 / 0.5 / 12
    assert float(extent_loss(read, true)) == pytest.approx((finding + organ) / 2)
    true[0, 0] = torch.tensor([0.001, 0.001, 0.001, 0.001])
    tiny = true[:1, :1]
    assert float(extent_loss(tiny + 0.01, tiny)) == pytest.approx(0.01 / LEAST_SIDE)
    assert float(extent_loss(tiny, torch.full_like(tiny, torch.nan))) == 0.0


def test_nothing_known_gives_no_loss_of_that_part() -> None:
    heads = DenseHeads(8)
    parts = dense_loss(heads(torch.randn(4, 8)), DenseTargets.of([picture()]))
    assert float(parts["attributes"].detach()) == 0.0
    assert float(parts["edges"].detach()) == 0.0


def test_known_cover_defaults_to_everything() -> None:
    known = np.zeros((4, len(CHEST_LABELS.covers)), dtype=np.bool_)
    both = known_cover_of([picture(), picture(known_cover=known)])
    assert both[:4].all()
    assert not both[4:].any()


def test_augmentation_keeps_shape_and_range_and_follows_its_seed() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (56, 84), dtype=np.uint8)
    one = augmented(pixels, np.random.default_rng(5))
    assert one.shape == pixels.shape
    assert one.min() >= 0
    assert one.max() <= 255
    assert np.array_equal(one, augmented(pixels, np.random.default_rng(5)))
    assert not np.array_equal(one, augmented(pixels, np.random.default_rng(6)))


def test_attributes_are_read_from_all_tokens_of_a_finding_together() -> None:
    """Picture 0 shows label 1 in two tokens and label 0 in one, picture 1 label 1 in one."""
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0], [9.0, 9.0], [1.0, 0.0]])
    labels = torch.tensor([1, 1, 0, -1, 1])
    owners = torch.tensor([0, 0, 0, 1, 1])
    expected = [math.log(1 + math.exp(v)) for v in (-2.0, -2.0, 1.0)]
    found = attribute_losses(logits, labels, owners)
    assert sorted(found.tolist()) == pytest.approx(sorted(expected), rel=1e-6)
    assert attribute_losses(logits, torch.full((5,), -1), owners).shape == (0,)


def test_a_window_shows_the_same_tokens_as_its_picture() -> None:
    cells = 4 * 6
    cover = np.arange(cells, dtype=np.uint8)[:, None].repeat(len(CHEST_LABELS.covers), axis=1)
    pixels = np.repeat(np.repeat(np.arange(cells, dtype=np.uint8).reshape(4, 6), 28, 0), 28, 1)
    whole = Picture(
        pixels=pixels,
        region=FULL_IMAGE,
        cover=cover,
        attributes=cover[:, : len(CHEST_LABELS.attributes)].astype(np.int8),
        edges=np.zeros((cells, len(CHEST_LABELS.box_groups), 4), dtype=np.float16),
    )
    for seed in range(20):
        part = window_of(whole, 3, np.random.default_rng(seed))
        assert part.pixels.shape == (84, 84)
        assert (part.pixels[14::28, 14::28].ravel() == part.cover[:, 0]).all()
        assert (part.cover[:, 0] == part.attributes[:, 0]).all()
        assert (part.edges == 0).all()
    assert window_of(whole, 9, np.random.default_rng(0)).pixels.shape == pixels.shape


def test_a_window_keeps_the_edges_of_a_box_that_it_holds() -> None:
    grid = PatchGrid(4, 6)
    box = (1 / 6, 1 / 4, 3 / 6, 3 / 4)  # rows 1 and 2, columns 1 and 2
    nothing = np.full((grid.cells, len(CHEST_LABELS.box_groups), 4), np.nan, dtype=np.float32)
    numbers = np.arange(grid.cells, dtype=np.uint8).reshape(4, 6)
    whole = Picture(
        pixels=np.repeat(np.repeat(numbers, 28, 0), 28, 1),
        region=FULL_IMAGE,
        cover=np.zeros((grid.cells, len(CHEST_LABELS.covers)), dtype=np.uint8),
        attributes=np.full((grid.cells, len(CHEST_LABELS.attributes)), -1, dtype=np.int8),
        edges=fill_edges(nothing, [(box, 3)], grid),
    )
    held = set()
    for seed in range(40):
        part = window_of(whole, 3, np.random.default_rng(seed))
        row, column = divmod(int(part.pixels[0, 0]), grid.columns)
        shown = part.pixels[::28, ::28].ravel()
        holds = row <= 1 and column <= 1
        held.add(holds)
        inside = np.isin(shown, [7, 8, 13, 14])
        assert (~np.isnan(part.edges[:, 3, 0]) == (inside & holds)).all()
        assert np.array_equal(part.edges[inside & holds], whole.edges[shown[inside & holds]], True)
    assert held == {True, False}


def test_a_texture_crop_teaches_its_attributes_alone() -> None:
    attributes = np.zeros((4, len(CHEST_LABELS.attributes)), dtype=np.int8)
    edges = np.zeros((4, len(CHEST_LABELS.box_groups), 4), dtype=np.float16)
    crop = texture_alone(picture(attributes=attributes, edges=edges))
    parts = dense_loss(
        DenseHeads(8)(torch.randn(4, 8)), DenseTargets.of([crop]), known_cover_of([crop])
    )
    assert float(parts["attributes"].detach()) > 0
    assert float(parts["cover"].detach()) == 0
    assert float(parts["edges"].detach()) == 0
