"""Weights that training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows or columns of a parameter, and what they hold."""

    parameter: nn.Parameter
    places: Any
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """Parts of trained parameters, with the values that they had."""

    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, chosen: Sequence[tuple[nn.Parameter, Any]]) -> Kept:
        """Parts as they are now; of frozen parameters none, which do not move.

        Args:
            chosen: parameters, each with an index of the rows or columns that are kept.
        """
        return cls(
            tuple(
                _Part(parameter, places, parameter.detach()[places].clone())
                for parameter, places in chosen
                if parameter.requires_grad
            )
        )

    @torch.no_grad()
    def put_back(self) -> None:
        """Gives the parts their values; to be called after every step of an optimiser."""
        for part in self.parts:
            part.parameter[part.places] = part.values.to(part.parameter.device)
