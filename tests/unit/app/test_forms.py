"""What the page sends becomes a request, or one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.forms import request_from, window_from
from engine.geometry import Box
from engine.imaging import Window
from engine.request import DisplayImage, Request, RequestError

IMAGE = DisplayImage(pixels=np.zeros((4, 4), dtype=np.uint8))
GOOD: dict[str, Any] = {"question": "Is it?", "options": ["yes", "no"], "method": "zoom"}


def made(donor: tuple[bytes, ...] = (), **changes: object) -> Request:
    return request_from({**GOOD, **changes}, IMAGE, donor)


def test_a_filled_form_becomes_a_request() -> None:
    request = made(
        seed=7,
        temperature=0.5,
        max_crops=3,
        latent_steps=4,
        threshold=1.5,
        changes={
            "latents": "zero",
            "skip_crops": [1],
            "move_crops": [[2, 0.5, 0.5, 0.75, 1.0]],
            "occlude": [[0.1, 0.2, 0.5, 1.5]],
        },
    )

    assert (request.question, request.options, request.method) == ("Is it?", ("yes", "no"), "zoom")
    assert (request.seed, request.sampling.temperature) == (7, 0.5)
    assert (request.budgets.max_crops, request.budgets.latent_steps) == (3, 4)
    assert request.entropy_threshold == 1.5
    assert request.interventions.latents == "zero"
    assert request.interventions.skip_crops == (1,)
    assert request.interventions.move_crops == ((2, Box(0.5, 0.5, 0.75, 1.0)),)
    assert request.interventions.occlude == (Box(0.1, 0.2, 0.5, 1.0),)


def test_what_is_left_empty_takes_its_default() -> None:
    request = made(seed=None, threshold="", options=None)

    assert (request.seed, request.entropy_threshold, request.options) == (0, None, ())


def test_the_checkpoint_s_own_threshold_can_be_asked_for() -> None:
    assert made(threshold="checkpoint").entropy_threshold == "checkpoint"


def test_blank_options_are_dropped_and_others_trimmed() -> None:
    assert made(options=["  yes ", "", " ", "no"]).options == ("yes", "no")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"question": "  "}, "empty"),
        ({"question": ["x"]}, "text"),
        ({"question": "x" * 1001}, "1000"),
        ({"changes": {"move_crops": [[0, 0, 0, 1, 1]]}}, "no such crop"),
        ({"changes": {"move_crops": [["1", 0, 0, 1, 1]]}}, "only be moved"),
        ({"changes": {"move_crops": [[1, 0, 0, 1]]}}, "only be moved"),
        ({"changes": {"move_crops": [[1, 0.5, 0.5, 0.5, 0.5]]}}, "region"),
        ({"options": ["one"]}, "options"),
        ({"options": "yes"}, "list"),
        ({"options": ["yes", 3]}, "list"),
        ({"options": ["yes", " yes"]}, "same"),
        ({"method": "magic"}, "method"),
        ({"seed": "7"}, "number"),
        ({"seed": True}, "number"),
        ({"seed": -1}, "Seed must be a whole number from 0."),
        ({"temperature": float("nan")}, "range"),
        ({"temperature": 10**400}, "range"),
        ({"threshold": -1}, "Threshold must be a number from 0 to 20."),
        ({"temperature": 2.1}, "Temperature must be a number from 0 to 2."),
        ({"max_crops": 99}, "Max crops must be a whole number from 0 to 8."),
        ({"max_crops": 1.5}, "Max crops must be a whole number"),
        ({"latent_steps": 33}, "Latent steps must be a whole number from 0 to 32."),
        ({"latent_steps": 1e300}, "range"),
        ({"changes": {"latents": "shuffle"}}, "another image"),
        ({"changes": {"latents": "melt"}}, "latents"),
        ({"changes": {"latents": 3}}, "must be text"),
        ({"changes": {"latents": {}, "occlude": [[0, 0, 0, 0]]}}, "region"),
        ({"changes": {"occlude": [["a", 0, 1, 1]]}}, "region"),
        ({"changes": {"occlude": [None]}}, "region"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        made(**changes)


def test_inner_steps_of_another_image_are_taken_only_where_they_are_asked_for() -> None:
    donor = (b"\0\0\0\0",)

    swapped = made(donor, changes={"latents": "shuffle"})
    plain = made(donor, changes={"latents": "zero"})

    assert swapped.interventions.latent_donor == donor
    assert plain.interventions.latent_donor == ()


def test_crop_numbers_that_are_none_are_left_out() -> None:
    changes = {"skip_crops": [1, "2", True, 0, 99, 3]}

    assert made(changes=changes).interventions.skip_crops == (1, 3)


def test_an_untouched_window_is_none() -> None:
    assert window_from({}) == (None, "")


def test_a_window_keeps_its_function_and_source() -> None:
    given = {"window": [40, 400, "LINEAR", "preset"]}

    assert window_from(given) == (Window(40.0, 400.0, "LINEAR"), "preset")


@pytest.mark.parametrize(
    "window",
    [[40, 0, "LINEAR", "preset"], [40, 400, "LINEAR", "magic"], [40, 400], "wide", 7,
     [None, 1, "LINEAR", "preset"], [float("nan"), 1, "LINEAR", "preset"]],
)  # fmt: skip
def test_a_window_that_is_none_is_refused(window: object) -> None:
    with pytest.raises(RequestError, match="window"):
        window_from({"window": window})
