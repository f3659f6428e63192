"""Checkpoints: a hub id, a local folder or a peft adapter, made ready to run.

Weights come from safetensors only and no code of a checkpoint is ever executed. bf16 on CUDA,
fp32 on a CPU (half-precision files are upcast).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import HFValidationError
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.attention import register_row_attention
from engine.hub import fetch_snapshot, fetch_weights
from engine.manifest import (
    MANIFEST_FILE,
    CheckpointError,
    Manifest,
    ManifestError,
    read_manifest,
)
from engine.out_of_distribution import DETECTOR_FILE, Detector, DetectorError, read_detector
from engine.processor import ImageProcessor
from engine.prompt import IM_END, IM_START, IMAGE_PAD, LATENT_TOKENS
from engine.trace import ModelFacts
from engine.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# transformers exchanges functions of torch.nn.init, and torch's default dtype, while it reads
# weights. Two models read at once by two threads found weights missing, and left torch in a state
# in which no other could be read.
_READING: Final = threading.Lock()

MODEL_TYPE: Final = "qwen2_5_vl"
ADAPTER_FILE: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
PROCESSOR_FILE: Final = "preprocessor_config.json"
NO_LATENT_NOTICE: Final = (
    "This checkpoint was not trained for latent steps: what they show here is noise."
)
UNKNOWN_MANIFEST_NOTICE: Final = (
    "Without a connection it could not be found out whether this checkpoint has settings of its "
    "own: it runs as any Qwen2.5-VL model does."
)
UNKNOWN_DETECTOR_NOTICE: Final = (
    "Without a connection it could not be found out whether this checkpoint can tell images that "
    "it does not know: none is marked."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A checkpoint in memory.

    Attributes:
        facts: what a trace says about the model.
        notices: sentences for the user about limits of this checkpoint.
        detector: tells images that the checkpoint does not know; None when it has none.
    """

    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor
    manifest: Manifest
    facts: ModelFacts
    vocabulary: Vocabulary
    notices: tuple[str, ...]
    detector: Detector | None

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device


def load_checkpoint(
    id_or_dir: str | Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: Path | None = None,
) -> LoadedModel:
    """Loads a checkpoint and makes it ready to run.

    Args:
        id_or_dir: hub id, local folder, or folder of a peft adapter.
        device: torch device; CUDA when there is one and none is named.
        dtype: of the weights; bf16 on CUDA and fp32 elsewhere by default.
        cache_dir: folder of the hub's cache; its own default when None.

    Raises:
        CheckpointError: when it is missing, broken or of another architecture.
    """
    name = str(id_or_dir)
    chosen = _device(device)
    folder = _local_folder(name)
    try:
        if folder is not None and (folder / ADAPTER_FILE).is_file():
            return _load_adapter(folder, chosen, dtype, cache_dir)
        if folder is None and _looks_like_a_path(name):
            raise CheckpointError(
                f"There is no checkpoint {_label(name)}: give a folder that exists, or a hub id."
            )
        files = _fetched(name, cache_dir) if folder is None else _Files(folder, str(folder))
        return _load_base(name, files, chosen, dtype)
    except CheckpointError:
        raise
    except (ManifestError, DetectorError) as error:
        raise CheckpointError(f"The checkpoint {_label(name)} cannot be used: {error}") from error
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"Not enough memory on {chosen} to load the checkpoint {_label(name)}."
        ) from error
    except Exception as error:
        logger.info("loading a checkpoint failed: %s", type(error).__name__)
        if folder is None and isinstance(error, OSError | HFValidationError):
            raise CheckpointError(
                f"The checkpoint {_label(name)} cannot be fetched: check its name and the "
                "network, or give a local folder."
            ) from error
        raise CheckpointError(
            f"The checkpoint {_label(name)} cannot be loaded: its files are missing, broken or "
            "not those of a Qwen2.5-VL model."
        ) from error


