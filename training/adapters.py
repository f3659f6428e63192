"""LoRA adapters (arXiv 2106.09685) of the language model, through peft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2_5_VLForConditionalGeneration

PROJECTIONS: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """A low-rank adapter.

    Attributes:
        rank: of the update of every matrix.
        alpha: the update is scaled by `alpha / rank`.
        targets: projections of the language model's layers that have one. The tower has some of
            the same names and gets none.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        unknown = sorted(set(self.targets) - set(PROJECTIONS))
        if unknown or not self.targets:
            raise ValueError(
                f"targets must be some of {', '.join(PROJECTIONS)}, not {list(self.targets)}."
            )


def add_adapter(
    model: Qwen2_5_VLForConditionalGeneration, config: AdapterConfig, base: str
) -> PeftModel:
    """Puts an adapter into a model, in place, and freezes everything else.

    The model goes on being called as before; the adapter begins as the identity.

    Args:
        model: not changed but for the adapter.
        config: of the adapter.
        base: hub id or folder of the model, which the adapter will name.
    """
    wrapped: Any = get_peft_model(
        model,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=rf".*language_model\.layers\..*\.({'|'.join(config.targets)})",
            task_type="CAUSAL_LM",
        ),
    )
    folder = Path(base)
    named = str(folder.resolve()) if folder.is_dir() else base
    wrapped.peft_config["default"].base_model_name_or_path = named
    return wrapped  # type: ignore[no-any-return]
