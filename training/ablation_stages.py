"""The training runs of an ablation: how each is made, and what it was made with.

A finished run is kept for later calls of the command. Beside it lies what it was made with, so
that a changed setting is never answered with old numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from engine.loading import ADAPTER_WEIGHTS
from training.checkpoints import write_whole
from training.config import ConfigError, load_config
from training.loop import Report
from training.reinforcement import ReinforcementConfig, medvr, vlpo
from training.run_settings import differences
from training.sft import FinetuneConfig, finetune

StageKind = Literal["sft", "vlpo", "medvr"]

SETTINGS_FILE: Final = "settings.json"
_WEIGHTS_FILE: Final = "model.safetensors"
# Where a run lies and how many threads it takes make no other run of it.
_NO_MATTER: Final = ("out", "threads")


class Stages(Protocol):
    """How stages are run; tests put something quicker in its place."""

    def settings(self, kind: StageKind, path: Path, overrides: list[str]) -> dict[str, Any]:
        """Everything that a stage is configured with, as plain data."""

    def run(self, kind: StageKind, path: Path, overrides: list[str], report: Report) -> Path:
        """Runs a stage; the folder of its checkpoint."""


class TrainingStages:
    """The commands `sft`, `vlpo` and `medvr`."""

    def settings(self, kind: StageKind, path: Path, overrides: list[str]) -> dict[str, Any]:
        """Everything that a stage is configured with, as plain data.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        values = (
            dataclasses.asdict(load_config(FinetuneConfig, path, overrides))
            if kind == "sft"
            else dataclasses.asdict(load_config(ReinforcementConfig, path, overrides))
        )
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    def run(self, kind: StageKind, path: Path, overrides: list[str], report: Report) -> Path:
        """Runs a stage; the folder of its checkpoint."""
        if kind == "sft":
            return finetune(load_config(FinetuneConfig, path, overrides), report)
        config = load_config(ReinforcementConfig, path, overrides)
        return (vlpo if kind == "vlpo" else medvr)(config, report)


def checkpoint_identity(checkpoint: str) -> str:
    """The weights of a folder, or of an adapter, by their digest; else the name itself."""
    for name in (_WEIGHTS_FILE, ADAPTER_WEIGHTS):
        weights = Path(checkpoint) / name
        if weights.is_file():
            with weights.open("rb") as file:
                return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return checkpoint


def stage_checkpoint(
    stages: Stages, kind: StageKind, path: Path, overrides: list[str], out: Path, report: Report
) -> str:
    """The checkpoint of a stage, trained if it has not been before.

    Args:
        stages: how it is run.
        kind: which command.
        path: of its configuration.
        overrides: `key=value` on top of it, `base`, `seed` and `out` among them.
        out: its folder.
        report: takes lines of progress.

    Raises:
        ConfigError: what lies in the folder was made with other settings.
    """
    settings = stages.settings(kind, path, overrides)
    wanted = {"kind": kind, **{k: v for k, v in settings.items() if k not in _NO_MATTER}}
    wanted["base"] = checkpoint_identity(str(wanted.get("base")))
    kept_in = out / SETTINGS_FILE
    if kept_in.exists():
        other = differences(json.loads(kept_in.read_text(encoding="utf-8")), wanted)
        if other:
            raise ConfigError(
                f"{out} was begun with other settings ({', '.join(other)}): remove it, or choose "
                "another folder with out=…."
            )
    elif out.exists():
        raise ConfigError(
            f"{out} does not say what it was made with ({SETTINGS_FILE} is missing): remove it, "
            "or choose another folder with out=…."
        )
    else:
        content = json.dumps(wanted, indent=1).encode()
        out.mkdir(parents=True)
        write_whole(kept_in, lambda file: file.write(content))
    made = out / "checkpoint"
    if not made.exists():
        stages.run(kind, path, overrides, report)
    return str(made)
