"""From logits to a token: entropy, alternatives, and the draw.

Everything is batched over branches and stays on the device; `Choice.packed` is the one tensor
that travels to the host per step. Entropies and log-probabilities are in nats and belong to
the model's whole distribution at temperature 1; bans and temperature change only the draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.request import Sampling

BANNED = float("-inf")


class InvalidLogitsError(ArithmeticError):
    """The model's output holds numbers that are not finite."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What is known of one step of one branch, on the host.

    Attributes:
        token_id: the token that was drawn or forced.
        logprob, entropy: nats, at temperature 1, before any ban.
        alternatives: pairs of a token id and its log-probability, likeliest first.
        extra: what was packed behind (the attention row).
    """

    token_id: int
    logprob: float
    entropy: float
    alternatives: tuple[tuple[int, float], ...]
    extra: torch.Tensor


def entropy_nats(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropy of softmax(logits) over the last axis, in nats."""
    entropy: torch.Tensor = torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(-1)
    return entropy


def draw(
    logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None
) -> torch.Tensor:
    """Draws one token per row of `(B, V)`; banned entries are minus infinity. int64 `(B,)`.

    Greedy at temperature 0; else nucleus sampling by the exponential race, which needs no
    round trip to the host.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1.0:
        probabilities = nucleus(probabilities, sampling.top_p)
    noise = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / noise).argmax(-1)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zeroes all but the smallest set of likeliest tokens whose mass reaches `top_p`.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1. The
    result is not renormalised; the likeliest token always stays.
    """
    ordered, order = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probabilities).scatter(-1, order, kept)


def packed_step(
    logits: torch.Tensor, chosen: torch.Tensor, alternatives: int, extra: torch.Tensor | None
) -> torch.Tensor:
    """Everything that the host needs of one step, as one float32 tensor `(B, F)`.

    Args:
        logits: `(B, V)` before bans.
        chosen: int64 `(B,)`, the tokens.
        alternatives: how many of the likeliest tokens to list.
        extra: float32 `(B, N)` to travel along, or None.

    Token ids stay exact in float32 below 2**24, far above any vocabulary.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    column = chosen[:, None]
    entropy = torch.special.entr(logprobs.exp()).sum(-1, keepdim=True)
    parts = [column.float(), logprobs.gather(-1, column), entropy]
    if alternatives:
        top = logprobs.topk(alternatives, dim=-1)
        parts += [top.indices.float(), top.values]
    if extra is not None:
        parts.append(extra)
    return torch.cat(parts, dim=-1)


def unpacked_steps(packed: torch.Tensor, alternatives: int) -> list[Draw]:
    """Reads what `packed_step` wrote, one `Draw` per branch; moves it to the host."""
    host = packed.to("cpu")
    split = 3 + 2 * alternatives
    return [
        Draw(
            token_id=int(head[0]),
            logprob=head[1],
            entropy=head[2],
            alternatives=tuple(
                (int(token_id), value)
                for token_id, value in zip(
                    head[3 : 3 + alternatives], head[3 + alternatives :], strict=True
                )
            ),
            extra=host[row, split:],
        )
        for row, head in enumerate(host[:, :split].tolist())
    ]
