"""Attentions behind the language model's first layer begin as the finding detectors of the warm-up.

A small finding covers one visual token of sixty-four. From random weights attention is nearly
uniform, and in the mean of all tokens such a finding is lost: after fifty thousand answers the
model told tubes and pneumothoraces, which cover many tokens, and neither nodules nor effusions.
So every head of the second layer begins with a constant query, and a key that measures one
finding's coverage along the direction that the warm-up's linear head has learned; heads of the
third layer do so for findings of each side. Their values begin as the warm-up's readings of the
token that is found: what covers it, where it and the corners of its box lie. What the heads find,
and what is made of it, is learned as everything else. The first layer, which tells every token its
place (`training.first_layer`), is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention

from training.corners import CornerHead
from training.image_labels import ImageHeads, gathered_answers
from training.phantoms import labels_of
from training.phantoms.label_names import LabelNames
from training.vision import DenseHeads

# Of the constant query and of the key's direction. With heads of 32 dimensions, a token that reads
# three more than another then scores five more.
DETECTOR_GAIN: Final = 3.2
# Part that all visual tokens share in a key. In a prompt of some hundred words a token of the image
# has to be louder than all of them together, or what is found drowns in what was said.
_SHARED: Final = 0.8
# Of what these attentions write, which is otherwise several times as long as a word.
_WRITTEN: Final = 0.3
# What is left of the other queries in the dimensions that detectors use.
_QUIET: Final = 0.1
# Which places have a detector: both sides of the first three kinds of findings.
_SIDED: Final = 6


@torch.no_grad()
def quieten_words(
    model: Qwen2_5_VLForConditionalGeneration,
    dense: DenseHeads,
    image: ImageHeads,
    tokens: torch.Tensor,
) -> None:
    """Takes out of all words what the warm-up reads in visual tokens, so that none looks like one.

    Args:
        model: with fresh language weights; changed in place.
        dense: readings of what a token covers, trained on the tower's tokens.
        image: readings of where a finding lies, trained on the same.
        tokens: `(N, D)`, visual tokens of training views.
    """
    names = labels_of(dense.labels.modalities[0])
    read = [_covered(dense, name) for name in (*names.findings, *names.boxed)]
    read += [_placed(image, place) for place in names.places]
    read += [_unit(row * image.token_norm.weight) for row in image.centres.weight]
    seen = _basis([*read, _unit(tokens.mean(0))])
    words = model.model.language_model.embed_tokens.weight
    words -= words @ seen @ seen.T


@torch.no_grad()
def attend_to_findings(
    model: Qwen2_5_VLForConditionalGeneration,
    dense: DenseHeads,
    image: ImageHeads,
    corners: CornerHead,
    tokens: torch.Tensor,
) -> None:
    """Sets queries, keys and values of the second and the third layer in place.

    The detectors lie in the slowest rotary dimensions, whose angles hardly change over a
    sequence, so that the distance between text and image does not matter. There are no more of them
    than the first modality has findings: those of a second one are left to be learned.

    Args:
        model: with a trained first layer and otherwise fresh language weights.
        dense: readings of what a token covers, trained on what the first layer makes of it.
        image: readings of where a finding lies, trained on the same.
        corners: readings of where its box lies, trained on the same.
        tokens: `(N, D)`, visual tokens of training views behind the first layer.

    Raises:
        ValueError: the model has fewer heads than there are kinds of findings, or a head is
            narrower than what it is to read.
    """
    text: Any = model.config.get_text_config()
    names = labels_of(dense.labels.modalities[0])
    findings = names.findings
    if text.num_attention_heads < len(findings):
        raise ValueError(f"{len(findings)} kinds of findings need as many attention heads.")
    # The last head of the second layer is another's where the image as a whole is read.
    heads = text.num_attention_heads - bool(gathered_answers(names))
    kinds = [_covered(dense, name) for name in findings[:heads]]
    sided = [_placed(image, place) for place in names.places[:_SIDED]]
    # Of the heads that share keys and values, which are filled group by group: with fewer findings
    # than heads, the last groups have none.
    part = text.num_attention_heads // text.num_key_value_heads
    readings = [
        _readings(dense, image, corners, names, findings[first : min(first + part, heads)])
        for first in range(0, len(findings), part)
    ]
    shared = _apart(_unit(tokens.mean(0)), _basis([*kinds, *sided]))
    _, second, third = model.model.language_model.layers[:3]
    _detect(second.self_attn, [key + _SHARED * shared for key in kinds], readings)
    _detect(
        third.self_attn,
        [key + _SHARED * shared for key in sided],
        [readings[0]] * text.num_key_value_heads,
    )


def _basis(directions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Orthonormal columns, `(D, rank)`, that span the directions."""
    left, values, _ = torch.linalg.svd(torch.stack(list(directions)).T, full_matrices=False)
    basis: torch.Tensor = left[:, values > 1e-4 * values[0]]
    return basis


