"""`medvr` and `vlpo` from the command line on a tiny random model, and their configurations."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from engine import trace_io
from engine.engine import Engine
from engine.geometry import PatchGrid
from engine.group_io import read_group
from engine.loading import load_checkpoint
from engine.manifest import PixelBudget, read_manifest
from engine.request import Budgets
from engine.tiny import TinyShape, tiny_manifest, tiny_model
from tests.integration.conftest import picture
from tests.integration.killing import killed_after_its_first_save
from tests.integration.test_loading import save
from tests.source_tree import ROOT
from training import policy_updates, reinforcement, rollout_groups
from training.ablation import AblationConfig
from training.accelerated import Accelerated
from training.adapters import AdapterConfig
from training.calibration import coarse_cases, entropy_threshold
from training.cli import main
from training.config import ConfigError, load_config
from training.counts import counts_columns, number_rows_and_columns
from training.evaluate import AskConfig
from training.out_of_distribution import Detector
from training.packing import packed_group
from training.policy import PolicyOutputs, policy_outputs
from training.policy_loss import ObjectiveConfig, PolicyPart, Totals, policy_loss
from training.prompts import Prompt, PromptConfig, PromptPool
from training.reinforcement import (
    ReinforcementConfig,
    export,
    gathered,
    medvr,
    opened_policy,
    reference_of,
    vlpo,
)
from training.replicas import Replicas
from training.rollout_groups import RewardedGroup, rolled_out
from training.sft import FinetuneConfig
from training.stopping import DivergedError
from training.trajectories import TrajectoryGroup

# peft 0.21 still asks for a property that transformers 5.23 has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.timeout(900),
]
CONFIGS = ROOT / "training" / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights; phantoms are drawn beside it once."""
    folder = tmp_path_factory.mktemp("reinforcement")
    loaded = tiny_model(TinyShape(hidden=32, layers=2, heads=2))
    # Prompts and images as training knows them.
    manifest = dataclasses.replace(tiny_manifest(), question_first=True)
    save(dataclasses.replace(loaded, manifest=manifest), folder / "base")
    return folder


