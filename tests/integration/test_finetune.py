"""Fine-tuning any checkpoint of the class: adapters, precision, parts, several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from engine.engine import Engine
from engine.loading import load_checkpoint
from engine.manifest import PixelBudget
from engine.request import Budgets, DisplayImage, Request
from engine.tiny import tiny_model
from engine.trace import EvidenceMap, Trace
from tests.factories import chest
from tests.integration.killing import killed_after_its_first_save
from tests.integration.test_loading import save
from tests.source_tree import ROOT
from training.accelerated import Accelerated, parts_of_each
from training.cli import main
from training.config import ConfigError, load_config
from training.evaluate import ASKED_BUDGETS, AskConfig, greedy_scores
from training.prompts import PromptPool
from training.real_images import split_of_patient
from training.sft import (
    FinetuneConfig,
    TuningConfig,
    answering,
    finetune,
    materials_of,
    train,
    tuned_model,
)
from training.world import WorldConfig, balanced_case, build_case, claim_world, save_cases

# peft 0.21 still asks for a property that transformers 5.23 has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.timeout(900),
]
CONFIGS = ROOT / "training" / "configs"
CASES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, and a world of a few phantoms."""
    folder = tmp_path_factory.mktemp("finetune")
    save(tiny_model(), folder / "base")
    for split in ("train", "validation"):
        config = WorldConfig(
            count=CASES, seed=3, split=split, crops_per_target=1, shard=CASES, workers=1
        )
        claim_world(folder / "world", config)
        cases = [build_case(balanced_case(config, index), 1) for index in range(CASES)]
        save_cases(folder / "world" / f"{split}-3-000000.npz", cases)
    return folder


CLOCKS = {"steps_per_second", "tokens_per_second", "validation_seconds"}
QUESTIONS = {
    "prompts": {"count": 3, "seed": 3, "split": "validation", "families": ["nodule_side"]},
    "method": "latent",
}


def config_file(
    folder: Path, name: str, *, questions: dict[str, object] | None = None, **tuning: object
) -> Path:
    world = {"count": CASES, "seed": 3, "crops_per_target": 1, "shard": CASES, "workers": 1}
    raw = {
        "out": str(folder / name),
        "base": str(folder / "base"),
        "world": str(folder / "world"),
        "seed": 5,
        "threads": 1,
        "train": {**world, "split": "train"},
        "validation": {**world, "split": "validation"},
        "language": {
            "steps": 2,
            "batch": 4,
            "learning_rate": 0.01,
            "warmup": 1,
            "save_every": 1,
            "log_every": 1,
        },
        "mix": {"zoom": 0.3, "probe": 0.2, "auto": 0.1, "real": 0.0, "latent": 0.5},
        "latents": {"steps": 4, "self_fed": 1.0, "bottleneck_last": 0.5},
        "tuning": {"micro_batch": 2, **tuning},
        "export": {"name": name, "embedded": False, "notices": []},
    }
    if questions is not None:
        raw["questions"] = {**questions, "phantoms": str(folder / "phantoms")}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def run(
    folder: Path, name: str, *, questions: dict[str, object] | None = None, **tuning: object
) -> list[dict[str, float]]:
    """Fine-tunes in this process; returns what was logged."""
    path = config_file(folder, name, questions=questions, **tuning)
    finetune(load_config(FinetuneConfig, path, []), lambda _: None)
    return logged(folder / name)


