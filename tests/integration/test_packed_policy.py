"""Packed rollouts: one forward over a group gives what separate forwards and the rollout gave."""

from __future__ import annotations

import copy

import pytest
import torch

from engine.decode import Decoder
from engine.engine import Engine
from engine.loading import LoadedModel
from engine.request import Sampling
from engine.rollout import Rollout
from engine.sequence import FedSequence
from tests.integration.conftest import MakeRequest
from tests.integration.test_forks import forked_run
from training.packing import packed_group
from training.policy import PolicyOutputs, chunked_log_probs, policy_outputs

# Goal B3: a packed group is its rows, apart. In float32 log-probabilities differ by 1.9e-6 at
# most, two steps of a number between 8 and 16, and gradients by 7e-7 of their length.
APART = 1e-5
GRADIENTS_APART = 1e-5
# Goal B5, 1e-4: what the rollout recorded, and what it fed. They differ by 1.9e-6 and 1.2e-6.
AS_RECORDED = 2e-5


def rolled_out(
    engine: Engine, make_request: MakeRequest, count: int = 3, **changes: object
) -> list[FedSequence]:
    defaults = {
        "method": "latent",
        "sampling": Sampling(temperature=1.0),
        "max_new_tokens": 15,
        "layers": "none",
        "belief": False,
        "options": (),
        "seed": 4,
    }
    _, start = engine.prepare(make_request(**{**defaults, **changes}))
    rollout = Rollout(Decoder(engine.loaded), start, count=count)
    list(rollout.events())
    return rollout.sequences


def recorded(sequences: list[FedSequence]) -> torch.Tensor:
    return torch.tensor([token.logprob for s in sequences for token in s.written])


@pytest.mark.parametrize("method", ["direct", "latent", "zoom"])
def test_a_packed_group_has_the_log_probabilities_of_the_rollout(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, method: str
) -> None:
    sequences = rolled_out(engine, make_request, method=method)
    group = packed_group(sequences)
    found = policy_outputs(loaded.model, group)

    torch.testing.assert_close(found.log_probs, recorded(sequences), atol=AS_RECORDED, rtol=0)
    assert group.separate - group.columns == 2 * sequences[0].prompt


def in_rows(model: torch.nn.Module, sequences: list[FedSequence]) -> PolicyOutputs:
    """The same of every branch in a forward of its own."""
    outputs = [policy_outputs(model, packed_group([sequence])) for sequence in sequences]
    return PolicyOutputs(
        torch.cat([o.log_probs for o in outputs]), torch.cat([o.latent_means for o in outputs])
    )


@pytest.mark.parametrize(
    ("method", "latent_steps"), [("direct", 4), ("latent", 1), ("latent", 4), ("zoom", 4)]
)
def test_a_packed_group_has_the_log_probabilities_of_separate_rows(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, method: str, latent_steps: int
) -> None:
    sequences = rolled_out(engine, make_request, method=method, seed=2, latent_steps=latent_steps)
    assert len({len(sequence.ids) for sequence in sequences}) > 1
    assert all(bool(sequence.latents) == (method == "latent") for sequence in sequences)
    with torch.no_grad():
        packed = policy_outputs(loaded.model, packed_group(sequences))
        separate = in_rows(loaded.model, sequences)

    torch.testing.assert_close(packed.log_probs, separate.log_probs, atol=APART, rtol=0)
    if method == "latent":
        torch.testing.assert_close(packed.latent_means, separate.latent_means, atol=APART, rtol=0)


