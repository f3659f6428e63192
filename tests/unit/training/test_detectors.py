"""The language model's first attention begins where the findings are."""

import pytest
import torch

from training.detectors import attend_to_findings
from training.embedded import embedded_config, new_model, train_tokenizer
from training.vision import DenseHeads
from training.world import COVER_NAMES, FINDINGS


@pytest.fixture(scope="module")
def heads() -> DenseHeads:
    torch.manual_seed(1)
    return DenseHeads(192)


@pytest.fixture(scope="module")
def model(heads: DenseHeads):
    torch.manual_seed(0)
    model = new_model(embedded_config(train_tokenizer(["a nodule"] * 3, vocabulary=400))).eval()
    attend_to_findings(model, heads)
    return model


@pytest.mark.parametrize("head", range(len(FINDINGS)))
@pytest.mark.parametrize("distance", [1, 200])
def test_each_head_finds_its_finding_from_any_distance(
    model, heads: DenseHeads, head: int, distance: int
) -> None:
    """One of 64 visual tokens lies along the finding's direction, as the warm-up leaves it."""
    generator = torch.Generator().manual_seed(head)
    row = heads.cover.weight[COVER_NAMES.index(FINDINGS[head])].detach()
    direction = (row - row.mean()) / (row - row.mean()).norm()
    tokens = 0.5 * torch.randn(64, 192, generator=generator)
    tokens -= tokens @ direction[:, None] * direction
    tokens[37] += 3.0 * direction
    text = 0.1 * torch.randn(4, 192, generator=generator)
    attentions: list[torch.Tensor] = []
    model.set_attn_implementation("eager")
    layer = model.model.language_model.layers[0]
    hook = layer.self_attn.register_forward_hook(
        lambda module, inputs, outputs: attentions.append(outputs[1])
    )
    positions = torch.cat([torch.arange(64), torch.arange(64, 68) + distance])
    with torch.no_grad():
        model.model.language_model(
            inputs_embeds=torch.cat([tokens, text])[None],
            position_ids=positions.expand(3, 1, -1),
            use_cache=False,
        )
    hook.remove()
    weights = attentions[0][0, head, 64:]
    assert (weights.argmax(-1) == 37).all()
    assert float(weights[:, 37].mean()) > 0.4


def test_too_few_heads_are_refused(heads: DenseHeads) -> None:
    config = embedded_config(train_tokenizer(["a nodule"] * 3, vocabulary=400))
    config.text_config.num_attention_heads = 4
    config.text_config.rope_parameters["mrope_section"] = [8, 8, 8]
    with pytest.raises(ValueError, match="attention heads"):
        attend_to_findings(new_model(config), heads)
