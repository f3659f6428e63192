"""Images to start from: phantoms with known truth, recorded runs, and real files."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.texts import BURNED_IN_SAMPLE
from engine.request import METHODS, Method

INDEX: Final = "samples.json"
TRACE_SUFFIX: Final = ".radtrace.zip"

# Real files that come with the package pydicom-data. They carry no diagnosis, so none is
# printed: the questions ask only for what everybody can see.
REAL_FILES: Final = (
    ("RG1_J2KR.dcm", "Chest radiograph", "CR", "Which body part is shown?"),
    ("RG3_J2KR.dcm", "Radiograph", "CR", "Which body part is shown?"),
    ("693_J2KR.dcm", "CT slice", "CT", "Which imaging modality is this?"),
    ("MR2_J2KR.dcm", "MR slice", "MR", "Which imaging modality is this?"),
    ("US1_J2KR.dcm", "Ultrasound", "US", "Which imaging modality is this?"),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One entry of the list of samples.

    Attributes:
        kind: `phantom` (drawn, with truth), `real` or `recorded` (a saved run).
        truth: what is in the picture, in words; empty when nothing is known.
        burned_in: what text is burned into the picture, for one that somebody has looked at;
            empty for one that holds none.
    """

    path: Path
    title: str
    kind: str
    modality: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    method: Method = "auto"
    truth: str = ""
    burned_in: str = ""

    def to_json(self, index: int) -> dict[str, Any]:
        """What the page shows of it; no path."""
        return {
            "index": index,
            "title": self.title,
            "kind": self.kind,
            "modality": self.modality,
            "question": self.question,
        }

    def form(self) -> dict[str, Any]:
        """What the question box is filled with."""
        return {
            "question": self.question,
            "options": list(self.options),
            "method": self.method,
            "truth": self.truth,
        }


def list_samples(folder: Path) -> tuple[Sample, ...]:
    """The samples of a folder with a `samples.json`, then the real files that are installed."""
    return (*_own_samples(folder), *_real_samples())


def _own_samples(folder: Path) -> list[Sample]:
    index = folder / INDEX
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))
    samples = [_own_sample(folder, entry) for entry in entries]
    return [sample for sample in samples if sample.path.is_file()]


def _own_sample(folder: Path, entry: dict[str, Any]) -> Sample:
    method = entry.get("method", "auto")
    recorded = str(entry["file"]).endswith(TRACE_SUFFIX)
    return Sample(
        path=folder / entry["file"],
        title=entry["title"],
        kind="recorded" if recorded else "phantom",
        modality=entry.get("modality", "DX"),
        question=entry.get("question", ""),
        options=tuple(entry.get("options") or ()),
        method=method if method in METHODS else "auto",
        truth=_truth_in_words(entry.get("truth")),
    )


def _truth_in_words(truth: object) -> str:
    """The truth as one line: a sentence as it is, or a flat mapping as `name: value`."""
    if isinstance(truth, dict):
        plain = (
            f"{key}: {value}"
            for key, value in truth.items()
            if isinstance(value, str | int | float | bool)
        )
        return "; ".join(plain)
    return truth if isinstance(truth, str) else ""


def _real_samples() -> list[Sample]:
    try:
        from pydicom.data import get_testdata_file
    except ImportError:
        return []
    samples = []
    for name, title, modality, question in REAL_FILES:
        path = get_testdata_file(name, download=False)
        if isinstance(path, str) and Path(path).is_file():
            samples.append(
                Sample(
                    path=Path(path),
                    title=title,
                    kind="real",
                    modality=modality,
                    question=question,
                    burned_in=BURNED_IN_SAMPLE if modality == "US" else "",
                )
            )
    return samples
