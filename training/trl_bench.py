"""A step of GRPO here against one of TRL's `GRPOTrainer`, where that is installed.

Both roll out one prompt in G branches of R tokens and take one optimiser step on them, with
gradient checkpointing and without a reference, on random weights of one size. TRL would need
torchvision to read an image: its prompt is as long and all words, so that it is spared the tower.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from engine.bench import Sides

WORD: Final = " nodule"
"""A prompt of the same word over and over has as many tokens as words."""


def trl_version() -> str | None:
    """Of the installed TRL that can train; None without it, or without `datasets`."""
    try:
        import datasets  # noqa: F401
        import trl
    except ImportError:
        return None
    return str(trl.__version__)


def interleaved_with_trl(
    sides: Sides, prompt_tokens: int, branches: int, ours: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Processor seconds of TRL's steps and of ours, one after the other in one run.

    Args:
        sides: transformers' model, its tokenizer, and R.
        prompt_tokens: of TRL's prompt.
        branches: G.
        ours: one step of ours.
        repeats: steps that count; the first of each warms up.

    Returns:
        TRL's, ours; `repeats` each.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import GRPOConfig, GRPOTrainer

    theirs, own = [], []

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Times a step of TRL, and runs one of ours after it."""

        begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            theirs.append(time.process_time() - self.begun)
            begun = time.process_time()
            ours()
            own.append(time.process_time() - begun)

    model = copy.deepcopy(sides.sdpa)
    model.model.visual.requires_grad_(False)
    # A fingerprint of our own: datasets would pickle the rows for one.
    prompts = Dataset(
        InMemoryTable.from_pydict({"prompt": [WORD * prompt_tokens] * branches}),
        fingerprint="lightbox",
    )
    # It prints a summary where the report is to stand alone.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=_alternating,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=branches,
                num_generations=branches,
                max_completion_length=sides.new_tokens,
                generation_kwargs={"min_new_tokens": sides.new_tokens},
                max_steps=repeats + 1,
                beta=0.0,
                activation_checkpointing=True,
                activation_checkpointing_kwargs={"use_reentrant": False},
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=prompts,
            processing_class=sides.loaded.tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return theirs[1:], own[1:]


def _alternating(completions: Sequence[object], **_: object) -> list[float]:
    """Rewards that vary, so that there is something to learn."""
    return [float(number % 2) for number in range(len(completions))]


def policy_step(
    roll_out: Callable[[], Any],
    probabilities: Callable[[Any], torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> Callable[[], None]:
    """A step of ours: a rollout and the one update that learns from it.

    Args:
        roll_out: gives the packed rollouts of a group.
        probabilities: log-probabilities of their tokens, with gradients where they are on.
        optimizer: of what is trained.
    """

    def step() -> None:
        packed = roll_out()
        optimizer.zero_grad(set_to_none=True)
        # With one update a batch the policy that wrote it is the one that learns from it.
        found = probabilities(packed)
        ratios = (found - found.detach()).exp()
        signs = torch.ones_like(ratios)
        signs[::2] = -1.0
        (ratios * signs).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], 1.0
        )
        optimizer.step()

    return step
