"""A head of the second layer looks at all visual tokens alike, and reads what their mean tells."""

import pytest
import torch

from engine.geometry import PatchGrid
from tests.unit.training.test_image_labels import ANSWERS, _case
from training.average_readings import fitted_readings
from training.averages import (
    AVERAGING_LAYER,
    READING_WRITTEN,
    Apart,
    Inputs,
    Reading,
    average_evenly,
    averages_keeper,
    looks_evenly,
)
from training.counts import count_directions, number_rows_and_columns
from training.embedded import embedded_config, new_model, train_tokenizer
from training.image_labels import gathered_answers, labelled_view, number_name
from training.phantoms import FindingRequest, labels_of
from training.phantoms.label_names import CHEST_LABELS
from training.phantoms.truth import NODULE

DIMENSIONS = 192
CELLS = 64
WORDS = 200
# What all visual tokens share, and what one with a finding has beside.
SHARED = 8.0 * torch.nn.functional.normalize(
    torch.randn(DIMENSIONS, generator=torch.Generator().manual_seed(50)), dim=0
)
MARK = torch.nn.functional.normalize(
    torch.randn(DIMENSIONS, generator=torch.Generator().manual_seed(51)), dim=0
)


def _views(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Visual tokens `(N, 64, D)` with one to three marked ones, and how many less one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = SHARED + 0.1 * torch.randn(count, CELLS, DIMENSIONS, generator=generator)
    numbers = torch.randint(3, (count,), generator=generator)
    for view, number in zip(tokens, numbers.tolist(), strict=True):
        view[torch.randperm(CELLS, generator=generator)[: number + 1]] += 8.0 * MARK
    return tokens, numbers


def _words(count: int, seed: int) -> torch.Tensor:
    """Words hold nothing of what visual tokens share (`training.detectors.quieten_words`)."""
    words = torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    shared = torch.nn.functional.normalize(SHARED, dim=0)
    return 0.6 * (words - 0.97 * (words @ shared)[:, None] * shared)


def _normed(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(tokens, (DIMENSIONS,))


@pytest.fixture(scope="module")
def inputs() -> tuple[Inputs, torch.Tensor]:
    tokens, numbers = _views(1200, 0)
    words = _normed(_words(800, 1))
    apart = Apart.of(_normed(tokens[:8]).flatten(0, 1), words)
    means = torch.stack([apart.mean(_normed(view)) for view in tokens])
    return Inputs(means, words, apart), numbers


@pytest.fixture(scope="module")
def readings(inputs: tuple[Inputs, torch.Tensor]) -> list[Reading]:
    return fitted_readings(inputs[0], inputs[1][:, None], [3])


@pytest.fixture
def model(inputs: tuple[Inputs, torch.Tensor], readings: list[Reading]):
    torch.manual_seed(0)
    model = new_model(embedded_config(train_tokenizer(["a nodule"] * 3, vocabulary=400))).eval()
    average_evenly(model, inputs[0], readings)
    return model


def _attention(model, states: torch.Tensor, positions: torch.Tensor):
    """What the second layer's attention writes for states `(T, D)`, and its last head's weights."""
    model.set_attn_implementation("eager")
    language = model.model.language_model
    rotations = language.rotary_emb(states[None], positions.expand(3, 1, -1))
    mask = torch.full((len(states), len(states)), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        written, weights = language.layers[AVERAGING_LAYER].self_attn(
            _normed(states)[None], position_embeddings=rotations, attention_mask=mask
        )
    return written[0], weights[0, -1]


@pytest.mark.parametrize("distance", [1, 300])
def test_words_look_at_all_visual_tokens_alike_and_these_at_words(model, distance: int) -> None:
    view = _views(1, 2)[0][0]
    before, behind = _words(40, 3), _words(WORDS, 4)
    states = torch.cat([before, view, behind])
    positions = torch.arange(len(states))
    positions[40 + CELLS :] += distance
    weights = _attention(model, states, positions)[1]
    image = weights[:, 40 : 40 + CELLS]
    assert float(image[-4:].sum(-1).min()) > 0.97
    assert float(image[-4:].max()) < 2 / CELLS
    assert float(image[-4:].min()) > 0.3 / CELLS
    # Looking at some of the others, a token would take their number for that of all.
    assert float(image[40 : 40 + CELLS].sum(-1).max()) < 0.05


def test_marks_are_counted_in_the_mean(inputs: tuple[Inputs, torch.Tensor], readings) -> None:
    tokens, numbers = _views(200, 5)
    means = torch.stack([inputs[0].apart.mean(_normed(view)) for view in tokens])
    told = readings[0].guesses(means) == numbers
    assert float(told.float().mean()) > 0.8


def test_what_words_are_given_is_what_is_read_in_the_mean(model, inputs, readings) -> None:
    """Through the attention itself, whose values are the readings in deviations."""
    columns = model.model.language_model.layers[AVERAGING_LAYER].self_attn.o_proj.weight[:, -3:]
    tokens = _views(20, 6)[0]
    found = []
    for view in tokens:
        states = torch.cat([view, _words(20, 7)])
        found.append(_attention(model, states, torch.arange(len(states)))[0][-1] @ columns)
    values = torch.stack(found).detach()
    read = inputs[0].means @ readings[0].weight.T
    means = torch.stack([inputs[0].apart.mean(_normed(view)) for view in tokens])
    expected = (means @ readings[0].weight.T - read.mean(0)) / read.std(0)
    # The words themselves add a little, the same behind every view.
    added = values - expected
    assert float((added - added.mean(0)).abs().max()) < 0.1


def test_an_answer_that_is_never_known_is_read_as_nothing(inputs) -> None:
    (reading,) = fitted_readings(inputs[0], torch.full((1200, 1), -1), [2])
    assert not reading.weight.any()
    assert not reading.bias.any()


def test_the_direction_is_one_apart_and_even() -> None:
    images, words = _normed(_views(8, 8)[0].flatten(0, 1)), _normed(_words(800, 9))
    apart = Apart.of(images, words)
    along = images @ apart.direction
    assert float(along.mean()) - apart.word == pytest.approx(1.0, abs=1e-4)
    assert float(along.std()) < 0.1


def test_a_head_holds_no_more_readings_than_it_has_dimensions(model, inputs) -> None:
    reading = Reading(torch.zeros(33, DIMENSIONS), torch.zeros(33))
    with pytest.raises(ValueError, match="32 dimensions cannot hold 33 readings"):
        average_evenly(model, inputs[0], [reading])


def test_counts_of_rows_and_columns_keep_their_room(model, inputs, readings) -> None:
    tokenizer = train_tokenizer(["a nodule"] * 3, vocabulary=400)
    tokens = _views(8, 10)[0].flatten(0, 1)
    # Visual tokens lie in half of their dimensions, as those of a trained tower nearly do.
    tokens[:, DIMENSIONS // 2 :] *= 0.02
    number_rows_and_columns(model, tokenizer, tokens, PatchGrid(8, 8))
    average_evenly(model, inputs[0], readings)
    written = model.model.language_model.layers[AVERAGING_LAYER].self_attn.o_proj.weight[:, -3:]
    assert float((count_directions(model).T @ written).detach().abs().max()) < 1e-5
    lengths = written.detach().norm(dim=0)
    torch.testing.assert_close(lengths, torch.full((3,), READING_WRITTEN), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("readings_kept", [False, True])
def test_where_the_head_looks_is_put_back(model, readings_kept: bool) -> None:
    attention = model.model.language_model.layers[AVERAGING_LAYER].self_attn
    before = {name: value.clone() for name, value in attention.named_parameters()}
    put_back = averages_keeper(model, readings=readings_kept)
    assert put_back is not None
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(1.0)
    assert not looks_evenly(model)
    put_back()
    assert looks_evenly(model)
    same = {
        name: (value == before[name]).detach().flatten(1).all(dim=1)
        if value.ndim == 2
        else (value == before[name]).detach()
        for name, value in attention.named_parameters()
    }
    assert same["q_proj.weight"].tolist() == [False] * 160 + [True] * 32
    assert same["k_proj.bias"].sum() == 1
    # Of three answers there are three values, the last ones; the others are free to move.
    assert same["v_proj.weight"].tolist() == [False] * 61 + [readings_kept] * 3


def test_a_model_without_the_head_keeps_nothing() -> None:
    tokenizer = train_tokenizer(["a nodule"] * 3, vocabulary=400)
    assert averages_keeper(new_model(embedded_config(tokenizer))) is None


def test_numbers_of_either_side_are_labelled() -> None:
    requests = [FindingRequest(NODULE, side=side) for side in ("left", "right", "left")]
    labels = labelled_view(_case(*requests)).labels
    assert labels is not None
    numbers = {
        side: ANSWERS[number_name(NODULE, side)][
            labels.answers[tuple(ANSWERS).index(number_name(NODULE, side))]
        ]
        for side in ("right", "left")
    }
    assert numbers == {"right": "one", "left": "two"}


def test_nothing_is_gathered_where_nothing_is_counted() -> None:
    assert "nodule_count" in gathered_answers(CHEST_LABELS)
    assert not gathered_answers(labels_of("head_ct"))
