"""The benchmark of rollouts and updates on a tiny model: what it gives. No times."""

from __future__ import annotations

import json

import pytest
import torch

from engine.bench import BenchmarkError
from engine.decode import Decoder
from engine.tiny import TinyShape
from training.bench import (
    LATENT_STEPS,
    LOGPROB_GROUPS,
    against_trl,
    benchmark,
    latent_steps,
    logprob_peak_bytes,
    peak_bytes,
    prepare,
    readable,
)
from training.cli import main
from training.trl_bench import policy_step

# Where TRL is installed, it calls transformers by former names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
SHAPE = TinyShape(vocabulary=2048, tied=False)


@pytest.fixture(scope="module")
def report() -> dict:
    return benchmark([(4, 2), (6, 3)], repeats=1, shape=SHAPE, image_tokens=16, members=6)


def test_every_setting_has_every_figure(report: dict) -> None:
    for setting, (tokens, branches) in zip(report["settings"], [(4, 2), (6, 3)], strict=True):
        assert (setting["completion_tokens"], setting["branches"]) == (tokens, branches)
        for name in (
            "group_rollout_over_generate",
            "latent_batch_over_one_by_one",
            "packed_update_over_separate",
            "logprob_chunked_over_whole",
        ):
            low, high = setting[name]["spread"]
            assert 0 < low <= setting[name]["value"] <= high
            assert setting[name]["repeats"] == 1
        # The last token of a branch is written and never fed.
        prompt, fed = setting["prompt_tokens"], tokens - 1
        expected = branches * (prompt + fed) / (prompt + branches * fed)
        assert setting["packed_token_ratio"] == pytest.approx(expected, abs=1e-3)
        peak = setting["logprob_peak_bytes"]
        assert peak["tokens"] == LOGPROB_GROUPS * tokens * branches
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert readable(report).count("times as fast") == 8 + (report["trl"] is not None)
    assert readable(report).count("logprob_chunked_over_whole") == 2
    assert readable(report).count("times as long") == 2


@pytest.mark.filterwarnings("ignore")
def test_a_step_of_trl_is_as_long_as_ours() -> None:
    """Its own warnings are not ours."""
    pytest.importorskip("trl", reason="TRL is not installed: pip install trl datasets")
    found = against_trl(prepare(SHAPE, 16, 4, 2), 2)
    assert found is not None
    assert (found["completion_tokens"], found["branches"]) == (4, 2)
    assert found["grpo_step_over_trl"]["repeats"] == 2
    assert 0 < found["grpo_step_over_trl"]["value"] < 100


def test_without_trl_the_report_says_so(report: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bench.trl_version", lambda: None)
    assert against_trl(prepare(SHAPE, 16, 4, 2), 1) is None
    assert "TRL is not installed" in readable(report | {"trl": None})


def test_a_step_of_ours_moves_the_policy() -> None:
    """Otherwise its time would be of nothing."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    seen = []
    step = policy_step(
        lambda: seen.append(weight.detach().clone()) or weight,
        lambda packed: packed * 1.0,
        torch.optim.SGD([weight], lr=1.0),
    )
    step()
    step()
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_latent_steps_in_a_batch_are_those_of_each_alone() -> None:
    """Otherwise their times could not be compared; and the prefill is as it was before."""
    sides = prepare(SHAPE, 16, 4, 3).sides
    decoder = Decoder(sides.loaded)
    prefilled = decoder.prefill(sides.start.prompt)
    before = prefilled.hidden.clone(), prefilled.length
    for together in (False, True):
        assert latent_steps(sides, prefilled, 3, together=together) == 3 * LATENT_STEPS
    assert torch.equal(prefilled.hidden, before[0])
    assert prefilled.length == before[1]


def test_forks_write_less_than_as_many_independent_trajectories(report: dict) -> None:
    forks = report["forks"]
    assert forks["members"] == 6
    assert 1 <= forks["forks"] <= 3
    assert forks["tokens"]["forked"] < min(forks["tokens"]["separate"], forks["tokens"]["grouped"])
    assert forks["positions"]["forked"] < forks["positions"]["separate"]
    for name in ("separate_over_forked", "grouped_over_forked"):
        low, high = forks[name]["spread"]
        assert 0 < low <= forks[name]["value"] <= high


def test_peak_memory_is_of_the_chunk_and_not_of_the_tokens() -> None:
    """A chunk of logits, their log-softmax and its gradient; all at once grows with the tokens."""
    model = torch.nn.Module()
    model.lm_head = torch.nn.Linear(8, 4000, bias=False)
    few, many = (logprob_peak_bytes(model, tokens, 16) for tokens in (64, 512))
    logits = 16 * 4000 * 4
    assert few >= 2 * logits
    assert many < 1.2 * few
    assert logprob_peak_bytes(model, 512, 512) > 10 * many


def test_peak_bytes_are_those_held_at_the_same_time() -> None:
    def run() -> None:
        for _ in range(3):
            torch.empty(1000, 1000)

    assert 4_000_000 <= peak_bytes(run) < 8_000_000


def test_a_model_that_stops_early_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bench.MOST_SEEDS", 0)
    with pytest.raises(BenchmarkError, match="No random model"):
        prepare(SHAPE, 16, 4, 2)


def test_bad_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--repeats", "0"]) == 2
    assert "--repeats must be at least 1" in capsys.readouterr().err
