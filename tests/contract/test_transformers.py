"""What the engine relies on in transformers, and its traps: one test each.

When a newer version breaks one of these, the engine is silently wrong somewhere: find the use
of what changed before raising the pin. The numbers of the notes are in the names of sections.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
    StaticCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.attention import ATTENTION_NAME
from engine.engine import Engine
from engine.geometry import PatchGrid
from engine.loading import LoadedModel
from engine.positions import PositionCursor
from engine.request import Budgets, DisplayImage, Request, Tracing
from engine.tiny import tiny_model
from engine.trace import Failed
from tests.integration.conftest import picture, prompt_ids

Model = Any


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A random-weight model; do not change it."""
    return tiny_model()


@pytest.fixture
def model(loaded: LoadedModel) -> Model:
    """The same weights with transformers' own attention."""
    plain = copy.deepcopy(loaded.model)
    plain.set_attn_implementation("sdpa")
    plain.model.rope_deltas = None
    return plain


@pytest.fixture
def inputs(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Arguments of the outer wrapper for a prompt with one image of 3 x 4 visual tokens."""
    engine = Engine(loaded)
    request = Request(image=DisplayImage(pixels=picture()), question="Where is the nodule?")
    _, start = engine.prepare(request)
    row = torch.tensor([prompt_ids(loaded, start)])
    return {
        "input_ids": row,
        "attention_mask": torch.ones_like(row),
        "mm_token_type_ids": (row == loaded.vocabulary.image_pad).int(),
        "pixel_values": start.seen.pixel_values,
        "image_grid_thw": start.seen.grid_thw,
    }


@pytest.fixture
def positions(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Our own position ids of that prompt: `(3, 1, T)`."""
    _, rows, columns = (int(value) for value in inputs["image_grid_thw"][0])
    ids = inputs["input_ids"][0].tolist()
    grid = PatchGrid(rows // 2, columns // 2)
    return PositionCursor().sequence(ids, loaded.vocabulary.image_pad, [grid])[:, None]


@pytest.fixture
def named() -> Iterator[Any]:
    """Registers attention functions under names of this test and takes them out again."""
    names: list[str] = []

    def register(name: str, function: Any, mask: Any = sdpa_mask) -> str:
        AttentionInterface.register(name, function)
        if mask is not None:
            AttentionMaskInterface.register(name, mask)
        names.append(name)
        return name

    yield register
    for name in names:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)


@torch.no_grad()
def forward(model: Model, inputs: dict[str, torch.Tensor], **extra: Any) -> Any:
    return model(**{**inputs, **extra})


def set_text_attention(model: Model, name: str) -> None:
    model.set_attn_implementation({"": "sdpa", "text_config": name, "vision_config": "sdpa"})


# --- the attention registry ---------------------------------------------------------------


def test_the_engines_attention_is_registered_with_its_mask(loaded: LoadedModel) -> None:
    """Trap 1: a name without a mask function gets no mask at all."""
    assert ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] is not None
    assert ALL_MASK_ATTENTION_FUNCTIONS[ATTENTION_NAME] is sdpa_mask
    assert loaded.model.config.text_config._attn_implementation == ATTENTION_NAME
    assert loaded.model.config.vision_config._attn_implementation == "sdpa"


def padded_on_the_left(inputs: dict[str, torch.Tensor], filler: int) -> dict[str, torch.Tensor]:
    front = torch.full((1, 5), filler)
    zeros = torch.zeros_like(front)
    return {
        **inputs,
        "input_ids": torch.cat([front, inputs["input_ids"]], 1),
        "attention_mask": torch.cat([zeros, inputs["attention_mask"]], 1),
        "mm_token_type_ids": torch.cat([zeros.int(), inputs["mm_token_type_ids"]], 1),
    }


def test_a_name_without_a_mask_function_ignores_padding(
    model: Model, loaded: LoadedModel, inputs: dict[str, torch.Tensor], named: Any
) -> None:
    padded = padded_on_the_left(inputs, loaded.vocabulary.im_end)
    expected = forward(model, inputs).logits[0, -1]

    set_text_attention(model, named("with_mask", sdpa_attention_forward))
    model.model.rope_deltas = None
    right = forward(model, padded).logits[0, -1]
    set_text_attention(model, named("without_mask", sdpa_attention_forward, None))
    model.model.rope_deltas = None
    wrong = forward(model, padded).logits[0, -1]

    torch.testing.assert_close(right, expected, atol=1e-4, rtol=1e-4)
    assert (wrong - expected).abs().max() > 1e-2