def written(folder: Path, name: str, method: str, **changes: object) -> Path:
    prompts = {"count": 1, "seed": 3, "families": ["nodule_margin"]}
    raw = {
        "out": str(folder / name),
        "base": str(folder / "base"),
        "phantoms": str(folder / "phantoms"),
        "seed": 5,
        "threads": 1,
        "method": method,
        "prompts": {**prompts, "split": "train"},
        "rollouts": {"prompts": 1, "group": 4, "max_new_tokens": 4, "latent_steps": 2},
        "reward": {"tool_reward": "none"},
        "steps": {
            "steps": 4,
            "learning_rate": 0.01,
            "warmup": 1,
            "save_every": 2,
            "log_every": 2,
        },
        "evaluation": {"every": 2, "prompts": {**prompts, "split": "validation"}},
        "export": {"name": name, "stage": name, "embedded": False, "notices": []},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def records(folder: Path) -> list[dict[str, float]]:
    text = (folder / "policy" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("method", ["direct", "latent"])
def test_an_image_is_encoded_once_in_a_whole_run(folder: Path, method: str) -> None:
    """One prompt is learned from, one is scored: in batch after batch, evaluation by evaluation."""
    calls: list[int] = []

    def entered(module: torch.nn.Module, _: object) -> None:
        calls[-1] += type(module).__name__ == "Qwen2_5_VisionTransformerPretrainedModel"

    found = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(entered)
    try:
        for name, size in (("kept", 8), ("not-kept", 0)):
            calls.append(0)
            path = written(folder, f"{name}-{method}", method, kept_views_mib=size)
            assert main(["vlpo" if method == "latent" else "medvr", str(path)]) == 0
            log = records(folder / f"{name}-{method}")
            clocks = ("seconds", "per_second")
            found.append([{k: v for k, v in r.items() if not k.endswith(clocks)} for r in log])
    finally:
        hook.remove()

    # Two batches; before the first, after the second, and between them an evaluation.
    assert calls == [2, 5]
    assert found[0] == found[1]


def test_medvr_logs_from_step_zero_alarms_and_exports(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        folder,
        "medvr",
        "zoom",
        rollouts={"prompts": 1, "group": 4, "max_new_tokens": 4, "branching": {"gamma": 0.5}},
        alarm={"share": 0.5, "batches": 2},
        trees_every=4,
    )
    assert main(["medvr", str(path)]) == 0
    out, said = capsys.readouterr()
    assert out == f"Checkpoint written to {folder / 'medvr' / 'checkpoint'}.\n"
    assert said.count("ALARM: tool use is") == 1
    found = records(folder / "medvr")
    assert [record["step"] for record in found] == [0, 2, 2, 4, 4]
    assert "validation_accuracy" in found[0]
    assert [r["tool_alarm"] for r in found if "tool_alarm" in r] == [0, 1]
    # Of two batches, two steps each, the first is due.
    (tree,) = (folder / "medvr" / "policy" / "trees").iterdir()
    assert tree.name == "step-000000.radgroup.zip"
    assert len(read_group(tree).members) == 4
    assert {member.correct for member in read_group(tree).members} <= {True, False}
    engine = Engine.load(folder / "medvr" / "checkpoint")
    assert engine.loaded.manifest.stage == "medvr"

    # Started again, a finished run only writes its checkpoint anew.
    assert main(["medvr", str(path)]) == 0
    assert records(folder / "medvr") == found


@pytest.mark.parametrize(("stage", "method"), [("medvr", "direct"), ("vlpo", "latent")])
def test_counts_of_rows_and_columns_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, method: str
) -> None:
    loaded = tiny_model(TinyShape(hidden=128, layers=2, heads=4))
    tokens = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    number_rows_and_columns(loaded.model, loaded.tokenizer, tokens, PatchGrid(8, 7))
    base = folder / f"counts-{stage}"
    manifest = dataclasses.replace(tiny_manifest(), question_first=True)
    save(dataclasses.replace(loaded, manifest=manifest), base)
    # A random model earns nothing, and equal rewards teach nothing.
    monkeypatch.setattr(
        rollout_groups,
        "group_advantages",
        lambda totals, _: [(-1.0) ** i for i in range(len(totals))],
    )
    path = written(folder, f"counted-{stage}", method, base=str(base))
    assert main([stage, str(path)]) == 0

    after = Engine.load(folder / f"counted-{stage}" / "checkpoint").loaded.model
    assert counts_columns(after)
    own, found = (dict(model.named_parameters()) for model in (loaded.model, after))
    layer = "model.language_model.layers.0.self_attn"
    width = 128 // 4
    for name, places in (
        ("v_proj.weight", [0]),
        ("o_proj.weight", (slice(None), [0, width])),
        ("k_proj.weight", [width // 2 - 1]),
    ):
        before, kept = own[f"{layer}.{name}"], found[f"{layer}.{name}"].float()
        # A checkpoint that is not embedded is written in bfloat16.
        torch.testing.assert_close(kept[places], before[places].bfloat16().float())
        assert not torch.allclose(kept, before, atol=1e-3)


def test_only_prompts_that_the_pass_rates_keep_are_learned_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {"count": 4, "seed": 3, "families": ["nodule_side"], "split": "train"}
    path = written(folder, "kept", "direct", prompts=prompts)
    pool = PromptPool(folder / "phantoms", PromptConfig(**prompts))  # type: ignore[arg-type]
    kept = pool[2].image.sha256, pool[2].pixels.tobytes()
    whole, asked = reinforcement.rolled_out, []

    def noted(engine: Engine, prompt: Prompt, *more: Any) -> TrajectoryGroup:
        asked.append((prompt.image.sha256, prompt.pixels.tobytes()))
        return whole(engine, prompt, *more)

    monkeypatch.setattr(reinforcement, "kept_prompts", lambda *_: [2])
    monkeypatch.setattr(reinforcement, "rolled_out", noted)
    assert main(["medvr", str(path)]) == 0
    assert asked
    assert set(asked) == {kept}


@pytest.mark.parametrize("full", ["disk", "file"])
def test_a_tree_that_cannot_be_saved_is_told_and_learned_from(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    name = f"without-{full}"
    path = written(folder, name, "zoom", trees_every=4)
    trees = folder / name / "policy" / "trees"
    if full == "disk":
        # Where a file stands no folder can be made.
        trees.parent.mkdir(parents=True)
        trees.write_text("")
    else:
        monkeypatch.setattr(trace_io, "MAX_FILE_BYTES", 100)

    assert main(["medvr", str(path)]) == 0

    said = capsys.readouterr().err
    assert said.count("the tree of batch 0 was not saved: ") == 1
    assert [record["step"] for record in records(folder / name)][-1] == 4


def test_a_rehearsal_touches_nothing_and_says_what_is_needed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(folder, "rehearsed", "latent", pass_rate={"rollouts": 2})
    drawn = sorted((folder / "phantoms").rglob("*"))
    assert main(["vlpo", str(path), "--rehearse"]) == 0
    assert "The rehearsal works: the whole run will take about" in capsys.readouterr().out
    assert not (folder / "rehearsed").exists()
    assert sorted((folder / "phantoms").rglob("*")) == drawn


def test_vlpo_trains_an_adapter_and_leaves_its_base(folder: Path) -> None:
    """Rewards of random weights do not vary: what moves here is nothing, and the form is tested."""
    path = written(folder, "vlpo", "latent", lora={"rank": 2, "alpha": 4})
    assert main(["vlpo", str(path)]) == 0
    weights = load_file(folder / "vlpo" / "checkpoint" / "adapter_model.safetensors")
    assert weights
    assert all("language_model" in name for name in weights)
    assert load_checkpoint(folder / "vlpo" / "checkpoint", "cpu").facts.stage == "vlpo"
    assert records(folder / "vlpo")[1]["skipped"] in (0, 1)


def test_an_adapter_goes_on_from_an_adapter(folder: Path) -> None:
    """As stage 2 of a large model does from stage 1: it opens with both upon their base."""
    first = written(folder, "first", "latent", lora={"rank": 2, "alpha": 4})
    assert main(["vlpo", str(first)]) == 0
    one = folder / "first" / "checkpoint"
    adapter = load_file(one / "adapter_model.safetensors")
    torch.manual_seed(0)
    save_file(
        {name: torch.randn_like(value) for name, value in adapter.items()},
        one / "adapter_model.safetensors",
    )
    second = written(folder, "second", "latent", base=str(one), lora={"rank": 3, "alpha": 3})
    assert main(["vlpo", str(second)]) == 0
    both, alone, base = (
        load_checkpoint(folder / name, "cpu").model.state_dict()
        for name in ("second/checkpoint", "first/checkpoint", "base")
    )
    # Rewards of random weights do not vary, so that the second adapter is still the identity.
    for name, value in both.items():
        torch.testing.assert_close(value, alone[name])
    assert any(not torch.equal(value, base[name]) for name, value in both.items())


def test_records_of_ones_own_are_asked_and_their_boxes_only_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {
            "image": f"{split}.png",
            "question": "Is there a nodule?",
            "options": ["yes", "no"],
            "answer": "yes",
            "bboxes": [[0.5, 0.5, 1.0, 1.0]],
            "split": split,
        }
        for split in ("train", "validation", "test")
    ]
    for line in lines[:2]:
        Image.fromarray(picture()).save(folder / str(line["image"]))
    # The third one's image is never looked for.
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    own = {
        "prompts": None,
        "records": {"train": str(file), "validation": str(file)},
        "evaluation": {"every": 2},
    }
    path = written(folder, "own", "zoom", **own)
    assert main(["medvr", str(path), "--rehearse"]) == 0
    assert main(["medvr", str(path)]) == 0
    found = records(folder / "own")
    assert [record["step"] for record in found] == [0, 2, 2, 4, 4]
    assert "validation_accuracy" in found[0]
    assert found[1]["target_iou"] >= 0.0

    capsys.readouterr()
    both = written(folder, "both", "zoom", records=own["records"])
    assert main(["medvr", str(both)]) == 2
    assert "records take the place of prompts" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [None, AdapterConfig(rank=2, alpha=4)])
def test_the_reference_stays_where_the_policy_began(
    folder: Path, lora: AdapterConfig | None
) -> None:
    policy = opened_policy(str(folder / "base"), lora)
    config = load_config(ReinforcementConfig, written(folder, "kept", "latent"), [])
    prompt = config.pools()[0][0]
    found = rolled_out(
        policy.engine, prompt, "latent", config.rollouts, config.objective.latents, [0]
    )
    packed = packed_group([trajectory.sequence for trajectory in found.trajectories])
    reference = reference_of(policy, 64)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            now = policy_outputs(policy.model, packed)
            return now.log_probs, reference(packed).log_probs

    before, kept = both()
    torch.testing.assert_close(before, kept)
    trained = [p for m in policy.trained.values() for p in m.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1
            )
    after, still = both()
    assert torch.equal(kept, still)
    assert float((after - before).abs().max()) > 1e-3
    frozen = policy.model.model.visual.parameters()
    assert not any(parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize(
    ("command", "method", "changes", "said"),
    [
        ("medvr", "latent", {}, "for latent there is vlpo"),
        ("vlpo", "zoom", {}, "for zoom and direct there is medvr"),
        (
            "medvr",
            "zoom",
            {"base": "nowhere/at/all"},
            "Run the stage that makes nowhere/at/all first",
        ),
        ("medvr", "zoom", {"rewards": {}}, "Did you mean 'reward'?"),
        ("medvr", "zoom", {"update": {"steps": 3}}, "must be a multiple of update.steps, 3"),
        ("medvr", "zoom", {"trees_every": 3}, "trees_every must be a multiple of update.steps, 2"),
        (
            "medvr",
            "direct",
            {"rollouts": {"prompts": 1, "group": 2, "branching": {}}},
            "needs the method zoom",
        ),
        ("medvr", "zoom", {"precision": "bf16"}, "precision bf16 needs lora"),
        ("medvr", "zoom", {"prompts": None}, "or records of your own"),
        (
            "medvr",
            "zoom",
            {
                "prompts": None,
                "evaluation": {},
                "records": {"train": "nowhere.jsonl", "validation": "nowhere.jsonl"},
            },
            "Cannot read the records nowhere.jsonl",
        ),
        ("vlpo", "latent", {"update": {"steps": 1}}, "update.steps must be at least 2"),
        ("medvr", "zoom", {"rollouts": {"prompts": 1, "group": 1}}, "group must be at least 2"),
        (
            "vlpo",
            "latent",
            {"objective": {"kl_weight": 0.0}, "update": {"most_kl": 1.0}},
            "most_kl needs a reference",
        ),
        (
            "vlpo",
            "latent",
            {"rollouts": {"prompts": 1, "group": 2, "latent_steps": 0, "bottleneck": True}},
            "latent_steps must be at least 1",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_two(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    method: str,
    changes: dict[str, object],
    said: str,
) -> None:
    (tmp_path / "base").mkdir()
    assert main([command, str(written(tmp_path, "bad", method, **changes))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "method", "changes"),
    [
        ("medvr", "zoom", {"base": "assets/checkpoints/medvr", "reward": {}}),
        ("vlpo", "latent", {"base": "assets/checkpoints/medlvr-sft"}),
    ],
)
def test_a_killed_policy_goes_on_to_the_bit(
    folder: Path, command: str, method: str, changes: dict[str, object]
) -> None:
    """With shipped models: rollouts of random weights all earn the same, and teach nothing."""
    steps = {"steps": 6, "learning_rate": 0.001, "warmup": 1, "save_every": 2, "log_every": 2}
    rollouts = {"prompts": 1, "group": 6, "max_new_tokens": 120, "latent_steps": 4}
    names = [f"{name}-{command}" for name in ("killed", "whole")]
    paths = [
        written(folder, name, method, steps=steps, rollouts=rollouts, **changes) for name in names
    ]
    killed_after_its_first_save(command, paths[0], folder / names[0] / "policy" / "state.pt")
    assert not (folder / names[0] / "checkpoint").exists()

    assert [main([command, str(path)]) for path in paths] == [0, 0]

    one, other = (load_file(folder / name / "checkpoint" / "model.safetensors") for name in names)
    base = load_file(Path(str(changes["base"])) / "model.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(not torch.equal(value, base[name]) for name, value in one.items())
    clocks = ("steps_per_second", "tokens_per_second", "rollout_seconds", "validation_seconds")
    logs = [
        [{k: v for k, v in r.items() if k not in clocks} for r in records(folder / name)]
        for name in names
    ]
    assert logs[0] == logs[1]
    assert any(record.get("skipped") == 0.0 for record in logs[0])


@dataclasses.dataclass
class Watched:
    """What a run rolled out, and what it made of it.

    Attributes:
        groups: all that were rolled out.
        parts, numbers: of every update, what it learned from and what it measured.
        gradients: of every update, that of its loss by the means of the latents.
    """

    groups: list[RewardedGroup] = dataclasses.field(default_factory=list)
    parts: list[PolicyPart] = dataclasses.field(default_factory=list)
    numbers: list[dict[str, float]] = dataclasses.field(default_factory=list)
    gradients: list[torch.Tensor] = dataclasses.field(default_factory=list)


def watched(
    folder: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    bottleneck: bool = False,
    objective: dict[str, object] | None = None,
) -> Watched:
    """One batch of `vlpo`, a group of six, in two updates.

    With a shipped model: rollouts of random weights all earn the same, and teach nothing.
    """
    seen = Watched()

    def rolled(*arguments: object, **named: object) -> list[RewardedGroup]:
        groups = gathered(*arguments, **named)  # type: ignore[arg-type]
        seen.groups += groups
        return groups

    def loss_of(
        found: PolicyOutputs, part: PolicyPart, totals: Totals, config: ObjectiveConfig
    ) -> tuple[torch.Tensor, dict[str, float]]:
        loss, numbers = policy_loss(found, part, totals, config)
        # No word hangs on the means: what is fed into slots is what was fed in the rollout.
        (gradient,) = torch.autograd.grad(loss, found.latent_means, retain_graph=True)
        seen.parts.append(part)
        seen.numbers.append(numbers)
        seen.gradients.append(gradient)
        return loss, numbers

    monkeypatch.setattr(reinforcement, "gathered", rolled)
    monkeypatch.setattr(policy_updates, "policy_loss", loss_of)
    path = written(
        folder,
        name,
        "latent",
        base="assets/checkpoints/medlvr-sft",
        rollouts={
            "prompts": 1,
            "group": 6,
            "max_new_tokens": 120,
            "latent_steps": 3,
            "bottleneck": bottleneck,
        },
        objective=objective or {},
        steps={
            "steps": 2,
            "learning_rate": 0.0001,
            "warmup": 1,
            "save_every": 2,
            "log_every": 1,
        },
    )
    vlpo(load_config(ReinforcementConfig, path, []), lambda _: None)
    (group,) = seen.groups
    assert group.varies
    assert len(seen.parts) == 2
    return seen


@pytest.mark.parametrize(("kind", "sigma"), [("spherical", 0.3), ("gaussian", 0.1)])
def test_latents_are_drawn_as_the_objective_says_and_learned_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sigma: float
) -> None:
    seen = watched(
        folder,
        f"drawn-{kind}",
        monkeypatch,
        objective={"latents": {"kind": kind, "sigma": sigma}},
    )

    part = seen.parts[0]
    latents, means = part.packed.latents, part.old.latent_means
    one, other = (latents[part.packed.latent_owners == branch] for branch in (0, 1))
    assert float((one - other).norm(dim=-1).min()) > 0.1
    if kind == "spherical":
        torch.testing.assert_close(latents.norm(dim=-1), means.norm(dim=-1), rtol=1e-4, atol=0)
        directions = [torch.nn.functional.normalize(v, dim=-1) for v in (latents, means)]
        # The chord of a turn whose tangent is sigma.
        chord = 2 * math.sin(math.atan(sigma) / 2)
        assert float((directions[0] - directions[1]).norm(dim=-1).mean()) == pytest.approx(
            chord, rel=0.1
        )
    else:
        assert float((latents - means).std()) == pytest.approx(sigma, rel=0.1)
    # Of latents that were not drawn the first would be zero, and without a ratio both.
    assert all(bool(gradient.isfinite().all()) for gradient in seen.gradients)
    assert all(float(gradient.norm()) > 0 for gradient in seen.gradients)
    assert all(math.isfinite(numbers["latent_loss"]) for numbers in seen.numbers)
    assert abs(seen.numbers[1]["latent_loss"]) > 1e-6


def test_the_loss_of_a_run_is_that_of_its_objective(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting is the one by default; the second update has something in every term."""
    watched(
        folder,
        "weighed",
        monkeypatch,
        objective={
            "kl_weight": 30.0,
            "latents": {"kind": "spherical", "sigma": 0.5},
            "latent_weight": 5.0,
            "latent_kl_weight": 3.0,
            "clip": {"low": 0.003, "high": 0.003},
        },
    )

    _, _, second, _ = records(folder / "weighed")
    terms = [30 * second["kl"], 5 * second["latent_loss"], 3 * second["latent_kl"]]
    assert min(map(abs, terms)) > 1e-3
    assert second["loss"] == pytest.approx(second["text_loss"] + sum(terms), abs=1e-4)
    # Of directions: what the length itself has changed by is little beside what has turned.
    turned = second["latent_drift"] / second["latent_norm"]
    assert second["latent_drift_over_sigma"] == pytest.approx(turned / 0.5, rel=0.1)
    # Under the bounds by default none is.
    assert second["latent_clipped"] > 0.1


def test_an_update_of_a_run_reads_rollouts_under_the_bottleneck_as_they_were_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(folder, "narrow", monkeypatch, bottleneck=True)

    (group,), part = seen.groups, seen.parts[0]
    own = [
        token.logprob
        for trajectory in group.rollouts.trajectories
        for token in trajectory.sequence.written
        if not token.forced
    ]
    old = part.old.log_probs[part.packed.learned]
    torch.testing.assert_close(old, torch.tensor(own), atol=1e-4, rtol=0)


def test_a_policy_is_to_be_spoken_to_as_its_base_was(folder: Path) -> None:
    """It was rolled out with that prompt, at that size and in these coordinates."""
    own = folder / "spoken-base"
    shutil.copytree(folder / "base", own)
    manifest = dataclasses.replace(
        read_manifest(folder / "base"),
        prompt_style="full",
        question_first=False,
        coordinates="thousandths",
        crop=PixelBudget(least=784, most=56 * 56),
        crop_padding=0.1,
    )
    (own / "lightbox.json").write_text(manifest.to_json())
    config = load_config(ReinforcementConfig, written(folder, "spoken", "zoom", base=str(own)), [])
    export(config, opened_policy(str(own), None), config.pools()[0])

    made = read_manifest(folder / "spoken" / "checkpoint")
    assert made.name == "spoken"
    for name in ("prompt_style", "question_first", "coordinates", "view", "crop", "crop_padding"):
        assert getattr(made, name) == getattr(manifest, name)


def test_an_embedded_policy_is_unsure_at_a_limit_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompts are fine ones alone, and the limit is read off coarse ones."""
    own = folder / "detecting-base"
    shutil.copytree(folder / "base", own)
    base = load_checkpoint(str(own), "cpu")
    size = 2 * base.model.config.get_text_config().hidden_size
    detector = Detector(torch.zeros(size).double(), torch.eye(size).double(), 3.0)
    save_file(detector.tensors(), own / "ood.safetensors")
    stale = dataclasses.replace(read_manifest(own), entropy_threshold=77.0)
    (own / "lightbox.json").write_text(stale.to_json())
    path = written(
        folder, "embedded", "zoom", base=str(own), export={"name": "embedded", "embedded": True}
    )
    config = load_config(ReinforcementConfig, path, [])
    unseen = config.pools()[1]
    assert {prompt.question.kind for prompt in unseen} == {"fine"}
    drawn = coarse_cases(3)
    assert {case.asked.kind for case in drawn if case.asked} == {"coarse"}
    monkeypatch.setattr(reinforcement, "coarse_cases", lambda: drawn)
    export(config, opened_policy(str(own), None), unseen)

    made = load_checkpoint(str(folder / "embedded" / "checkpoint"), "cpu")
    assert made.detector is not None
    assert made.detector.threshold == 3.0
    expected = entropy_threshold(base.model, base.tokenizer, drawn)
    assert made.manifest.entropy_threshold == pytest.approx(expected, abs=1e-3)


def test_weights_that_are_no_numbers_stop_the_run_in_one_sentence(folder: Path) -> None:
    config = load_config(ReinforcementConfig, written(folder, "broken", "direct"), [])
    policy = opened_policy(str(folder / "base"), None)
    with torch.no_grad():
        policy.model.model.language_model.norm.weight.fill_(float("nan"))
    pool = config.pools()[0]

    with pytest.raises(DivergedError, match=r"no numbers before step 6$"):
        gathered(policy.engine, pool, [0], config, 3, lambda _: None, replicas=Replicas())


def test_a_base_without_a_detector_is_refused_before_the_training(folder: Path) -> None:
    path = written(folder, "detectorless", "direct", export={"name": "x", "embedded": True})
    config = load_config(ReinforcementConfig, path, [])
    with pytest.raises(ConfigError, match=r"this base has none: set export\.embedded"):
        medvr(config, lambda _: None)
    assert not (folder / "detectorless" / "policy").exists()


def test_the_policy_is_scored_under_its_own_budgets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = {"prompts": 1, "group": 4, "max_new_tokens": 5, "max_crops": 3}
    config = load_config(
        ReinforcementConfig, written(folder, "budgets", "zoom", rollouts=rollouts), []
    )
    asked: list[AskConfig] = []
    monkeypatch.setattr(
        reinforcement, "greedy_scores", lambda _engine, _pool, how, _replicas: asked.append(how)
    )
    engine = opened_policy(str(folder / "base"), None).engine
    reinforcement.validation_scores(engine, [], config, Replicas())
    assert asked[0].budgets == Budgets(max_new_tokens=5, max_crops=3)


def launched(path: Path, command: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    """A stage in two processes."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "training", command, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (
    "accelerate.commands.launch",
    "--config_file",
    str(CONFIGS / "accelerate" / "cpu.yaml"),
)


@pytest.mark.parametrize(
    ("command", "method", "launcher", "changes"),
    [
        ("medvr", "zoom", TORCHRUN, {"base": "assets/checkpoints/medvr", "reward": {}}),
        ("vlpo", "latent", ACCELERATE, {"base": "assets/checkpoints/medlvr-sft"}),
    ],
    ids=["medvr", "vlpo"],
)
def test_two_processes_learn_what_one_learns(
    folder: Path,
    command: str,
    method: str,
    launcher: tuple[str, ...],
    changes: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three prompts a batch, shared unevenly: rates, rollouts, losses, scores and weights."""
    left: list[int] = []
    monkeypatch.setattr(Accelerated, "close", lambda processes: left.append(processes.index))
    prompts = {"count": 5, "seed": 3, "families": ["nodule_margin", "nodule_zone"]}
    branching = {"branching": {"gamma": 0.5}} if method == "zoom" else {}
    changes |= {
        "prompts": {**prompts, "split": "train"},
        "pass_rate": {"rollouts": 2, "above": 0.0, "up_to": 1.0},
        "rollouts": {"prompts": 3, "group": 6, "max_new_tokens": 120, **branching},
        "steps": {"steps": 4, "learning_rate": 0.001, "warmup": 1, "save_every": 2, "log_every": 1},
        "evaluation": {"every": 2, "prompts": {**prompts, "split": "validation"}},
    }
    names = [f"{name}-{command}" for name in ("one", "two")]
    one, two = (written(folder, name, method, **changes) for name in names)
    assert main([command, str(one)]) == 0
    assert left == [0]
    done = launched(two, command, *launcher)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes train together") == 1

    logs = [records(folder / name) for name in names]
    assert [r["step"] for r in logs[1]] == [r["step"] for r in logs[0]] == [0, 1, 2, 2, 3, 4, 4]
    clocks = ("steps_per_second", "tokens_per_second", "rollout_seconds", "validation_seconds")
    for expected, found in zip(*logs, strict=True):
        for key in expected.keys() - set(clocks):
            assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-5), key
    assert any(record.get("skipped", 1.0) < 1.0 for record in logs[0])
    rates = [(folder / name / "policy" / "pass_rates.jsonl").read_text() for name in names]
    assert rates[0] == rates[1]
    weights = [load_file(folder / name / "checkpoint" / "model.safetensors") for name in names]
    for name, value in weights[0].items():
        # Half precision: the last digit may fall either way.
        torch.testing.assert_close(weights[1][name], value, rtol=2e-3, atol=1e-4)
    before = load_file(Path(str(changes["base"])) / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in weights[0].items())


def test_processes_that_spread_the_weights_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerated, "is_sharded", True)
    assert main(["medvr", str(written(folder, "spread", "direct"))]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Every process rolls out the policy, and needs all of its weights")
    assert not (folder / "spread").exists()


def test_several_processes_are_refused_where_one_trains(folder: Path) -> None:
    """Each of them would write the same files."""
    path = folder / "pretrain.yaml"
    text = (CONFIGS / "pretrain.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("out: runs/base", f"out: {folder / 'several'}"), encoding="utf-8")
    done = launched(path, "pretrain", *TORCHRUN)
    assert done.returncode != 0
    assert "This stage trains in one process, not in 2: start it without" in done.stderr
    assert not (folder / "several").exists()


def test_an_adapter_in_bfloat16_keeps_what_it_trains_in_float32(folder: Path) -> None:
    """And computes its layers again: the run is that of fp32 but for the narrower numbers."""
    base = "assets/checkpoints/medlvr-sft"
    changes = {
        "base": base,
        "lora": {"rank": 2},
        "rollouts": {"prompts": 1, "group": 6, "max_new_tokens": 120, "latent_steps": 4},
    }
    spared = {"steps": 2, "gradient_checkpointing": True, "branches": 3}
    path = written(folder, "half", "latent", precision="bf16", update=spared, **changes)
    policy = opened_policy(base, AdapterConfig(rank=2), "bf16")
    kinds = {(p.requires_grad, p.dtype) for p in policy.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert main(["vlpo", str(path)]) == 0
    weights = load_file(folder / "half" / "checkpoint" / "adapter_model.safetensors")
    moved = [value for name, value in weights.items() if "lora_B" in name]
    found = records(folder / "half")
    assert any(float(value.abs().max()) > 0 for value in moved)
    assert all(math.isfinite(r["loss"]) for r in found if "loss" in r)


@pytest.mark.parametrize("name", ["medvr.yaml", "vlpo.yaml"])
def test_shipped_configurations_load(name: str) -> None:
    config = load_config(ReinforcementConfig, CONFIGS / name, ["base=elsewhere"])
    assert config.base == "elsewhere"
    assert config.update.steps >= 2
    assert config.prompts is not None
    assert config.evaluation.prompts is not None
    assert config.prompts.split == "train"
    assert config.evaluation.prompts.split == "validation"
    assert config.method == {"medvr.yaml": "zoom", "vlpo.yaml": "latent"}[name]
    with pytest.raises(ConfigError, match=r"Did you mean 'rollouts\.branching\.gamma'"):
        load_config(ReinforcementConfig, CONFIGS / "medvr.yaml", ["rollouts.branching.gama=1"])


def test_no_call_of_the_shipped_cold_start_holds_a_true_box() -> None:
    config = load_config(FinetuneConfig, CONFIGS / "cold-start.yaml", [])
    assert config.mix.calls == "given"
    assert config.mix.zoom > 0
    assert config.mix.report == config.mix.real == config.mix.latent == 0
    medvr = load_config(ReinforcementConfig, CONFIGS / "medvr.yaml", [])
    assert Path(medvr.base) == Path("assets/checkpoints") / config.out.name
    ablation = load_config(AblationConfig, CONFIGS / "ablate-medvr.yaml", [])
    assert ablation.base == medvr.base
