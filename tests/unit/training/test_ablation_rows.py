"""What the shipped ablations compare: their rows, and what makes each of them."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from training.ablation import AblationConfig, AskedConfig, RowConfig
from training.config import load_config
from training.reinforcement import ReinforcementConfig
from training.run_settings import differences
from training.sft import FinetuneConfig

Settings = FinetuneConfig | ReinforcementConfig

# Row: what its stage has otherwise than the configuration that it names, common settings aside.
NO_FORKS = {"rollouts.branching": None}
MEDVR: dict[str, dict[str, Any]] = {
    "text-only": {"method": "direct", **NO_FORKS, "reward.tool_reward": "none"},
    "zoom": {**NO_FORKS, "reward.tool_reward": "gated"},
    "zoom-evr": {"reward.tool_reward": "gated"},
    "zoom-cca": NO_FORKS,
    "medvr": {},
    "gamma-0": {"rollouts.branching.gamma": 0.0},
    "gamma-0.25": {"rollouts.branching.gamma": 0.25},
    "gamma-1": {"rollouts.branching.gamma": 1.0},
    "no-tool-reward": {"reward.tool_reward": "none"},
    "unconditional-tool-reward": {"reward.tool_reward": "unconditional"},
    "true-boxes": {"mix.calls": "learned"},
}
UNTAUGHT = {"latents.weight": 0.0, "latents.bottleneck_last": 0.0}
MEDLVR: dict[str, dict[str, Any]] = {
    "text-sft": {"mix.latent": 0.0, "latents": None, "questions.method": "direct"},
    "latents": {**UNTAUGHT, "latents.relaxation": 1.0},
    "latents-fed": UNTAUGHT,
    "latents-roi": {"latents.bottleneck_last": 0.0},
    "medlvr-sft": {},
    "text-sft-longer": {
        "language.steps": 420,
        "mix.latent": 0.0,
        "latents": None,
        "questions.method": "direct",
    },
    "roi-full": {"latents.target": "roi_full"},
    "K2": {"latents.steps": 2},
    "K4": {"latents.steps": 4},
    "K16": {"latents.steps": 16},
    "free-trigger": {"mix.auto": 1.0, "questions.method": "auto"},
    "grpo-text": {"method": "direct"},
    "grpo-latents-masked": {"objective.latents.kind": "none"},
    "vlpo": {},
}


def shipped(name: str) -> AblationConfig:
    return load_config(AblationConfig, Path(f"training/configs/ablate-{name}.yaml"), [])


def made(config: AblationConfig, row: RowConfig) -> tuple[Settings, dict[str, Any]]:
    """The settings of a row's one stage, and what its own overrides change of them."""
    (stage,) = row.stages
    kind: type[Settings] = FinetuneConfig if stage.kind == "sft" else ReinforcementConfig
    common = config.common.of(stage.kind)
    plain = load_config(kind, stage.config, [*common])
    own = load_config(kind, stage.config, [*common, *stage.overrides])
    names = [line.partition(": ")[0] for line in differences(asdict(plain), asdict(own))]
    return own, {name: attrgetter(name)(own) for name in names}


def stages(config: AblationConfig) -> dict[str, tuple[str, str, str]]:
    """By row, what it begins with, and the kind and the configuration of its stage."""
    return {
        row.name: (row.begins_with, row.stages[0].kind, row.stages[0].config.stem)
        for row in config.rows
        if row.stages
    }


@pytest.mark.parametrize(("name", "first", "rows"), [
    ("medvr", "cold-start", MEDVR),
    ("medlvr", "base", MEDLVR),
])  # fmt: skip
def test_a_row_differs_by_what_makes_it_and_by_nothing_else(
    name: str, first: str, rows: dict[str, dict[str, Any]]
) -> None:
    config = shipped(name)
    begun, *trained = config.rows

    assert (begun.name, begun.stages) == (first, ())
    assert [row.name for row in trained] == list(rows)
    assert {row.name: made(config, row)[1] for row in trained} == rows
    assert config.base == f"assets/checkpoints/{first}"
    assert config.seeds == (1, 2, 3)


