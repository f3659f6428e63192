"""Questions about images of one's own, from a JSONL file (methods notes, 2.3).

One object a line: an image, a question, its answer, and the boxes that decide it, for latent
segments and zooms. They join the phantoms of a fine-tuning, or take their place; as prompts of
reinforcement they are asked without their boxes.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.geometry import FULL_IMAGE, Box, BoxError, PatchGrid, clamped_box
from engine.imaging import ImagingError, open_image, render
from engine.manifest import PixelBudget
from engine.processor import TOKEN_SIZE, crop_pixels
from engine.prompt import option_letter
from engine.request import DisplayImage
from training.config import ConfigError
from training.language import Asked
from training.prompts import Prompt
from training.question_forms import LOOK_CLOSER, Question
from training.world import CROP_PADDING, VIEW_BUDGET, Picture, jittered, resized

OWN_FAMILY: Final = "own"
BOX_FORMATS: Final = ("norm_xyxy", "pixel_xyxy", "pixel_xywh")
# Rounded corners of a box may lie this many pixels outside.
_SLACK_PX: Final = 1.0
_NEEDED: Final = ("image", "question", "answer")
_TEXTS: Final = (
    *("answer_text", "modality", "reasoning", "reasoning_before_zoom", "reasoning_after_zoom"),
    *("split", "source"),
)
_KNOWN: Final = (*_NEEDED, *_TEXTS, "id", "options", "bboxes", "bbox_format")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsConfig:
    """Which records, and how large the model sees their images.

    Attributes:
        train: JSONL file; of its records that name a split those of `train`.
        validation: the same, those of `validation`; None: there are none.
        least_pixels: of an image as the model sees it.
        most_pixels: of an image as the model sees it; all images are held in memory at that size.
        crops_per_target: pictures of the box of a question with exactly one, jittered, for zooms;
            0: no zoom is taught.
    """

    train: Path
    validation: Path | None = None
    least_pixels: int = VIEW_BUDGET.least
    most_pixels: int = VIEW_BUDGET.most
    crops_per_target: int = 0

    def __post_init__(self) -> None:
        if self.crops_per_target < 0:
            raise ValueError(f"crops_per_target must not be negative, not {self.crops_per_target}.")
        _ = self.budget  # which says what is wrong with it

    @property
    def budget(self) -> PixelBudget:
        """Least and most pixels."""
        return PixelBudget(least=self.least_pixels, most=self.most_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPromptsConfig:
    """Which records a policy is asked, and scored on.

    Attributes:
        train: JSONL file; of its records that name a split those of `train`.
        validation: the same, those of `validation`.
        count: of each, from the first on; 0: all.
    """

    train: Path
    validation: Path
    count: int = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, not {self.count}.")


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """One line of a file.

    Attributes:
        image: its path.
        question: with boxes in shares of the image.
        modality: as the file names it; empty where it does not.
    """

    image: Path
    question: Question
    modality: str

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 `(H, W)`: the image as the viewer shows it, in grey.

        Raises:
            ConfigError: it cannot be opened.
        """
        return opened(self.image)


def opened(path: Path) -> npt.NDArray[np.uint8]:
    """An image as the viewer shows it, in grey; uint8 `(H, W)`.

    In this process: these are files of one's own, and thousands of them.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        shown = render(open_image(path, sandboxed=False))
    except ImagingError as error:
        raise ConfigError(f"{path.name}: {error.message}") from error
    return shown if shown.ndim == 2 else np.asarray(Image.fromarray(shown).convert("L"))


def read_records(path: Path, split: str) -> list[OwnRecord]:
    """The records of a file that are of a split, or of none.

    Raises:
        ConfigError: the file cannot be read, a line is not of the form, an image is not there, or
            no record is of the split. Says which line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the records {path.name}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            if isinstance(raw, dict) and raw.get("split", split) != split:
                continue
            found.append(_record(raw, path.parent))
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ConfigError) else "It is not valid JSON."
            raise ConfigError(f"{path.name}, line {number}: {reason}") from error
    if not found:
        raise ConfigError(f"{path.name} holds no record of the split {split}.")
    return found


class OwnPrompts(Sequence[Prompt]):
    """Records as what a policy is asked; an image is opened when it is needed.

    Args:
        path: JSONL file.
        split: whose records.
        count: how many, from the first on; 0: all.

    Raises:
        ConfigError: see `read_records`.
    """

    def __init__(self, path: Path, split: str, count: int = 0) -> None:
        records = read_records(path, split)
        self._records = records[: count or len(records)]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> Prompt:  # type: ignore[override]
        """A prompt.

        Raises:
            IndexError: there is no such prompt.
            ConfigError: its image cannot be opened.
        """
        record = self._records[number]
        image = DisplayImage(pixels=record.pixels, modality=record.modality)
        return Prompt(record.question, image)


