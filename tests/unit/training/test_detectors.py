"""Attention behind the language model's first layer begins where the findings are."""

import pytest
import torch

from training.corners import CornerHead
from training.detectors import attend_to_findings, quieten_words
from training.embedded import embedded_config, new_model, train_tokenizer
from training.image_labels import ImageHeads
from training.phantoms import MODALITIES, labels_of
from training.phantoms.label_names import CHEST_LABELS, joined
from training.phantoms.truth import SIDES
from training.vision import DenseHeads

# What all visual tokens have in common.
WORDS = 200
SHARED = 1.5 * torch.randn(192, generator=torch.Generator().manual_seed(50))


@pytest.fixture(scope="module")
def heads() -> DenseHeads:
    torch.manual_seed(1)
    return DenseHeads(192)


@pytest.fixture(scope="module")
def image_heads() -> ImageHeads:
    torch.manual_seed(2)
    return ImageHeads(192)


@pytest.fixture(scope="module")
def corners() -> CornerHead:
    torch.manual_seed(3)
    return CornerHead(192)


@pytest.fixture(scope="module")
def model(heads: DenseHeads, image_heads: ImageHeads, corners: CornerHead):
    torch.manual_seed(0)
    return _model(heads, image_heads, corners)


def _model(dense: DenseHeads, image: ImageHeads, corners: CornerHead):
    """A model whose first layer passes everything on, with detectors behind it."""
    model = new_model(embedded_config(train_tokenizer(["a nodule"] * 3, vocabulary=400))).eval()
    tokens = SHARED + torch.randn(256, 192)
    first = model.model.language_model.layers[0]
    torch.nn.init.zeros_(first.self_attn.o_proj.weight)
    torch.nn.init.zeros_(first.mlp.down_proj.weight)
    quieten_words(model, dense, image, tokens)
    attend_to_findings(model, dense, image, corners, tokens)
    return model


def _centred(row: torch.Tensor) -> torch.Tensor:
    row = row.detach() - row.detach().mean()
    return row / row.norm()


def _weights(model, direction: torch.Tensor, layer: int, head: int, distance: int) -> torch.Tensor:
    """Attention of the last of 200 words behind 64 visual tokens, of which number 37 is found."""
    generator = torch.Generator().manual_seed(head)
    tokens = 0.5 * torch.randn(64, 192, generator=generator)
    tokens -= tokens @ direction[:, None] * direction
    tokens += 4.2 * SHARED / SHARED.norm()
    tokens[37] += 3.0 * direction
    words = model.get_input_embeddings().weight
    text = words[torch.randint(len(words), (WORDS,), generator=generator)]
    attentions: list[torch.Tensor] = []
    model.set_attn_implementation("eager")
    hook = model.model.language_model.layers[layer].self_attn.register_forward_hook(
        lambda module, inputs, outputs: attentions.append(outputs[1])
    )
    positions = torch.cat([torch.arange(64), torch.arange(64, 64 + WORDS) + distance])
    with torch.no_grad():
        model.model.language_model(
            inputs_embeds=torch.cat([tokens, text])[None],
            position_ids=positions.expand(3, 1, -1),
            use_cache=False,
        )
    hook.remove()
    return attentions[0][0, head, -4:]


# The last head looks at the whole image (`training.averages`).
@pytest.mark.parametrize("head", range(len(CHEST_LABELS.findings) - 1))
@pytest.mark.parametrize("distance", [1, 200])
def test_each_head_finds_its_finding_from_any_distance(
    model, heads: DenseHeads, head: int, distance: int
) -> None:
    direction = _centred(heads.cover.weight[CHEST_LABELS.covers.index(CHEST_LABELS.findings[head])])
    weights = _weights(model, direction, 1, head, distance)
    assert (weights.argmax(-1) == 37).all()
    assert float(weights[:, 37].mean()) > 0.4