def test_the_rows_of_medvr_take_the_same_steps_from_the_cold_start() -> None:
    config = shipped("medvr")
    expected = dict.fromkeys(MEDVR, ("", "medvr", "medvr"))
    assert stages(config) == expected | {"true-boxes": ("", "sft", "cold-start")}
    for row in config.rows[1:-1]:
        own, _ = made(config, row)
        assert isinstance(own, ReinforcementConfig)
        assert (own.steps.steps, own.rollouts.prompts, own.rollouts.group) == (64, 6, 16)
    medvr = next(row for row in config.rows if row.name == "medvr")
    own, _ = made(config, medvr)
    assert isinstance(own, ReinforcementConfig)
    assert own.rollouts.branching is not None
    assert (own.method, own.rollouts.branching.gamma) == ("zoom", 0.5)
    assert own.reward.tool_reward == "consensus"
    assert {
        row.name: [(a.name, a.method, a.against) for a in row.asked] for row in config.rows
    } == {
        "cold-start": [("", "zoom", ""), ("direct", "direct", "")],
        "text-only": [("", "direct", "cold-start, direct")],
        "zoom": [("", "zoom", "text-only")],
        **{name: [("", "zoom", "zoom")] for name in ("zoom-evr", "zoom-cca", "medvr")},
        **{name: [("", "zoom", "medvr")] for name in list(MEDVR)[5:]},
    }


def test_the_rows_of_medlvr_take_the_same_steps_of_each_stage() -> None:
    config = shipped("medlvr")
    expected = dict.fromkeys(MEDLVR, ("", "sft", "medlvr-sft"))
    assert stages(config) == expected | {
        "grpo-text": ("text-sft", "medvr", "vlpo"),
        "grpo-latents-masked": ("medlvr-sft", "vlpo", "vlpo"),
        "vlpo": ("medlvr-sft", "vlpo", "vlpo"),
    }
    for row in config.rows[1:]:
        own, _ = made(config, row)
        if isinstance(own, FinetuneConfig):
            assert own.language.steps == (420 if row.name == "text-sft-longer" else 300)
        else:
            assert own.steps.steps == 64
    of = {row.name: made(config, row)[0] for row in config.rows[1:]}
    first, second = of["medlvr-sft"], of["vlpo"]
    assert isinstance(first, FinetuneConfig)
    assert first.latents is not None
    assert (first.latents.steps, first.latents.target) == (8, "roi_pooled")
    assert first.latents.roi_weight == 1.0
    assert isinstance(second, ReinforcementConfig)
    assert (second.method, second.rollouts.latent_steps) == ("latent", 8)
    latents = second.objective.latents
    assert (latents.kind, latents.sigma) == ("deterministic", 0.2)


def test_the_lines_of_medlvr_are_asked_and_compared_as_they_are_called() -> None:
    changed: dict[str, dict[str, Any]] = {
        "shuffled": {"latents": "shuffle"},
        "blinded": {"latents": "blind"},
        "zeroed": {"latents": "zero"},
        "noised": {"latents": "noise"},
        "K = 0 at test": {"latent_steps": 0},
        "bottleneck": {"bottleneck": True},
        "bottleneck, shuffled": {"latents": "shuffle", "bottleneck": True},
        "bottleneck, blinded": {"latents": "blind", "bottleneck": True},
    }
    asked_too: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(("latents", "latents-fed", "free-trigger"), ("shuffled",)),
        **dict.fromkeys(("latents-roi", "vlpo"), ("shuffled", "blinded")),
        "medlvr-sft": (
            *("zeroed", "noised", "shuffled", "blinded", "K = 0 at test", "bottleneck"),
            *("bottleneck, shuffled", "bottleneck, blinded"),
        ),
    }
    rivals = {
        "text-sft": "base",
        **dict.fromkeys(("latents", "latents-fed", "latents-roi", "medlvr-sft"), "text-sft"),
        **dict.fromkeys(("text-sft-longer", "roi-full", "K2", "K4", "K16"), "medlvr-sft"),
        "free-trigger": "medlvr-sft",
        **{"grpo-text": "text-sft", "grpo-latents-masked": "medlvr-sft", "vlpo": "medlvr-sft"},
    }
    own = {"free-trigger": "auto"}
    texts = ("base", "text-sft", "text-sft-longer", "grpo-text")
    for row in shipped("medlvr").rows:
        steps = int(row.name[1:]) if row.name[0] == "K" else 8
        method = "direct" if row.name in texts else own.get(row.name, "latent")
        plain = AskedConfig(method=method, latent_steps=steps, against=rivals.get(row.name, ""))
        others = []
        for name in asked_too.get(row.name, ()):
            narrow = ", bottleneck" if name.startswith("bottleneck, ") else ""
            how = {"method": method, "against": row.name + narrow, **changed[name]}
            others.append(AskedConfig(name=name, **how))
        assert list(row.asked) == [plain, *others]
