"""What is read off rollouts before they are learned from, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.unit.training.test_policy_loss import outputs, packed
from training.policy_loss import PolicyPart
from training.policy_updates import kl_sums


def test_the_divergence_is_that_of_recorded_tokens_which_the_policy_chose() -> None:
    """`exp(d) - d - 1` of reference minus policy: of 1 and -2 nats; the engine wrote the last."""
    group = packed([0, 0, 0], [True, True, False], [])
    group = dataclasses.replace(group, recorded=torch.tensor([-2.0, -1.0, -1.0]))
    reference = outputs([-1.0, -3.0, -9.0], []).detached()
    # What a later update needs is another thing, and may differ in its last digits.
    old = outputs([-7.0, -7.0, -7.0], [])
    part = PolicyPart(group, torch.tensor([1.0]), old, reference)

    expected = (math.exp(1.0) - 1.0 - 1.0) + (math.exp(-2.0) + 2.0 - 1.0)
    assert kl_sums([part, part]) == pytest.approx({"kl": 2 * expected, "tokens": 4}, rel=1e-6)
    assert kl_sums([dataclasses.replace(part, old=None)])["kl"] == pytest.approx(expected)


def test_without_a_reference_there_is_no_divergence() -> None:
    part = PolicyPart(packed([0], [True], []), torch.tensor([1.0]), None, None)
    assert kl_sums([part]) == {"kl": 0.0, "tokens": 0.0}
