"""Checkpoints from folders, of any precision, as adapters, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_hub_download
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from engine import hub, loading
from engine.engine import Engine
from engine.loading import (
    NO_LATENT_NOTICE,
    UNKNOWN_DETECTOR_NOTICE,
    UNKNOWN_MANIFEST_NOTICE,
    CheckpointError,
    LoadedModel,
    load_checkpoint,
)
from engine.manifest import Manifest
from engine.prompt import LATENT_TOKENS
from engine.request import Method
from engine.tiny import tiny_model
from engine.trace import Failed, RunStarted, TokenStep
from tests.integration.conftest import MakeRequest

# peft 0.21 still asks for a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def save(loaded: LoadedModel, folder: Path, manifest: Manifest | None = None) -> Path:
    """A checkpoint folder as the training writes it."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    (folder / "lightbox.json").write_text((manifest or loaded.manifest).to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model(), tmp_path_factory.mktemp("checkpoint") / "tiny")


def copied(checkpoint: Path, to: Path) -> Path:
    shutil.copytree(checkpoint, to)
    return to


def written(loaded: LoadedModel, make_request: MakeRequest) -> list[int]:
    events = list(Engine(loaded).stream(make_request(max_new_tokens=8, belief=False)))
    assert not isinstance(events[-1], Failed), events[-1]
    return [event.token_id for event in events if isinstance(event, TokenStep)]


def test_models_can_be_loaded_at_the_same_time(checkpoint: Path) -> None:
    """Two visitors of the page, each with a model of their own."""
    alone = load_checkpoint(checkpoint).model.state_dict()
    with ThreadPoolExecutor(4) as threads:
        for loaded in threads.map(load_checkpoint, [checkpoint] * 12):
            torch.testing.assert_close(loaded.model.state_dict(), alone, rtol=0, atol=0)


def complaint(folder: Path | str, device: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, device)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert not Path(folder).is_absolute() or str(Path(folder).parent) not in message
    return message


