"""Interventions do what their names say and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.geometry import Box
from engine.interventions import LatentChange, occluded
from engine.request import Interventions, RequestError


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3)])
def test_occlusion_paints_the_mean_inside_and_leaves_the_rest(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    painted = occluded(pixels, (Box(0.25, 0.5, 0.5, 1.0),))
    inside = np.zeros(shape[:2], bool)
    inside[20:40, 15:30] = True

    assert np.array_equal(painted[~inside], pixels[~inside])
    assert np.abs(painted[inside].astype(float) - pixels.mean((0, 1))).max() <= 0.5
    assert not np.array_equal(painted, pixels)


def test_without_boxes_the_image_is_untouched() -> None:
    pixels = np.zeros((4, 4), np.uint8)

    assert occluded(pixels, ()) is pixels


def change(kind: str, donor: tuple[bytes, ...] = (), seed: int = 0) -> LatentChange:
    return LatentChange(Interventions(latents=kind, latent_donor=donor), seed, 16)


LATENT = torch.arange(16.0) + 1


def test_none_feeds_the_hidden_state_itself() -> None:
    assert change("none").apply(LATENT, 0) is LATENT


@pytest.mark.parametrize("kind", ["zero", "blind"])
def test_zeros_are_fed(kind: str) -> None:
    assert change(kind).apply(LATENT, 0).abs().sum() == 0
    assert change(kind).blind == (kind == "blind")


def test_noise_keeps_the_norm_and_follows_the_seed() -> None:
    one, same, other = (change("noise", seed=s).apply(LATENT, 0) for s in (1, 1, 2))

    assert float(one.norm()) == pytest.approx(float(LATENT.norm()), rel=1e-5)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert abs(float(torch.cosine_similarity(one, LATENT, 0))) < 0.9


def test_shuffle_feeds_the_donors_vectors_in_turn() -> None:
    donors = [np.random.default_rng(i).normal(size=16).astype("<f4") for i in range(2)]
    shuffled = change("shuffle", tuple(d.tobytes() for d in donors))

    for step in range(3):
        assert np.array_equal(shuffled.apply(LATENT, step).numpy(), donors[step % 2])


def test_a_donor_of_another_width_is_refused() -> None:
    with pytest.raises(RequestError, match="same checkpoint"):
        change("shuffle", (b"\0" * 60,))