@pytest.mark.parametrize("head", range(6))
def test_each_head_of_the_third_layer_finds_its_finding_on_one_side(
    model, image_heads: ImageHeads, head: int
) -> None:
    place = (CHEST_LABELS.findings[head // 2], SIDES[head % 2])
    direction = _centred(image_heads.places.weight[CHEST_LABELS.places.index(place)])
    weights = _weights(model, direction, 2, head, 1)
    assert (weights.argmax(-1) == 37).all()


def test_no_word_looks_like_a_finding(model, heads: DenseHeads) -> None:
    words = model.get_input_embeddings().weight.detach()
    for name in ("nodule", "central line", "right_lung"):
        direction = _centred(heads.cover.weight[CHEST_LABELS.covers.index(name)])
        assert float((words @ direction).abs().max()) < 1e-5


def test_values_read_what_the_found_token_holds(model, heads: DenseHeads) -> None:
    """The first value of the first group of heads is the coverage by a nodule."""
    direction = _centred(heads.cover.weight[CHEST_LABELS.covers.index("nodule")])
    value = model.model.language_model.layers[1].self_attn.v_proj.weight[0]
    torch.testing.assert_close(value.detach(), direction)


def test_values_hold_the_corners_of_the_box(model, corners: CornerHead) -> None:
    values = model.model.language_model.layers[1].self_attn.v_proj.weight[:32].detach()
    first = 4 * CHEST_LABELS.box_groups.index("finding")
    for row in corners.corners.weight[first : first + 4]:
        assert float((values @ _centred(row)).max()) == pytest.approx(1.0, abs=1e-5)


def test_too_few_heads_are_refused(
    heads: DenseHeads, image_heads: ImageHeads, corners: CornerHead
) -> None:
    config = embedded_config(train_tokenizer(["a nodule"] * 3, vocabulary=400))
    config.text_config.num_attention_heads = 4
    config.text_config.rope_parameters["mrope_section"] = [8, 8, 8]
    with pytest.raises(ValueError, match="attention heads"):
        attend_to_findings(new_model(config), heads, image_heads, corners, SHARED[None])


@pytest.mark.parametrize(
    "modalities", [("head_ct",), ("breast_ultrasound",), MODALITIES], ids="+".join
)
def test_detectors_of_a_mixed_world_are_those_of_its_first_modality(
    modalities: tuple[str, ...],
) -> None:
    labels = joined([labels_of(name) for name in modalities])
    torch.manual_seed(3)
    dense, image = DenseHeads(192, labels), ImageHeads(192, labels)
    model = _model(dense, image, CornerHead(192, labels))
    kind = labels_of(modalities[0]).findings[0]
    direction = _centred(dense.cover.weight[labels.covers.index(kind)])
    assert (_weights(model, direction, 1, 0, 1).argmax(-1) == 37).all()
    value = model.model.language_model.layers[1].self_attn.v_proj.weight[0]
    torch.testing.assert_close(value.detach(), direction)


@pytest.mark.parametrize("modality", ["head_ct", "breast_ultrasound"])
def test_every_head_reads_what_it_finds_where_there_are_fewer_findings_than_heads(
    modality: str,
) -> None:
    """Of three findings and six heads, the last one's values are those of its own head's group."""
    labels = labels_of(modality)
    torch.manual_seed(3)
    dense, image = DenseHeads(192, labels), ImageHeads(192, labels)
    corners = CornerHead(192, labels)
    model = _model(dense, image, corners)
    layers = model.model.language_model.layers
    last = len(labels.findings) - 1
    covered = _centred(dense.cover.weight[labels.covers.index(labels.findings[last])])
    assert (_weights(model, covered, 1, last, 1).argmax(-1) == 37).all()

    def reads(layer: int, head: int, direction: torch.Tensor) -> float:
        own = layers[layer].self_attn
        group = head // own.num_key_value_groups
        values = own.v_proj.weight[group * own.head_dim : (group + 1) * own.head_dim].detach()
        return float((values / values.norm(dim=1, keepdim=True) @ direction).max())

    assert reads(1, last, covered) == pytest.approx(1.0, abs=1e-5)
    # In the third layer the detectors of both sides of three findings are in both groups.
    edge = _centred(corners.corners.weight[4 * labels.box_groups.index("finding")])
    for head in range(6):
        assert reads(2, head, covered) == pytest.approx(1.0, abs=1e-5)
        assert reads(2, head, edge) == pytest.approx(1.0, abs=1e-5)
