"""The prepared images: resizing, coverage, edges, and their file."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from engine.geometry import FULL_IMAGE, Box, PatchGrid
from engine.processor import ImageProcessor
from tests.source_tree import ROOT
from training.config import ConfigError, build
from training.image_labels import ImageHeads, answers_of, image_loss, labelled_crop, labelled_view
from training.materials import load_materials
from training.phantoms import MODALITIES, labels_of, modality_of, seed_for
from training.phantoms.breast_ultrasound.words import MALIGNANT, MARGIN
from training.phantoms.head_ct.words import INTRAPARENCHYMAL, SWIRL
from training.phantoms.label_names import CHEST_LABELS
from training.questions import FAMILIES, FAMILIES_OF, case_for, questions_for
from training.reports import report_text
from training.vision import DenseHeads, DenseTargets, dense_loss
from training.world import (
    GENERATOR_VERSION,
    VIEW_BUDGET,
    Case,
    ModalityShares,
    WorldConfig,
    balanced_case,
    build_case,
    claim_world,
    cover_of,
    fill_edges,
    jittered,
    load_cases,
    load_world,
    resized,
    save_cases,
    shard_path,
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
    assert np.array_equal(processor.seen_pixels(seen), resized(pixels))


def test_coverage_peaks_inside_the_finding(case: Case) -> None:
    nodule = case.truth.of_kind("nodule")[0]
    if len(case.truth.of_kind("nodule")) == 1:
        column = case.view.cover[:, CHEST_LABELS.covers.index("nodule")]
        assert int(column.argmax()) in case.view.grid.cells_of(Box(*nodule.box))
        assert column.max() > 0


def test_coverage_of_the_whole_image_equals_block_means(case: Case) -> None:
    """Against plain block means of the mask, whose grid divides the cells evenly."""
    grid = PatchGrid(8, 8)
    mask = case.truth.anatomy["heart"].mask.astype(float)
    means = mask.reshape(8, 16, 8, 16).mean(axis=(1, 3)).ravel()
    found = cover_of(case.truth, FULL_IMAGE, grid)[:, CHEST_LABELS.covers.index("heart")] / 255
    assert np.abs(found - means).max() < 0.05


def test_edges_rebuild_the_box_from_any_of_its_cells() -> None:
    grid = PatchGrid(8, 7)
    box = (0.2, 0.3, 0.7, 0.55)
    empty = np.full((grid.cells, len(CHEST_LABELS.box_groups), 4), np.nan, dtype=np.float32)
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


@pytest.mark.parametrize("family", ["nodule_margin", "effusion_grade", "lung", "tube_tip"])
def test_questions_of_a_reread_phantom_find_their_crops(family: str, tmp_path: Path) -> None:
    answer = FAMILIES[family].answers[0]
    save_cases(tmp_path / "shard.npz", [build_case(case_for(family, answer, 5), 1)])
    (copy,) = load_cases(tmp_path / "shard.npz")
    questions = questions_for(copy.truth, np.random.default_rng(1))
    pointed = {Box(*box) for question in questions for box in question.target_boxes}
    assert len(pointed) >= 2
    assert pointed <= copy.crops.keys()


def test_a_world_is_built_once_and_then_read(tmp_path: Path) -> None:
    config = WorldConfig(count=1, shard=1, crops_per_target=1, workers=1)
    said: list[str] = []
    (built,) = load_world(tmp_path, config, said.append)
    assert {path.name for path in tmp_path.iterdir()} == {"train-0.json", "train-0-000000.npz"}
    (read,) = load_world(tmp_path, replace(config, workers=2), said.append)
    assert np.array_equal(built.view.pixels, read.view.pixels)
    assert said == ["train phantoms: shard 1 of 1"]


def world_of(folder: Path, config: WorldConfig, case: Case) -> None:
    """A folder with one shard of a world."""
    claim_world(folder, config)
    save_cases(shard_path(folder, config, 0), [case] * config.count)


@pytest.mark.parametrize(
    ("setting", "value"), [("count", 2), ("crops_per_target", 1), ("shard", 124)]
)
def test_phantoms_of_other_settings_are_refused(
    case: Case, tmp_path: Path, setting: str, value: int
) -> None:
    kept = WorldConfig(count=1)
    world_of(tmp_path, kept, case)
    assert len(load_world(tmp_path, kept)) == 1
    was = getattr(kept, setting)
    said = re.escape(f"({setting}: {was} there, {value} here): delete it, or choose another")
    with pytest.raises(ValueError, match=said):
        load_world(tmp_path, replace(kept, **{setting: value}))


def test_families_that_get_a_second_turn_make_other_worlds(case: Case, tmp_path: Path) -> None:
    plain, again = WorldConfig(count=1), WorldConfig(count=1, again=("nodule_count",))
    for folder, kept, wanted in (("one", plain, again), ("two", again, plain)):
        world_of(tmp_path / folder, kept, case)
        assert len(load_world(tmp_path / folder, kept)) == 1
        with pytest.raises(ValueError, match=r"\(again: .* there, .* here\)"):
            load_world(tmp_path / folder, wanted)


def test_a_second_turn_goes_on_with_the_answers_of_the_first() -> None:
    config = WorldConfig(again=("nodule_count", "line_side"))
    turns = len(FAMILIES) + 2
    asked = [balanced_case(config, index).question for index in range(3 * turns)]
    assert [one.family for one in asked[:turns]] == [*FAMILIES, "nodule_count", "line_side"]
    counts = [one.answer for one in asked if one.family == "nodule_count"]
    assert counts == ["one", "two", "three"] * 2
    assert [one.answer for one in asked if one.family == "line_side"] == ["right", "left"] * 3
    sizes = [one.answer for one in asked if one.family == "heart_size"]
    assert sizes == list(FAMILIES["heart_size"].answers)


def test_an_unknown_family_gets_no_second_turn() -> None:
    with pytest.raises(ValueError, match="again names 'nodules', which is no question family"):
        WorldConfig(again=("nodule_count", "nodules"))
    with pytest.raises(ValueError, match="again names a question family twice"):
        WorldConfig(again=("nodule_count", "nodule_count"))


def test_phantoms_of_an_older_generator_are_refused(case: Case, tmp_path: Path) -> None:
    config = WorldConfig(count=1)
    world_of(tmp_path, config, case)
    older = {**config.fingerprint, "generator": GENERATOR_VERSION - 1}
    (tmp_path / "train-0.json").write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"generator: {GENERATOR_VERSION - 1} there, {GENERATOR_VERSION} here"
    ):
        load_world(tmp_path, config)


def test_phantoms_of_unknown_settings_are_refused(case: Case, tmp_path: Path) -> None:
    config = WorldConfig(count=1)
    world_of(tmp_path, config, case)
    (tmp_path / "train-0.json").unlink()
    with pytest.raises(ValueError, match=r"train-0\.json is missing"):
        load_world(tmp_path, config)
    assert not (tmp_path / "train-0.json").exists()


def test_worlds_of_several_names_share_a_folder(case: Case, tmp_path: Path) -> None:
    configs = [WorldConfig(count=1, seed=seed) for seed in (1, 11)]
    configs += [replace(configs[0], boxes="random"), replace(configs[0], split="validation")]
    for config in configs:
        world_of(tmp_path, config, case)
    assert [len(load_world(tmp_path, config)) for config in configs] == [1, 1, 1, 1]


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


SHARES = ModalityShares(chest=0.5, head_ct=0.3, breast_ultrasound=0.2)


def test_modalities_take_turns_by_their_shares() -> None:
    turns = [SHARES.turn(index) for index in range(400)]
    for modality, share in SHARES.named.items():
        numbers = [number for name, number in turns if name == modality]
        assert numbers == list(range(len(numbers)))
        assert abs(len(numbers) - 400 * share) <= 3
    assert {name for name, _ in turns[:12]} == set(SHARES.named)
    assert [ModalityShares(chest=1.0).turn(index) for index in (0, 7)] == [
        ("chest", 0),
        ("chest", 7),
    ]


def test_shares_name_every_modality_and_sum_to_one() -> None:
    assert {field.name for field in fields(ModalityShares)} == set(MODALITIES)
    for wrong in ({}, {"chest": 0.5}, {"chest": 1.5, "head_ct": -0.5}):
        with pytest.raises(ValueError, match="sum to 1"):
            ModalityShares(**wrong)
    config = build(WorldConfig, {"modalities": {"chest": 0.5, "head_ct": 0.5}})
    assert tuple(config.modalities.named) == ("chest", "head_ct")
    with pytest.raises(ConfigError, match=r"Did you mean 'modalities\.head_ct'"):
        build(WorldConfig, {"modalities": {"head": 1.0}})


def test_worlds_of_chests_keep_their_files_and_mixed_ones_have_their_own() -> None:
    plain = WorldConfig(seed=1)
    assert shard_path(Path("w"), plain, 125) == Path("w/train-1-000125.npz")
    assert "modalities" not in plain.fingerprint
    mixed = replace(plain, modalities=SHARES)
    assert mixed.name == "train-1-chest0.5-head_ct0.3-breast_ultrasound0.2"
    assert mixed.fingerprint["modalities"]["head_ct"] == 0.3


def test_families_take_turns_in_each_modality() -> None:
    config = WorldConfig(modalities=SHARES)
    for modality, families in FAMILIES_OF.items():
        indices = [index for index in range(30) if SHARES.turn(index)[0] == modality][:3]
        asked = [balanced_case(config, index).question.family for index in indices]
        assert asked == list(families)[:3]


@pytest.fixture(scope="module")
def mixed_cases() -> list[Case]:
    """A chest, a head with a swirl, a breast with spicules, labelled alike."""
    ordered = [
        balanced_case(WorldConfig(), 26),
        case_for("haemorrhage_swirl", "yes", seed_for("train", 1, 2)),
        case_for("mass_margin", "spiculated", seed_for("train", 2, 2)),
    ]
    return [build_case(one, crops=1, labels=SHARES.labels) for one in ordered]


def test_a_mixed_world_labels_what_each_picture_shows(mixed_cases: list[Case]) -> None:
    labels = SHARES.labels
    names = tuple(labels.attributes)
    for case, kind, attribute in zip(
        mixed_cases,
        ("nodule", INTRAPARENCHYMAL, MALIGNANT),
        ("margin", SWIRL, MARGIN),
        strict=True,
    ):
        view = case.view
        assert view.cover.shape == (view.grid.cells, len(labels.covers))
        assert view.edges.shape == (view.grid.cells, len(labels.box_groups), 4)
        own = labels_of(modality_of(case.truth))
        shown = {labels.covers[column] for column in np.flatnonzero(view.cover.any(axis=0))}
        assert kind in shown
        assert shown <= set(own.covers)
        known = np.flatnonzero((view.attributes >= 0).any(axis=0))
        assert {names[column] for column in known} <= set(own.attributes) - set(own.fine)
        assert set(case.truth.traits) <= {names[column] for column in known}
        crop = case.crops[Box(*case.asked.target_boxes[0])][0]
        column = crop.attributes[:, names.index(attribute)]
        assert set(column[column >= 0]) == {labels.attributes[attribute].index(case.asked.answer)}


def test_labels_of_a_chest_are_the_same_in_a_mixed_world(
    case: Case, mixed_cases: list[Case]
) -> None:
    labels = SHARES.labels
    for name, column in zip(CHEST_LABELS.covers, case.view.cover.T, strict=True):
        assert np.array_equal(mixed_cases[0].view.cover[:, labels.covers.index(name)], column)
    for name, edges in zip(CHEST_LABELS.box_groups, case.view.edges.swapaxes(0, 1), strict=True):
        group = labels.box_groups.index(name)
        assert np.array_equal(mixed_cases[0].view.edges[:, group], edges, equal_nan=True)


def test_mixed_cases_survive_the_file(mixed_cases: list[Case], tmp_path: Path) -> None:
    save_cases(tmp_path / "shard.npz", mixed_cases)
    for one, copy in zip(mixed_cases, load_cases(tmp_path / "shard.npz"), strict=True):
        assert copy.truth.to_json(masks=False) == one.truth.to_json(masks=False)
        assert np.array_equal(copy.view.attributes, one.view.attributes)
        assert copy.asked == one.asked


def test_the_tower_learns_from_a_mixed_batch(mixed_cases: list[Case]) -> None:
    """Losses are finite and reach every head; the answers to all modalities' questions count."""
    labels = SHARES.labels
    dense, image = DenseHeads(8, labels), ImageHeads(8, labels)
    pictures = [labelled_view(case, labels) for case in mixed_cases]
    pictures += [
        labelled_crop(crop, labels)
        for case in mixed_cases
        for crop in case.crops[Box(*case.asked.target_boxes[0])]
    ]
    tokens = torch.randn(sum(p.grid.cells for p in pictures), 8)
    parts = dense_loss(dense(tokens), DenseTargets.of(pictures, labels), None, labels)
    parts |= {f"image {n}": part for n, part in image_loss(image, tokens, pictures).items()}
    torch.stack(list(parts.values())).sum().backward()
    for name, part in parts.items():
        assert torch.isfinite(part), name
        assert float(part.detach()) > 0, name
    known = {
        family
        for picture in pictures
        for family, answer in zip(answers_of(labels), picture.labels.answers, strict=True)
        if answer >= 0
    }
    for families in FAMILIES_OF.values():
        assert known & families.keys()
    assert {"margin", SWIRL, MARGIN} <= known


