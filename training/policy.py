"""The policy at work: log-probabilities and latent means of packed rollouts, with gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

from training.packing import PackedGroup


@dataclass(frozen=True, slots=True, eq=False)
class PolicyOutputs:
    """What a policy says of a packed group.

    Attributes:
        log_probs: `(N,)`, of every written token, nats at temperature 1.
        latent_means: `(S, D)`: the hidden state one column before every latent slot, which is
            what the policy would feed there.
    """

    log_probs: torch.Tensor
    latent_means: torch.Tensor

    def detached(self) -> PolicyOutputs:
        """The same without gradients."""
        return PolicyOutputs(self.log_probs.detach(), self.latent_means.detach())


def policy_outputs(
    model: Qwen2_5_VLForConditionalGeneration, group: PackedGroup, *, chunk: int = 64
) -> PolicyOutputs:
    """One forward over a packed group.

    Args:
        model: the policy; the visual tokens of the group are taken as they are.
        group: packed rollouts.
        chunk: tokens whose logits are held at a time.
    """
    device = model.device
    hidden = _hidden_states(model, group, device)
    log_probs = chunked_log_probs(
        hidden[group.predictors.to(device)], model.lm_head.weight, group.targets.to(device), chunk
    )
    # The slot at p is fed the hidden state of p - 1: that, and not the one at p, is its mean.
    # Squared distances between latents are differences that bfloat16 would swallow.
    means = hidden[group.latent_columns.to(device) - 1].float()
    return PolicyOutputs(log_probs, means)


def _hidden_states(
    model: Qwen2_5_VLForConditionalGeneration, group: PackedGroup, device: torch.device
) -> torch.Tensor:
    """Last hidden states of all columns, `(T, D)`."""
    embeddings = model.get_input_embeddings()(group.ids.to(device))
    columns, values = [], []
    for first, tokens in group.images:
        columns.append(torch.arange(first, first + len(tokens)))
        values.append(tokens)
    if len(group.latents):
        columns.append(group.latent_columns)
        values.append(group.latents)
    if columns:
        given = torch.cat([value.to(device, embeddings.dtype) for value in values])
        # Inference tensors cannot be saved for backward; a copy can.
        embeddings = embeddings.index_copy(0, torch.cat(columns).to(device), given.clone())
    hidden: torch.Tensor = model.model.language_model(
        inputs_embeds=embeddings[None],
        position_ids=group.positions[:, None].to(device),
        attention_mask={"full_attention": group.mask.to(device)},
        use_cache=False,
    ).last_hidden_state[0]
    return hidden


def chunked_log_probs(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int
) -> torch.Tensor:
    """Log-probabilities of targets, without ever holding all logits.

    Equal to `log_softmax(hidden @ head.T)[targets]`; logits of a chunk are computed again in
    the backward pass, so that peak memory does not grow with the number of tokens.

    Args:
        hidden: `(N, D)`.
        head: `(V, D)`.
        targets: int64 `(N,)`.
        chunk: rows at a time.

    Returns:
        Log-probabilities `(N,)`, float32, in nats.

    Raises:
        ValueError: `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}.")
    # Never in the narrower precision of a model.
    log_probs = [hidden.new_zeros(0, dtype=torch.float32)]
    for first in range(0, len(hidden), chunk):
        part, wanted = hidden[first : first + chunk], targets[first : first + chunk]
        log_probs.append(checkpoint(_log_probs, part, head, wanted, use_reentrant=False))
    return torch.cat(log_probs)


def _log_probs(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    everything = torch.log_softmax((hidden @ head.T).float(), dim=-1)
    return everything.gather(-1, targets[:, None])[:, 0]
