"""Head CT slices and breast ultrasound images: seeds, truth against pixels, placement, JSON."""

import json
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest

from training.phantoms import (
    MODALITIES,
    SECTIONS,
    FindingRequest,
    PhantomConfig,
    SectionConfig,
    SectionRequest,
    default_config,
    generate,
    labels_of,
    modality_of,
    seed_for,
    split_of,
    to_view8,
    truth_for,
    truth_from_json,
)
from training.phantoms.breast_ultrasound import words as breast
from training.phantoms.breast_ultrasound.findings import DEPTH_RANGES, RADII
from training.phantoms.head_ct import words as head
from training.phantoms.head_ct.findings import LENS_MM, RADII_MM, THICK_MM
from training.phantoms.head_ct.scene import SHIFTS_MM
from training.phantoms.label_names import CHEST_LABELS, joined
from training.phantoms.truth import LEFT, RIGHT

every_section = pytest.mark.parametrize("study", SECTIONS)


def single(kind: str, index: int = 0, side: str | None = None, **attributes: str):
    """Seed and configuration of a phantom with one finding."""
    study = head.STUDY if kind in head.KINDS else breast.STUDY
    wanted = {name.replace("_", " "): value for name, value in attributes.items()}
    request = SectionRequest(kind, side=side, attributes=wanted)
    return seed_for("validation", index, 99), SectionConfig(study, (request,), extras=(1.0,))


