"""Questions about phantoms at their native size, for rollouts: drawn when needed, then kept.

A zoom cuts its crop out of the original pixels, which the prepared pictures of fine-tuning
(`training.world`) no longer have. Drawing a phantom takes as long as rolling out a short group,
so that every one is written to a folder which runs can share.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.geometry import PatientSide
from engine.request import DisplayImage
from training.checkpoints import write_whole
from training.phantoms import to_view8
from training.phantoms.truth import SPLITS, seed_for
from training.questions import (
    ALL_FAMILIES,
    FAMILIES,
    FAMILIES_OF,
    FINE_FAMILIES,
    Question,
    QuestionCase,
    case_for,
)
from training.world import GENERATOR_VERSION

# What a file of each modality says of itself: modality, and the patient's side at its left edge.
_SHOWN: Final[dict[str, tuple[str, PatientSide]]] = {
    "chest": ("DX", "right"),
    "head_ct": ("CT", "right"),
    "breast_ultrasound": ("US", ""),
}
# As a benchmark asks: the three fine families as often as three others each.
DEFAULT_FAMILIES: Final = (*FAMILIES, *FINE_FAMILIES, *FINE_FAMILIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """Which questions, about which phantoms.

    Attributes:
        count: how many, each about a phantom of its own.
        seed: of the phantoms.
        split: of the phantoms; splits never share one.
        families: in turn, with the answers of each in turn; one named twice is asked twice as
            often. None named: all of the chest, the fine ones three times as often.
    """

    count: int
    seed: int
    split: str = "train"
    families: tuple[str, ...] = DEFAULT_FAMILIES

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}.")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}.")
        unknown = sorted(set(self.families) - set(ALL_FAMILIES))
        if unknown or not self.families:
            raise ValueError(
                f"families must be some of {', '.join(ALL_FAMILIES)}, not {list(self.families)}."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One question about one image.

    Attributes:
        question: with its answer and targets, which no prompt and no reward is told of but for
            right and wrong.
        image: as the viewer would show it, at its native size.
    """

    question: Question
    image: DisplayImage

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 `(H, W)`, the displayed image."""
        return self.image.pixels


class PromptPool(Sequence[Prompt]):
    """The prompts of a configuration, by their numbers.

    Args:
        folder: for pools of any configuration.
        config: which.

    Attributes:
        folder: holds those of this pool that have been drawn.
    """

    def __init__(self, folder: Path, config: PromptConfig) -> None:
        self.config = config
        families = zlib.crc32(",".join(config.families).encode())
        version = f"v{GENERATOR_VERSION}"
        self.folder = folder / f"{version}-{config.split}-{config.seed}-{families:08x}"

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, number: int) -> Prompt:  # type: ignore[override]
        """A prompt, drawn if it has not been before.

        Raises:
            IndexError: there is no such prompt.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"There are {len(self)} prompts, and none has the number {number}.")
        path = self._path(number)
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_prompt(path, ordered_case(self.config, number))
        return read_prompt(path)

    @property
    def missing(self) -> int:
        """How many have not been drawn yet."""
        return sum(not self._path(number).exists() for number in range(len(self)))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def ordered_case(config: PromptConfig, number: int) -> QuestionCase:
    """The question with a number: families in turn, answers in turn inside a family."""
    name = config.families[number % len(config.families)]
    answers = ALL_FAMILIES[name].answers
    answer = answers[number // len(config.families) % len(answers)]
    return case_for(name, answer, seed_for(config.split, number, config.seed))


def phantom_image(pixels: npt.NDArray[np.uint8], modality: str) -> DisplayImage:
    """A phantom as the viewer would show its file.

    Args:
        pixels: uint8 `(H, W)`.
        modality: of `training.phantoms.MODALITIES`.
    """
    shown, edge = _SHOWN[modality]
    return DisplayImage(pixels=pixels, modality=shown, left_edge=edge)


def write_prompt(path: Path, ordered: QuestionCase) -> None:
    """Draws the phantom of a question and writes both, whole or not at all."""
    pixels = to_view8(ordered.phantom())
    words = json.dumps(dataclasses.asdict(ordered.question)).encode()
    content = io.BytesIO()
    np.savez_compressed(content, pixels=pixels, question=np.frombuffer(words, dtype=np.uint8))
    # Runs share the folder, and so do the processes of a run.
    write_whole(path, lambda file: file.write(content.getvalue()), is_shared=True)


def read_prompt(path: Path) -> Prompt:
    """Reads what `write_prompt` wrote."""
    with np.load(path, allow_pickle=False) as data:
        pixels, words = data["pixels"], json.loads(data["question"].tobytes())
    words["options"] = tuple(words["options"])
    words["target_boxes"] = tuple(tuple(box) for box in words["target_boxes"])
    question = Question(**words)
    modality = next(name for name, known in FAMILIES_OF.items() if question.family in known)
    return Prompt(question, phantom_image(pixels, modality))


def numbers_of_batch(kept: Sequence[int], size: int, batch: int, seed: int) -> list[int]:
    """Which prompts a rollout batch asks: every epoch in an order of its own.

    Args:
        kept: numbers of the prompts to choose from.
        size: prompts of a batch; an epoch's last batch may reach into the next.
        batch: its number, from 0.
        seed: of the orders.

    Raises:
        ValueError: there is no prompt.
    """
    if not kept:
        raise ValueError("There is no prompt to choose from.")
    numbers = []
    for place in range(batch * size, (batch + 1) * size):
        epoch, index = divmod(place, len(kept))
        order = np.random.default_rng([seed, 21, epoch]).permutation(len(kept))
        numbers.append(kept[int(order[index])])
    return numbers
