"""What a branch does next, followed without a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.branch import Branch
from engine.request import DisplayImage, Request, Sampling
from engine.sampling import Draw
from engine.tiny import tiny_tokenizer
from engine.tool_call import ImageSizes
from engine.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    tokenizer = tiny_tokenizer()
    return Vocabulary(tokenizer, len(tokenizer))


def branch_of(vocabulary: Vocabulary) -> Branch:
    image = DisplayImage(pixels=np.zeros((56, 56), dtype=np.uint8))
    request = Request(image=image, question="Where?", options=("left", "right"), method="zoom")
    return Branch(request, ImageSizes(56, 56, 56, 56), vocabulary, torch.device("cpu"))


def write(branch: Branch, token: int) -> None:
    """The branch is told that it has drawn a token, and that it has been fed."""
    column = len(branch.ids)
    branch.write(Draw(token, -0.1, 0.0, (), torch.empty(0)), column)
    if branch.pending is not None:
        branch.fed(column + 1)


@pytest.mark.parametrize(
    "text",
    [
        "Both lungs are clear.",
        "<think>\nBoth lungs are clear.",
        "<think>\nBoth lungs are clear.</think>",
        "Both lungs are clear.\n",
        "<tool_call>{",
        "<answer>A",
        "",
    ],
)
def test_an_answer_in_a_turn_of_its_own_begins_that_turn(vocabulary: Vocabulary, text: str) -> None:
    branch = branch_of(vocabulary)
    for token in vocabulary.encode(text):
        write(branch, token)

    write(branch, vocabulary.im_end)
    assert branch.take_answer_turn()
    branch.begin_turn()
    forced = []
    logits = torch.zeros(vocabulary.head_size)
    while "<answer>" not in branch.transcript.text:
        assert len(forced) < 10
        forced.append(int(branch.choose(logits)))
        write(branch, forced[-1])

    assert forced == vocabulary.encode("<answer>")
    assert branch.transcript.segment == "answer"
    assert branch.text == f"{text}\n<answer>"


def test_a_copy_draws_from_the_seed_of_its_own_number(vocabulary: Vocabulary) -> None:
    """So that no two branches of a run draw the same, wherever they began."""
    image = DisplayImage(pixels=np.zeros((56, 56), dtype=np.uint8))
    request = Request(image=image, question="Where?", seed=11, sampling=Sampling(temperature=1.0))
    sizes, device = ImageSizes(56, 56, 56, 56), torch.device("cpu")
    fresh = [Branch(request, sizes, vocabulary, device, number) for number in range(4)]
    logits = torch.zeros(vocabulary.head_size)

    def drawn(branch: Branch) -> list[int]:
        return [int(branch.choose(logits)) for _ in range(8)]

    own = [drawn(branch) for branch in fresh]
    assert len(set(map(tuple, own))) == 4
    # Of one that has drawn already, and of a copy of a copy.
    assert drawn(fresh[0].copied(2)) == own[2]
    assert drawn(fresh[0].copied(2).copied(3)) == own[3]
