"""A written report of a phantom: every structure and finding in a fixed order, with its place.

A question teaches the language model one or two words that depend on the image; a report teaches
thirty. Trained on questions alone, the model learned their wording and no place.
"""

from __future__ import annotations

from typing import Final

from engine.coordinates import CoordinateFrame
from engine.geometry import Box
from training.phantoms import AnyTruth, SectionTruth, labels_of
from training.phantoms.truth import (
    CONSOLIDATION,
    EFFUSION,
    LINE,
    NODULE,
    PNEUMOTHORAX,
    TUBE,
    Finding,
)

REPORT_QUESTIONS: Final = (
    "Describe the image.",
    "What does the image show?",
    "Write a report of the image.",
)
# From right to left as the image shows it, then inwards.
_STRUCTURES: Final = (("right_lung", "right lung"), ("left_lung", "left lung"), ("heart", "heart"))
FINDING_KINDS: Final = (NODULE, CONSOLIDATION, EFFUSION, PNEUMOTHORAX, TUBE, LINE)


def report_text(truth: AnyTruth, size: tuple[int, int]) -> str:
    """One sentence for each organ, each kind of finding, and what the whole image tells.

    Args:
        truth: what was drawn.
        size: height and width of the image as the model sees it; boxes are in its pixels.
    """
    if isinstance(truth, SectionTruth):
        return _section_report(truth, size)
    sentences = [
        f"The {words} lies at {box_text(truth.anatomy[name].box, size)}."
        for name, words in _STRUCTURES
    ]
    sentences[-1] = f"{sentences[-1][:-1]}, {truth.heart_size} in size."
    for kind in FINDING_KINDS:
        found = sorted(truth.of_kind(kind), key=lambda finding: finding.box)
        sentences += [_sentence(finding, size) for finding in found] or [f"No {kind}."]
    return " ".join(sentences)


def _section_report(truth: SectionTruth, size: tuple[int, int]) -> str:
    """The same of a CT slice or an ultrasound image; fine attributes are not seen in a view."""
    names = labels_of(truth.study)
    sentences = [
        f"The {name.replace('_', ' ')} lies at {box_text(truth.anatomy[name].box, size)}."
        for name in names.boxed
        if name in truth.anatomy
    ]
    sentences += [f"{name.capitalize()}: {value}." for name, value in truth.traits.items()]
    for kind in names.findings:
        found = sorted(truth.of_kind(kind), key=lambda finding: finding.box)
        for finding in found:
            coarse = [v for name, v in finding.attributes.items() if name not in names.fine]
            places = [place for place in (finding.side, finding.zone) if place]
            parts = [*places, *coarse, box_text(finding.box, size)]
            sentences.append(f"{kind.capitalize()}: {', '.join(parts)}.")
        sentences += [] if found else [f"No {kind}."]
    return " ".join(sentences)


def _sentence(finding: Finding, size: tuple[int, int]) -> str:
    place = finding.zone or finding.side
    traits = [finding.attributes[name] for name in ("grade", "tip") if name in finding.attributes]
    box = finding.focus if finding.kind in (TUBE, LINE) else finding.box
    return ", ".join([f"{finding.kind.capitalize()}: {place}", *traits, box_text(box, size)]) + "."


def box_text(box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """A box as the tool call writes it, in pixels of an image of `size`, height and width."""
    return f"[{', '.join(str(value) for value in whole_pixels(Box(*box), size))}]"


def whole_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A normalised box in whole pixels of an image of `size`; never empty.

    >>> whole_pixels(Box(0.0, 0.5, 1.0, 0.502), (224, 196))
    (0, 112, 196, 113)
    """
    height, width = size
    return CoordinateFrame.of("pixels", width, height).to_numbers(box)


def places_of(truth: AnyTruth) -> list[tuple[str, Box]]:
    """What there is one of, with its box: organs, and findings that are alone of their kind."""
    if isinstance(truth, SectionTruth):
        names = labels_of(truth.study)
        organs = [(name, name.replace("_", " ")) for name in names.boxed if name in truth.anatomy]
        kinds: tuple[str, ...] = names.findings
    else:
        organs, kinds = list(_STRUCTURES), FINDING_KINDS
    places = [(words, Box(*truth.anatomy[name].box)) for name, words in organs]
    for kind in kinds:
        found = truth.of_kind(kind)
        if len(found) == 1:
            pointed = found[0].focus if kind in (TUBE, LINE) else found[0].box
            places.append((kind, Box(*pointed)))
    return places
