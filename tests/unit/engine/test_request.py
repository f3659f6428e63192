"""What a request refuses."""

from __future__ import annotations

import numpy as np
import pytest

from engine.request import DisplayImage, Request, RequestError


def request(*options: str) -> Request:
    image = DisplayImage(pixels=np.zeros((4, 4), dtype=np.uint8))
    return Request(image=image, question="Is there a nodule?", options=options)


@pytest.mark.parametrize("options", [("yes", "no", "yes"), ("left lung", " left  lung\n")])
def test_equal_options_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"^Two answer options are the same\.$"):
        request(*options)


def test_options_that_differ_in_case_alone_are_two() -> None:
    assert request("mG", "Mg").options == ("mG", "Mg")


@pytest.mark.parametrize("options", [("yes",), ("yes", " "), ("yes", "n" * 10_000)])
def test_options_that_cannot_be_asked_for_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(RequestError):
        request(*options)
