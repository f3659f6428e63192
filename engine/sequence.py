"""Everything that one branch was fed, in order, so that a single forward can do it again.

Training replays rollouts from here (methods 2.5.4): the visual tokens are the ones that the
rollout saw, the latents the ones it was fed, so nothing is encoded twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A token that the branch wrote.

    Attributes:
        predictor: column whose output predicted it; it stands at the next column if it was fed.
        token_id: of the vocabulary.
        logprob: nats at temperature 1, before any ban, as the rollout computed it.
        entropy: nats of the whole distribution.
        forced: whether the engine wrote it, not the model.
    """

    predictor: int
    token_id: int
    logprob: float
    entropy: float
    forced: bool


@dataclass(slots=True)
class FedSequence:
    """One branch's input.

    Attributes:
        ids: token ids, images expanded to runs of the image pad, latents as the slot token.
        positions: int64 `(3, n)` of segments and plain numbers of single tokens, together as
            long as `ids`.
        images: first column and visual tokens `(N, D)` of every image.
        latents: column and fed vector `(D,)` of every latent slot.
        written: what the branch wrote, in order.
        prompt: how many columns the prompt takes.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[torch.Tensor | int] = field(default_factory=list)
    images: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    latents: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    written: list[WrittenToken] = field(default_factory=list)
    prompt: int = 0

    @property
    def position_ids(self) -> torch.Tensor:
        """M-RoPE ids of all columns: int64 `(3, T)` on the CPU."""
        if not self.positions:
            return torch.empty(3, 0, dtype=torch.int64)
        return torch.cat([_columns(part) for part in self.positions], dim=1)

    def extend(
        self,
        ids: tuple[int, ...],
        positions: torch.Tensor,
        images: list[tuple[int, torch.Tensor]],
    ) -> None:
        """A segment was fed.

        Args:
            ids: its tokens, images expanded.
            positions: `(3, len(ids))`.
            images: first column within the segment and visual tokens of each image in it.
        """
        start = len(self.ids)
        self.images += [(start + column, tokens) for column, tokens in images]
        self.ids += ids
        self.positions.append(positions)

    def feed(self, token_id: int, position: int) -> None:
        """A single token was fed."""
        self.ids.append(token_id)
        self.positions.append(position)

    def feed_latent(self, slot_id: int, position: int, vector: torch.Tensor) -> None:
        """A latent slot was fed."""
        self.latents.append((len(self.ids), vector))
        self.feed(slot_id, position)

    def write(self, token_id: int, logprob: float, entropy: float, *, forced: bool) -> None:
        """A token was decided after what has been fed so far."""
        self.written.append(WrittenToken(len(self.ids) - 1, token_id, logprob, entropy, forced))

    def prefix(self, columns: int) -> FedSequence:
        """A copy of the first columns, and of what was written in them.

        The token that the last of these columns predicts is not part of it.
        """
        positions: list[torch.Tensor | int] = []
        left = columns
        for part in self.positions:
            if left == 0:
                break
            positions.append(part if isinstance(part, int) else part[:, :left])
            left -= 1 if isinstance(part, int) else min(left, part.shape[1])
        return FedSequence(
            self.ids[:columns],
            positions,
            [(column, tokens) for column, tokens in self.images if column < columns],
            [(column, vector) for column, vector in self.latents if column < columns],
            [token for token in self.written if token.predictor < columns - 1],
            min(self.prompt, columns),
        )


def _columns(part: torch.Tensor | int) -> torch.Tensor:
    """Positions as int64 `(3, n)` on the CPU."""
    return torch.full((3, 1), part) if isinstance(part, int) else part.cpu()
