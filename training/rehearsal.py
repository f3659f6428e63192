"""Three steps of everything in a temporary folder before a long job: does it work, what it needs.

Batches are those of the real run, so that a step takes its time and its memory; phantoms are a
few. Times are of this machine as busy as it is now.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import torch

from engine.memory import peak_memory_bytes
from training.latents import LatentConfig
from training.loop import Report, StepsConfig
from training.metrics import METRICS_FILE, readable_seconds
from training.pretrain import PretrainConfig, pretrain
from training.prompts import PromptPool
from training.reinforcement import ReinforcementConfig
from training.sft import FinetuneConfig, QuestionsConfig, finetune
from training.world import WorldConfig, check_world, load_world, shard_path

StepsT = TypeVar("StepsT", bound=StepsConfig)

STEPS: Final = 3
# Every family of questions once, so that every kind of record can be drawn.
PHANTOMS: Final = 29
# Drawn for a rehearsal of reinforcement, and as many to score it on.
PROMPTS: Final = 4
GIBIBYTE: Final = 2**30


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will need, by its rehearsal.

    Attributes:
        seconds: of all steps, evaluations and phantoms that are not there yet.
        memory_bytes: most that the process took in the rehearsal; 0 where it is not known.
        world_bytes: of the phantoms that the real run holds beyond those of the rehearsal.
    """

    seconds: float
    memory_bytes: int
    world_bytes: int

    def sentence(self) -> str:
        """What the user reads."""
        memory = "unknown memory"
        if self.memory_bytes:
            most = (self.memory_bytes + self.world_bytes) / GIBIBYTE
            memory = f"{most:.1f} GiB of memory"
        return (
            f"The rehearsal works: the whole run will take about "
            f"{readable_seconds(self.seconds)} and {memory} on this machine."
        )


def rehearse_pretrain(config: PretrainConfig, report: Report) -> str:
    """Rehearses `training pretrain`; returns one sentence. The run's own folder is not touched."""
    first, looking = config.first_layer, config.looking
    parts = {part.name: part.steps for part in config.vision}
    parts |= {"first": first.steps, "looking": looking.steps, "language": config.language}

    def run(out: Path) -> None:
        small = replace(
            config,
            out=out,
            train=few(config.train),
            validation=few(config.validation),
            vision=tuple(replace(p, steps=three_steps(p.steps)) for p in config.vision),
            first_layer=replace(first, steps=three_steps(first.steps)),
            looking=replace(looking, steps=three_steps(looking.steps)),
            language=three_steps(config.language),
        )
        pretrain(small, report)

    worlds = (config.train, config.validation)
    return _rehearsed(run, parts, worlds, config.out / "world", 0.0, report)


def rehearse_finetune(config: FinetuneConfig, report: Report) -> str:
    """Rehearses `training sft`; returns one sentence. The run's own folder is not touched."""
    tuning = config.tuning
    evaluates = bool(tuning.evaluate_every)

    def run(out: Path) -> None:
        small = replace(
            config,
            out=out,
            world=out / "world",
            train=few(config.train),
            validation=few(config.validation),
            language=three_steps(config.language),
            latents=every_feeding(config.latents),
            questions=few_questions(config, out),
            tuning=replace(tuning, evaluate_every=STEPS if evaluates else 0),
        )
        finetune(small, report)

    parts = {"language": config.language}
    worlds = (config.train, config.validation)
    return _rehearsed(run, parts, worlds, config.world, evaluation_steps(config), report)


def every_feeding(latents: LatentConfig | None) -> LatentConfig | None:
    """Latents that are fed by the teacher in the first of three steps, and in the last relaxed.

    Which takes most memory and time of all: a run is not to find that out near its end.
    """
    if latents is None or not latents.relaxation:
        return latents
    return replace(latents, relaxation=max(latents.relaxation, 0.5))


def few_questions(config: FinetuneConfig, out: Path) -> QuestionsConfig | None:
    """The same questions, but few, in a folder of the rehearsal."""
    if config.questions is None:
        return None
    prompts = config.questions.prompts
    return replace(
        config.questions,
        phantoms=out / "phantoms",
        prompts=replace(prompts, count=min(prompts.count, PROMPTS)),
    )


def evaluation_steps(config: FinetuneConfig) -> float:
    """What all evaluations of a run cost, in steps of it."""
    tuning = config.tuning
    if not tuning.evaluate_every:
        return 0.0
    # A record that is scored costs at most what a record that is trained on costs.
    count = math.ceil(config.language.steps / tuning.evaluate_every)
    return count * tuning.evaluate_records / config.step_records


