"""Draws, nucleus and entropy against naive twins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.request import Sampling
from engine.sampling import draw, entropy_nats, nucleus, packed_step, unpacked_steps

rows = st.lists(st.floats(-20, 20), min_size=2, max_size=12)


@given(rows)
def test_entropy_is_the_sum_over_the_distribution(values: list[float]) -> None:
    total = sum(math.exp(v - max(values)) for v in values)
    shares = [math.exp(v - max(values)) / total for v in values]
    expected = -sum(p * math.log(p) for p in shares if p > 0)

    assert float(entropy_nats(torch.tensor([values]))[0]) == pytest.approx(expected, abs=1e-4)


def test_entropy_of_banned_entries_is_finite() -> None:
    assert float(entropy_nats(torch.tensor([0.0, 0.0, -math.inf]))) == pytest.approx(math.log(2))


@given(rows, st.floats(0.05, 1.0))
def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass(
    values: list[float], top_p: float
) -> None:
    shares = torch.softmax(torch.tensor([values], dtype=torch.float64), -1)
    kept = nucleus(shares, top_p)[0]
    mass, expected = 0.0, set()
    for index in sorted(range(len(values)), key=lambda i: -float(shares[0, i])):
        if mass >= top_p - 1e-9:
            break
        expected.add(index)
        mass += float(shares[0, index])
    # Ties may be broken either way: compare masses, not indices.
    assert float(kept.sum()) == pytest.approx(mass, abs=1e-6)
    assert int((kept > 0).sum()) == len([i for i in expected if shares[0, i] > 0])


def test_greedy_takes_the_likeliest_and_needs_no_generator() -> None:
    assert draw(torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]]), Sampling(), None).tolist() == [
        1,
        0,
    ]


def test_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.log(torch.tensor([0.6, 0.3, 0.1, 0.0])).expand(20_000, -1)
    counts = torch.bincount(draw(logits, Sampling(temperature=1.0), generator), minlength=4)

    assert (counts / 20_000).tolist() == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.015)
    assert counts[3] == 0


def test_temperature_sharpens() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.tensor([1.0, 0.0]).expand(20_000, -1)
    share = float((draw(logits, Sampling(temperature=0.5), generator) == 0).float().mean())

    assert share == pytest.approx(1 / (1 + math.exp(-2)), abs=0.015)


def test_the_same_seed_draws_the_same() -> None:
    logits = torch.randn(1, 50)
    draws = [
        int(draw(logits, Sampling(temperature=1.0), torch.Generator().manual_seed(7))[0])
        for _ in range(3)
    ]

    assert len(set(draws)) == 1


@pytest.mark.parametrize("alternatives", [0, 3])
def test_a_packed_step_is_read_back(alternatives: int) -> None:
    logits = torch.randn(2, 200_000)
    chosen = torch.tensor([199_999, 7])
    extra = torch.rand(2, 5)
    draws = unpacked_steps(packed_step(logits, chosen, alternatives, extra), alternatives)
    logprobs = torch.log_softmax(logits, -1)

    for row, got in enumerate(draws):
        assert got.token_id == int(chosen[row])
        assert got.logprob == pytest.approx(float(logprobs[row, chosen[row]]))
        assert got.entropy == pytest.approx(float(entropy_nats(logits[row])), rel=1e-5)
        top = logprobs[row].topk(alternatives)
        assert [token for token, _ in got.alternatives] == top.indices.tolist()
        assert [value for _, value in got.alternatives] == pytest.approx(top.values.tolist())
        assert torch.equal(got.extra, extra[row])
