"""The benchmark on tiny models: what it prints, that its sides do the same, and one loose time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from engine.bench import (
    EMBEDDED_TOKENS,
    BenchmarkError,
    Sides,
    bytes_kept,
    counted_7b,
    decode_bytes,
    interleaved,
    measured,
    prepared,
    random_sides,
    ratio,
    readable,
    traced,
)
from engine.cli import DEFAULT_CHECKPOINT, main
from engine.loading import load_checkpoint
from engine.tiny import (
    BENCH_SHAPE,
    TinyShape,
    tiny_config,
    tiny_manifest,
    tiny_tokenizer,
)
from tests.integration.test_loading import save

RATIOS = (
    "trace_all_layers_over_generate",
    "trace_default_over_generate",
    "generate_with_attentions_over_trace",
    "crop_rerun_over_append",
    "own_loop_over_bare_forward",
    "bare_forward_over_generate",
)


@pytest.fixture(scope="module")
def sides() -> Sides:
    return random_sides(TinyShape(), tiny_manifest(16, 4), 6)


def test_a_trace_does_not_become_a_quarter_slower_than_generate() -> None:
    """A guard: what is aimed at (`tests/perf`) needs an idle machine, this holds on a busy one."""
    sides = prepared(load_checkpoint(DEFAULT_CHECKPOINT, "cpu"), EMBEDDED_TOKENS)

    group = measured(sides, 7)

    assert group["trace_all_layers_over_generate"]["value"] <= 1.25
    assert group["trace_default_over_generate"]["value"] <= 1.25


def test_a_group_has_every_ratio_with_its_spread(sides: Sides) -> None:
    group = measured(sides, 2)

    for name in RATIOS:
        low, high = group[name]["spread"]
        assert 0 < low <= high
        assert group[name]["value"] > 0
        assert group[name]["repeats"] == 2
    for side in ("measured", "counted"):
        kept = group["bytes_per_token_and_layer"][side]
        assert kept["value"] == 2 * group["image_tokens"]
        assert kept["spread"] == [kept["value"]] * 2
    assert group["image_tokens"] == sides.start.seen.grid.cells
    assert group["new_tokens"] == 6
    assert json.loads(json.dumps(group, allow_nan=False)) == group


def test_the_command_prints_one_object_with_its_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_sides(TinyShape(), tiny_manifest(16, 4), EMBEDDED_TOKENS).loaded
    checkpoint = save(model, tmp_path / "tiny")
    # What libraries say as they save is not what the command says.
    capsys.readouterr()
    threads = torch.get_num_threads()
    command = ["bench", "--group", "embedded", "--repeats", "1", "--json", "--checkpoint"]
    assert main([*command, str(checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)

    assert list(report) == ["embedded"]
    assert set(RATIOS) <= set(report["embedded"])
    assert torch.get_num_threads() == threads


def test_the_random_model_is_the_one_of_the_notes() -> None:
    """12 layers and 43 million parameters; its weights are not drawn here."""
    config = tiny_config(tiny_tokenizer(BENCH_SHAPE.vocabulary), BENCH_SHAPE)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)

    assert config.text_config.num_hidden_layers == 12
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(43e6, rel=0.01)


def test_sides_that_write_other_tokens_are_not_compared() -> None:
    with pytest.raises(BenchmarkError, match="other"):
        interleaved({"one": lambda: [1, 2], "other": lambda: [1, 3]}, 1)


def test_a_ratio_is_that_of_the_fastest_runs() -> None:
    assert ratio([2.0, 4.0, 3.0], [1.0, 1.0, 2.0]) == {
        "value": 2.0,
        "spread": [1.5, 4.0],
        "repeats": 3,
    }


@pytest.mark.parametrize("layers", ["none", "default", "all"])
def test_every_run_is_a_whole_run(sides: Sides, layers: str) -> None:
    assert len(traced(sides, layers)) == 6


def test_bytes_are_measured_on_storage_and_counted_by_rule(sides: Sides) -> None:
    kept, counted = bytes_kept(sides)

    assert kept == counted == 2 * sides.start.seen.grid.cells


def test_bytes_of_a_step_by_hand(sides: Sides) -> None:
    """Three layers of width 64 (4 heads of 16, 2 for keys), a head over 448 tokens, fp32."""
    layer = 64 * 64 * 2 + 64 * 32 * 2 + (64 + 32 + 32) + 3 * 64 * 192 + 2 * 64
    columns = len(sides.ids) + 3
    keys = columns * 2 * 16
    rows = sides.loaded.model.lm_head.weight.numel()

    assert decode_bytes(sides) == 4 * (3 * layer + rows + 2 * 3 * keys + keys)


def test_bytes_of_a_large_model_are_those_of_the_notes() -> None:
    counted = counted_7b()

    assert counted["weight_bytes"] == 14_142_000_000
    assert counted["row_bytes_per_traced_layer"] == 1_536_000
    assert counted["row_share_all_layers"] < 0.01
    assert round(counted["bound_tokens_per_second"]["H100 SXM"]) == 236


def test_a_report_reads_as_a_table(sides: Sides) -> None:
    lines = readable({"random": measured(sides, 1)}).splitlines()

    assert lines[0].startswith("random (")
    assert any("counted" in line for line in lines)
    assert all(any(name in line for line in lines) for name in RATIOS)
    assert any(line.lstrip().startswith("H100") for line in lines)
