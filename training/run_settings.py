"""What a run was begun with, so that it does not go on as another one without a word.

A state says nothing of the base, the mix or the reward that led to it: the same weights fit into
a run of another seed, and pass rates of one base look like those of another.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from training.checkpoints import write_whole
from training.config import ConfigError

RUN_FILE: Final = "configuration.json"


def claim_run(out: Path, config: Any, free: Sequence[str], *, writes: bool = True) -> None:  # noqa: ANN401
    """Writes down what a run is configured with; refuses to go on with another run's folder.

    Args:
        out: folder of the run.
        config: a dataclass.
        free: names of settings that may change when a run goes on, as patterns ("steps.*").
        writes: whether this process writes the file; all of them read it.

    Raises:
        ConfigError: the folder holds a run of other settings.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    path = out / RUN_FILE
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        other = [
            line
            for line in differences(kept, settings)
            if not any(fnmatch.fnmatchcase(line.partition(":")[0], name) for name in free)
        ]
        if other:
            raise ConfigError(
                f"{out} was begun with other settings ({', '.join(other)}): remove it, or choose "
                "another folder with out=…."
            )
    if writes:
        out.mkdir(parents=True, exist_ok=True)
        content = json.dumps(settings, indent=1).encode()
        write_whole(path, lambda file: file.write(content))


def differences(kept: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings that are not equal, sections opened, and their values after a colon."""
    found = []
    for key in sorted({*kept, *wanted}):
        old, new = kept.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {_short(old)}, now {_short(new)}")
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "…"
