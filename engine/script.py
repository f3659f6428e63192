"""Tokens that a saved run wrote, for a branch to write once more instead of drawing its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from engine.sampling import BANNED


class ScriptError(ValueError):
    """The run cannot have written what the script holds; the message says where."""


class Script:
    """Decides, in place of a draw, what a branch writes.

    Attributes:
        shortfalls: by index of a token, how many nats the decided one lay below the likeliest
            that could have been drawn; 0 where it was the likeliest. Words that the engine itself
            writes are not decided here.
        masses_above: by index, the probability, at the temperature of the run, of all that were
            likelier; 0 at temperature 0.
    """

    def __init__(self, token_ids: Sequence[int], temperature: float = 0.0) -> None:
        self._token_ids = tuple(token_ids)
        self._temperature = temperature
        self.shortfalls: dict[int, float] = {}
        self.masses_above: dict[int, float] = {}

    def token(
        self, masked: torch.Tensor, written: int, unwritten: Collection[int] | None
    ) -> torch.Tensor:
        """The id to go on with: int64 scalar.

        Args:
            masked: logits `(V,)`, minus infinity where a token cannot be drawn.
            written: how many tokens there are already.
            unwritten: tokens that would end something here and not be written themselves, so
                that no script holds them; None: every token is written.

        Raises:
            ScriptError: it holds a token that cannot be drawn here, or none any more.
        """
        wanted = self._token_ids[written] if written < len(self._token_ids) else None
        ending = None if unwritten is None else _likeliest(masked, unwritten)
        if wanted is not None and wanted not in (unwritten or ()) and _is_open(masked, wanted):
            chosen = torch.tensor(wanted, device=masked.device)
        elif ending is not None:
            # Whatever ended it, the likeliest stands for it.
            chosen = ending
        elif wanted is None:
            raise ScriptError("the run goes on behind the last token of the trace")
        else:
            raise ScriptError(f"token {written} cannot be drawn there")
        self.shortfalls[written] = float(masked.max() - masked[chosen])
        self.masses_above[written] = 0.0
        if self._temperature > 0.0:
            shares = torch.softmax(masked.float() / self._temperature, dim=-1)
            self.masses_above[written] = float(shares[shares > shares[chosen]].sum())
        return chosen


def _is_open(masked: torch.Tensor, token_id: int) -> bool:
    return 0 <= token_id < len(masked) and float(masked[token_id]) != BANNED


def _likeliest(masked: torch.Tensor, ids: Collection[int]) -> torch.Tensor | None:
    """The likeliest of some tokens; None where none of them can be drawn."""
    index = torch.tensor(sorted(ids), device=masked.device)
    if not len(index):
        return None
    best = index[masked[index].argmax()]
    return best if _is_open(masked, int(best)) else None
