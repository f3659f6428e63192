"""Typed YAML configuration."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from training.config import ConfigError, load_config
from training.pretrain import PretrainConfig
from training.regrounding import PRESETS
from training.reinforcement import ReinforcementConfig
from training.sft import FinetuneConfig

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    mode: Literal["fast", "slow"] = "fast"
    folder: Path | None = None
    inner: Inner = field(default_factory=Inner)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_and_overrides_are_merged(tmp_path: Path) -> None:
    path = written(tmp_path, "steps: 3\ninner: {rate: 1, names: [a]}\n")
    config = load_config(Outer, path, ["inner.rate=2", "folder=runs/x", "mode=slow"])
    assert config == Outer(
        steps=3, mode="slow", folder=Path("runs/x"), inner=Inner(rate=2.0, names=("a",))
    )


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("2E3", 2000.0), ("-1.5e+2", -150.0)])
def test_numbers_that_yaml_takes_for_texts_are_numbers(
    tmp_path: Path, text: str, value: float
) -> None:
    path = written(tmp_path, f"steps: 3\ninner: {{rate: {text}}}\n")
    assert load_config(Outer, path, []).inner.rate == value
    with pytest.raises(ConfigError, match="must be of type float"):
        load_config(Outer, path, ["inner.rate=1e-5x"])


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("stepz: 3", [], "Did you mean 'steps'"),
        ("steps: 3\ninner: {rte: 1}", [], "Did you mean 'inner.rate'"),
        ("steps: 3\nphantoms: 4", [], "Unknown key 'phantoms'. Known here: steps, "),
        ("steps: many", [], "'steps' must be of type int"),
        ("steps: 1e3", [], "'steps' must be of type int"),
        ("steps: 3.5", [], "'steps' must be of type int"),
        ("steps: true", [], "'steps' must be of type int"),
        ("steps: 3", ["mode=wild"], "must be one of fast, slow"),
        ("steps: 3", ["mode"], "not of the form key=value"),
        ("steps: 3\ninner: 4", [], "must be a section"),
        ("mode: fast", [], "lacks a key"),
        ("- 1", [], "must hold keys and values"),
        ("steps: [", [], "not valid YAML"),
        ("steps: 2024-13-45", [], "not valid YAML"),
        ("steps: 1", ["steps=2024-13-45"], "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        load_config(Outer, written(tmp_path, text), overrides)


@pytest.mark.parametrize("name", ["medvr", "literal", "arpo"])
def test_a_preset_is_given_by_its_name(name: str, tmp_path: Path) -> None:
    path = CONFIGS / "medvr.yaml"
    config = load_config(ReinforcementConfig, path, [f"rollouts.branching={name}"])
    assert config.rollouts.branching == PRESETS[name]
    # In a file as well as on a command line.
    branching = "branching: {base: 0.2, gamma: 0.5, least_rise: 0.0, opening: 20}"
    text = path.read_text(encoding="utf-8").replace(branching, f"branching: {name}")
    written_out = load_config(ReinforcementConfig, written(tmp_path, text), [])
    assert written_out.rollouts.branching == PRESETS[name]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("apro", r"^'rollouts\.branching' must be one of medvr, literal, arpo, not 'apro'\.$"),
        (
            "0.5",
            r"^'rollouts\.branching' must be a section with keys or one of medvr, literal, arpo",
        ),
        ("[arpo]", r"^'rollouts\.branching' must be a section with keys or one of"),
        ("{gama: 1}", r"Did you mean 'rollouts\.branching\.gamma'"),
    ],
)
def test_what_is_no_preset_is_named(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(ReinforcementConfig, CONFIGS / "medvr.yaml", [f"rollouts.branching={value}"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read the configuration"):
        load_config(Outer, tmp_path / "none.yaml", [])


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (PretrainConfig, "pretrain.yaml"),
        (FinetuneConfig, "sft-zoom.yaml"),
    ],
)
def test_shipped_configurations_load(cls: type, name: str) -> None:
    config = load_config(cls, CONFIGS / name, [])
    assert config.language.steps > 0
    assert config.train.split == "train"
    assert config.validation.split == "validation"


@pytest.mark.parametrize("name", ["grounding", "pointing"])
def test_attention_that_is_computed_again_cannot_be_taught(name: str) -> None:
    changes = ["language.grounding=0", "language.pointing=0", "tuning.gradient_checkpointing=true"]
    path = CONFIGS / "sft-zoom.yaml"
    load_config(FinetuneConfig, path, changes)
    with pytest.raises(ConfigError, match=rf"language\.{name} takes attention that"):
        load_config(FinetuneConfig, path, [*changes, f"language.{name}=0.1"])


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"steps: \xff\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml is not text in UTF-8"):
        load_config(Outer, path, [])