def _record(raw: Any, folder: Path) -> OwnRecord:  # noqa: ANN401
    if not isinstance(raw, dict):
        raise ConfigError("A line must hold one object.")
    for key in raw:
        if key not in _KNOWN:
            near = difflib.get_close_matches(str(key), _KNOWN, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"Unknown key {key!r}.{hint}")
    for key in _NEEDED:
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise ConfigError(f"{key!r} must be a text that is not empty.")
    for key in _TEXTS:
        if not isinstance(raw.get(key, ""), str):
            raise ConfigError(f"{key!r} must be a text.")
    image = folder / raw["image"]
    if not image.is_file():
        raise ConfigError(f"There is no image {raw['image']}.")
    options = _options(raw.get("options", []))
    reasoning = str(raw.get("reasoning", ""))
    question = Question(
        family=OWN_FAMILY,
        kind="coarse",
        text=raw["question"],
        options=options,
        answer=_answer(raw["answer"], raw.get("answer_text", ""), options),
        target_boxes=tuple(box.as_tuple() for box in _boxes(raw, image)),
        reasoning=reasoning,
        reasoning_before_zoom=str(raw.get("reasoning_before_zoom", LOOK_CLOSER)),
        reasoning_after_zoom=str(raw.get("reasoning_after_zoom", reasoning)),
    )
    return OwnRecord(image, question, raw.get("modality", ""))


def _options(raw: Any) -> tuple[str, ...]:  # noqa: ANN401
    if not isinstance(raw, list) or not all(isinstance(o, str) and o.strip() for o in raw):
        raise ConfigError("'options' must be a list of texts.")
    if len(raw) == 1 or len(set(raw)) < len(raw):
        raise ConfigError("'options' must be none, or at least two different ones.")
    return tuple(raw)


def _answer(raw: str, text: str, options: tuple[str, ...]) -> str:
    """The answer in words: of a letter, that of its option."""
    if not options:
        return text or raw
    if raw in options:
        answer = raw
    else:
        letters = {option_letter(number): option for number, option in enumerate(options)}
        if raw not in letters:
            raise ConfigError(f"'answer' is {raw!r}, neither an option nor its letter.")
        answer = letters[raw]
    if text not in ("", answer):
        raise ConfigError(f"'answer' stands for {answer!r}, and 'answer_text' is {text!r}.")
    return answer


def _boxes(raw: dict[str, Any], image: Path) -> Iterator[Box]:
    """The boxes in shares of the image, the largest first.

    One that reaches outside is refused: it tells of another form than the file says.
    """
    boxes, form = raw.get("bboxes", []), raw.get("bbox_format", BOX_FORMATS[0])
    if form not in BOX_FORMATS:
        raise ConfigError(f"'bbox_format' must be one of {', '.join(BOX_FORMATS)}, not {form!r}.")
    if not isinstance(boxes, list):
        raise ConfigError("'bboxes' must be a list of boxes.")
    height, width = (1, 1) if form == BOX_FORMATS[0] or not boxes else opened(image).shape
    found = []
    for box in boxes:
        if not (
            isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        ):
            raise ConfigError("A box must be a list of four numbers.")
        x0, y0, x1, y1 = (float(value) for value in box)
        if form == "pixel_xywh":
            x1, y1 = x0 + x1, y0 + y1
        slack = 0.0 if form == BOX_FORMATS[0] else _SLACK_PX
        if min(x0, y0) < -slack or x1 > width + slack or y1 > height + slack:
            raise ConfigError(f"The box {box} reaches outside of the image as {form}.")
        try:
            found.append(clamped_box(x0 / width, y0 / height, x1 / width, y1 / height)[0])
        except BoxError as error:
            raise ConfigError(f"The box {box} is none as {form}: {error}") from error
    yield from sorted(found, key=lambda box: -box.area)


def asked_of_records(records: list[OwnRecord], config: RecordsConfig, seed: int) -> list[Asked]:
    """The records as what a fine-tuning draws from; an image of several questions is read once.

    Raises:
        ConfigError: an image cannot be opened.
    """
    rng = np.random.default_rng([seed, 31])
    images: dict[Path, tuple[npt.NDArray[np.uint8], Picture]] = {}
    found = []
    for record in records:
        if record.image not in images:
            pixels = record.pixels
            images[record.image] = pixels, own_picture(pixels, FULL_IMAGE, config.budget)
        pixels, view = images[record.image]
        crops: dict[Box, tuple[Picture, ...]] = {}
        if config.crops_per_target and len(record.question.target_boxes) == 1:
            box = Box(*record.question.target_boxes[0])
            crops[box] = tuple(
                own_picture(pixels, jittered(box, rng, 0.1).padded(CROP_PADDING), config.budget)
                for _ in range(config.crops_per_target)
            )
        found.append(Asked(record.question, view, crops))
    return found


def own_picture(pixels: npt.NDArray[np.uint8], region: Box, budget: PixelBudget) -> Picture:
    """The picture of a region, of which nothing is known but its pixels."""
    seen = resized(pixels if region == FULL_IMAGE else crop_pixels(pixels, region), budget)
    grid = PatchGrid(seen.shape[0] // TOKEN_SIZE, seen.shape[1] // TOKEN_SIZE)
    return Picture(
        pixels=seen,
        region=region,
        cover=np.zeros((grid.cells, 0), dtype=np.uint8),
        attributes=np.zeros((grid.cells, 0), dtype=np.int8),
        edges=np.zeros((grid.cells, 0, 4), dtype=np.float16),
    )