def test_a_folder_gives_the_model_that_was_saved(
    checkpoint: Path, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    opened = load_checkpoint(checkpoint)

    assert opened.facts.dtype == "float32"
    assert opened.facts.device == "cpu"
    assert opened.manifest == loaded.manifest
    assert not opened.model.training
    assert written(opened, make_request) == written(loaded, make_request)


def test_half_precision_files_are_run_in_fp32_on_a_cpu(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor.half() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )

    assert {p.dtype for p in load_checkpoint(folder).model.parameters()} == {torch.float32}


def test_latent_tokens_are_added_where_they_are_missing(
    checkpoint: Path, tmp_path: Path, make_request: MakeRequest
) -> None:
    folder = copied(checkpoint, tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        for token in LATENT_TOKENS:
            path.write_text(
                path.read_text(encoding="utf-8").replace(token, token.replace("lat", "was")),
                encoding="utf-8",
            )
    opened = load_checkpoint(folder)
    size = opened.model.lm_head.weight.shape[0]

    known = opened.tokenizer.get_vocab()
    assert all(known[token] < size for token in LATENT_TOKENS)
    assert opened.notices.count(NO_LATENT_NOTICE) == 1
    events = list(Engine(opened).stream(make_request(method="latent", max_new_tokens=4)))
    assert isinstance(events[0], RunStarted)
    assert NO_LATENT_NOTICE in events[0].notices
    assert not isinstance(events[-1], Failed)


def test_what_was_trained_for_latents_says_nothing(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "trained")
    manifest = Manifest(name="trained", trained_methods=("direct", "latent"))
    (folder / "lightbox.json").write_text(manifest.to_json(), encoding="utf-8")

    assert NO_LATENT_NOTICE not in load_checkpoint(folder).notices


@pytest.mark.parametrize(
    ("trained", "method", "warned"),
    [
        (("direct", "zoom", "auto"), "auto", False),
        (("direct", "zoom", "auto"), "latent", True),
        (("direct", "zoom"), "auto", True),
        (("direct", "zoom"), "zoom", False),
        ((), "auto", True),
    ],
)
def test_untrained_latents_are_told_of_where_some_may_be_taken(
    checkpoint: Path,
    tmp_path: Path,
    make_request: MakeRequest,
    trained: tuple[Method, ...],
    method: Method,
    warned: bool,
) -> None:
    folder = copied(checkpoint, tmp_path / "trained")
    manifest = Manifest(name="trained", trained_methods=trained)
    (folder / "lightbox.json").write_text(manifest.to_json(), encoding="utf-8")

    first = next(iter(Engine(load_checkpoint(folder)).stream(make_request(method=method))))

    assert isinstance(first, RunStarted)
    assert (NO_LATENT_NOTICE in first.notices) is warned


# --- the hub, without a connection ---------------------------------------------------------

HUB_ID = "somebody/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNKNOWN_NOTICES = {UNKNOWN_MANIFEST_NOTICE, UNKNOWN_DETECTOR_NOTICE}


@pytest.fixture
def repository(checkpoint: Path, tmp_path: Path) -> Path:
    """The hub's cache after one commit of a repository was fetched: `refs` and `snapshots`."""
    folder = tmp_path / "cache" / "models--somebody--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    copied(checkpoint, folder / "snapshots" / COMMIT)
    return folder


def from_hub(repository: Path) -> LoadedModel:
    return load_checkpoint(HUB_ID, cache_dir=repository.parent)


def test_a_hub_checkpoint_brings_its_manifest_and_its_detector(
    repository: Path, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    snapshot = repository / "snapshots" / COMMIT
    manifest = replace(loaded.manifest, name="From the hub", notices=("Knows phantoms only.",))
    (snapshot / "lightbox.json").write_text(manifest.to_json(), encoding="utf-8")
    detector = {"mean": torch.zeros(4), "precision": torch.eye(4), "threshold": torch.tensor(2.0)}
    save_file(detector, snapshot / "ood.safetensors")

    opened = from_hub(repository)

    assert opened.manifest == manifest
    assert opened.detector is not None
    assert opened.detector.threshold == 2.0
    assert (opened.facts.id, opened.facts.revision) == (HUB_ID, COMMIT)
    assert written(opened, make_request) == written(loaded, make_request)


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_of_the_hub_are_fetched_before_they_are_read(
    repository: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    """No other model has to wait for a download."""
    snapshot = repository / "snapshots" / COMMIT
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    if sharded:
        weights = load_file(snapshot / "model.safetensors")
        (snapshot / "model.safetensors").unlink()
        halves = [dict(list(weights.items())[half::2]) for half in range(2)]
        for name, half in zip(shards, halves, strict=True):
            save_file(half, snapshot / name, {"format": "pt"})
        where = {key: name for name, half in zip(shards, halves, strict=True) for key in half}
        index = {"metadata": {}, "weight_map": where}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
        marked_as_absent(repository, "model.safetensors")
    asked: list[str] = []

    def download(repo: str, name: str, **how: object) -> str:
        assert not loading._READING.locked()
        asked.append(name)
        return hf_hub_download(repo, name, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert from_hub(repository).facts.revision == COMMIT
    weights_asked = [name for name in asked if name.endswith(".safetensors")]
    expected = ["model.safetensors", *shards] if sharded else ["model.safetensors"]
    assert [name for name in weights_asked if name != "ood.safetensors"] == expected


def marked_as_absent(repository: Path, *names: str) -> None:
    """What the cache keeps when the hub has said that a commit has no such files."""
    folder = repository / ".no_exist" / COMMIT
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def listed(repository: Path, *names: str) -> None:
    """What the cache keeps when a whole repository was downloaded: the names of its files."""
    files = {name: {"size": 1, "blob_id": "0" * 40} for name in names}
    (repository / "trees").mkdir()
    (repository / "trees" / f"{COMMIT}.json").write_text(
        json.dumps({"format_version": 1, "files": files}), encoding="utf-8"
    )


@pytest.mark.parametrize("known_by", ["marks", "listing"])
def test_a_hub_checkpoint_without_a_manifest_is_a_plain_one(
    repository: Path, known_by: str
) -> None:
    (repository / "snapshots" / COMMIT / "lightbox.json").unlink()
    if known_by == "marks":
        marked_as_absent(repository, "lightbox.json", "ood.safetensors")
    else:
        listed(repository, "config.json", "model.safetensors")

    opened = from_hub(repository)

    assert opened.manifest == Manifest(name=HUB_ID)
    assert opened.detector is None
    assert not UNKNOWN_NOTICES & set(opened.notices)


def test_what_could_not_be_looked_for_on_the_hub_is_said(repository: Path) -> None:
    (repository / "snapshots" / COMMIT / "lightbox.json").unlink()
    listed(repository, "config.json", "lightbox.json", "ood.safetensors")

    assert set(from_hub(repository).notices) >= UNKNOWN_NOTICES


def test_a_hub_checkpoint_whose_manifest_makes_no_sense_is_refused(repository: Path) -> None:
    (repository / "snapshots" / COMMIT / "lightbox.json").write_text("{", encoding="utf-8")

    with pytest.raises(CheckpointError, match="not valid JSON"):
        from_hub(repository)


# --- adapters -----------------------------------------------------------------------------


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """A LoRA adapter that changes the model, in a folder of its own."""
    opened = load_checkpoint(checkpoint)
    wrapped = get_peft_model(
        opened.model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    wrapped.peft_config["default"].base_model_name_or_path = str(checkpoint)
    folder = tmp_path / "adapter"
    wrapped.save_pretrained(str(folder))
    return folder


def test_an_adapter_is_merged_into_its_base(
    adapter: Path, checkpoint: Path, make_request: MakeRequest
) -> None:
    base, opened = load_checkpoint(checkpoint), load_checkpoint(adapter)
    lora = load_file(adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    first, second = lora[f"{prefix}.lora_A.weight"], lora[f"{prefix}.lora_B.weight"]
    before = base.model.model.language_model.layers[0].self_attn.q_proj.weight
    after = opened.model.model.language_model.layers[0].self_attn.q_proj.weight

    torch.testing.assert_close(after, before + 2.0 * (second @ first))
    assert opened.facts.id == "adapter"
    assert opened.manifest == base.manifest
    assert written(opened, make_request) != written(base, make_request)


def test_an_adapter_may_name_its_base_by_a_folder_beside_it(
    adapter: Path, checkpoint: Path
) -> None:
    copied(checkpoint, adapter.parent / "base")
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "../base"
    path.write_text(json.dumps(config), encoding="utf-8")

    assert load_checkpoint(adapter).facts.layers == 3


def test_an_adapter_in_a_pickled_file_is_refused(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()

    assert "safetensors" in complaint(adapter)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "does not name the model"),
        ("", "does not name the model"),
        (3, "does not name the model"),
        ("/nowhere/at/all", "no checkpoint all"),
    ],
)
def test_an_adapter_without_its_base_is_refused(adapter: Path, base: object, said: str) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "base_model_name_or_path": base}), encoding="utf-8")

    assert said in complaint(adapter)


def test_an_adapter_of_itself_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**config, "base_model_name_or_path": str(adapter)}), encoding="utf-8"
    )

    assert "cannot be loaded" in complaint(adapter)


