"""The embedded model's fresh weights."""

import pytest
import torch

from training.embedded import (
    EMBEDDING_DEVIATION,
    END_OF_TEXT,
    RESIDUAL_GAIN,
    TEXTURE_GAIN,
    VISUAL_SCALE,
    embedded_config,
    new_model,
    scale_visual_tokens,
    single_id,
    train_tokenizer,
)
from training.vision import visual_tokens

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


def test_scaled_tokens_are_the_same_at_another_length() -> None:
    tokenizer = train_tokenizer(["a nodule"] * 3, vocabulary=400)
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    images = [torch.rand(6, 84, 84, generator=torch.Generator().manual_seed(2)) * 255]
    with torch.no_grad():
        before = visual_tokens(model, images)
        scale_visual_tokens(model, before)
        after = visual_tokens(model, images)
    apart = after - after.mean(0)
    assert float(apart.square().mean().sqrt()) == pytest.approx(VISUAL_SCALE, rel=1e-3)
    # Only the scale is another: what tokens share keeps its part in them.
    factor = VISUAL_SCALE / (before - before.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(after, before * factor, atol=1e-4, rtol=1e-3)


def test_words_and_layers_begin_at_scales_that_suit_each_other() -> None:
    tokenizer = train_tokenizer(["a nodule"] * 3, vocabulary=400)
    torch.manual_seed(0)
    model = new_model(embedded_config(tokenizer)).eval()
    words = model.get_input_embeddings().weight
    assert float(words.detach().std()) == pytest.approx(EMBEDDING_DEVIATION, rel=0.02)
    assert model.lm_head.weight is words
    layer = model.model.language_model.layers[0]
    assert float(layer.mlp.down_proj.weight.detach().std()) == pytest.approx(
        RESIDUAL_GAIN * 576**-0.5, rel=0.02
    )
    assert float(layer.self_attn.q_proj.weight.detach().std()) == pytest.approx(192**-0.5, rel=0.02)


def test_a_token_that_the_tokenizer_does_not_know_is_refused() -> None:
    tokenizer = train_tokenizer(["a nodule"] * 3, vocabulary=400)
    # Which tells nothing: this is what every unknown token is turned into.
    assert tokenizer.convert_tokens_to_ids("<|unheard_of|>") == single_id(tokenizer, END_OF_TEXT)
    with pytest.raises(ValueError, match=r"does not know '<\|unheard_of\|>'"):
        single_id(tokenizer, "<|unheard_of|>")
    assert tokenizer.convert_ids_to_tokens(single_id(tokenizer, "<|im_end|>")) == "<|im_end|>"
