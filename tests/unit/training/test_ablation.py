"""Rows, their order and what is kept of them; latents that are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import ablation
from training.ablation import AblationConfig, ablate, chosen, latent_cosines
from training.ablation_stages import TrainingStages, checkpoint_identity
from training.config import ConfigError, load_config
from training.loop import Report

ROWS: list[dict[str, Any]] = [
    {"name": "base", "asked": [{"method": "direct"}]},
    {
        "name": "tuned",
        "stages": [{"kind": "sft", "config": "sft.yaml", "overrides": ["language.steps=3"]}],
        "asked": [{"method": "direct", "against": "base"}, {"name": "zoomed", "method": "zoom"}],
    },
    {
        "name": "reinforced",
        "begins_with": "tuned",
        "stages": [{"kind": "vlpo", "config": "rl.yaml"}],
        "asked": [{"method": "latent", "against": "tuned"}],
    },
]


def config(folder: Path, **changes: Any) -> AblationConfig:
    values: dict[str, Any] = {
        "out": str(folder / "out"),
        "base": "the-base",
        "phantoms": str(folder / "phantoms"),
        "questions": {"count": 4, "seed": 1, "split": "test"},
        "rows": ROWS,
        "seeds": [1, 2],
        "common": {"every": ["threads=1"], "vlpo": ["steps.steps=5"]},
    }
    path = folder / "ablation.yaml"
    import yaml

    path.write_text(yaml.safe_dump(values | changes))
    return load_config(AblationConfig, path, [])


class Recorder:
    """Stands for training and for asking, and remembers both."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, str, list[str]]] = []
        self.asked: list[tuple[str, str]] = []

    def settings(self, kind: str, path: Path, overrides: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = dict(one.split("=") for one in overrides)
        steps = found.pop("steps.steps", "9")
        return {**found, "steps": {"steps": steps}}

    def run(self, kind: str, path: Path, overrides: list[str], report: Report) -> Path:
        self.trained.append((kind, str(path), overrides))
        out = next(o for o in overrides if o.startswith("out="))
        folder = Path(out.removeprefix("out=")) / "checkpoint"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(out.encode())
        return folder

    def score(self, checkpoint: str, asked: Any, pool: Any, seed: int) -> dict[str, Any]:
        self.asked.append((checkpoint, asked.method))
        right = "tuned" in checkpoint or "reinforced" in checkpoint
        outcome = {"family": "a", "kind": "coarse", "right": right, "zooms": 0, "seconds": 0.1}
        return {"outcomes": [outcome] * 4, "latents": None}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(ablation, "score", made.score)
    return made


def test_every_row_is_trained_from_what_it_begins_with(tmp_path: Path, recorder: Recorder) -> None:
    found = ablate(config(tmp_path), lambda _: None, stages=recorder)

    out = tmp_path / "out"
    tuned = out / "tuned" / "seed-1" / "stage-0"
    again = out / "reinforced" / "seed-1" / "stage-0"
    assert recorder.trained[:2] == [
        (
            "sft",
            "sft.yaml",
            ["threads=1", "language.steps=3", f"out={tuned}", "seed=1", "base=the-base"],
        ),
        (
            "vlpo",
            "rl.yaml",
            ["threads=1", "steps.steps=5", f"out={again}", "seed=1", f"base={tuned}/checkpoint"],
        ),
    ]
    assert len(recorder.trained) == 4
    assert [line["name"] for line in found["lines"]] == [
        "base", "tuned", "tuned, zoomed", "reinforced",
    ]  # fmt: skip
    assert found["lines"][1]["difference"] == 1.0
    assert found["lines"][3]["difference"] == 0.0


def test_what_is_finished_is_neither_trained_nor_asked_again(
    tmp_path: Path, recorder: Recorder
) -> None:
    first = ablate(config(tmp_path), lambda _: None, stages=recorder)
    trained, asked = len(recorder.trained), len(recorder.asked)

    second = ablate(config(tmp_path), lambda _: None, stages=recorder)

    assert (len(recorder.trained), len(recorder.asked)) == (trained, asked)
    assert second == first


def test_another_comparison_asks_nothing_again(tmp_path: Path, recorder: Recorder) -> None:
    ablate(config(tmp_path), lambda _: None, stages=recorder)
    asked = len(recorder.asked)
    others = [*ROWS[:2], ROWS[2] | {"asked": [{"method": "latent", "against": "base"}]}]

    found = ablate(config(tmp_path, rows=others), lambda _: None, stages=recorder)

    assert len(recorder.asked) == asked
    assert found["lines"][3]["difference"] == 1.0


def test_scores_of_other_questions_are_not_taken(tmp_path: Path, recorder: Recorder) -> None:
    ablate(config(tmp_path), lambda _: None, stages=recorder)
    asked = len(recorder.asked)

    other = {"count": 4, "seed": 2, "split": "test"}
    ablate(config(tmp_path, questions=other), lambda _: None, stages=recorder)

    assert len(recorder.asked) == 2 * asked


def test_a_run_that_was_made_with_other_settings_is_not_taken(
    tmp_path: Path, recorder: Recorder
) -> None:
    ablate(config(tmp_path), lambda _: None, stages=recorder)
    changed = {"every": ["threads=2"], "vlpo": ["steps.steps=6"]}

    # Threads make no other run; steps do, and the base does.
    with pytest.raises(ConfigError, match=r"reinforced/.*\(steps\.steps: 5, now 6\): remove it"):
        ablate(config(tmp_path, common=changed), lambda _: None, stages=recorder)
    with pytest.raises(ConfigError, match=r"tuned/.*\(base: the-base, now another\)"):
        ablate(config(tmp_path, base="another"), lambda _: None, stages=recorder)


def test_a_run_that_does_not_say_what_it_was_made_with_is_not_taken(
    tmp_path: Path, recorder: Recorder
) -> None:
    (tmp_path / "out" / "tuned" / "seed-1" / "stage-0" / "checkpoint").mkdir(parents=True)

    with pytest.raises(ConfigError, match=r"settings\.json is missing"):
        ablate(config(tmp_path), lambda _: None, stages=recorder)


def test_a_base_with_other_weights_is_asked_again(tmp_path: Path, recorder: Recorder) -> None:
    weights = tmp_path / "base" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    wanted = config(tmp_path, base=str(weights.parent), rows=ROWS[:1])
    ablate(wanted, lambda _: None, stages=recorder)
    ablate(wanted, lambda _: None, stages=recorder)
    # Under two seeds: what nothing was trained for answers the same.
    assert len(recorder.asked) == 1

    moved = weights.parent.rename(tmp_path / "moved")
    ablate(config(tmp_path, base=str(moved), rows=ROWS[:1]), lambda _: None, stages=recorder)
    assert len(recorder.asked) == 1

    (moved / "model.safetensors").write_bytes(b"second")
    ablate(config(tmp_path, base=str(moved), rows=ROWS[:1]), lambda _: None, stages=recorder)
    assert len(recorder.asked) == 2


def test_settings_of_a_stage_are_all_of_its_configuration() -> None:
    path = Path("training/configs/medvr.yaml")
    found = TrainingStages().settings("medvr", path, ["steps.steps=4", "seed=3"])

    assert (found["steps"]["steps"], found["seed"]) == (4, 3)
    assert found["reward"]["tool_reward"] == "consensus"


def test_a_row_brings_those_that_it_begins_with(tmp_path: Path) -> None:
    assert [row.name for row in chosen(config(tmp_path), ["reinforced"])] == ["tuned", "reinforced"]
    with pytest.raises(ConfigError, match="no row 'odd'"):
        chosen(config(tmp_path), ["odd"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"questions": {"count": 4, "seed": 1, "split": "validation"}}, "must be test"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"rows": [ROWS[0], ROWS[0]]}, "Two rows"),
        ({"rows": [ROWS[2]]}, "no row before it"),
        ({"rows": [{"name": "x", "asked": []}]}, "never asked"),
        ({"rows": [{"name": "x", "asked": [{"against": "y"}]}]}, "no line y"),
        ({"rows": [{"name": "x", "asked": [{}, {}]}]}, "twice under one name"),
    ],
)
def test_bad_ablations_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(tmp_path, **changes)


