"""Prompts, ids and pixels against Qwen2.5's own tokenizer and template and Qwen2-VL's processor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from engine.geometry import PatchGrid
from engine.imaging import open_image, render
from engine.manifest import Manifest, PixelBudget
from engine.processor import ImageProcessor, expanded_ids
from engine.prompt import IMAGE_PAD, prompt_text, system_text, tool_response_text
from engine.request import METHODS
from engine.vocabulary import Vocabulary
from tests.integration.conftest import picture

QUESTION = "Where is the nodule, and what is its margin? (½, Ü, 肺)"
OPTIONS = ("left lung", "right lung")


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> PreTrainedTokenizerBase:
    """The real tokenizer of Qwen2.5."""
    return AutoTokenizer.from_pretrained(shared_data / "qwen2_5_tokenizer", local_files_only=True)


@pytest.fixture(scope="module")
def template(shared_data: Path) -> str:
    """The chat template of Qwen2.5-VL."""
    path = shared_data / "qwen2_5_tokenizer" / "chat_template_qwen2_5_vl.jinja"
    return path.read_text(encoding="utf-8")


def our_prompt(method: str, options: tuple[str, ...] = OPTIONS) -> str:
    return prompt_text(
        style="full", question_first=False, method=method, question=QUESTION, options=options
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [(), OPTIONS])
def test_the_prompt_is_what_the_template_makes(
    tokenizer: PreTrainedTokenizerBase, template: str, method: str, options: tuple[str, ...]
) -> None:
    ours = our_prompt(method, options)
    asked = ours.split(f"{IMAGE_PAD}<|vision_end|>")[1].split("<|im_end|>")[0]
    messages = [
        {"role": "system", "content": system_text("full", method)},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]},
    ]
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )

    assert ours == theirs
    assert QUESTION in asked


def test_a_crop_stands_in_a_turn_as_the_template_makes_it(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    content = [
        {"type": "text", "text": "<tool_response>\n"},
        {"type": "image"},
        {"type": "text", "text": "\n</tool_response>"},
    ]
    turns = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "Look."}]
    before = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False
    ).removesuffix("<|im_end|>\n")
    theirs = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )

    assert before + tool_response_text() == theirs


def test_pads_are_expanded_where_the_template_puts_them(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    text = our_prompt("zoom")
    grid = PatchGrid(7, 9)
    theirs = tokenizer(text.replace(IMAGE_PAD, IMAGE_PAD * grid.cells))["input_ids"]

    assert expanded_ids(tokenizer, text, [grid]) == theirs


def test_special_tokens_have_qwens_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|vision_start|>": 151652,
        "<|vision_end|>": 151653,
        "<|image_pad|>": 151655,
        "<tool_call>": 151657,
        "</tool_call>": 151658,
    }

    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids


def test_bytes_of_tokens_make_the_text_again(shared_data: Path) -> None:
    own = AutoTokenizer.from_pretrained(shared_data / "qwen2_5_tokenizer", local_files_only=True)
    own.add_special_tokens(
        {"additional_special_tokens": ["<|lat_start|>", "<|lat|>", "<|lat_end|>"]},
        replace_extra_special_tokens=False,
    )
    vocabulary = Vocabulary(own, 152064)
    text = "Zwei Ränder, 3 × 4 mm: 肺の結節 🫁\n\t<answer>B</answer>"
    written = b"".join(vocabulary.bytes_of(token) for token in vocabulary.encode(text))

    assert written.decode() == text
    # Rows of the head without a token are never drawn.
    assert set(range(len(own), 152064)) <= set(vocabulary.suppressed("direct"))


def theirs(pixels: np.ndarray, budget: PixelBudget) -> dict[str, np.ndarray]:
    """Transformers' processor as its users call it: a PIL image, sizes at construction."""
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": budget.least, "longest_edge": budget.most}
    )
    features = processor(images=Image.fromarray(pixels).convert("RGB"), return_tensors="np")
    return {name: features[name] for name in ("pixel_values", "image_grid_thw")}


def check_pixels(pixels: np.ndarray, budget: PixelBudget) -> None:
    seen = ImageProcessor()(pixels, budget)
    expected = theirs(pixels, budget)

    np.testing.assert_array_equal(seen.grid_thw.numpy(), expected["image_grid_thw"])
    np.testing.assert_array_equal(seen.pixel_values.numpy(), expected["pixel_values"])
    height, width = smart_resize(*pixels.shape[:2], 28, budget.least, budget.most)
    assert (seen.height, seen.width) == (height, width)
    assert (seen.grid.rows, seen.grid.columns) == (height // 28, width // 28)
    # The image that the model sees is shown, not one that resembles it.
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    shown = ImageProcessor().seen_pixels(seen)
    np.testing.assert_array_equal(shown, np.asarray(resized))


@pytest.mark.parametrize("size", [(300, 400), (30, 31), (28, 5000), (224, 224), (1000, 61)])
@pytest.mark.parametrize("budget", [PixelBudget(least=50176, most=50176), Manifest().view])
@pytest.mark.parametrize("color", [False, True])
def test_pixels_equal_transformers_processor(
    size: tuple[int, int], budget: PixelBudget, color: bool
) -> None:
    pixels = picture(3, *size)
    if color:
        pixels = np.stack([pixels, pixels[::-1], pixels[:, ::-1]], axis=-1)
    check_pixels(pixels, budget)


def test_pixels_of_real_radiographs_equal_transformers_processor(shared_data: Path) -> None:
    files = sorted((shared_data / "cxr_lungbox_ccby" / "images").iterdir())[::16]
    assert files
    for path in files:
        check_pixels(render(open_image(path)), PixelBudget(least=50176, most=50176))
    check_pixels(render(open_image(files[0])), Manifest().view)


def test_the_budget_is_kept() -> None:
    budget = Manifest().view
    seen = ImageProcessor()(picture(0, 2048, 2500), budget)

    assert budget.least <= seen.width * seen.height <= budget.most
    assert seen.grid.cells == 1248
    assert math.isclose(seen.width / seen.height, 2500 / 2048, rel_tol=0.02)
