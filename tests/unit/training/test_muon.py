"""Muon against torch's own, against the singular value decomposition, and over a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training.loop import StepsConfig, optimizer_for, run_steps
from training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 3.0

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    made = left.T @ orthogonalised(matrix) @ right.T

    off = made - torch.diag(made.diagonal())
    assert float(off.abs().max()) < 1e-4
    # Small singular values need more than five iterations; the others have arrived.
    large = made.diagonal()[values > values[0] * 0.1]
    assert float(large.min()) > 0.6
    assert float(large.max()) < 1.25


def test_steps_are_those_of_torch_up_to_its_half_precision() -> None:
    torch.manual_seed(1)
    start = torch.randn(16, 40)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.02)
    torchs = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )

    for _ in range(4):
        gradient = torch.randn(16, 40)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        torchs.step()

    moved = (theirs.detach() - start).norm()
    assert float((ours - theirs).detach().norm()) < 0.02 * float(moved)


def small() -> nn.ModuleDict:
    torch.manual_seed(2)
    return nn.ModuleDict({"words": nn.Embedding(7, 6), "inner": nn.Linear(6, 5)})


def test_muon_takes_matrices_and_leaves_words_and_biases_to_adamw() -> None:
    model = small()

    optimizer = optimizer_for(
        {"model": model}, StepsConfig(steps=1, learning_rate=0.01, optimizer="muon")
    )

    inner, words, biases = optimizer.param_groups
    assert [id(p) for p in inner["params"]] == [id(model["inner"].weight)]
    assert [id(p) for p in words["params"]] == [id(model["words"].weight)]
    assert [id(p) for p in biases["params"]] == [id(model["inner"].bias)]


def trained(folder: Path, *steps: int) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Weights at the end, and the steps of each run, which ends before one of `steps`."""
    done: list[list[int]] = []
    for until in steps:
        model = small()
        own: list[int] = []
        done.append(own)

        def loss_at(
            step: int, model: nn.ModuleDict = model
        ) -> tuple[torch.Tensor, dict[str, float]]:
            drawn = torch.Generator().manual_seed(step)
            words = torch.randint(0, 7, (4,), generator=drawn)
            return model["inner"](model["words"](words)).square().mean(), {}

        config = StepsConfig(steps=6, learning_rate=0.05, warmup=2, save_every=1, optimizer="muon")

        def stopped(
            step: int, until: int = until, loss_at: object = loss_at, own: list[int] = own
        ) -> tuple[torch.Tensor, dict[str, float]]:
            if step == until:
                raise KeyboardInterrupt
            own.append(step)
            return loss_at(step)  # type: ignore[operator, no-any-return]

        try:
            run_steps(
                folder=folder,
                modules={"model": model},
                config=config,
                loss_at=stopped,
                report=lambda _: None,
            )
        except KeyboardInterrupt:
            continue
    return [p.detach().clone() for p in model.parameters()], done


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, uninterrupted = trained(tmp_path / "whole", 99)
    resumed, parts = trained(tmp_path / "parts", 3, 99)

    # Begun anew it would end at the same weights.
    assert uninterrupted == [[0, 1, 2, 3, 4, 5]]
    assert parts == [[0, 1, 2], [3, 4, 5]]
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert not torch.equal(whole[1], small()["inner"].weight)


def test_the_state_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    model = small()
    config = StepsConfig(steps=1, learning_rate=0.01, optimizer="muon")
    adamw = torch.optim.AdamW(model.parameters())

    with pytest.raises(ValueError, match="another kind"):
        optimizer_for({"model": model}, config).load_state_dict(adamw.state_dict())