def logged(out: Path) -> list[dict[str, float]]:
    lines = (out / "language" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[dict[str, float]]:
    """Metrics of a run of all weights of the language model, evaluated at the end."""
    return run(folder, "whole", questions=QUESTIONS, evaluate_every=2, evaluate_records=4)


def test_all_weights_of_the_language_model_are_trained_and_the_tower_is_not(
    folder: Path, whole: list[dict[str, float]]
) -> None:
    before, after = (load_checkpoint(folder / name) for name in ("base", "whole/checkpoint"))
    old, new = before.model.state_dict(), after.model.state_dict()
    half = {name: tensor.to(torch.bfloat16).float() for name, tensor in old.items()}
    changed = {name for name in old if not torch.equal(half[name], new[name])}
    assert {"model.language_model.embed_tokens.weight", "model.language_model.norm.weight"} <= (
        changed
    )
    assert not any(name.startswith("model.visual") for name in changed)
    assert not after.facts.embedded
    assert after.detector is None
    assert [record["step"] for record in whole] == [1, 2, 2]
    assert whole[0]["tokens_per_second"] > 0
    assert {"roi", "text", "loss", "gradient_norm"} <= whole[0].keys()
    assert {"entropy", "latent_norm", "latent_error"} <= whole[0].keys()
    assert 0 <= whole[2]["validation_answer_tokens_right"] <= 1
    assert whole[2]["validation_loss"] > 0


def test_questions_are_asked_as_training_goes_on_and_change_nothing(
    folder: Path, whole: list[dict[str, float]]
) -> None:
    """Layers are computed again in training mode alone, where an answer has no cache."""
    path = config_file(
        folder,
        "asked",
        questions=QUESTIONS,
        evaluate_every=1,
        evaluate_records=4,
        gradient_checkpointing=True,
    )
    finetune(load_config(FinetuneConfig, path, []), lambda _: None)
    found = logged(folder / "asked")
    assert [record["step"] for record in found] == [1, 1, 2, 2]
    for scores in found[1::2]:
        assert 0.0 <= scores["validation_accuracy"] <= 1.0
        assert {"validation_loss", "validation_invalid_rate"} <= scores.keys()
    for record, expected in zip(found[::2], whole[:2], strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    config = load_config(FinetuneConfig, path, [])
    assert config.questions is not None
    pool = PromptPool(config.questions.phantoms, config.questions.prompts)
    engine = Engine.load(folder / "asked" / "checkpoint")
    how = AskConfig(method="latent", budgets=dataclasses.replace(ASKED_BUDGETS, latent_steps=4))
    again = greedy_scores(engine, pool, how, Accelerated())
    assert again["validation_accuracy"] == found[-1]["validation_accuracy"]


def test_a_model_in_training_is_traced_as_its_checkpoint_is(folder: Path) -> None:
    """Training has attention that keeps no rows, and layers without a cache."""
    tuned = tuned_model(
        str(folder / "base"), TuningConfig(gradient_checkpointing=True, micro_batch=2)
    )
    network = tuned.model.model.language_model
    tuned.model.train()
    request = Request(
        image=DisplayImage(pixels=chest()),
        question="Where is the nodule?",
        options=("left", "right"),
        method="latent",
        budgets=Budgets(max_new_tokens=8, latent_steps=4),
    )
    with answering(tuned.model):
        in_training = maps(Engine(tuned.loaded), request)
    assert tuned.model.training
    assert network.config._attn_implementation == "sdpa"
    assert len(in_training) > 5
    assert in_training == maps(Engine.load(folder / "base"), request)


def maps(engine: Engine, request: Request) -> list[tuple[EvidenceMap, ...]]:
    """Where every step of a run looked."""
    trace = Trace.from_events(engine.stream(request))
    return [step.attention for step in (*trace.latents, *trace.tokens)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate_every": 0}, "give tuning.evaluate_every"),
        ({"split": "train"}, "split must not be train"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    questions = {
        **QUESTIONS,
        "prompts": {**QUESTIONS["prompts"], "split": changes.get("split", "validation")},
    }
    path = config_file(
        folder, "refused", questions=questions, evaluate_every=changes.get("evaluate_every", 1)
    )
    with pytest.raises(ConfigError, match=said):
        load_config(FinetuneConfig, path, [])


def test_spread_weights_go_back_to_the_state_before_the_last(tmp_path: Path) -> None:
    class Spread(Accelerated):
        is_sharded = True

    for name, step in (("state", 6), ("state.former", 4)):
        (tmp_path / name).mkdir()
        torch.save({"step": step, "window": {}}, tmp_path / name / "window.pt")

    assert Spread().step_back(tmp_path, 7) == 6
    assert Spread().step_back(tmp_path, 6) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert Spread().step_back(tmp_path, 1) == 0
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_trained_alone_and_opens_on_its_base(folder: Path) -> None:
    run(folder, "adapter", lora={"rank": 2, "alpha": 4})
    written = load_file(folder / "adapter" / "checkpoint" / "adapter_model.safetensors")
    assert {tensor.shape[int("lora_B" in name)] for name, tensor in written.items()} == {2}
    assert len(written) == 2 * 7 * 3
    assert all("language_model.layers" in name for name in written)
    state = torch.load(folder / "adapter" / "language" / "state.pt", weights_only=True)
    assert all("lora_" in name for name in state["language"])

    base = load_checkpoint(folder / "base").model.state_dict()
    opened = load_checkpoint(folder / "adapter" / "checkpoint")
    assert opened.facts.id == "adapter"
    name = "model.language_model.layers.0.self_attn.q_proj"
    first, second = (written[f"base_model.model.{name}.lora_{part}.weight"] for part in ("A", "B"))
    assert float(second.abs().max()) > 0
    torch.testing.assert_close(
        opened.model.state_dict()[f"{name}.weight"], base[f"{name}.weight"] + 2 * second @ first
    )


def test_checkpointing_and_chunks_change_memory_and_not_the_loss(
    folder: Path, whole: list[dict[str, float]]
) -> None:
    spared = run(folder, "spared", gradient_checkpointing=True, head_chunk=3)
    for name in ("loss", "gradient_norm", "answer_tokens_right", "entropy"):
        assert [record[name] for record in spared] == pytest.approx(
            [record[name] for record in whole[:2]], rel=1e-5
        )


def test_layers_are_computed_twice_where_they_are_checkpointed_and_once_where_not(
    folder: Path,
) -> None:
    def passes(*, again: bool) -> int:
        path = config_file(folder, f"again-{again}", gradient_checkpointing=again)
        config = load_config(FinetuneConfig, path, ["language.steps=1"])
        tuned = tuned_model(config.base, config.tuning)
        calls: list[bool] = []
        norm = tuned.model.model.language_model.layers[0].input_layernorm
        norm.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        materials = materials_of(config, lambda _: None)
        train(config, tuned, materials, Accelerated(), lambda _: None)
        return sum(calls)

    assert passes(again=True) == 2 * passes(again=False) > 0


def test_real_radiographs_are_drawn_from_where_their_folder_is_given(folder: Path) -> None:
    """One of either split, with boxes where its lungs may lie."""
    patients = {split_of_patient(str(number)): str(number) for number in range(60)}
    images = folder / "real" / "images"
    images.mkdir(parents=True)
    table: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    for number, split in enumerate(("train", "validation")):
        Image.fromarray(chest(200, seed=number)).save(images / f"{split}.png")
        record = {"id": number, "file_name": f"{split}.png", "width": 200, "height": 200}
        table["images"].append({**record, "metadata": {"patientid": patients[split]}})
        table["annotations"] += [
            {"image_id": number, "category_id": lung, "bbox": [x, 40, 60, 120]}
            for lung, x in ((1, 20), (2, 120))
        ]
    (folder / "real" / "annotations.json").write_text(json.dumps(table), encoding="utf-8")
    path = config_file(folder, "radiographs")

    def real(overrides: list[str]) -> list[list[str]]:
        found = materials_of(load_config(FinetuneConfig, path, overrides), lambda _: None)
        return [[one.name for one in part] for part in (found.real_train, found.real_validation)]

    assert real([f"real_images={folder / 'real'}"]) == [["train.png"], ["validation.png"]]
    assert real([]) == [[], []]


def test_a_trained_tower_changes(folder: Path) -> None:
    run(folder, "tower", vision="trained")
    state = torch.load(folder / "tower" / "language" / "state.pt", weights_only=True)
    before = load_checkpoint(folder / "base").model.model.visual.state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in state["tower"].items())


def test_bf16_keeps_trained_weights_in_fp32(folder: Path, whole: list[dict[str, float]]) -> None:
    path = config_file(folder, "half", precision="bf16", lora={"rank": 2})
    config = load_config(FinetuneConfig, path, [])
    parameters = tuned_model(config.base, config.tuning).model.parameters()
    kinds = {(p.requires_grad, p.dtype) for p in parameters}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    finetune(config, lambda _: None)
    assert logged(folder / "half")[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.05)


def test_a_resumed_run_is_bit_equal(folder: Path, whole: list[dict[str, float]]) -> None:
    path = config_file(folder, "cut")
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if "step 2/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(load_config(FinetuneConfig, path, []), stop)
    run(folder, "cut")
    states = [
        torch.load(folder / name / "language" / "state.pt", weights_only=True)["language"]
        for name in ("cut", "whole")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_muon_is_refused_where_matrices_are_cut_into_pieces(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file(folder, "pieces")
    monkeypatch.setattr(Accelerated, "keeps_matrices", False)
    with pytest.raises(ConfigError, match="Muon needs whole matrices"):
        finetune(load_config(FinetuneConfig, path, ["language.optimizer=muon"]), lambda _: None)
    assert not (folder / "pieces").exists()


def test_what_cannot_be_is_refused(folder: Path) -> None:
    path = config_file(folder, "refused")
    with pytest.raises(ConfigError, match="holds no tower"):
        load_config(FinetuneConfig, path, ["tuning.lora.rank=2", "tuning.vision=trained"])
    with pytest.raises(ConfigError, match="micro_batch must be at least 1"):
        load_config(FinetuneConfig, path, ["tuning.micro_batch=0"])
    with pytest.raises(ConfigError, match="no checkpoint nowhere"):
        finetune(load_config(FinetuneConfig, path, ["base=./nowhere"]), lambda _: None)


def test_a_killed_fine_tuning_goes_on_to_the_bit(folder: Path) -> None:
    """Latents that are fed themselves, the bottleneck and evaluations included."""
    paths = {}
    for name in ("killed", "unharmed"):
        paths[name] = config_file(folder, name, evaluate_every=4, evaluate_records=4)
        raw = yaml.safe_load(paths[name].read_text())
        raw["language"]["steps"] = 30
        paths[name].write_text(yaml.safe_dump(raw))
    killed_after_its_first_save("sft", paths["killed"], folder / "killed/language/state.pt")
    assert not (folder / "killed" / "checkpoint").exists()

    for path in paths.values():
        finetune(load_config(FinetuneConfig, path, []), lambda _: None)

    one, other = (load_file(folder / name / "checkpoint" / "model.safetensors") for name in paths)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    clocks = ("steps_per_second", "tokens_per_second")
    logs = [
        [{k: v for k, v in record.items() if k not in clocks} for record in logged(folder / name)]
        for name in paths
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def unscheduled(folder: Path) -> list[dict[str, float]]:
    """Metrics of two steps on latent records whose settings stay as they begin."""
    return scheduled(folder, "unscheduled", ["latents.self_fed=0.0", "latents.bottleneck_last=0.0"])


def scheduled(folder: Path, name: str, overrides: list[str]) -> list[dict[str, float]]:
    """Fine-tunes on latent records alone; the second step is half of the way."""
    path = config_file(folder, name)
    finetune(load_config(FinetuneConfig, path, ["mix.latent=1.0", *overrides]), lambda _: None)
    return logged(folder / name)


@pytest.mark.parametrize(
    ("self_fed", "bottleneck_last", "relaxation"),
    [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.5)],
    ids=["fed", "bottled", "relaxed"],
)
def test_a_step_has_the_settings_of_its_own_phase(
    folder: Path,
    unscheduled: list[dict[str, float]],
    self_fed: float,
    bottleneck_last: float,
    relaxation: float,
) -> None:
    """Each of them is 0 at the first step."""
    first, second = scheduled(
        folder,
        f"scheduled-{self_fed}-{bottleneck_last}-{relaxation}",
        [
            f"latents.self_fed={self_fed}",
            f"latents.bottleneck_last={bottleneck_last}",
            f"latents.relaxation={relaxation}",
        ],
    )
    for name in ("loss", "text", "roi", "gradient_norm"):
        assert first[name] == pytest.approx(unscheduled[0][name], rel=1e-6)
    assert first["loss"] == pytest.approx(first["text"] + first["roi"], rel=1e-5)
    assert second["text"] != pytest.approx(unscheduled[1]["text"], rel=1e-4)
    regions = 0.0 if relaxation else second["roi"]
    assert second["loss"] == pytest.approx(second["text"] + regions, rel=1e-5)


def test_a_rehearsal_touches_nothing_and_says_what_is_needed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run whose phantoms are still to be drawn, with evaluations and the relaxation."""
    path = config_file(
        folder, "rehearsed", questions=QUESTIONS, evaluate_every=2, evaluate_records=4
    )
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}

    changes = ["latents.relaxation=0.1", f"world={folder / 'undrawn'}"]
    assert main(["sft", str(path), *changes, "--rehearse"]) == 0

    said = capsys.readouterr()
    assert "The rehearsal works: the whole run will take about" in said.out
    assert "language: step 3/3" in said.err
    assert "validation_accuracy" in said.err
    assert not (folder / "rehearsed").exists()
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


@pytest.fixture(scope="module")
def records(folder: Path) -> Path:
    """A file of records about two drawn images, each asked about twice in either split."""
    lines = []
    for number in range(2):
        image = Image.fromarray(chest(160 + 40 * number, seed=number))
        image.save(folder / f"image-{number}.png")
        for split in ("train", "validation"):
            line = {"image": f"image-{number}.png", "question": "Where?", "split": split}
            answers = {"options": ["left", "right"], "answer": "A", "reasoning": "It is left."}
            boxed = {"question": "Which side?", "bboxes": [[0.1, 0.1, 0.6, 0.5]]}
            lines += [{**line, "answer": "On the left."}, {**line, **answers, **boxed}]
    path = folder / "records.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_records_of_ones_own_train_beside_phantoms_or_alone(
    folder: Path, records: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    name = f"own-{share}"
    path = config_file(folder, name, evaluate_every=2, evaluate_records=4)
    raw = yaml.safe_load(path.read_text())
    files = {"train": str(records), "validation": str(records)}
    raw["records"] = {**files, "crops_per_target": 1, "most_pixels": 84 * 84, "least_pixels": 784}
    raw["mix"]["own"] = share
    if share == 1.0:
        for key in ("train", "validation", "world"):
            del raw[key]
    path.write_text(yaml.safe_dump(raw))
    said: list[str] = []

    finetune(load_config(FinetuneConfig, path, []), said.append)

    assert "4 records of one's own, and 4 to validate with." in said
    found = logged(folder / name)
    assert [record["step"] for record in found] == [1, 2, 2]
    assert found[0]["roi"] > 0
    assert found[-1]["validation_loss"] > 0
    # It is to see images as large as it has seen them in training.
    manifest = load_checkpoint(folder / name / "checkpoint").manifest
    assert manifest.view == manifest.crop == PixelBudget(least=784, most=84 * 84)
    arguments = ["evaluate", "--benchmark", "records", "--data", str(records), "--method", "latent"]
    checkpoint = ["--checkpoint", str(folder / name / "checkpoint"), "--split", "validation"]
    assert main([*arguments, *checkpoint, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["counts"]["own"] == 4
    assert main([*arguments, *checkpoint, "--split", "test"]) == 2
    assert "holds no record of the split test" in capsys.readouterr().err


def launched_by(name: str, *changes: str) -> list[str]:
    """How accelerate starts what a shipped file asks for, with changes on the command line."""
    config = ["--config_file", str(CONFIGS / "accelerate" / f"{name}.yaml")]
    return ["accelerate.commands.launch", *config, *changes]


def check_two_have_the_loss_of_one(
    out: Path, whole: list[dict[str, float]], said: list[str]
) -> None:
    """What two processes logged and said against what one logged."""
    found = logged(out)
    assert [record["step"] for record in found] == [1, 2, 2]
    for record, expected in zip(found, whole, strict=True):
        for key in expected.keys() - CLOCKS:
            assert record[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-5), key
    assert "validation_accuracy" in found[-1]
    # Both took part: one alone would have said that it is the main of two only by mistake.
    assert "".join(said).count("2 processes") == 1
    assert "".join(said).count(f"Checkpoint written to {out / 'checkpoint'}.\n") == 1
    assert load_checkpoint(out / "checkpoint").facts.layers == 3


# What `ddp.yaml` asks for is eight processes, and a port that another run may have taken.
@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("torchrun", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
        ("cpu", launched_by("cpu")),
        ("ddp", launched_by("ddp", "--num_processes", "2", "--main_process_port", "0")),
    ],
    ids=["torchrun", "accelerate", "ddp"],
)
def test_two_processes_have_the_loss_of_one(
    folder: Path, whole: list[dict[str, float]], name: str, launcher: list[str]
) -> None:
    """The same global batch, gloo on the CPU; `evaluate` and latents included."""
    path = config_file(folder, name, questions=QUESTIONS, evaluate_every=2, evaluate_records=4)
    command = [sys.executable, "-m", *launcher, "-m", "training", "sft", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stderr
    check_two_have_the_loss_of_one(folder / name, whole, [done.stdout, done.stderr])


def test_two_machines_have_the_loss_of_one(folder: Path, whole: list[dict[str, float]]) -> None:
    """Two launches that know nothing of each other but an address, as `ddp.yaml` says."""
    path = config_file(
        folder, "machines", questions=QUESTIONS, evaluate_every=2, evaluate_records=4
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = ["--num_machines", "2", "--num_processes", "2"]
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    machines = []
    for rank in ("0", "1"):
        launcher = launched_by("ddp", *shared, *address, "--machine_rank", rank)
        command = [sys.executable, "-m", *launcher, "-m", "training", "sft", str(path)]
        # Into a file: a full pipe that nobody reads would hold the others up.
        with (folder / f"machine-{rank}.log").open("w") as log:
            machines.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    try:
        for machine in machines:
            machine.wait(300)
    finally:
        # Where one has failed the other waits for it; told to end, it ends its own process, too.
        for machine in machines:
            machine.terminate()
            machine.wait(60)
    said = [(folder / f"machine-{rank}.log").read_text() for rank in "01"]
    assert [machine.returncode for machine in machines] == [0, 0], said
    check_two_have_the_loss_of_one(folder / "machines", whole, said)


def fsdp_command(folder: Path) -> list[str]:
    """Starts two processes that spread weights by what `fsdp2.yaml` asks for."""
    del folder
    launcher = launched_by("fsdp2", "--num_processes", "2", "--main_process_port", "0")
    return [*launcher, str(ROOT / "tests" / "integration" / "sharded_run.py")]


def deepspeed_command(folder: Path) -> list[str]:
    """Starts two processes that spread weights by what `deepspeed.yaml` asks for."""
    raw = yaml.safe_load((CONFIGS / "accelerate" / "deepspeed.yaml").read_text(encoding="utf-8"))
    raw |= {"num_processes": 2, "use_cpu": True, "main_process_port": 0}
    path = folder / "deepspeed.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    launcher = ["accelerate.commands.launch", "--config_file", str(path)]
    return [*launcher, str(ROOT / "tests" / "integration" / "deepspeed_run.py")]


@pytest.mark.parametrize("vision", ["frozen", "trained"])
@pytest.mark.parametrize(
    ("command", "parts"),
    [
        pytest.param(fsdp_command, "pytorch_model_fsdp_0", id="fsdp2"),
        pytest.param(deepspeed_command, "pytorch_model", id="deepspeed"),
    ],
)
def test_spread_weights_learn_what_whole_ones_learn(
    folder: Path, command: Callable[[Path], list[str]], parts: str, vision: str
) -> None:
    """Two processes: losses, norms, scores and weights of one; their state can be read again."""
    launcher = command(folder)
    name = f"{command.__name__}-{vision}"
    tuning = {"vision": vision, "evaluate_every": 2, "evaluate_records": 4}
    expected = run(folder, f"unspread-{name}", **tuning)
    path = config_file(folder, name, **tuning)
    exported = folder / name / "checkpoint" / "model.safetensors"
    # What DeepSpeed compiles goes into a folder of its own: a test that was killed while compiling
    # leaves a lock in the shared one, for which every later run would wait for ever.
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
    }

    def launched() -> dict[str, torch.Tensor]:
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "sft", str(path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
        assert done.returncode == 0, done.stderr
        weights: dict[str, torch.Tensor] = load_file(exported)
        return weights

    weights = launched()
    found = logged(folder / name)
    assert [record["step"] for record in found] == [1, 2, 2]
    for record, whole in zip(found, expected, strict=True):
        for key in whole.keys() - CLOCKS:
            assert record[key] == pytest.approx(whole[key], rel=1e-5, abs=1e-5), key
    state = folder / name / "language" / "state"
    assert (state / parts).is_dir()
    one = load_file(folder / f"unspread-{name}" / "checkpoint" / "model.safetensors")
    for key, value in one.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-2, atol=1e-3)
    if vision == "trained":
        # Killed between the two renames of its last save, it goes on from the state before and
        # ends in the same weights; finished, it reads its last state and exports the same.
        shutil.rmtree(state)
        for _ in range(2):
            exported.unlink()
            again = launched()
            assert all(torch.equal(again[key], value) for key, value in weights.items())
        assert [record["step"] for record in logged(folder / name)] == [1, 2, 2]


def test_spread_weights_compute_in_bfloat16_as_the_recipe_asks(folder: Path) -> None:
    """As `8x80gb` is run: `fsdp2.yaml`, bfloat16, layers computed again; and self-fed latents."""
    name = "spread-bf16"
    path = config_file(folder, name, precision="bf16", gradient_checkpointing=True, head_chunk=8)
    alone = load_config(FinetuneConfig, path, [f"out={folder / 'unspread-bf16'}"])
    finetune(alone, lambda _: None)
    command = [sys.executable, "-m", *fsdp_command(folder), "sft", str(path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    expected = logged(folder / "unspread-bf16")
    for record, one in zip(logged(folder / name), expected, strict=True):
        for key in one.keys() - CLOCKS:
            assert record[key] == pytest.approx(one[key], rel=5e-3), key


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sft-zoom", ["mix.letters=0"]),
        ("sft-zoom", ["mix.letters=16"]),
        ("medlvr-sft", ["tuning.micro_batch=11"]),
        ("cold-start", ["tuning.micro_batch=11"]),
    ],
)
def test_shipped_configurations_can_be_shared_by_two_as_the_docs_say(
    name: str, overrides: list[str]
) -> None:
    config = load_config(FinetuneConfig, CONFIGS / f"{name}.yaml", overrides)
    parts = -(-config.step_records // config.tuning.micro_batch)
    assert parts_of_each(parts, 2) * 2 == parts
    plain = load_config(FinetuneConfig, CONFIGS / f"{name}.yaml", [])
    with pytest.raises(ValueError, match="cannot share evenly"):
        parts_of_each(-(-plain.step_records // plain.tuning.micro_batch), 2)
