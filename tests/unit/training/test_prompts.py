"""Prompts at native size: balanced, kept on disk, asked in an order of their own every epoch."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.alarm import AlarmConfig, ToolAlarm
from training.config import ConfigError
from training.pass_rates import RATES_FILE, PassRateConfig, kept_prompts
from training.phantoms import to_view8
from training.phantoms.truth import seed_for
from training.prompts import PromptConfig, PromptPool, numbers_of_batch, ordered_case
from training.questions import FAMILIES

CONFIG = PromptConfig(count=8, seed=3, families=("nodule_margin", "effusion_side"))


def test_families_take_turns_and_so_do_their_answers() -> None:
    questions = [ordered_case(CONFIG, number).question for number in range(4)]
    assert [q.family for q in questions] == ["nodule_margin", "effusion_side"] * 2
    assert [q.answer for q in questions] == ["smooth", "right", "spiculated", "left"]
    assert ordered_case(CONFIG, 1).phantom_seed == seed_for("train", 1, 3)
    assert set(PromptConfig(count=1, seed=0).families) == set(FAMILIES)


def test_a_prompt_is_drawn_once_at_its_native_size(tmp_path: Path) -> None:
    pool = PromptPool(tmp_path, CONFIG)
    prompt = pool[1]
    case = ordered_case(CONFIG, 1)
    assert np.array_equal(prompt.pixels, to_view8(case.phantom()))
    assert prompt.question == case.question
    (path,) = tmp_path.rglob("*.npz")
    written = path.stat().st_mtime_ns
    again = PromptPool(tmp_path, CONFIG)[1]
    assert again.question == prompt.question
    assert np.array_equal(again.pixels, prompt.pixels)
    assert path.stat().st_mtime_ns == written
    with pytest.raises(IndexError, match="none has the number 8"):
        pool[8]


def test_other_families_are_other_files(tmp_path: Path) -> None:
    folders = {
        PromptPool(
            tmp_path, PromptConfig(count=1, seed=seed, split=split, families=families)
        ).folder
        for seed, split, families in (
            (1, "train", ("lung",)),
            (2, "train", ("lung",)),
            (1, "validation", ("lung",)),
            (1, "train", ("lung", "lung_name")),
        )
    }
    assert len(folders) == 4


def test_every_epoch_asks_every_prompt_once_in_another_order() -> None:
    kept = [2, 3, 5, 7, 11]
    asked = [n for batch in range(5) for n in numbers_of_batch(kept, 3, batch, 9)]
    epochs = [asked[first : first + 5] for first in range(0, 15, 5)]
    assert all(sorted(epoch) == kept for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert numbers_of_batch(kept, 3, 4, 9) == asked[12:]
    with pytest.raises(ValueError, match="no prompt"):
        numbers_of_batch([], 3, 0, 9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"split": "holdout"}, "split must be one of"),
        ({"families": ("nodule_colour",)}, "families must be some of"),
        ({"families": ()}, "families must be some of"),
    ],
)
def test_bad_settings_are_named(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PromptConfig(**{"count": 1, "seed": 0, **changes})


# --- pass rates -----------------------------------------------------------------------------


def rates(folder: Path, asked: list[int], count: int = 5, **changes: float) -> list[int]:
    def rate_of(number: int) -> float:
        asked.append(number)
        return number / 4

    config = PassRateConfig(rollouts=4, **changes)
    return kept_prompts(folder, count, config, rate_of, lambda _: None)


def test_prompts_that_are_always_or_never_right_are_left_out(tmp_path: Path) -> None:
    asked: list[int] = []
    assert rates(tmp_path, asked) == [1, 2, 3]
    assert rates(tmp_path, asked, above=0.25, up_to=1.0) == [2, 3, 4]
    assert asked == [0, 1, 2, 3, 4]
    assert kept_prompts(tmp_path, 3, PassRateConfig(), lambda _: 0.0, lambda _: None) == [0, 1, 2]


def test_reading_rates_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rates(tmp_path, [], count=4)
    path = tmp_path / RATES_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:9], encoding="utf-8")
    asked: list[int] = []
    assert rates(tmp_path, asked) == [1, 2, 3]
    assert asked == [2, 3, 4]
    assert [json.loads(line)["prompt"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]


def test_no_prompt_left_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No prompt has a pass rate above"):
        rates(tmp_path, [], up_to=0.2)


# --- the alarm ------------------------------------------------------------------------------


def test_the_alarm_rings_once_after_enough_low_batches_and_again_after_a_rest() -> None:
    said: list[str] = []
    alarm = ToolAlarm(AlarmConfig(share=0.2, batches=2), said.append)
    rings, lines = [], []
    for rate in (0.1, 0.2, 0.1, 0.0, 0.0, 0.3, 0.1, 0.1):
        rings.append(alarm.hear(rate))
        lines.append(len(said))
    assert rings == [False] * 3 + [True, True] + [False] * 2 + [True]
    assert lines == [0, 0, 0, 1, 1, 1, 1, 2]
    assert "tool use is 0.0% of trajectories" in said[0]
    assert said[0].count("\n") == 0
    assert alarm.rings
    other = ToolAlarm(AlarmConfig(share=0.2, batches=2))
    other.load_state_dict(alarm.state_dict())
    assert other.rings


def test_bad_alarms_and_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="share must lie in 0 to 1"):
        AlarmConfig(share=1.5)
    with pytest.raises(ValueError, match="batches must be at least 1"):
        AlarmConfig(batches=0)
    with pytest.raises(ValueError, match="rollouts must be 0 or at least 2"):
        PassRateConfig(rollouts=1)
    with pytest.raises(ValueError, match="above below up_to"):
        PassRateConfig(above=0.9, up_to=0.5)


@pytest.mark.parametrize(
    ("family", "modality", "edge"),
    [
        ("nodule_side", "DX", "right"),
        ("head_modality", "CT", "right"),
        ("breast_modality", "US", ""),
    ],
)
def test_a_prompt_is_of_the_modality_of_its_phantom(
    tmp_path: Path, family: str, modality: str, edge: str
) -> None:
    pool = PromptPool(tmp_path, PromptConfig(count=1, seed=0, families=(family,)))
    assert (pool[0].image.modality, pool[0].image.left_edge) == (modality, edge)
    assert [path.suffix for path in pool.folder.iterdir()] == [".npz"]
