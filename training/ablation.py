"""`python -m training ablate medlvr|medvr`: rows of training runs, over seeds, side by side.

A row is a chain of stages that begins with the base or with the checkpoint of another row, and
the ways in which the result is asked. Whatever is finished is kept: the same command goes on
where it was stopped, and a row that is added later is only run for itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from engine.engine import Engine
from engine.request import LatentIntervention, Method
from engine.trace import Trace
from training.ablation_stages import (
    StageKind,
    Stages,
    TrainingStages,
    checkpoint_identity,
    stage_checkpoint,
)
from training.ablation_table import readable, table
from training.checkpoints import write_whole
from training.config import ConfigError
from training.evaluate import ASKED_BUDGETS, AskConfig, asked_in_turn
from training.loop import Report, prefixed
from training.metrics import METRICS_FILE
from training.prompts import PromptConfig, PromptPool

# Of donors, blind slots and pointing: what was asked by former ones is asked again.
LATENT_RULES: Final = 2
# Latents of this many questions are compared with each other.
COMPARED: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One training run of a row.

    Attributes:
        kind: which command.
        config: its configuration, relative to the working directory.
        overrides: `key=value` on top of it; `out`, `seed` and `base` are set by the ablation.
    """

    kind: StageKind
    config: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedConfig:
    """One way of asking a trained checkpoint.

    Attributes:
        name: added to that of the row where a row is asked in several ways.
        method, latents, bottleneck: as in `training.evaluate.AskConfig`.
        latent_steps: K.
        against: line of the table that this one is compared with; an empty name: with none.
    """

    name: str = ""
    method: Method = "direct"
    latents: LatentIntervention = "none"
    latent_steps: int = 8
    bottleneck: bool = False
    against: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowConfig:
    """One row.

    Attributes:
        name: of its folder and its lines.
        begins_with: row of whose checkpoint the first stage begins; none: the base.
        stages: one after the other; none: the row is what it begins with.
        asked: at least one way.
    """

    name: str
    asked: tuple[AskedConfig, ...]
    begins_with: str = ""
    stages: tuple[StageConfig, ...] = ()

    def __post_init__(self) -> None:
        if not self.asked:
            raise ValueError(f"The row {self.name} is never asked: give asked.")
        if len({asked.name for asked in self.asked}) != len(self.asked):
            raise ValueError(f"The row {self.name} is asked twice under one name.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonConfig:
    """`key=value` that stages share, before their own overrides.

    Attributes:
        every: for all of them.
        sft, vlpo, medvr: for those of a kind.
    """

    every: tuple[str, ...] = ()
    sft: tuple[str, ...] = ()
    vlpo: tuple[str, ...] = ()
    medvr: tuple[str, ...] = ()

    def of(self, kind: StageKind) -> tuple[str, ...]:
        """What a stage of a kind is given."""
        own = {"sft": self.sft, "vlpo": self.vlpo, "medvr": self.medvr}
        return (*self.every, *own[kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationConfig:
    """Everything of an ablation.

    Attributes:
        out: folder of all runs and scores.
        base: checkpoint that the rows begin with: a folder or a hub id.
        questions: that all of them are asked, of phantoms which none has seen.
        phantoms: folder of drawn phantoms, which ablations may share.
        seeds: of the runs.
        common: what the stages share.
    """

    out: Path
    base: str
    questions: PromptConfig
    rows: tuple[RowConfig, ...]
    phantoms: Path = Path("runs/phantoms")
    seeds: tuple[int, ...] = (1, 2, 3)
    common: CommonConfig = CommonConfig()

    def __post_init__(self) -> None:
        if self.questions.split != "test":
            raise ValueError("questions.split must be test.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be different numbers, at least one.")
        known: set[str] = set()
        for row in self.rows:
            if row.name in known:
                raise ValueError(f"Two rows are called {row.name}.")
            if row.begins_with and row.begins_with not in known:
                raise ValueError(
                    f"The row {row.name} begins with {row.begins_with}, which is no row before it."
                )
            known.add(row.name)
        lines = {line_name(row, asked) for row in self.rows for asked in row.asked}
        for row in self.rows:
            for asked in row.asked:
                if asked.against and asked.against not in lines:
                    raise ValueError(f"There is no line {asked.against} to compare with.")


def line_name(row: RowConfig, asked: AskedConfig) -> str:
    """What a line of the table is called."""
    return f"{row.name}, {asked.name}" if asked.name else row.name


def chosen(config: AblationConfig, names: Sequence[str]) -> list[RowConfig]:
    """The rows with these names and those that they begin with; all where none is named.

    Raises:
        ConfigError: there is no such row.
    """
    if unknown := sorted(set(names) - {row.name for row in config.rows}):
        raise ConfigError(
            f"There is no row {unknown[0]!r}: choose from "
            f"{', '.join(row.name for row in config.rows)}."
        )
    wanted = set(names) or {row.name for row in config.rows}
    for row in reversed(config.rows):
        if row.name in wanted and row.begins_with:
            wanted.add(row.begins_with)
    return [row for row in config.rows if row.name in wanted]


def ablate(
    config: AblationConfig,
    report: Report,
    rows: Sequence[str] = (),
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Runs what is not finished and returns the table with everything that was measured.

    Args:
        config: rows, seeds and questions.
        report: takes lines of progress.
        rows: names of those that are run; all by default.
        stages: how the stages are run; by default by training.

    Returns:
        `lines` (`training.ablation_table.table`), `seeds`, `questions`, and for every row
        `curves`, the logged numbers of its last stage by seed, and `latents`
        (`latent_cosines`) by line and seed.

    Raises:
        ConfigError: a configuration cannot be used, there is no such row, or a run that is kept
            was made with other settings.
        DivergedError: a run diverged.
    """
    wanted = chosen(config, rows)
    scores: dict[str, list[list[dict[str, Any]]]] = {}
    latents: dict[str, list[Any]] = {}
    curves: dict[str, list[Any]] = {}
    for seed in config.seeds:
        for row in wanted:
            said = prefixed(report, f"{row.name}, seed {seed}")
            checkpoint = trained_row(config, row, seed, said, stages or TrainingStages())
            curves.setdefault(row.name, []).append(_curve(config, row, seed))
            for asked in row.asked:
                found = _scored(config, row, asked, seed, checkpoint, said)
                scores.setdefault(line_name(row, asked), []).append(found["outcomes"])
                if found["latents"] is not None:
                    latents.setdefault(line_name(row, asked), []).append(found["latents"])
    against = {
        line_name(row, asked): asked.against
        for row in wanted
        for asked in row.asked
        if asked.against
    }
    return {
        "lines": table(scores, against),
        "seeds": list(config.seeds),
        "questions": asdict(config.questions),
        "curves": curves,
        "latents": latents,
    }


def trained_row(
    config: AblationConfig, row: RowConfig, seed: int, report: Report, stages: Stages
) -> str:
    """Runs the stages of a row that are not finished; its checkpoint.

    Raises:
        ConfigError: a stage that is kept was made with other settings.
    """
    rows = {each.name: each for each in config.rows}
    checkpoint = (
        final_checkpoint(config, rows[row.begins_with], seed) if row.begins_with else config.base
    )
    for number, stage in enumerate(row.stages):
        out = _folder(config, row, seed) / f"stage-{number}"
        own = [f"out={out}", f"seed={seed}", f"base={checkpoint}"]
        given = [*config.common.of(stage.kind), *stage.overrides, *own]
        checkpoint = stage_checkpoint(stages, stage.kind, stage.config, given, out, report)
    return checkpoint


def final_checkpoint(config: AblationConfig, row: RowConfig, seed: int) -> str:
    """The checkpoint of a row, or what it begins with where it has no stages."""
    if row.stages:
        return str(_folder(config, row, seed) / f"stage-{len(row.stages) - 1}" / "checkpoint")
    rows = {each.name: each for each in config.rows}
    if row.begins_with:
        return final_checkpoint(config, rows[row.begins_with], seed)
    return config.base


def _folder(config: AblationConfig, row: RowConfig, seed: int) -> Path:
    return config.out / row.name / f"seed-{seed}"


def _curve(config: AblationConfig, row: RowConfig, seed: int) -> list[dict[str, float]]:
    if not row.stages:
        return []
    last = _folder(config, row, seed) / f"stage-{len(row.stages) - 1}"
    files = sorted(last.glob(f"*/{METRICS_FILE}"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _scored(
    config: AblationConfig,
    row: RowConfig,
    asked: AskedConfig,
    seed: int,
    checkpoint: str,
    report: Report,
) -> dict[str, Any]:
    """The outcomes of all questions, read where they are kept from an earlier call."""
    # Asked greedily, what nothing was trained for answers the same under every seed.
    folder = _folder(config, row, seed) if row.stages or row.begins_with else config.out / row.name
    path = folder / f"asked-{asked.name or 'plainly'}.json"
    # What a line is compared with changes no answer.
    how: dict[str, Any] = {
        "asked": asdict(replace(asked, against="")),
        "questions": asdict(config.questions),
        "checkpoint": checkpoint_identity(checkpoint),
    }
    if asked.method == "latent":
        how["rules"] = LATENT_RULES
    settings = json.loads(json.dumps(how))
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        kept["settings"]["asked"]["against"] = ""
        if kept["settings"] == settings:
            return dict(kept)
    pool = PromptPool(config.phantoms, config.questions)
    report(f"asks {len(pool)} questions ({asked.name or 'plainly'})")
    found = {"settings": settings, **score(checkpoint, asked, pool, config.questions.seed)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(json.dumps(found).encode()))
    return found


def score(checkpoint: str, asked: AskedConfig, pool: PromptPool, seed: int) -> dict[str, Any]:
    """Asks a checkpoint every question, greedily: `outcomes`, and `latents` where it has any."""
    engine = Engine.load(checkpoint)
    how = AskConfig(
        method=asked.method,
        seed=seed,
        latents=asked.latents,
        budgets=replace(ASKED_BUDGETS, latent_steps=asked.latent_steps),
        bottleneck=asked.bottleneck,
    )
    images = ((prompt.image, prompt.question) for prompt in pool)
    outcomes: list[dict[str, Any]] = []
    segments: list[np.ndarray[Any, Any]] = []
    for outcome, trace in asked_in_turn(engine, images, how):
        outcomes.append(asdict(outcome))
        if len(segments) < COMPARED and trace.latents:
            segments.append(_vectors(trace))
    return {"outcomes": outcomes, "latents": latent_cosines(segments) if segments else None}


def _vectors(trace: Trace) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([np.frombuffer(step.vector, dtype="<f4") for step in trace.latents])


def latent_cosines(segments: Sequence[np.ndarray[Any, Any]]) -> dict[str, Any] | None:
    """How alike latents are, across inputs and across steps.

    Args:
        segments: of different inputs, each `(K, D)`.

    Returns:
        `between_steps`: `(K, K)`, cosines of the steps of one input, mean over inputs;
        `between_inputs`: `(K,)`, cosine of the same step of two inputs, mean over pairs;
        `across_inputs`: `(N, N)`, cosines of the same step of two inputs, mean over steps, to
        three decimals. None for fewer than two segments of the same K.
    """
    steps = len(segments[0])
    same = [one for one in segments if len(one) == steps]
    if len(same) < 2 or steps == 0:
        return None
    stacked = np.stack(same).astype(np.float64)
    unit = stacked / np.maximum(np.linalg.norm(stacked, axis=-1, keepdims=True), 1e-12)
    within = np.einsum("ikd,ijd->kj", unit, unit) / len(same)
    total = np.einsum("ikd,jkd->k", unit, unit)
    rows = unit.reshape(len(same), -1)
    pairs = len(same) * (len(same) - 1)
    return {
        "between_steps": within.tolist(),
        "between_inputs": ((total - len(same)) / pairs).tolist(),
        "across_inputs": np.round(rows @ rows.T / steps, 3).tolist(),
        "inputs": len(same),
    }


def printed(found: Mapping[str, Any], *, as_json: bool) -> str:
    """What the command prints."""
    if as_json:
        return json.dumps(found) + "\n"
    return readable(found["lines"], len(found["seeds"]), found["curves"])