def test_a_report_names_what_a_section_shows(mixed_cases: list[Case]) -> None:
    _, head, breast = (report_text(case.truth, (224, 224)) for case in mixed_cases)
    assert "The right hemisphere lies at [" in head
    assert "Intraparenchymal haemorrhage: " in head
    assert "Midline shift: " in head
    assert "swirl" not in head
    assert "Malignant mass: " in breast
    assert "spiculated" not in breast
    for text in (head, breast):
        for kind in ("subdural haematoma", "cyst"):
            assert text.count(f"No {kind}.") <= 1


def test_training_and_validation_must_show_the_same(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same modalities"):
        load_materials(tmp_path, WorldConfig(modalities=SHARES), WorldConfig(count=1), None, print)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shard": 0}, "shard must be at least 1, not 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"count": -1}, "count must be at least 0"),
        ({"split": "tests"}, "split must be one of train"),
    ],
)
def test_worlds_that_cannot_be_drawn_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WorldConfig(**changes)


def test_configurations_that_share_a_folder_of_phantoms_ask_for_the_same() -> None:
    asked: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for path in sorted((ROOT / "training/configs").rglob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        folder = settings.get("world", f"{settings.get('out')}/world")
        for part in ("train", "validation"):
            if isinstance(settings.get(part), dict):
                config = build(WorldConfig, settings[part])
                asked.setdefault((folder, config.name), {})[path.name] = config.fingerprint
    assert {"pretrain.yaml", "sft-zoom.yaml"} <= set(asked["runs/base/world", "train-1"])
    for configs in asked.values():
        first = next(iter(configs.values()))
        assert configs == dict.fromkeys(configs, first)
