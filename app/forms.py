"""What the page sends, checked and turned into a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, cast

from app.texts import NO_DONOR
from engine.geometry import Box, BoxError, clamped_box
from engine.imaging import Window
from engine.request import (
    Budgets,
    DisplayImage,
    Interventions,
    LatentIntervention,
    Method,
    Request,
    RequestError,
    Sampling,
)

MAX_BOXES: Final = 8
# Least and largest value of each number, and whether it is a whole one; the page says the same
# before it asks. The engine takes more, which would only surprise whoever typed it.
LIMITS: Final[Mapping[str, tuple[float, float | None, bool]]] = {
    "threshold": (0, 20, False),
    "max_crops": (0, 8, True),
    "latent_steps": (0, 32, True),
    "temperature": (0, 2, False),
    "seed": (0, None, True),
}


def request_from(
    form: Mapping[str, Any], image: DisplayImage, donor: tuple[bytes, ...] = ()
) -> Request:
    """The request that a filled-in form asks for.

    Args:
        form: `question`, `options`, `method`, and optionally `seed`, `temperature`,
            `max_crops`, `latent_steps`, `threshold` and `changes`.
        image: the image under the window of the viewer.
        donor: inner steps of a run on another image, for where the form asks for them.

    Raises:
        RequestError: with a sentence for the user, for anything that cannot be run.
    """
    default = Budgets()
    return Request(
        image=image,
        question=_text(form, "question"),
        options=_options(form.get("options")),
        method=cast("Method", _text(form, "method") or "auto"),
        seed=int(_number(form, "seed", 0)),
        sampling=Sampling(temperature=_number(form, "temperature", 0.0)),
        budgets=Budgets(
            max_new_tokens=int(_number(form, "max_new_tokens", default.max_new_tokens)),
            max_crops=int(_number(form, "max_crops", default.max_crops)),
            latent_steps=int(_number(form, "latent_steps", default.latent_steps)),
        ),
        entropy_threshold="checkpoint"
        if form.get("threshold") == "checkpoint"
        else _optional_number(form, "threshold"),
        interventions=_interventions(form.get("changes"), donor),
    )


def window_from(form: Mapping[str, Any]) -> tuple[Window | None, str]:
    """The window that the user set and where it came from; None when it is untouched.

    Raises:
        RequestError: when it is no window.
    """
    given = form.get("window")
    if given is None:
        return None, ""
    try:
        center, width, function, source = given
        if source not in ("preset", "request"):
            raise ValueError
        return Window(float(center), float(width), function), source
    except (TypeError, ValueError) as error:
        raise RequestError("The window of the viewer is out of range: reset it.") from error


def _text(form: Mapping[str, Any], name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise RequestError(f"The field {name} must be text.")
    return value


def _options(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise RequestError("The answer options must be a list of texts.")
    options = tuple(option.strip() for option in value if option.strip())
    if len(set(options)) != len(options):
        raise RequestError("Two answer options are the same.")
    return options


def _number(form: Mapping[str, Any], name: str, default: float) -> float:
    value = _optional_number(form, name)
    return default if value is None else value


def _optional_number(form: Mapping[str, Any], name: str) -> float | None:
    value = form.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name.replace('_', ' ').capitalize()} must be a number.")
    # Integers can be too large for a float at all.
    if abs(value) > 2**63 or not math.isfinite(value):
        raise RequestError(f"{name.replace('_', ' ').capitalize()} is out of range.")
    _check_limits(name, value)
    return value


def _check_limits(name: str, value: float) -> None:
    low, high, whole = LIMITS.get(name, (value, value, False))
    if value < low or (high is not None and value > high) or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        span = f"from {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise RequestError(f"{name.replace('_', ' ').capitalize()} must be {kind} {span}.")


def _interventions(changes: object, donor: tuple[bytes, ...]) -> Interventions:
    if not isinstance(changes, Mapping):
        return Interventions()
    latents = changes.get("latents") or "none"
    if not isinstance(latents, str):
        raise RequestError("The change of the inner steps must be text.")
    if latents == "shuffle" and not donor:
        raise RequestError(NO_DONOR)
    return Interventions(
        latents=cast("LatentIntervention", latents),
        latent_donor=donor if latents == "shuffle" else (),
        skip_crops=tuple(
            number
            for number in _list(changes.get("skip_crops"))
            if type(number) is int and 1 <= number <= 16
        ),
        move_crops=tuple(_move(values) for values in _list(changes.get("move_crops"))),
        occlude=tuple(_box(values) for values in _list(changes.get("occlude"))),
    )


def _list(value: object) -> list[Any]:
    return value[:MAX_BOXES] if isinstance(value, list) else []


def _move(values: object) -> tuple[int, Box]:
    if not isinstance(values, list) or len(values) != 5 or type(values[0]) is not int:
        raise RequestError("A crop can only be moved to a box on the image.")
    if not 1 <= values[0] <= 16:
        raise RequestError("There is no such crop to move.")
    return values[0], _box(values[1:])


def _box(values: object) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in cast("list[float]", values))
        return clamped_box(x0, y0, x1, y1)[0]
    except (TypeError, ValueError, BoxError) as error:
        raise RequestError("A region drawn on the image is empty or lies outside it.") from error
