"""Lungs of real radiographs as latent records of stage 1, on a drawn radiograph."""

import numpy as np
import pytest
import torch

from engine.geometry import Box
from training.batches import collate
from training.embedded import embedded_config, new_model, train_tokenizer
from training.features import FeatureBank
from training.language import MixConfig
from training.latents import LatentConfig
from training.materials import Materials
from training.questions import lung_questions
from training.real_images import RealRadiograph
from training.record_draw import RecordDraw
from training.records import corpus
from training.roi import roi_targets
from training.world import Picture

STEPS = 4
SIDES = ("right", "left")
VARIANTS = 2
CONFIG = LatentConfig(steps=STEPS)


@pytest.fixture
def radiograph() -> RealRadiograph:
    """Bright lungs on black, so that their boxes can be measured after a move."""
    lungs = {"right lung": Box(0.2, 0.3, 0.4, 0.7), "left lung": Box(0.6, 0.3, 0.8, 0.7)}
    pixels = np.zeros((600, 500), dtype=np.uint8)
    for box in lungs.values():
        x0, y0, x1, y1 = box.to_pixels_outward(500, 600)
        pixels[y0:y1, x0:x1] = 200
    return RealRadiograph("drawn.png", "1", "train", pixels, lungs)


def measured(view: Picture, side: str) -> Box:
    """The box of a patient's lung, by its brightness."""
    height, width = view.pixels.shape
    # The left side of the image is the patient's right.
    begin = 0 if side == "right" else width // 2
    bright = view.pixels[:, begin : begin + width // 2] > 100
    columns, rows = (np.flatnonzero(bright.any(axis=axis)) for axis in (0, 1))
    return Box(
        (begin + columns[0]) / width,
        rows[0] / height,
        (begin + columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    )


def test_a_real_lung_is_what_latents_are_to_hold(radiograph: RealRadiograph) -> None:
    rng = np.random.default_rng(0)
    asked = lung_questions(dict.fromkeys(SIDES, (0.1, 0.1, 0.4, 0.6)), rng)
    tokenizer = train_tokenizer(corpus(asked, rng), vocabulary=400)
    mix = MixConfig(zoom=0.5, probe=0.2, auto=0.2, real=1.0, latent=1.0)
    draw = RecordDraw(Materials([], [], [radiograph], []), mix, tokenizer, CONFIG, VARIANTS, seed=3)

    records = draw.records(24, rng)

    slot = tokenizer.convert_tokens_to_ids("<|lat|>")
    drawn = set()
    for record in records:
        (view,) = record.pictures
        (box,) = record.roi
        # The lung that the question names, where it lies in this view.
        (side,) = [side for side in SIDES if f"{side} lung" in tokenizer.decode(record.ids)]
        assert box.intersection_over_union(measured(view, side)) > 0.75
        assert record.ids.count(slot) == STEPS
        drawn.add((id(view), side))
    assert len(drawn) == VARIANTS * len(SIDES)

    torch.manual_seed(0)
    bank = FeatureBank(new_model(embedded_config(tokenizer)).eval(), seed=0)
    draw.register(bank, view_variants=1)
    batch = collate(records[:2], bank, tokenizer, rng, CONFIG)
    wanted = [
        roi_targets(
            bank.draw(record.pictures, rng)[0].float(),
            record.pictures[0].grid,
            record.roi,
            "roi_pooled",
            STEPS,
        )
        for record in records[:2]
    ]
    torch.testing.assert_close(batch.slot_targets, torch.cat(wanted))
