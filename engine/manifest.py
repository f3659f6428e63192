"""What a checkpoint says of itself: `lightbox.json` beside its weights.

A checkpoint without that file (any Qwen2.5-VL from a hub) gets the defaults: the full prompt,
the image first, Qwen's own pixel budgets, and no claim of having been trained for anything.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from engine.coordinates import CoordinateKind

MANIFEST_FILE = "lightbox.json"
MANIFEST_LIMIT_BYTES = 1_000_000

PromptStyle = Literal["full", "compact"]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message is one sentence for the user."""


class ManifestError(ValueError):
    """A `lightbox.json` that cannot be used; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBudget:
    """Least and most pixels of an image after the model's own resize."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 28 * 28 <= self.least <= self.most:
            raise ManifestError(
                f"A pixel budget needs 784 <= least <= most, not {self.least} and {self.most}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """How to talk to a checkpoint, and what it was trained for.

    Attributes:
        name: what the interface calls the checkpoint.
        stage: training stage (`base`, `cold-start`, `medlvr`, ...).
        embedded: whether it is one of the small models shipped with the project.
        trained_methods: methods that it was trained for.
        prompt_style: `full` for general chat models, `compact` for the embedded ones.
        coordinates: what a zoom call counts places in: `pixels` of the image as the model sees it
            (Qwen2.5-VL), or `thousandths` of its sides (Qwen3-VL).
        question_first: whether the question stands before the image in the prompt.
        view, crop: pixel budgets of the whole image and of a zoom crop.
        crop_padding: share of the box's own size added on every side of a crop.
        entropy_threshold: nats above which a reasoning token counts as unsure, set on validation
            images; None: nobody set one.
        notices: sentences for the user about what the checkpoint does not know.
    """

    name: str = "Qwen2.5-VL"
    stage: str = "unknown"
    embedded: bool = False
    trained_methods: tuple[str, ...] = ()
    prompt_style: PromptStyle = "full"
    coordinates: CoordinateKind = "pixels"
    question_first: bool = False
    view: PixelBudget = PixelBudget(least=256 * 28 * 28, most=1280 * 28 * 28)
    crop: PixelBudget = PixelBudget(least=256 * 28 * 28, most=1280 * 28 * 28)
    crop_padding: float = 0.0
    entropy_threshold: float | None = None
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.prompt_style not in get_args(PromptStyle):
            raise ManifestError(f"prompt_style must be full or compact, not {self.prompt_style!r}.")
        if self.coordinates not in get_args(CoordinateKind):
            raise ManifestError(
                f"coordinates must be {' or '.join(get_args(CoordinateKind))}, not "
                f"{self.coordinates!r}."
            )
        if not 0.0 <= self.crop_padding <= 1.0:
            raise ManifestError(f"crop_padding must lie in 0 to 1, not {self.crop_padding}.")

    def to_json(self) -> str:
        """The text of `lightbox.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads `lightbox.json`.

        Raises:
            ManifestError: on anything but the known keys with values of the right kind.
        """
        try:
            (manifest,) = _adapter().validate_json(f"[{text}]")
        except ValidationError as error:
            raise ManifestError(_sentence(error)) from error
        return manifest


@functools.cache
def _adapter() -> TypeAdapter[tuple[Manifest]]:
    # A bare dataclass cannot be given a config; its one-tuple can, and passes it on.
    one: Any = tuple.__class_getitem__((Manifest,))
    return TypeAdapter(one, config=ConfigDict(strict=True, extra="forbid"))


def _sentence(found: ValidationError) -> str:
    """What is wrong first, and where, out of what pydantic says of the one-tuple."""
    error = found.errors()[0]
    where = ".".join(str(part) for part in error["loc"][1:])
    if error["type"] == "json_invalid":
        return f"{MANIFEST_FILE} is not valid JSON."
    if error["type"] == "unexpected_keyword_argument":
        return f"{MANIFEST_FILE} has the unknown key {where!r}."
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if not where:
        return f"{MANIFEST_FILE} must hold one JSON object."
    says = error["msg"][0].lower() + error["msg"][1:]
    return f"{MANIFEST_FILE} has a value of the wrong kind at {where!r}: {says}."


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder, or the defaults when it has none.

    Raises:
        ManifestError: when the file is there and cannot be used.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return Manifest()
    if path.stat().st_size > MANIFEST_LIMIT_BYTES:
        raise ManifestError(f"{MANIFEST_FILE} is larger than {MANIFEST_LIMIT_BYTES} bytes.")
    return Manifest.from_json(path.read_text(encoding="utf-8"))