# --- what is wrong with a checkpoint ------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "nowhere", "~/no", "a/b/c", "runs/x"])
def test_a_folder_that_is_not_there(name: str) -> None:
    assert "There is no checkpoint" in complaint(name)


@pytest.mark.parametrize("name", ["nobody/nothing-of-this-name", "no body/--"])
def test_a_hub_id_that_cannot_be_fetched(name: str) -> None:
    assert "cannot be fetched" in complaint(name)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "missing, broken" in complaint(tmp_path)


def test_a_model_of_another_kind(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "other")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "model_type": "qwen2"}), encoding="utf-8")

    assert "Qwen2.5-VL" in complaint(folder)


@pytest.mark.parametrize("change", ["missing", "shape", "cut", "pickled", "none"])
def test_weights_that_do_not_fit(checkpoint: Path, tmp_path: Path, change: str) -> None:
    folder = copied(checkpoint, tmp_path / change)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    assert name in weights
    if change == "missing":
        del weights[name]
    elif change == "shape":
        weights[name] = weights[name][:5].clone()
    if change in ("missing", "shape"):
        save_file(weights, path, metadata={"format": "pt"})
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif change == "pickled":
        torch.save(weights, folder / "pytorch_model.bin")
        path.unlink()
    else:
        path.unlink()

    complaint(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"unknown": 1}', '{"view": {"least": 1, "most": 0}}', '{"view": 3}']
)
def test_a_manifest_that_makes_no_sense(checkpoint: Path, tmp_path: Path, text: str) -> None:
    folder = copied(checkpoint, tmp_path / "manifest")
    (folder / "lightbox.json").write_text(text, encoding="utf-8")

    assert "lightbox.json" in complaint(folder) or "pixel budget" in complaint(folder)


def test_a_tokenizer_of_another_family(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "tokens")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(
            path.read_text(encoding="utf-8").replace("<|image_pad|>", "<|picture|>"),
            encoding="utf-8",
        )

    assert "<|image_pad|>" in complaint(folder)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there(checkpoint: Path, device: str) -> None:
    assert "no device" in complaint(checkpoint, device)


def test_a_missing_checkpoint_is_the_failure_of_a_run(make_request: MakeRequest) -> None:
    engine = Engine.deferred("./nowhere")
    (failed,) = engine.stream(make_request())

    assert isinstance(failed, Failed)
    assert failed.code == "checkpoint"
    assert "nowhere" in failed.message
