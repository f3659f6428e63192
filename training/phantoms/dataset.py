"""A folder of phantoms: DICOM files and their truth as JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

from training.phantoms.dicom import phantom_id, to_dicom
from training.phantoms.phantom import CHEST, AnyConfig, default_config, generate, modality_of
from training.phantoms.truth import seed_for


def write_dataset(
    out_dir: str | os.PathLike[str],
    count: int,
    seed: int = 0,
    split: str = "train",
    modality: str = CHEST,
) -> Path:
    """Write ``count`` phantoms as ``<id>.dcm`` with one ``truth.jsonl``; returns the latter.

    Every file appears whole or not at all; ``truth.jsonl`` comes last.

    Raises:
        ValueError: a negative count or seed, an unknown split or modality, or a folder that
            holds phantoms of another data set.
    """
    if count < 0:
        raise ValueError("The number of phantoms must not be negative.")
    seeds = [seed_for(split, index, seed) for index in range(count)]
    config = default_config(modality)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    own = {phantom_id(one, modality) for one in seeds}
    # Left where they are, they would be taken for a part of this set.
    if any(path.stem not in own for path in folder.glob("*.dcm")):
        raise ValueError(f"{folder.name} holds other phantoms already: name an empty folder.")
    target = folder / "truth.jsonl"
    _write_whole(target, "".join(_write_one(folder, s, config) for s in seeds).encode())
    return target


def _write_one(folder: Path, seed: int, config: AnyConfig) -> str:
    """Write one phantom and return its line of truth."""
    phantom = generate(seed, config)
    name = phantom_id(seed, modality_of(phantom.truth))
    _write_whole(folder / f"{name}.dcm", to_dicom(phantom))
    record = {"id": name, "file": f"{name}.dcm", **phantom.truth.to_json()}
    return json.dumps(record, separators=(",", ":")) + "\n"


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