def _apart(direction: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The unit vector of what lies outside a basis."""
    rest = direction - basis @ (basis.T @ direction)
    unit: torch.Tensor = rest / rest.norm()
    return unit


def _detect(
    attention: Qwen2_5_VLAttention,
    keys: Sequence[torch.Tensor],
    values: Sequence[Sequence[torch.Tensor]],
) -> None:
    """One head for each key direction; the value directions of each group of heads."""
    width: int = attention.head_dim
    per_group: int = attention.num_key_value_groups
    slowest = [width // 2 - 1 - place for place in range(per_group)]
    for head, key in enumerate(keys):
        group, place = divmod(head, per_group)
        own = slowest[place]
        queries = [head * width + dimension for dimension in slowest]
        attention.q_proj.weight[queries] *= _QUIET
        attention.q_proj.bias[queries] = 0.0
        attention.q_proj.bias[head * width + own] = DETECTOR_GAIN
        attention.k_proj.weight[group * width + own] = DETECTOR_GAIN * key
        attention.k_proj.bias[group * width + own] = 0.0
    attention.o_proj.weight *= _WRITTEN
    for group, directions in enumerate(values):
        if len(directions) > width:
            raise ValueError(
                f"A head of {width} dimensions cannot hold {len(directions)} readings."
            )
        for row, direction in enumerate(directions):
            attention.v_proj.weight[group * width + row] = direction


def _readings(
    dense: DenseHeads,
    image: ImageHeads,
    corners: CornerHead,
    names: LabelNames,
    kinds: Sequence[str],
) -> list[torch.Tensor]:
    """Directions that tell what a found token holds: kinds, organs, place, corners, attributes."""
    found = [_covered(dense, name) for name in (*kinds, *names.boxed[:2])]
    found += [_unit(row * image.token_norm.weight) for row in image.centres.weight]
    group = 4 * dense.labels.box_groups.index("finding")
    boxes = corners.corners.weight[group : group + 4]
    found += [_unit(row * corners.norm.weight) for row in boxes]
    found += [_placed(image, place) for place in names.places if place[0] in kinds]
    rows = torch.split(dense.attributes.weight, dense.sizes)
    seen_in = {"grade": "pleural effusion", "tip": "endotracheal tube"}
    for name, own in zip(dense.labels.attributes, rows, strict=True):
        if seen_in.get(name) in kinds:
            found += [_unit(row * dense.norm.weight) for row in own]
    return found


def _covered(heads: DenseHeads, name: str) -> torch.Tensor:
    """Unit vector `(D,)` along which a token's coverage is read."""
    return _unit(heads.cover.weight[heads.labels.covers.index(name)] * heads.norm.weight)


def _placed(heads: ImageHeads, place: tuple[str, str]) -> torch.Tensor:
    """Unit vector `(D,)` along which a finding in a place is read."""
    return _unit(heads.places.weight[heads.labels.places.index(place)] * heads.token_norm.weight)


def _unit(along: torch.Tensor) -> torch.Tensor:
    # The heads read through a layer norm, which takes the mean over dimensions away.
    along = along - along.mean()
    direction: torch.Tensor = along / along.norm()
    return direction