def test_a_packed_group_with_forks_and_crops(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    rollout, _, _, _ = forked_run(engine, make_request, 2, 4)
    group = packed_group(rollout.sequences)
    assert len(group.images) > 1

    found = policy_outputs(loaded.model, group)

    torch.testing.assert_close(
        found.log_probs, recorded(rollout.sequences), atol=AS_RECORDED, rtol=0
    )
    separate = in_rows(loaded.model, rollout.sequences)
    torch.testing.assert_close(found.log_probs, separate.log_probs, atol=APART, rtol=0)


def test_latent_means_are_what_the_rollout_fed(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    """Slot p was fed the hidden state of p - 1; any other column is another vector."""
    sequences = rolled_out(engine, make_request)
    group = packed_group(sequences)
    means = policy_outputs(loaded.model, group).latent_means.detach()

    assert means.shape == group.latents.shape == (12, group.latents.shape[1])
    torch.testing.assert_close(means, group.latents, atol=AS_RECORDED, rtol=0)
    # Monet's alignment: the hidden state at the slot itself is the next slot's mean.
    shifted = torch.roll(means, -1, 0)
    assert float((shifted - group.latents).norm(dim=-1).min()) > 0.1


@pytest.mark.parametrize("latent_steps", [1, 4])
def test_the_bottleneck_of_a_rollout_is_the_bottleneck_of_its_replay(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, latent_steps: int
) -> None:
    sequences = rolled_out(engine, make_request, bottleneck=True, latent_steps=latent_steps)
    narrow = policy_outputs(loaded.model, packed_group(sequences, bottleneck=True)).log_probs
    free = policy_outputs(loaded.model, packed_group(sequences)).log_probs

    torch.testing.assert_close(narrow, recorded(sequences), atol=AS_RECORDED, rtol=0)
    assert float((free - narrow).detach().abs().max()) > 1e-3


def test_gradients_of_a_packed_group_are_those_of_separate_forwards(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    # Of these three no two are equally long, and each has latents.
    sequences = rolled_out(engine, make_request, seed=2)
    assert len({len(sequence.ids) for sequence in sequences}) == 3

    def loss_of(outputs: PolicyOutputs) -> torch.Tensor:
        weights = torch.linspace(-1, 1, outputs.latent_means.numel())
        return outputs.log_probs.sum() + (outputs.latent_means.flatten() * weights).sum()

    def gradients(*, together: bool) -> torch.Tensor:
        model = copy.deepcopy(loaded.model)
        if together:
            outputs = policy_outputs(model, packed_group(sequences))
        else:
            outputs = in_rows(model, sequences)
        loss_of(outputs).backward()
        parameters = model.model.language_model.parameters()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    packed, separate = gradients(together=True), gradients(together=False)

    assert float(separate.norm()) > 0
    assert float((packed - separate).norm() / separate.norm()) < GRADIENTS_APART


def test_prompts_are_not_mixed(engine: Engine, make_request: MakeRequest) -> None:
    one = rolled_out(engine, make_request, count=1)
    other = rolled_out(engine, make_request, count=1, question="Is there an effusion?")
    with pytest.raises(ValueError, match="same prompt"):
        packed_group([*one, *other])
    with pytest.raises(ValueError, match="at least one"):
        packed_group([])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_change_neither_values_nor_gradients(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=generator, requires_grad=True)
    head = torch.randn(30, 8, generator=generator, requires_grad=True)
    targets = torch.randint(30, (20,), generator=generator)
    weights = torch.randn(20, generator=generator)
    plain = torch.log_softmax(hidden @ head.T, -1)
    expected = torch.autograd.grad(
        (plain.gather(-1, targets[:, None])[:, 0] * weights).sum(), [hidden, head]
    )
    log_probs = chunked_log_probs(hidden, head, targets, chunk)
    found = torch.autograd.grad((log_probs * weights).sum(), [hidden, head])

    torch.testing.assert_close(log_probs, plain.gather(-1, targets[:, None])[:, 0])
    torch.testing.assert_close(found, expected)


def test_no_tokens_have_no_log_probabilities() -> None:
    log_probs = chunked_log_probs(
        torch.empty(0, 8), torch.randn(30, 8), torch.empty(0, dtype=torch.int64), 4
    )
    assert len(log_probs) == 0
    with pytest.raises(ValueError, match="chunk"):
        chunked_log_probs(torch.empty(1, 8), torch.randn(3, 8), torch.zeros(1).long(), 0)