def at_full_size(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows = (np.arange(shape[0]) + 0.5) / shape[0] * mask.shape[0]
    cols = (np.arange(shape[1]) + 0.5) / shape[1] * mask.shape[1]
    return mask[rows.astype(int)][:, cols.astype(int)]


def ring(mask: np.ndarray, width: int) -> np.ndarray:
    """What lies around a mask, within so many cells and not next to it."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    grown = cv2.dilate(mask.astype(np.uint8), kernel) > 0
    near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return grown & ~near


class TestSeeds:
    @every_section
    def test_same_seed_same_pixels_and_truth(self, study):
        seed = seed_for("train", 3)
        config = default_config(study)
        one, two = generate(seed, config), generate(seed, config)
        assert np.array_equal(one.pixels, two.pixels)
        assert one.truth.to_json() == two.truth.to_json() == truth_for(seed, config).to_json()
        other = generate(seed_for("train", 4), config)
        assert other.truth.to_json() != one.truth.to_json()

    @every_section
    def test_splits_are_those_of_the_seeds(self, study):
        for split in ("train", "validation", "test", "demo"):
            truth = truth_for(seed_for(split, 0), default_config(study))
            assert truth.split == split == split_of(truth.seed)

    def test_equal_seeds_of_two_modalities_have_nothing_in_common(self):
        seed = seed_for("train", 8)
        draws = [np.random.default_rng((seed, stream, 0)).random() for stream in (11, 13)]
        assert draws[0] != draws[1]
        assert {modality_of(truth_for(seed, default_config(m))) for m in MODALITIES} == set(
            MODALITIES
        )

    @every_section
    def test_truth_survives_json(self, study):
        truth = truth_for(seed_for("test", 5), default_config(study))
        copy = truth_from_json(json.loads(json.dumps(truth.to_json())))
        assert copy.to_json() == truth.to_json()
        assert truth_from_json(truth.to_json(masks=False)).findings == copy.findings

    def test_truth_of_a_chest_is_still_read(self):
        truth = truth_for(seed_for("test", 5))
        assert truth_from_json(json.loads(json.dumps(truth.to_json()))).to_json() == truth.to_json()


class TestImage:
    @pytest.mark.parametrize("index", range(4))
    def test_a_slice_holds_air_bone_and_brain(self, index):
        phantom = generate(seed_for("train", index), default_config(head.STUDY))
        assert phantom.pixels.dtype == np.int16
        assert min(phantom.pixels.shape) >= 512
        assert phantom.pixels.min() < -900
        assert phantom.pixels.max() > 1000
        cavity = np.zeros(phantom.pixels.shape, bool)
        for side in ("right", "left"):
            mask = phantom.truth.anatomy[f"{side}_hemisphere"].mask
            cavity |= at_full_size(mask, phantom.pixels.shape)
        brain = phantom.pixels[cavity]
        assert 20 < np.median(brain) < 45

    def test_ventricles_are_fluid_and_grey_matter_is_denser_than_white(self):
        config = SectionConfig(head.STUDY, extras=(1.0,), traits={head.SLICE_LEVEL: head.GANGLIA})
        phantom = generate(seed_for("train", 1), config)
        ventricles = at_full_size(phantom.truth.anatomy["ventricles"].mask, phantom.pixels.shape)
        assert np.median(phantom.pixels[ventricles]) < 15
        config = SectionConfig(head.STUDY, extras=(1.0,), traits={head.SLICE_LEVEL: head.SEMIOVALE})
        assert "ventricles" not in truth_for(seed_for("train", 1), config).anatomy

    @pytest.mark.parametrize("index", range(4))
    def test_layers_of_a_breast_differ_in_brightness(self, index):
        config = SectionConfig(breast.STUDY, extras=(1.0,))
        phantom = generate(seed_for("train", index), config)
        assert phantom.pixels.dtype == np.uint8
        assert min(phantom.pixels.shape) >= 512
        mean = {
            name: phantom.pixels[at_full_size(s.mask, phantom.pixels.shape)].mean()
            for name, s in phantom.truth.anatomy.items()
        }
        assert mean["glandular_layer"] > mean["fat_layer"] + 25
        assert mean["glandular_layer"] > mean["muscle"] + 20
        boxes = [phantom.truth.anatomy[n].box for n in ("fat_layer", "glandular_layer", "muscle")]
        assert boxes[0][1] < boxes[1][1] < boxes[2][1]

    def test_speckle_of_uniform_tissue_is_rayleigh_before_compression(self):
        """Echoes of a cyst-free fat layer, read back through the logarithm."""
        config = SectionConfig(
            breast.STUDY,
            extras=(1.0,),
            traits={breast.FORMAT: "rectangular", breast.COMPOSITION: "mostly fatty"},
        )
        phantom = generate(seed_for("train", 2), config)
        rows, cols = phantom.pixels.shape
        patch = phantom.pixels[
            int(0.1 * rows) : int(0.25 * rows), int(0.2 * cols) : int(0.8 * cols)
        ]
        decibels = patch.astype(float) * 60 / 255
        # 5.57 dB is the deviation of the logarithm of a Rayleigh amplitude
        assert 3.5 < decibels.std() < 7.5

    @pytest.mark.perf
    @every_section
    def test_fast_enough_to_draw_while_training(self, study):
        config = default_config(study)
        best = []
        for index in range(6):
            start = time.perf_counter()
            generate(seed_for("train", index), config)
            best.append(time.perf_counter() - start)
        assert min(best) < 0.25


class TestFindings:
    @every_section
    def test_boxes_hold_the_masks_and_findings_lie_in_the_image(self, study):
        for index in range(30):
            truth = truth_for(seed_for("validation", index), default_config(study))
            for box, mask in [(s.box, s.mask) for s in truth.anatomy.values()] + [
                (f.box, f.mask) for f in truth.findings
            ]:
                rows, cols = np.nonzero(mask)
                grid, cell = mask.shape[0], 1.5 / mask.shape[0]
                assert rows.size
                assert 0 <= box[0] < box[2] <= 1
                assert 0 <= box[1] < box[3] <= 1
                assert box[0] - cell <= cols.min() / grid
                assert (cols.max() + 1) / grid <= box[2] + cell
                assert box[1] - cell <= rows.min() / grid
                assert (rows.max() + 1) / grid <= box[3] + cell
            for finding in truth.findings:
                x0, y0, x1, y1 = finding.focus
                assert 0 <= x0 < x1 <= 1
                assert 0 <= y0 < y1 <= 1
                # close enough to be read: the zoom pads the box by a fifth on every side
                pixels = 1.4**2 * (x1 - x0) * truth.width * (y1 - y0) * truth.height
                assert pixels <= 1.25**2 * 224**2 * 1.02

    @every_section
    def test_findings_do_not_overlap(self, study):
        for index in range(30):
            truth = truth_for(seed_for("validation", index), default_config(study))
            total = sum((f.mask.astype(int) for f in truth.findings), np.zeros((128, 128), int))
            assert total.max() <= 1

    @pytest.mark.parametrize("kind", head.KINDS)
    @pytest.mark.parametrize("index", range(3))
    def test_blood_is_denser_than_brain_where_the_mask_says(self, kind, index):
        phantom = generate(*single(kind, index))
        (finding,) = phantom.truth.findings
        inside = at_full_size(finding.mask, phantom.pixels.shape)
        assert 50 < np.median(phantom.pixels[inside]) < 65
        around = at_full_size(ring(finding.mask, 4), phantom.pixels.shape)
        brain = phantom.pixels[around & (phantom.pixels > 0) & (phantom.pixels < 80)]
        assert np.median(brain) < 45

    @pytest.mark.parametrize(
        ("kind", "low", "high"),
        [(breast.CYST, 0, 30), (breast.BENIGN, 15, 80), (breast.MALIGNANT, 15, 80)],
    )
    @pytest.mark.parametrize("index", range(3))
    def test_masses_are_darker_than_what_surrounds_them(self, kind, low, high, index):
        phantom = generate(*single(kind, index))
        (finding,) = phantom.truth.findings
        inside = phantom.pixels[at_full_size(finding.mask, phantom.pixels.shape)].mean()
        around = phantom.pixels[at_full_size(ring(finding.mask, 6), phantom.pixels.shape)].mean()
        assert low <= inside <= high
        assert around > inside + 20

    @pytest.mark.parametrize("kind", breast.KINDS)
    @pytest.mark.parametrize("index", range(4))
    def test_what_lies_behind_is_brighter_or_in_shadow(self, kind, index):
        seed, config = single(kind, index)
        config = SectionConfig(
            config.study, config.require, extras=(1.0,), traits={breast.FORMAT: "rectangular"}
        )
        phantom = generate(seed, config)
        (finding,) = phantom.truth.findings
        rows, cols = phantom.pixels.shape
        x0, _, x1, y1 = (round(v * n) for v, n in zip(finding.box, (cols, rows) * 2, strict=True))
        width = x1 - x0
        below = slice(y1 + 10, min(y1 + 90, rows))
        behind = phantom.pixels[below, x0 + width // 3 : x1 - width // 3].mean()
        beside = np.concatenate(
            [
                phantom.pixels[below, max(0, x0 - width) : max(1, x0 - width // 3)].ravel(),
                phantom.pixels[below, x1 + width // 3 : x1 + width].ravel(),
            ]
        ).mean()
        shadowed = finding.attributes[breast.FEATURES] == "shadowing"
        assert behind < beside - 15 if shadowed else behind > beside + 4

    def test_a_crescent_follows_the_skull_and_a_lens_bulges(self):
        for index in range(6):
            solidity = {}
            for kind in (head.SUBDURAL, head.EPIDURAL):
                finding = truth_for(*single(kind, index)).findings[0]
                contours, _ = cv2.findContours(
                    finding.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
                )
                largest = max(contours, key=cv2.contourArea)
                solidity[kind] = cv2.contourArea(largest) / cv2.contourArea(cv2.convexHull(largest))
            assert solidity[head.SUBDURAL] < 0.75
            assert solidity[head.EPIDURAL] > 0.85

    def test_malignant_masses_are_taller_than_wide_and_the_others_wider_than_tall(self):
        for kind in breast.KINDS:
            for index in range(6):
                truth = truth_for(*single(kind, index))
                x0, y0, x1, y1 = truth.findings[0].box
                aspect = (x1 - x0) * truth.width / ((y1 - y0) * truth.height)
                assert aspect < 0.95 if kind == breast.MALIGNANT else aspect > 1.0

    @pytest.mark.parametrize("side", [RIGHT, LEFT])
    @pytest.mark.parametrize("kind", head.KINDS)
    def test_the_patients_right_lies_left_in_a_slice(self, kind, side):
        truth = truth_for(*single(kind, 3, side=side))
        box = truth.findings[0].box
        assert ((box[0] + box[2]) / 2 < 0.5) == (side == RIGHT)
        right, left = (truth.anatomy[f"{s}_hemisphere"].mask for s in (RIGHT, LEFT))
        own, other = (right, left) if side == RIGHT else (left, right)
        mask = truth.findings[0].mask
        assert (mask & own).sum() > 0.95 * mask.sum() > 20 * (mask & other).sum()

    @pytest.mark.parametrize("zone", head.ZONES)
    def test_lobes_are_where_they_belong(self, zone):
        request = SectionRequest(head.INTRAPARENCHYMAL, zone=zone)
        side, lobe = zone.split(maxsplit=1)
        for index in range(3):
            seed = seed_for("test", index, 3)
            truth = truth_for(seed, SectionConfig(head.STUDY, (request,), extras=(1.0,)))
            finding = truth.findings[0]
            assert (finding.zone, finding.side) == (zone, side)
            mid = truth.anatomy["midline"].box
            depth = ((finding.box[1] + finding.box[3]) / 2 - mid[1]) / (mid[3] - mid[1])
            low, high = {
                "frontal lobe": (0.05, 0.40),
                "temporal lobe": (0.40, 0.68),
                "basal ganglia": (0.32, 0.58),
                "parietal lobe": (0.50, 0.85),
                "occipital lobe": (0.75, 0.95),
            }[lobe]
            assert low < depth < high

    @pytest.mark.parametrize("depth", breast.DEPTHS)
    @pytest.mark.parametrize("side", breast.SIDES)
    def test_sides_and_depths_of_a_breast_are_those_of_the_image(self, depth, side):
        request = SectionRequest(breast.CYST, side=side, zone=depth)
        config = SectionConfig(breast.STUDY, (request,), extras=(1.0,))
        for index in range(4):
            box = truth_for(seed_for("test", index, 3), config).findings[0].box
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            assert (x < 0.46) if side == breast.IMAGE_LEFT else (x > 0.54)
            low, high = DEPTH_RANGES[depth]
            assert low - 0.02 <= y <= high + 0.02

    @pytest.mark.parametrize("shift", head.SHIFTS)
    def test_the_midline_is_moved_as_far_as_its_grade_says(self, shift):
        for index in range(4):
            seed = seed_for("test", index, 12)
            request = SectionRequest(head.INTRAPARENCHYMAL)
            config = SectionConfig(
                head.STUDY, (request,), extras=(1.0,), traits={head.SHIFT: shift}
            )
            truth = truth_for(seed, config)
            rows, cols = np.nonzero(truth.anatomy["midline"].mask)
            centre = {row: cols[rows == row].mean() for row in np.unique(rows)}
            ends, middle = (min(centre), max(centre)), (min(centre) + max(centre)) // 2
            moved = centre[middle] - (centre[ends[0]] + centre[ends[1]]) / 2
            moved *= truth.width / 128 * truth.pixel_spacing
            low, high = SHIFTS_MM[shift]
            assert low - 1.5 <= abs(moved) <= high + 1.5
            side = truth.traits[head.SHIFT_SIDE]
            if shift == head.NO_SHIFT:
                assert side == head.NO_SHIFT
            else:
                assert side == (LEFT if moved > 0 else RIGHT)
                assert side != truth.findings[0].side, "away from the blood"

    def test_grades_leave_gaps(self):
        for table in (RADII_MM, THICK_MM, RADII, DEPTH_RANGES):
            for (_, below), (above, _) in pairwise(sorted(table.values())):
                assert above >= below * 1.2
        spans = sorted(SHIFTS_MM.values())
        assert all(above >= below + 3 for (_, below), (above, _) in pairwise(spans))
        assert LENS_MM[0] > THICK_MM["thick"][1]
        for table in (RADII_MM, RADII):
            assert min(table["large"]) / max(table["small"]) >= 1.5

    @every_section
    def test_fine_attributes_are_even_and_independent_of_size(self, study):
        kinds = labels_of(study).findings
        rows = []
        for index in range(250):
            kind = kinds[index % len(kinds)]
            config = SectionConfig(study, (SectionRequest(kind),), extras=(1.0,))
            rows += truth_for(seed_for("train", index, 17), config).findings
        for name in labels_of(study).fine:
            found = [f for f in rows if name in f.attributes]
            flags = np.array(
                [f.attributes[name] == labels_of(study).attributes[name][1] for f in found]
            )
            assert abs(flags.mean() - 0.5) < 3.3 * 0.5 / np.sqrt(len(flags))
            area = np.array([f.mask.sum() for f in found], float)
            left = np.array([f.box[0] for f in found])
            for other in (area, left):
                assert abs(np.corrcoef(flags, other)[0, 1]) < 3.5 / np.sqrt(len(flags))

    def test_requests_are_met_exactly_and_forbidden_kinds_stay_away(self):
        config = SectionConfig(
            breast.STUDY,
            (
                SectionRequest(
                    breast.MALIGNANT,
                    side=breast.IMAGE_LEFT,
                    attributes={breast.SIZE: "large", breast.MARGIN: breast.SPICULATED},
                ),
            ),
            forbid=(breast.CYST,),
            extras=(0.0, 1.0),
            traits={breast.COMPOSITION: "mostly fatty"},
        )
        for index in range(6):
            truth = truth_for(seed_for("test", index), config)
            (mass,) = truth.of_kind(breast.MALIGNANT)
            assert mass.side == breast.IMAGE_LEFT
            assert mass.attributes[breast.SIZE] == "large"
            assert mass.attributes[breast.MARGIN] == breast.SPICULATED
            assert truth.traits[breast.COMPOSITION] == "mostly fatty"
            assert not truth.of_kind(breast.CYST)

    @pytest.mark.parametrize(
        ("config", "match"),
        [
            (SectionConfig(head.STUDY, (SectionRequest("nodule"),)), "Unknown findings"),
            (SectionConfig(head.STUDY, forbid=(breast.CYST,)), "Unknown findings"),
            (SectionConfig(head.STUDY, traits={head.SHIFT: "huge"}), "Unknown attribute"),
            (
                SectionConfig(
                    breast.STUDY, (SectionRequest(breast.CYST, attributes={"colour": "red"}),)
                ),
                "Unknown attribute",
            ),
            (
                SectionConfig(
                    breast.STUDY,
                    (SectionRequest(breast.CYST, attributes={breast.SHAPE: "irregular"}),),
                ),
                "No patient has room",
            ),
            (
                SectionConfig(
                    head.STUDY,
                    (
                        SectionRequest(head.SUBDURAL, side=RIGHT),
                        SectionRequest(head.SUBDURAL, side=LEFT),
                    ),
                    traits={head.SHIFT: "severe"},
                ),
                "No patient has room",
            ),
            (SectionConfig("knee"), "Unknown section"),
        ],
    )
    def test_what_cannot_be_is_refused_in_words(self, config, match):
        with pytest.raises(ValueError, match=match):
            truth_for(seed_for("test", 0), config)

    @pytest.mark.parametrize("study", ["head_ct", "breast_ultrasound"])
    def test_negative_seeds_and_bad_probabilities_are_refused(self, study):
        with pytest.raises(ValueError, match="negative"):
            truth_for(-1, SectionConfig(study))
        with pytest.raises(ValueError, match="sum to 1"):
            SectionConfig(study, extras=(0.5,))


class TestLabelNames:
    def test_no_two_modalities_share_a_name(self):
        names = [labels_of(modality) for modality in MODALITIES]
        both = joined(names)
        assert len(both.attributes) == sum(len(one.attributes) for one in names)
        for group in ("modalities", "covers", "places", "fine"):
            listed = getattr(both, group)
            assert len(set(listed)) == len(listed)
        assert both.covers[:4] == CHEST_LABELS.structures
        assert joined(names[:1]) is CHEST_LABELS

    @pytest.mark.parametrize("modality", MODALITIES)
    def test_names_are_those_of_the_truth(self, modality):
        names = labels_of(modality)
        config = PhantomConfig(require=(FindingRequest("nodule"),)) if modality == "chest" else None
        for index in range(12):
            truth = truth_for(seed_for("test", index), config or default_config(modality))
            assert set(truth.anatomy) <= set(names.structures)
            for name, value in truth.traits.items():
                assert value in names.attributes[name]
                assert names.carriers[name] in truth.anatomy
            for finding in truth.findings:
                for name, value in finding.attributes.items():
                    assert finding.kind == "cardiomegaly" or value in names.attributes[name]
                places = {place for kind, place in names.places if kind == finding.kind}
                assert not places or {finding.side, finding.zone} & places

    @every_section
    def test_shown_window_keeps_fine_signs(self, study):
        """What tells a fine attribute must not be cut off by the window."""
        names = labels_of(study)
        kind = names.findings[-1]
        config = SectionConfig(study, (SectionRequest(kind),), extras=(1.0,))
        phantom = generate(seed_for("demo", 0), config)
        finding = phantom.truth.findings[0]
        core = cv2.erode(finding.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        shown = to_view8(phantom)[at_full_size(core, phantom.pixels.shape)]
        assert shown.size
        assert (shown == 255).mean() < 0.02
