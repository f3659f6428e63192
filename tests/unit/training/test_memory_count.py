"""The memory of a large model by count, and the recipes that it is for."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from training.adapters import AdapterConfig
from training.config import load_config
from training.memory_count import adapter_parameters, memory_count, policy_memory_count
from training.reinforcement import ReinforcementConfig
from training.sft import FinetuneConfig, TuningConfig

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"
# Bytes of a card, how many, whether weights are spread, tokens of a record.
RECIPES = {
    "24gb-lora": (24e9, 1, False, 512),
    "24gb-medlvr": (24e9, 1, False, 1024),
    "80gb": (80e9, 1, False, 512),
    "80gb-medlvr": (80e9, 1, False, 2048),
    "8x80gb": (80e9, 8, True, 512),
    "8x80gb-medlvr": (80e9, 8, False, 2048),
}

# Bytes of a card, how many, tokens of a prompt.
POLICY_RECIPES = {
    "24gb-vlpo": (24e9, 1, 1024),
    "80gb-vlpo": (80e9, 1, 2048),
    "80gb-medvr": (80e9, 1, 1536),
    "8x80gb-vlpo": (80e9, 8, 2048),
    "8x80gb-medvr": (80e9, 8, 1536),
}


def test_adapters_are_as_large_as_the_notes_say() -> None:
    assert adapter_parameters(AdapterConfig(rank=16)) == pytest.approx(40.4e6, rel=0.01)
    assert adapter_parameters(AdapterConfig(rank=64)) == pytest.approx(161.5e6, rel=0.01)
    assert adapter_parameters(AdapterConfig(rank=1, targets=("k_proj",))) == 28 * (3584 + 512)


def test_all_weights_on_one_device_by_hand() -> None:
    """16 bytes and 2 for the working copy of 7.616 billion, 2 of the tower's 0.677 billion."""
    count = memory_count(TuningConfig(precision="bf16", micro_batch=1), record_tokens=100)
    assert count.trained == pytest.approx(18 * 7.616e9, rel=1e-3)
    assert count.frozen == 2 * 677_000_000
    assert count.logits == 3 * 4 * 152_064 * 100
    assert count.total > 133e9


def test_every_saving_saves() -> None:
    def total(**changes: object) -> int:
        tuning = replace(TuningConfig(precision="bf16"), **changes)
        return memory_count(tuning, record_tokens=2000).total

    assert total(gradient_checkpointing=True) < total()
    assert total(head_chunk=64) < total()
    assert total(micro_batch=1) < total()
    assert total(lora=AdapterConfig()) < total() - 100e9
    plain = memory_count(TuningConfig(), record_tokens=2000)
    relaxed = memory_count(TuningConfig(), record_tokens=2000, is_relaxed=True)
    assert relaxed.activations == 2 * plain.activations
    with pytest.raises(ValueError, match="at least 1"):
        memory_count(TuningConfig(), record_tokens=0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_card_and_says_its_count(name: str) -> None:
    path = CONFIGS / "recipes" / f"qwen2.5-vl-7b-{name}.yaml"
    config = load_config(FinetuneConfig, path, [])
    card, devices, is_sharded, tokens = RECIPES[name]
    relaxed = config.latents is not None and config.latents.relaxation > 0
    count = memory_count(
        config.tuning,
        record_tokens=tokens,
        devices=devices,
        is_sharded=is_sharded,
        is_relaxed=relaxed,
    )
    assert relaxed == name.endswith("medlvr")
    assert count.total < 0.9 * card
    assert f"{count.total / 1e9:.1f} GB" in path.read_text(encoding="utf-8")
    assert not config.export.embedded
    assert config.language.batch // config.tuning.micro_batch % devices == 0


@pytest.mark.parametrize("name", POLICY_RECIPES)
def test_a_policy_recipe_fits_its_card_and_says_its_count(name: str) -> None:
    path = CONFIGS / "recipes" / f"qwen2.5-vl-7b-{name}.yaml"
    config = load_config(ReinforcementConfig, path, [])
    card, devices, tokens = POLICY_RECIPES[name]
    count = policy_memory_count(config, prompt_tokens=tokens, devices=devices)
    assert count.total < 0.9 * card
    assert f"{count.total / 1e9:.1f} GB" in path.read_text(encoding="utf-8")
    assert config.precision == "bf16"
    assert config.rollouts.prompts % devices == 0


def test_every_recipe_is_counted_here() -> None:
    shipped = {path.stem.removeprefix("qwen2.5-vl-7b-") for path in CONFIGS.glob("recipes/*.yaml")}
    assert shipped == RECIPES.keys() | POLICY_RECIPES.keys()


@pytest.mark.parametrize("size", ["24gb", "80gb", "8x80gb"])
def test_the_second_stage_of_medlvr_begins_with_the_first(size: str) -> None:
    """With an adapter of the same form, in as many latent steps."""
    recipes = CONFIGS / "recipes"
    first = load_config(FinetuneConfig, recipes / f"qwen2.5-vl-7b-{size}-medlvr.yaml", [])
    second = load_config(ReinforcementConfig, recipes / f"qwen2.5-vl-7b-{size}-vlpo.yaml", [])
    assert second.base == str(first.out / "checkpoint")
    assert second.lora == first.tuning.lora is not None
    assert first.latents is not None
    assert second.rollouts.latent_steps == first.latents.steps


def test_a_policy_by_hand() -> None:
    """Eight trajectories of 1,024 + 264 tokens; four of them packed with one prompt."""
    path = CONFIGS / "recipes" / "qwen2.5-vl-7b-24gb-vlpo.yaml"
    config = load_config(ReinforcementConfig, path, [])
    count = policy_memory_count(config, prompt_tokens=1024)
    assert count.cache == 2 * 28 * 512 * 2 * 8 * 1288
    plain = memory_count(
        TuningConfig(
            lora=config.lora, precision="bf16", gradient_checkpointing=True, micro_batch=1
        ),
        record_tokens=1024 + 4 * 264,
    )
    assert count.activations == plain.activations + 3 * 2080**2
    assert count.logits == 3 * 4 * 152_064 * 128
    every = load_config(ReinforcementConfig, path, ["lora=null", "precision=fp32"])
    assert policy_memory_count(every, prompt_tokens=1024).total > 16 * 7.6e9 + 4 * 7.6e9


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", "MULTI_GPU"),
        ("ddp", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("deepspeed", "DEEPSPEED"),
    ],
)
def test_accelerate_takes_the_shipped_configurations(name: str, kind: str) -> None:
    """It refuses unknown keys when it reads a file."""
    path = CONFIGS / "accelerate" / f"{name}.yaml"
    read = load_config_from_file(str(path))
    assert read.distributed_type == kind
    # Bfloat16 is asked for by a training configuration.
    assert read.mixed_precision == "no"
    assert read.num_processes == (2 if name == "cpu" else 8)
    wrapped = yaml.safe_load(path.read_text()).get("fsdp_config", {})
    if wrapped:
        assert wrapped["fsdp_version"] == 2
        assert "Qwen2_5_VLDecoderLayer" in wrapped["fsdp_transformer_layer_cls_to_wrap"]
