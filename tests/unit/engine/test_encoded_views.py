"""Visual tokens of views that are kept: which images are the same, and how many stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.encoded_views import EncodedViews
from engine.geometry import PatchGrid
from engine.processor import SeenImage

# Of the tokens below: two rows of four float32.
ONE = 2 * 4 * 4


def seen(value: float, rows: int = 1, columns: int = 2, *, is_grey: bool = False) -> SeenImage:
    """An image whose value stands in its last number alone, which is not that of a twin frame."""
    values = torch.zeros(4 * rows * columns, 3, 2, 196)
    values[-1, 0 if is_grey else 2, :, -1] = value
    return SeenImage(
        pixel_values=values.flatten(1),
        grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]]),
        grid=PatchGrid(rows, columns),
        width=28 * columns,
        height=28 * rows,
        is_grey=is_grey,
    )


def tower() -> tuple[Callable[[SeenImage], torch.Tensor], list[float]]:
    """Encodes to the image's value, and notes which images it was given."""
    given: list[float] = []

    def encode(image: SeenImage) -> torch.Tensor:
        given.append(float(image.pixel_values.max()))
        return torch.full((2, 4), given[-1])

    return encode, given


@pytest.mark.parametrize("is_grey", [False, True])
def test_an_image_is_encoded_once(is_grey: bool) -> None:
    encode, given = tower()
    kept = EncodedViews(10 * ONE)

    images = [seen(value, is_grey=is_grey) for value in (1.0, 2.0, 1.0, 2.0)]
    found = [kept.tokens(image, encode) for image in images]

    assert given == [1.0, 2.0]
    assert [float(tokens[0, 0]) for tokens in found] == [1.0, 2.0, 1.0, 2.0]
    assert kept.kept_bytes == 2 * ONE


def test_the_same_pixels_in_another_grid_are_another_image() -> None:
    encode, given = tower()
    kept = EncodedViews(10 * ONE)
    kept.tokens(seen(1.0, 1, 2), encode)
    kept.tokens(seen(1.0, 2, 1), encode)

    assert given == [1.0, 1.0]


def test_those_used_longest_ago_go_first() -> None:
    encode, given = tower()
    kept = EncodedViews(2 * ONE)
    for value in (1.0, 2.0, 1.0, 3.0):
        kept.tokens(seen(value), encode)
    given.clear()

    for value in (1.0, 3.0, 2.0):
        kept.tokens(seen(value), encode)

    assert given == [2.0]
    assert kept.kept_bytes == 2 * ONE


def test_what_does_not_fit_is_encoded_every_time() -> None:
    encode, given = tower()
    kept = EncodedViews(ONE)
    kept.tokens(seen(1.0), encode)

    def encode_more(image: SeenImage) -> torch.Tensor:
        return torch.cat([encode(image), torch.zeros(1, 4)])

    for _ in range(2):
        kept.tokens(seen(2.0), encode_more)
    # And nothing that fits has made way for it.
    kept.tokens(seen(1.0), encode)

    assert given == [1.0, 2.0, 2.0]
    assert kept.kept_bytes == ONE
