"""The embedded model's fresh weights."""

import pytest
import torch

from training.embedded import TEXTURE_GAIN, embedded_config, new_model, train_tokenizer

SIDE = 14


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["Where is the nodule?"] * 3, vocabulary=300)
    return new_model(embedded_config(tokenizer)).model.visual


def response(tower, patch: torch.Tensor) -> torch.Tensor:
    """What every patch filter says of a grey patch `(14, 14)`."""
    filters = tower.patch_embed.proj.weight.detach()
    return (filters * patch).sum(dim=(1, 2, 3, 4))


def test_gate_and_value_begin_equal(tower) -> None:
    for block in tower.blocks:
        assert torch.equal(block.mlp.gate_proj.weight, block.mlp.up_proj.weight)


def test_all_but_an_eighth_of_the_filters_are_blind_to_the_level(tower) -> None:
    level = response(tower, torch.ones(SIDE, SIDE)).abs()
    eighth = len(level) // 8
    assert float(level[:eighth].max()) > 0.1
    assert float(level[eighth:].max()) < 1e-4


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, 2), (2, 1)])
def test_half_of_the_filters_are_blind_to_slow_waves(tower, rows: int, columns: int) -> None:
    place = (torch.arange(SIDE) + 0.5) / SIDE * torch.pi
    wave = torch.outer(torch.cos(rows * place), torch.cos(columns * place))
    said = response(tower, wave).abs()
    half = len(said) // 2
    assert float(said[half:].max()) < 1e-3
    assert float(said[half // 4 : half].max()) > 0.1


def test_texture_is_heard_louder_by_the_texture_filters(tower) -> None:
    generator = torch.Generator().manual_seed(1)
    said = torch.stack(
        [response(tower, torch.randn(SIDE, SIDE, generator=generator)) for _ in range(200)]
    )
    loudness = said.square().mean(dim=0).sqrt()
    half, eighth = len(loudness) // 2, len(loudness) // 8
    ratio = float(loudness[half:].mean() / loudness[eighth:half].mean())
    assert ratio == pytest.approx(TEXTURE_GAIN, rel=0.1)
