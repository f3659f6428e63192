"""The sample phantoms that the app starts with: DICOM files and an index with their truth."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Final

import pydicom
from pydicom.uid import JPEG2000Lossless

from training.phantoms import AnyTruth, seed_for, to_dicom
from training.questions import case_for

# Number of the phantom, family, the answer it is made for, title, and the method that shows most.
# Of the first one the view does not show what is asked for, and `base` guesses wrongly without its
# crop: it was chosen for that.
SAMPLES: Final = (
    (10, "nodule_calcification", "yes", "Nodule: look for calcification", "zoom"),
    (1, "nodule_zone", "right lower zone", "Nodule: find its zone", "zoom"),
    (2, "effusion_grade", "moderate", "Effusion: how large?", "direct"),
    (3, "pneumothorax_side", "left", "Pneumothorax: which side?", "direct"),
)


def write_samples(folder: Path) -> Path:
    """Writes the samples (demo split, which no training or test uses) and returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for place, (number, family, answer, title, method) in enumerate(SAMPLES, start=1):
        case = case_for(family, answer, seed_for("demo", number, 1))
        name = f"phantom-{place}.dcm"
        phantom = case.phantom()
        (folder / name).write_bytes(compressed(to_dicom(phantom)))
        index.append(
            {
                "file": name,
                "title": title,
                "question": case.question.text,
                "options": list(case.question.options),
                "method": method,
                "truth": described(phantom.truth),
            }
        )
    path = folder / "samples.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return path


def compressed(dicom: bytes) -> bytes:
    """The same file in JPEG 2000 lossless: a third of the size, every pixel kept."""
    dataset = pydicom.dcmread(io.BytesIO(dicom))
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


def described(truth: AnyTruth) -> str:
    """What was drawn, in one line of words."""
    if not truth.findings:
        return "no finding"
    parts = []
    for finding in truth.findings:
        where = finding.zone or finding.side
        traits = ", ".join(
            value if name not in ("air bronchogram",) else f"{name}: {value}"
            for name, value in finding.attributes.items()
        )
        parts.append(f"{finding.kind} ({where}{'; ' + traits if traits else ''})")
    return "; ".join(parts)
