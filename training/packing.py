"""Several branches of one prompt as a single row: the prompt once, then every branch's own part.

A four-dimensional mask keeps branches from seeing each other; positions are the ones that the
rollout used, so the packed forward computes what separate forwards would (tested), with the
prompt and its image tokens only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.latent import bottleneck_columns
from engine.sequence import FedSequence, WrittenToken


@dataclass(frozen=True, slots=True, eq=False)
class PackedGroup:
    """A group of branches, ready for one forward.

    Attributes:
        ids: int64 `(T,)`, images expanded, latents as the slot token.
        positions: int64 `(3, T)`.
        mask: bool `(1, 1, T, T)`, True where a query may attend.
        images: first column and visual tokens `(N, D)` of every image.
        latent_columns: int64 `(S,)`, where latents were fed; their means are one column before.
        latents: `(S, D)`, what was fed.
        latent_owners: int64 `(S,)`, branch of every latent.
        predictors: int64 `(N,)`, the column whose output predicted each written token.
        targets: int64 `(N,)`, the tokens.
        owners: int64 `(N,)`, branch of every token.
        learned: bool `(N,)`, False where the engine wrote the token.
        recorded: float32 `(N,)`, log-probabilities of the tokens as the rollout computed them.
        separate: columns that separate forwards would have taken in all.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    images: tuple[tuple[int, torch.Tensor], ...]
    latent_columns: torch.Tensor
    latents: torch.Tensor
    latent_owners: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    learned: torch.Tensor
    recorded: torch.Tensor
    separate: int

    @property
    def columns(self) -> int:
        """Length of the row."""
        return len(self.ids)


def packed_group(sequences: Sequence[FedSequence], *, bottleneck: bool = False) -> PackedGroup:
    """Packs branches of the same prompt.

    Args:
        sequences: what each was fed.
        bottleneck: past its latents a branch is narrowed, as under `Request.bottleneck`.

    Raises:
        ValueError: there is no branch, or their prompts differ.
    """
    if not sequences:
        raise ValueError("A group needs at least one branch.")
    prompt = sequences[0].prompt
    if any(s.prompt != prompt or s.ids[:prompt] != sequences[0].ids[:prompt] for s in sequences):
        raise ValueError("Only branches of the same prompt can be packed.")
    ids = list(sequences[0].ids[:prompt])
    positions = [sequences[0].position_ids[:, :prompt]]
    images = [(c, tokens) for c, tokens in sequences[0].images if c < prompt]
    segments = [-1] * prompt
    latents: list[tuple[int, int, torch.Tensor]] = []
    written: list[tuple[int, int, WrittenToken]] = []
    for owner, sequence in enumerate(sequences):
        shift = len(ids) - prompt
        ids += sequence.ids[prompt:]
        positions.append(sequence.position_ids[:, prompt:])
        segments += [owner] * (len(sequence.ids) - prompt)
        images += [(c + shift, tokens) for c, tokens in sequence.images if c >= prompt]
        latents += [(c + shift, owner, vector) for c, vector in sequence.latents]
        for token in sequence.written:
            column = token.predictor + (shift if token.predictor >= prompt else 0)
            written.append((column, owner, token))
    mask = _group_mask(torch.tensor(segments))
    if bottleneck:
        _narrow(mask, torch.tensor(segments), sequences)
    width = latents[0][2].shape[-1] if latents else 0
    return PackedGroup(
        ids=torch.tensor(ids),
        positions=torch.cat(positions, dim=1),
        mask=mask[None, None],
        images=tuple(images),
        latent_columns=torch.tensor([c for c, _, _ in latents], dtype=torch.int64),
        latents=torch.stack([v for _, _, v in latents]) if latents else torch.empty(0, width),
        latent_owners=torch.tensor([o for _, o, _ in latents], dtype=torch.int64),
        predictors=torch.tensor([column for column, _, _ in written], dtype=torch.int64),
        targets=torch.tensor([token.token_id for _, _, token in written], dtype=torch.int64),
        owners=torch.tensor([owner for _, owner, _ in written], dtype=torch.int64),
        learned=torch.tensor([not token.forced for _, _, token in written], dtype=torch.bool),
        recorded=torch.tensor([token.logprob for _, _, token in written]),
        separate=sum(len(sequence.ids) for sequence in sequences),
    )


def _group_mask(segments: torch.Tensor) -> torch.Tensor:
    """Bool `(T, T)`: causal, within the prompt or within a branch and its prompt."""
    count = len(segments)
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    same = segments[:, None] == segments[None, :]
    return causal & (same | (segments[None, :] == -1))


def _narrow(mask: torch.Tensor, segments: torch.Tensor, sequences: Sequence[FedSequence]) -> None:
    """Keeps every branch that has latents from its image past them, in place."""
    for owner, sequence in enumerate(sequences):
        if sequence.latents:
            slots = [column for column, _ in sequence.latents]
            queries, keys = bottleneck_columns(sequence.images[0][0], slots[0], slots[-1])
            # Where the branch's own columns, those of the prompt first, stand in the row.
            columns = torch.nonzero((segments == -1) | (segments == owner)).flatten()
            mask[columns[queries, None], columns[keys]] = False
