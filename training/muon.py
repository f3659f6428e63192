"""Muon for the matrices inside a network, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
matrix by the nearest matrix with orthonormal rows or columns: directions that few examples ask
for are learned as fast as those that all of them ask for. That is what a model with many rare
facts to tell apart needs.

`torch.optim.Muon` computes in bfloat16, which processors without matrix units emulate: fifteen
times as slow as the float32 here, and longer than the rest of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import nn

MOMENTUM: Final = 0.95
STEPS: Final = 5
# Coefficients of the quintic Newton-Schulz iteration, as in the source.
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
# An orthogonal matrix times this and the root of its longer side moves weights about as far as
# AdamW does at the same learning rate (Liu et al., arXiv 2502.16982, section 2.2).
ADAMW_SIZE: Final = 0.2
# Muon's own factor of the learning rate: it bears a higher one than AdamW.
MUON_FACTOR: Final = 2.0


def inner_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trained matrices of a module that are no table of words."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return [
        p for p in module.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in tables
    ]


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix `(N, M)` with its singular values brought near 1, and none above 1.25.

    Those that are small beside the largest need more iterations than `STEPS` and stay below: of a
    matrix of 192 by 192 random numbers they come to 1.2 at most and 0.1 to 0.2 at least, and lower
    where they are spread more widely.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, with decoupled weight decay; matrices only."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, _: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Applies the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, parameter: torch.Tensor, rate: float, decay: float) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalised(gradient.lerp(momentum, MOMENTUM))
        parameter.mul_(1 - rate * decay)
        parameter.add_(update, alpha=-rate * ADAMW_SIZE * max(parameter.shape) ** 0.5)


class Paired(torch.optim.Optimizer):
    """Two optimisers that step together."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        groups = [*first.param_groups, *second.param_groups]
        super().__init__([dict(group) for group in groups], {})
        # The groups of the parts themselves, so that a learning rate set here reaches them.
        self.param_groups = groups

    def step(self, _: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Applies the gradients."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Those of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Reads what `state_dict` gave.

        Raises:
            ValueError: the state is of other optimisers.
        """
        if len(state_dict.get("parts", ())) != len(self.parts):
            raise ValueError("The saved state is of another kind of optimiser.")
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
