"""One phantom: its pixels and its truth, as functions of a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, overload

from training.phantoms.breast_ultrasound import words as breast_words
from training.phantoms.breast_ultrasound.draw import draw as draw_breast
from training.phantoms.breast_ultrasound.scene import plan as plan_breast
from training.phantoms.config import PhantomConfig
from training.phantoms.draw import draw
from training.phantoms.film import MAX_STORED
from training.phantoms.head_ct import words as head_words
from training.phantoms.head_ct.draw import draw as draw_head
from training.phantoms.head_ct.scene import plan as plan_head
from training.phantoms.label_names import CHEST_LABELS, LabelNames
from training.phantoms.scene import plan
from training.phantoms.section import Pixels, SectionConfig, SectionTruth
from training.phantoms.truth import Truth

AnyConfig = PhantomConfig | SectionConfig
AnyTruth = Truth | SectionTruth

CHEST: Final = "chest"


@dataclass(frozen=True)
class SectionModality:
    """How phantoms of a section are made.

    Attributes:
        labels: what they can show.
        plan: scene and truth of a seed and a configuration.
        draw: pixels of a scene and a seed.
    """

    labels: LabelNames
    plan: Callable[[int, SectionConfig], tuple[Any, SectionTruth]]
    draw: Callable[[Any, int], Pixels]


SECTIONS: Final = {
    head_words.STUDY: SectionModality(head_words.HEAD_LABELS, plan_head, draw_head),
    breast_words.STUDY: SectionModality(breast_words.BREAST_LABELS, plan_breast, draw_breast),
}
MODALITIES: Final = (CHEST, *SECTIONS)


@dataclass(frozen=True)
class Phantom:
    """One phantom.

    Attributes:
        pixels: (rows, columns). A chest radiograph holds stored values, uint16 in [0, 4095]; bright
            means little attenuation where ``truth.photometric`` is ``MONOCHROME1``. A CT slice
            holds Hounsfield units, int16; an ultrasound image grey levels, uint8.
        truth: what was drawn.
    """

    pixels: Pixels
    truth: AnyTruth


def default_config(modality: str) -> AnyConfig:
    """What a phantom of a modality shows when nothing is asked for.

    Raises:
        ValueError: an unknown modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"Unknown modality {modality!r}; use one of {', '.join(MODALITIES)}.")
    return PhantomConfig() if modality == CHEST else SectionConfig(modality)


def labels_of(modality: str) -> LabelNames:
    """What phantoms of a modality can show."""
    return CHEST_LABELS if modality == CHEST else SECTIONS[modality].labels


def modality_of(truth: AnyTruth) -> str:
    """Modality of a phantom, one of ``MODALITIES``."""
    return truth.study if isinstance(truth, SectionTruth) else CHEST


def generate(seed: int, config: AnyConfig | None = None) -> Phantom:
    """Draw the phantom of a seed: of a chest unless the configuration is that of a section.

    Raises:
        ValueError: a negative seed, or findings that fit into no patient at once.
    """
    if isinstance(config, SectionConfig):
        section = _section(config)
        scene, truth = section.plan(seed, config)
        return Phantom(section.draw(scene, seed), truth)
    chest, chest_truth = plan(seed, config or PhantomConfig())
    pixels = draw(chest, seed)
    if chest_truth.photometric == "MONOCHROME1":
        pixels = (MAX_STORED - pixels).astype("uint16")
    return Phantom(pixels, chest_truth)


@overload
def truth_for(seed: int, config: PhantomConfig | None = None) -> Truth: ...
@overload
def truth_for(seed: int, config: SectionConfig) -> SectionTruth: ...
@overload
def truth_for(seed: int, config: AnyConfig) -> AnyTruth: ...
def truth_for(seed: int, config: AnyConfig | None = None) -> AnyTruth:
    """Truth of the phantom that :func:`generate` draws, at a fraction of the cost."""
    if isinstance(config, SectionConfig):
        return _section(config).plan(seed, config)[1]
    return plan(seed, config or PhantomConfig())[1]


def truth_from_json(record: dict[str, Any]) -> AnyTruth:
    """Truth of any modality from the dictionary that its ``to_json`` made."""
    return SectionTruth.from_json(record) if "study" in record else Truth.from_json(record)


def _section(config: SectionConfig) -> SectionModality:
    if config.study not in SECTIONS:
        raise ValueError(f"Unknown section {config.study!r}; use one of {', '.join(SECTIONS)}.")
    return SECTIONS[config.study]