def _device(name: str | None) -> torch.device:
    """The named device, else CUDA where there is one.

    Raises:
        CheckpointError: when this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Builds of torch without a backend raise an AssertionError for it.
        raise CheckpointError(f"This machine has no device {name!r}: try cpu or cuda.") from error
    return device


def assembled(
    *,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: ImageProcessor,
    manifest: Manifest,
    revision: str,
    name: str | None = None,
    detector: Detector | None = None,
) -> LoadedModel:
    """Ties model, tokenizer and manifest together; adds what the engine needs to both.

    Raises:
        CheckpointError: when the tokenizer is not one of Qwen's.
    """
    for token in (IM_START, IM_END, IMAGE_PAD):
        if token not in tokenizer.get_vocab():
            raise CheckpointError(
                f"The checkpoint's tokenizer lacks {token}: a Qwen2.5-VL tokenizer is needed."
            )
    notices = manifest.notices + add_latent_tokens(model, tokenizer)
    if NO_LATENT_NOTICE not in notices and "latent" not in manifest.trained_methods:
        notices += (NO_LATENT_NOTICE,)
    attention = register_row_attention()
    model.set_attn_implementation({"": "sdpa", "text_config": attention, "vision_config": "sdpa"})
    text: Any = model.config.text_config
    if "sliding_attention" in text.layer_types:
        raise CheckpointError("Checkpoints with sliding-window attention are not supported.")
    stops = model.generation_config.eos_token_id
    facts = ModelFacts(
        id=name or manifest.name,
        revision=revision,
        stage=manifest.stage,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=int(text.num_hidden_layers),
        embedded=manifest.embedded,
        trained_methods=manifest.trained_methods,
        entropy_threshold=manifest.entropy_threshold,
    )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        manifest=manifest,
        facts=facts,
        vocabulary=Vocabulary(
            tokenizer,
            int(model.lm_head.weight.shape[0]),
            stops if isinstance(stops, list) else [stops] if isinstance(stops, int) else [],
        ),
        notices=notices,
        detector=detector,
    )


def add_latent_tokens(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    """Adds the latent tokens where they are missing; returns what the user should know.

    The embedding matrix grows only when the new ids do not fit its padding.
    """
    known = tokenizer.get_vocab()
    missing = [token for token in LATENT_TOKENS if token not in known]
    if not missing:
        return ()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    if len(tokenizer) > model.lm_head.weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    return (NO_LATENT_NOTICE,)


@dataclass(frozen=True, slots=True)
class _Files:
    """Where the files of a checkpoint lie.

    Attributes:
        folder: of the small ones: the checkpoint's own folder, or its snapshot in the hub's cache.
        source: what transformers is asked for: that folder's path, or the hub id.
        options: how transformers finds the source.
        commit: of a hub checkpoint.
        unknown: our own files that could not be looked for.
    """

    folder: Path
    source: str
    options: Mapping[str, Any] = field(default_factory=lambda: {"local_files_only": True})
    commit: str = ""
    unknown: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        """What the checkpoint says of itself, and what could not be found out of it."""
        known = (self.folder / MANIFEST_FILE).is_file()
        manifest = read_manifest(self.folder)
        if not known and self.commit:
            manifest = replace(manifest, name=self.source)
        notices = {
            MANIFEST_FILE: UNKNOWN_MANIFEST_NOTICE,
            DETECTOR_FILE: UNKNOWN_DETECTOR_NOTICE,
        }
        unknown = tuple(text for name, text in notices.items() if name in self.unknown)
        return replace(manifest, notices=manifest.notices + unknown)


def _fetched(name: str, cache_dir: Path | None) -> _Files:
    """The files of a checkpoint on the hub, all of one commit."""
    own = (MANIFEST_FILE, DETECTOR_FILE, PROCESSOR_FILE)
    snapshot = fetch_snapshot(name, "config.json", own, cache_dir)
    options = {"revision": snapshot.commit, "cache_dir": cache_dir}
    return _Files(snapshot.folder, name, options, snapshot.commit, snapshot.unknown)


def _load_base(
    name: str, files: _Files, device: torch.device, dtype: torch.dtype | None
) -> LoadedModel:
    config = AutoConfig.from_pretrained(files.source, trust_remote_code=False, **files.options)
    if config.model_type != MODEL_TYPE:
        raise CheckpointError(
            f"The checkpoint {_label(name)} is of the type {config.model_type}; "
            "only Qwen2.5-VL models can be used."
        )
    if files.commit:
        # Gigabytes, for which no other model should wait.
        fetch_weights(files.source, files.commit, files.options["cache_dir"])
    with _READING:
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            files.source,
            dtype=dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **files.options,
        )
    model, report = loaded
    if report["missing_keys"] or report.get("mismatched_keys"):
        raise CheckpointError(
            f"The checkpoint {_label(name)} is incomplete: "
            f"{len(report['missing_keys'])} of its weights are missing or of the wrong shape."
        )
    tokenizer = AutoTokenizer.from_pretrained(
        files.source, trust_remote_code=False, **files.options
    )
    manifest = files.manifest()
    return assembled(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        image_processor=_image_processor(files.folder),
        manifest=manifest,
        revision=files.commit,
        name=name if files.commit else _model_id(files.folder, manifest),
        detector=read_detector(files.folder),
    )


def _load_adapter(
    folder: Path, device: torch.device, dtype: torch.dtype | None, cache_dir: Path | None
) -> LoadedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError(
            "This checkpoint is a LoRA adapter: install the package peft to use it."
        ) from error
    if not (folder / ADAPTER_WEIGHTS).is_file():
        # peft would fall back to a pickled file.
        raise CheckpointError(f"The adapter has no {ADAPTER_WEIGHTS}: save it as safetensors.")
    base_name = _adapter_base(folder)
    base = load_checkpoint(base_name, str(device), dtype, cache_dir)
    with _READING:
        wrapped: Any = PeftModel.from_pretrained(base.model, str(folder), use_safetensors=True)
    merged = wrapped.merge_and_unload()
    manifest = read_manifest(folder) if (folder / MANIFEST_FILE).is_file() else base.manifest
    return replace(
        assembled(
            model=merged.eval(),
            tokenizer=base.tokenizer,
            image_processor=base.image_processor,
            manifest=manifest,
            revision=base.facts.revision,
            name=_model_id(folder, manifest),
            detector=read_detector(folder) or base.detector,
        ),
    )


def _adapter_base(folder: Path) -> str:
    raw = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
    if not isinstance(base, str) or not base:
        raise CheckpointError("The adapter does not name the model that it belongs to.")
    relative = folder / base
    return str(relative) if not Path(base).is_absolute() and relative.is_dir() else base


def _image_processor(folder: Path) -> ImageProcessor:
    if not (folder / PROCESSOR_FILE).is_file():
        return ImageProcessor()
    return ImageProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
    )


def _local_folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def _looks_like_a_path(name: str) -> bool:
    parts = name.split("/")
    # Where the project keeps checkpoints and makes them: mistyped, or not made yet.
    ours = parts[0] in ("assets", "runs")
    return name.startswith((".", "/", "~", "\\")) or len(parts) != 2 or ours


def _label(name: str) -> str:
    """The checkpoint's name without the folders around it."""
    return Path(name).name if _looks_like_a_path(name) or _local_folder(name) else name


def _model_id(folder: Path, manifest: Manifest) -> str:
    return manifest.name if (folder / MANIFEST_FILE).is_file() else folder.resolve().name