def rehearse_reinforcement(
    train: Callable[[ReinforcementConfig, Report], Path],
    config: ReinforcementConfig,
    report: Report,
) -> str:
    """Rehearses `training medvr` or `vlpo` by three batches; returns one sentence.

    The run's own folders are not touched.

    Args:
        train: the stage.
        config: of the real run.
        report: takes one line of progress.
    """
    batches = STEPS * config.update.steps
    with tempfile.TemporaryDirectory(prefix="lightbox-rehearsal-") as name:
        out = Path(name)
        small = replace(
            few_prompts(config),
            out=out,
            phantoms=out / "phantoms",
            pass_rate=replace(config.pass_rate, rollouts=0),
            steps=replace(
                three_steps(config.steps),
                steps=batches,
                save_every=config.update.steps,
                log_every=config.update.steps,
            ),
        )
        pools = small.pools()
        begun = time.monotonic()
        for pool in pools:
            for number in range(len(pool)):
                pool[number]
        a_prompt = (time.monotonic() - begun) / sum(map(len, pools))
        train(small, report)
        path = out / "policy" / METRICS_FILE
        step, rollout, question = seconds_of_batch(path)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        memory = peak_memory_bytes(device)
    asked, unseen = config.pools()
    missing = sum(pool.missing for pool in (asked, unseen) if isinstance(pool, PromptPool))
    seconds = a_prompt * missing
    a_trajectory = rollout / (config.rollouts.prompts * config.rollouts.group)
    seconds += a_trajectory * len(asked) * config.pass_rate.rollouts
    every = config.evaluation.every or config.steps.steps
    seconds += question * len(unseen) * (1 + math.ceil(config.steps.steps / every))
    return Estimate(seconds + step * config.steps.steps, memory, 0).sentence()


def few_prompts(config: ReinforcementConfig) -> ReinforcementConfig:
    """A run that asks a few prompts, and scores the policy once after the beginning."""
    prompts, unseen = (
        None if asked is None else replace(asked, count=min(asked.count, PROMPTS))
        for asked in (config.prompts, config.evaluation.prompts)
    )
    records = None if config.records is None else replace(config.records, count=PROMPTS)
    evaluation = replace(config.evaluation, every=0, prompts=unseen)
    return replace(config, prompts=prompts, records=records, evaluation=evaluation)


def seconds_of_batch(path: Path) -> tuple[float, float, float]:
    """From the metrics of a rehearsal: seconds of a step, of a rollout batch, and of a question.

    The first batch warms up, so the fastest of the others counts.
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rollouts = [record["rollout_seconds"] for record in records if "rollout_seconds" in record]
    questions = [r["validation_seconds"] for r in records if "validation_seconds" in r]
    return seconds_of_step(path), min(rollouts[1:] or rollouts), min(questions)


def three_steps(config: StepsT) -> StepsT:
    """The schedule with three steps, each of which is logged and saved."""
    return replace(config, steps=STEPS, warmup=1, save_every=1, log_every=1, divergence=0.0)


def few(config: WorldConfig) -> WorldConfig:
    """A world of a few phantoms."""
    return replace(config, count=min(config.count, PHANTOMS))


def _rehearsed(
    run: Callable[[Path], None],
    parts: Mapping[str, StepsConfig],
    worlds: Sequence[WorldConfig],
    world_folder: Path,
    more_steps: float,
    report: Report,
) -> str:
    """Runs in a temporary folder and says what the whole will need.

    Args:
        run: the stage with three steps of everything, given its folder.
        parts: steps of the real run, by the names of their folders.
        worlds: of the real run.
        world_folder: where these are kept.
        more_steps: what evaluations cost, in steps of the last part.
        report: takes one line of progress.
    """
    # Phantoms of other settings are refused now, and not after three steps.
    missing = sum(missing_phantoms(world, world_folder) for world in worlds)
    with tempfile.TemporaryDirectory(prefix="lightbox-rehearsal-") as name:
        out = Path(name)
        begun = time.monotonic()
        for world in worlds:
            load_world(out / "world", few(world), report)
        drawn = sum(few(world).count for world in worlds)
        a_phantom = (time.monotonic() - begun) / max(drawn, 1)
        bytes_of_phantom = _folder_bytes(out / "world") / max(drawn, 1)
        run(out)
        seconds = a_phantom * missing
        last = 0.0
        for part, steps in parts.items():
            last = seconds_of_step(out / part / METRICS_FILE)
            seconds += last * steps.steps
        seconds += last * more_steps
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        memory = peak_memory_bytes(device)
    more = sum(world.count for world in worlds) - drawn if device.type == "cpu" else 0
    return Estimate(seconds, memory, math.ceil(more * bytes_of_phantom)).sentence()


def seconds_of_step(path: Path) -> float:
    """How long a step takes, from the metrics of a rehearsal.

    The first step warms up and encodes pictures, so the faster of the others counts.
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rates = [record["steps_per_second"] for record in records if "steps_per_second" in record]
    return float(1 / max(rates[1:] or rates))


def missing_phantoms(config: WorldConfig, folder: Path) -> int:
    """How many phantoms of a world have not been drawn yet.

    Raises:
        ValueError: the folder holds phantoms of other settings.
    """
    check_world(folder, config)
    starts = range(0, config.count, config.shard)
    return sum(
        min(config.shard, config.count - first)
        for first in starts
        if not shard_path(folder, config, first).exists()
    )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