def test_the_engines_attention_keeps_padding_out(
    loaded: LoadedModel, model: Model, inputs: dict[str, torch.Tensor]
) -> None:
    expected = forward(model, inputs).logits[0, -1]
    ours = copy.deepcopy(loaded.model)
    got = forward(ours, padded_on_the_left(inputs, loaded.vocabulary.im_end)).logits[0, -1]

    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_an_attention_function_gets_the_whole_cache_and_any_argument(
    model: Model, inputs: dict[str, torch.Tensor], named: Any
) -> None:
    """Queries after rotation `(B, H, T, D)`, keys of the whole cache, the layer's number."""
    calls: list[tuple[int, torch.Size, torch.Size, object]] = []

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        calls.append((module.layer_idx, query.shape, key.shape, kwargs.pop("recorder", None)))
        assert "scaling" in kwargs
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    set_text_attention(model, named("spy", spy))
    token = object()
    out = forward(model, inputs, recorder=token, use_cache=True)
    length = inputs["input_ids"].shape[1]
    text = model.config.text_config
    heads, size = text.num_attention_heads, text.hidden_size // text.num_attention_heads
    model(
        input_ids=torch.tensor([[1]]),
        position_ids=torch.full((3, 1, 1), 50),
        past_key_values=out.past_key_values,
        recorder=token,
    )

    layers = list(range(text.num_hidden_layers))
    assert [call[0] for call in calls] == layers * 2
    assert all(call[3] is token for call in calls)
    assert calls[0][1:3] == (
        (1, heads, length, size),
        (1, text.num_key_value_heads, length, size),
    )
    assert calls[-1][1:3] == (
        (1, heads, 1, size),
        (1, text.num_key_value_heads, length + 1, size),
    )


def test_what_the_function_returns_second_is_what_output_attentions_collects(
    model: Model, inputs: dict[str, torch.Tensor], named: Any
) -> None:
    def rows(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        output, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return output, torch.full((1,), float(module.layer_idx)) if module.layer_idx else None

    set_text_attention(model, named("rows", rows))
    collected = forward(model, inputs, output_attentions=True).attentions

    assert [float(row) for row in collected] == [1.0, 2.0]


def test_sdpa_returns_no_attentions_and_does_not_fall_back(
    model: Model, inputs: dict[str, torch.Tensor]
) -> None:
    """Trap 2."""
    assert not forward(model, inputs, output_attentions=True).attentions
    with pytest.raises(ValueError, match="output_attentions"):
        model.config.output_attentions = True


# --- caches -------------------------------------------------------------------------------


def filled(cache: DynamicCache, columns: int = 4) -> DynamicCache:
    generator = torch.Generator().manual_seed(columns)
    for layer in range(2):
        keys, values = (torch.randn(1, 2, columns, 8, generator=generator) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


def test_the_forward_takes_no_cache_position() -> None:
    parameters = inspect.signature(Qwen2_5_VLForConditionalGeneration.forward).parameters

    assert "cache_position" not in parameters
    assert {"position_ids", "mm_token_type_ids", "logits_to_keep", "mm_encoder_outputs"} <= set(
        parameters
    )


def test_a_dynamic_cache_is_cropped_by_how_much_goes_and_not_by_what_stays() -> None:
    cache = filled(DynamicCache())
    with pytest.raises(ValueError, match="crop"):
        cache.crop(2)
    cache.crop(0)
    assert cache.get_seq_length() == 4
    cache.crop(-1)
    assert cache.get_seq_length() == 3


def test_a_static_cache_cannot_be_cropped(model: Model) -> None:
    cache = StaticCache(config=model.config.text_config, max_cache_len=8)
    cache.early_initialization(1, 2, 16, torch.float32, torch.device("cpu"))
    with pytest.raises(AttributeError):
        cache.crop(-1)


@pytest.mark.parametrize(
    "name", ["key_cache", "value_cache", "from_legacy_cache", "to_legacy_cache"]
)
def test_the_old_ways_into_a_cache_are_gone(name: str) -> None:
    assert not hasattr(DynamicCache(), name)


def test_a_layer_of_a_cache_shows_its_tensors() -> None:
    layer = filled(DynamicCache()).layers[1]

    assert layer.keys.shape == layer.values.shape == (1, 2, 4, 8)


def test_an_update_never_writes_into_what_the_cache_held() -> None:
    """So a fork may share tensors by reference."""
    cache = filled(DynamicCache())
    before = cache.layers[0].keys
    copied, version = before.clone(), before._version
    cache.update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8), 0)

    assert cache.layers[0].keys is not before
    assert before._version == version
    assert torch.equal(before, copied)


# --- positions ----------------------------------------------------------------------------


def test_our_positions_equal_get_rope_index(
    model: Model, inputs: dict[str, torch.Tensor], positions: torch.Tensor
) -> None:
    expected, deltas = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )

    assert torch.equal(positions, expected)
    # The position that text goes on at is the largest so far and one.
    assert int(positions.max()) + 1 == inputs["input_ids"].shape[1] + int(deltas)


def test_explicit_positions_leave_no_state_on_the_model(
    model: Model, inputs: dict[str, torch.Tensor], positions: torch.Tensor
) -> None:
    forward(model, inputs, position_ids=positions)
    assert model.model.rope_deltas is None
    forward(model, inputs)
    assert model.model.rope_deltas is not None