@pytest.mark.parametrize("name", ["medlvr", "medvr"])
def test_every_stage_of_the_shipped_ablations_is_a_configuration(name: str) -> None:
    from training.reinforcement import ReinforcementConfig
    from training.sft import FinetuneConfig

    shipped = load_config(AblationConfig, Path(f"training/configs/ablate-{name}.yaml"), [])

    stages = [stage for row in shipped.rows for stage in row.stages]
    assert len(stages) > 8
    for stage in stages:
        kind = FinetuneConfig if stage.kind == "sft" else ReinforcementConfig
        given = [*shipped.common.of(stage.kind), *stage.overrides]
        made = load_config(kind, stage.config, given)
        assert stage.kind != "vlpo" or made.method == "latent"  # type: ignore[union-attr]
        assert stage.kind != "medvr" or made.method != "latent"  # type: ignore[union-attr]


def test_a_checkpoint_is_known_by_its_weights_or_those_of_its_adapter(tmp_path: Path) -> None:
    assert checkpoint_identity("some/hub-id") == "some/hub-id"
    seen = set()
    for name in ("model.safetensors", "adapter_model.safetensors"):
        folder = tmp_path / name.partition("_")[0].partition(".")[0]
        folder.mkdir()
        for content in (b"one", b"two"):
            (folder / name).write_bytes(content)
            seen.add((name, checkpoint_identity(str(folder))))
    assert len({identity for _, identity in seen}) == 2
    assert all(identity.startswith("sha256 ") for _, identity in seen)


def test_cosines_of_latents_by_hand() -> None:
    one = np.array([[1.0, 0.0], [0.0, 2.0]])
    other = np.array([[0.0, 3.0], [0.0, 1.0]])

    found = latent_cosines([one, other, np.ones((3, 2))])

    assert found is not None
    assert found["inputs"] == 2
    # The steps of the first are orthogonal, those of the other the same.
    assert found["between_steps"] == [[1.0, 0.5], [0.5, 1.0]]
    assert found["between_inputs"] == [0.0, 1.0]
    # Of their two steps one is orthogonal and one the same.
    assert found["across_inputs"] == [[1.0, 0.5], [0.5, 1.0]]


def test_one_segment_is_compared_with_nothing() -> None:
    assert latent_cosines([np.ones((2, 3))]) is None
