"""The models that a user may choose from, and the engine of each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.live import StreamEngine
from app.texts import MODEL_TEXTS, REPLACED
from engine.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest
from engine.request import RequestError
from engine.trace import ModelFacts

FIRST = "base"
UNKNOWN_STAGE = "unknown"
CONFIG_FILE = "config.json"
# As transformers and peft name them; beside them lies the detector's file, which is no weights.
WEIGHTS = "model*.safetensors"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a checkpoint before it is loaded.

    Attributes:
        key: what the page and programs call it: the name of its folder.
        source: hub id or folder, for the engine only.
        name: what a user reads.
        stage: of its training.
        methods: that it was trained for; empty if unknown.
        embedded: whether it is one of the small models that come with the program.
    """

    key: str
    source: str
    name: str
    stage: str = UNKNOWN_STAGE
    methods: tuple[str, ...] = ()
    embedded: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint and what runs requests with it."""

    checkpoint: Checkpoint
    engine: StreamEngine

    @property
    def key(self) -> str:
        """See `Checkpoint.key`."""
        return self.checkpoint.key


class Models:
    """The models on offer; the first is the default, none means that live runs are off.

    Args:
        models: on offer.
        wanted: key of the model that should be the default; empty: whichever is the first.
    """

    def __init__(self, models: Iterable[Model] = (), wanted: str = "") -> None:
        self._models = {model.key: model for model in models}
        self._wanted = wanted

    def __bool__(self) -> bool:
        return bool(self._models)

    def chosen(self, key: object) -> Model:
        """The model of that key; the default for None or an empty text.

        Raises:
            RequestError: when there is none.
        """
        models = self._models
        if models and (key is None or key == ""):
            return next(iter(models.values()))
        if not isinstance(key, str) or key not in models:
            raise RequestError(f"There is no such model here: choose one of {', '.join(models)}.")
        return models[key]

    @property
    def notice(self) -> str:
        """A sentence for the page where another model had to become the default; else empty."""
        if not self._models or self._wanted in ("", *self._models):
            return ""
        return REPLACED.format(name=self.to_json()[0]["name"])

    def key_of(self, facts: ModelFacts) -> str:
        """The key of the model that is called as the one that made a run; empty if there is none.

        A run tells the name and the stage of its model and nothing of its weights: a run of an
        older checkpoint with the same ones is taken for a run of the present one. Where the stage
        of a model is not known before it is loaded (on the hub, or that of an adapter, which may be
        its base's), its name decides.
        """
        same = [
            key
            for key, model in self._models.items()
            if model.checkpoint.name == facts.id
            and model.checkpoint.stage in (facts.stage, UNKNOWN_STAGE)
        ]
        return same[0] if len(same) == 1 else ""

    def to_json(self) -> list[dict[str, Any]]:
        """What the page offers: of each model its key, name and methods, and what it is."""
        names = Counter(model.checkpoint.name for model in self._models.values())
        return [
            {
                "key": key,
                "name": name if names[name] == 1 else f"{name} ({key})",
                "methods": list(model.checkpoint.methods),
                "text": MODEL_TEXTS.get(model.checkpoint.stage, "")
                if model.checkpoint.embedded
                else "",
            }
            for key, model in self._models.items()
            for name in (model.checkpoint.name,)
        ]


def models_of(
    checkpoints: Iterable[Checkpoint],
    engine_of: Callable[[Checkpoint], StreamEngine],
    wanted: str = "",
) -> Models:
    """The models of the checkpoints, each with an engine of its own (`wanted` as in `Models`)."""
    models = (Model(checkpoint, engine_of(checkpoint)) for checkpoint in checkpoints)
    return Models(models, wanted)


def embedded_checkpoints(root: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints in the folders of `root`: `base` first, the others by name.

    A folder that cannot be used is left out, with a line in the log; where that is `base`, another
    line names the checkpoint that is the first instead.
    """
    folders = [
        folder
        for folder in (root.iterdir() if root.is_dir() else ())
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    found = (
        _embedded(folder)
        for folder in sorted(folders, key=lambda folder: (folder.name != FIRST, folder.name))
    )
    usable = tuple(checkpoint for checkpoint in found if checkpoint is not None)
    if usable and usable[0].key != FIRST:
        logger.warning("checkpoint %s is not there: %s is the default", FIRST, usable[0].key)
    return usable


def given_checkpoint(source: str) -> Checkpoint:
    """The checkpoint that a command line names: a hub id or a folder.

    It has the name that the engine will give it: that of its manifest, else a hub id as a whole or
    the name of the folder. What is wrong with its manifest, the first run says.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return Checkpoint(Path(source).name or source, source, source)
    name = folder.resolve().name
    unread = Checkpoint(folder.name or name, source, name)
    if not (folder / MANIFEST_FILE).is_file():
        return unread
    try:
        return _checkpoint(unread.key, source, read_manifest(folder))
    except (ManifestError, OSError, UnicodeDecodeError):
        return unread


def _embedded(folder: Path) -> Checkpoint | None:
    try:
        if not (folder / MANIFEST_FILE).is_file():
            raise ManifestError(f"it has no {MANIFEST_FILE}.")
        if not _has_weights(folder):
            raise ManifestError("it has no weights.")
        return _checkpoint(folder.name, str(folder), read_manifest(folder))
    except ManifestError as error:
        reason = str(error)
    except (OSError, UnicodeDecodeError):
        reason = f"{MANIFEST_FILE} cannot be read."
    logger.warning("checkpoint %s left out: %s", folder.name, reason)
    return None


def _has_weights(folder: Path) -> bool:
    """Whether a folder holds what a model, or an adapter of one, is loaded from."""
    if all((folder / name).is_file() for name in ADAPTER_FILES):
        return True
    return (folder / CONFIG_FILE).is_file() and any(folder.glob(WEIGHTS))


def _checkpoint(key: str, source: str, manifest: Manifest) -> Checkpoint:
    return Checkpoint(
        key,
        source,
        manifest.name.strip() or key,
        manifest.stage,
        manifest.trained_methods,
        manifest.embedded,
    )