def test_decoding_without_positions_is_silently_wrong_after_explicit_ones(
    model: Model, inputs: dict[str, torch.Tensor], positions: torch.Tensor
) -> None:
    ids = torch.tensor([[5]])
    following = torch.full((3, 1, 1), int(positions.max()) + 1)
    right = forward(model, inputs, position_ids=positions, use_cache=True)
    wrong = copy.deepcopy(right.past_key_values)
    with torch.no_grad():
        good = model(input_ids=ids, position_ids=following, past_key_values=right.past_key_values)
        bad = model(input_ids=ids, past_key_values=wrong)

    assert (good.logits - bad.logits).abs().max() > 1e-3


def test_generate_leaves_its_deltas_behind_and_the_engine_neither_reads_nor_writes_them(
    loaded: LoadedModel, inputs: dict[str, torch.Tensor]
) -> None:
    request = Request(
        image=DisplayImage(pixels=picture()),
        question="Where?",
        method="zoom",
        entropy_threshold=1.0,
        budgets=Budgets(max_new_tokens=30),
        tracing=Tracing(belief=True),
    )

    def tokens() -> list[int]:
        events = list(Engine(loaded).stream(request))
        assert not isinstance(events[-1], Failed)
        return [e.token_id for e in events if hasattr(e, "token_id")]

    loaded.model.model.rope_deltas = None
    clean = tokens()
    assert loaded.model.model.rope_deltas is None
    try:
        loaded.model.model.rope_deltas = torch.tensor([[-1000]])
        assert tokens() == clean
        assert int(loaded.model.model.rope_deltas) == -1000
    finally:
        loaded.model.model.rope_deltas = None


# --- images, logits and hidden states -----------------------------------------------------


def test_features_that_are_made_once_can_be_handed_over(
    model: Model, inputs: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        features = model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        )
    assert isinstance(features.pooler_output, tuple)
    rest = {k: v for k, v in inputs.items() if k not in ("pixel_values",)}
    given = forward(model, rest, mm_encoder_outputs={"image": features}).logits
    model.model.rope_deltas = None

    assert torch.equal(given, forward(model, inputs).logits)
    with pytest.raises(ValueError, match="same time"):
        forward(model, inputs, mm_encoder_outputs={"image": features})


def test_logits_are_kept_by_number_or_by_index(
    model: Model, inputs: dict[str, torch.Tensor]
) -> None:
    whole = forward(model, inputs).logits
    last = forward(model, inputs, logits_to_keep=1).logits
    some = forward(model, inputs, logits_to_keep=torch.tensor([3, 9])).logits

    torch.testing.assert_close(last, whole[:, -1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some, whole[:, [3, 9]], atol=1e-5, rtol=1e-5)


def test_the_last_hidden_state_is_what_the_head_reads(
    model: Model, inputs: dict[str, torch.Tensor]
) -> None:
    """So the latent that is fed back is the state after the final norm."""
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state
        expected = model.lm_head(hidden)
    model.model.rope_deltas = None

    torch.testing.assert_close(forward(model, inputs).logits, expected, atol=1e-6, rtol=1e-6)


def test_masks_that_are_ready_are_passed_through(
    model: Model, inputs: dict[str, torch.Tensor], positions: torch.Tensor
) -> None:
    """The engine hands the language model its masks as a mapping, None meaning causal."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        length = embeddings.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        results = [
            model.model.language_model(
                inputs_embeds=embeddings,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=DynamicCache(),
                use_cache=True,
            ).last_hidden_state
            for mask in ({"full_attention": None}, {"full_attention": causal}, None)
        ]

    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[1], results[2], atol=1e-5, rtol=1e-5)


# --- processors ---------------------------------------------------------------------------


def test_the_image_processor_needs_no_torchvision() -> None:
    processor = Qwen2VLImageProcessorPil()
    image = np.zeros((60, 90, 3), np.uint8)
    features = processor(
        images=[image],
        size={"shortest_edge": 16 * 784, "longest_edge": 16 * 784},
        input_data_format="channels_last",
        return_tensors="pt",
    )

    assert features["pixel_values"].shape[1] == 3 * 2 * 14 * 14
    assert features["image_grid_thw"].shape == (1, 3)


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed"
)
def test_the_whole_processor_cannot_be_had_without_torchvision(loaded: LoadedModel) -> None:
    """Why placeholders are expanded by the engine itself."""
    with pytest.raises((ImportError, AttributeError)):
        Qwen2_5_VLProcessor(Qwen2VLImageProcessorPil(), loaded.tokenizer)
    with pytest.raises(ImportError, match="Torchvision"):
        Qwen2VLVideoProcessor()


def test_a_radiograph_of_2500_by_2048_is_1248_tokens_under_the_cap() -> None:
    features = Qwen2VLImageProcessorPil()(
        images=[np.zeros((2048, 2500, 3), np.uint8)],
        size={"shortest_edge": 256 * 784, "longest_edge": 1280 * 784},
        input_data_format="channels_last",
        return_tensors="pt",
    )

    assert features["image_grid_thw"][0].tolist() == [1, 64, 78]
    assert features["pixel_values"].shape[0] // 4 == 1248
