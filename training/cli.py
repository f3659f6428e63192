"""Command line of training: phantoms, stages, evaluation, rewards of a group.

Bad input ends with exit status 2 and one line on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine.cli import add_run_options
from engine.command_line import OneLineParser, is_fault, refused, system_error_line
from engine.group_io import GROUP_SUFFIX
from engine.imaging import ImagingError
from engine.manifest import CheckpointError
from training.config import ConfigError, ConfigT, load_config
from training.phantoms import CHEST, MODALITIES, write_dataset
from training.phantoms.truth import SPLITS
from training.regrounding import PRESETS
from training.samples import write_samples
from training.score_group import score_file
from training.stopping import DivergedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, 1 (training stopped) or 2 (bad input)."""
    try:
        options = _parsed(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (ImagingError, CheckpointError) as error:
        return refused(error.message if isinstance(error, ImagingError) else str(error))
    except ValueError as error:
        # Of a fault of ours, the place has to be seen.
        if is_fault(error):
            raise
        return refused(str(error))
    except OSError as error:
        return refused(system_error_line(error))
    except DivergedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return 1


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line; `key=value` may stand on either side of an option."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    changes = hasattr(options, "overrides")
    unknown = [one for one in others if one.startswith("-") or "=" not in one or not changes]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    others = [*getattr(options, "behind", []), *others]
    if others:
        options.overrides = [*options.overrides, *others]
    return options


class _Several(argparse.Action):
    """An option of several values, behind which changes (`key=value`) may stand."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Keeps its values, and apart from them, as `behind`, the changes."""
        del parser, option_string
        given = [str(value) for value in values or ()]
        setattr(namespace, self.dest, [value for value in given if "=" not in value])
        changes = [value for value in given if "=" in value]
        namespace.behind = [*getattr(namespace, "behind", []), *changes]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    _add_phantoms(commands.add_parser("phantoms", help="write phantoms as DICOM with their truth"))
    samples = commands.add_parser("samples", help="write the sample phantoms of the app")
    samples.add_argument("--out", type=Path, default=Path("assets/samples"))
    samples.set_defaults(command=_samples)
    for name, command, what in (
        ("pretrain", _pretrain, "train the vision tower, then the language model"),
        ("sft", _sft, "fine-tune a checkpoint on a mix of record forms"),
        ("medvr", _reinforce, "reinforce an agent that zooms, or its text-only rival"),
        ("vlpo", _reinforce, "reinforce latent segments and the answers after them"),
    ):
        stage = commands.add_parser(name, help=what)
        stage.add_argument("config", type=Path)
        stage.add_argument("overrides", nargs="*", metavar="key=value")
        stage.add_argument(
            "--rehearse",
            action="store_true",
            help="three steps of everything in a temporary folder: does it work, what it needs",
        )
        stage.set_defaults(command=command, stage=name)
    evaluate = commands.add_parser("evaluate", help="score a checkpoint on a benchmark")
    evaluate.add_argument(
        "--benchmark",
        choices=("phantoms", "lungs", "records", "distribution", "places", "letters", "boxes"),
        default="phantoms",
    )
    evaluate.add_argument("--modality", choices=MODALITIES, default=CHEST, help="of the phantoms")
    evaluate.add_argument(
        "--families", nargs="+", default=[], help="ask only these, in turn (phantoms)"
    )
    evaluate.add_argument("--checkpoint", required=True, help="folder or hub id")
    evaluate.add_argument(
        "--method",
        choices=("direct", "latent", "zoom", "auto"),
        default="direct",
        help="how it is asked (default: %(default)s)",
    )
    evaluate.add_argument("--data", type=Path, help="folder of real data, or JSONL file of records")
    evaluate.add_argument(
        "--limit",
        type=int,
        default=500,
        metavar="N",
        help="questions; they take the families in turn, so that a few dozen miss some "
        "(default: %(default)s)",
    )
    evaluate.add_argument(
        "--seed", type=int, default=0, help="of the phantoms and of all that is drawn"
    )
    evaluate.add_argument(
        "--split", choices=SPLITS, default="test", help="of the phantoms or records"
    )
    evaluate.add_argument(
        "--latent-steps", type=int, metavar="K", help="of --method latent (default: 8)"
    )
    evaluate.add_argument(
        "--intervention",
        choices=("none", "zero", "noise", "shuffle", "blind", "skip"),
        default="none",
        help="change to the latent steps of every question",
    )
    evaluate.add_argument(
        "--bottleneck", action="store_true", help="answers see the image through latents alone"
    )
    evaluate.add_argument(
        "--true-boxes",
        type=float,
        nargs="?",
        const=1.0,
        metavar="SCALE",
        help="put zooms of questions about one place on the true box, its sides times SCALE (1)",
    )
    evaluate.add_argument(
        "--max-new-tokens", type=int, default=160, metavar="N", help="of a run (default: 160)"
    )
    evaluate.add_argument(
        "--max-crops", type=int, default=2, metavar="N", help="of a run (default: 2)"
    )
    evaluate.add_argument("--traces", type=Path, help="folder for one trace a question")
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(command=_evaluate)
    _add_memory(commands.add_parser("memory", help="what a run on Qwen2.5-VL-7B needs, by count"))
    bench = commands.add_parser("bench", help="what rollouts and updates cost on this machine")
    bench.add_argument("--json", action="store_true", help="machine-readable")
    bench.add_argument("--repeats", type=int, default=7, help="interleaved rounds")
    bench.set_defaults(command=_bench)
    _add_ablate(commands.add_parser("ablate", help="train and score the rows of an ablation"))
    _add_tree(commands.add_parser("tree", help="roll one prompt out and save the tree it makes"))
    score = commands.add_parser(
        "score-group", help="rewards and branch probabilities of a group of trajectories"
    )
    score.add_argument("file", type=Path, help="JSON, as docs/medvr.md describes it")
    score.set_defaults(command=_score_group)
    return parser


def _add_phantoms(phantoms: argparse.ArgumentParser) -> None:
    phantoms.add_argument("--out", type=Path, required=True)
    phantoms.add_argument("--count", type=int, required=True)
    phantoms.add_argument("--seed", type=int, default=0)
    phantoms.add_argument("--split", choices=SPLITS, default="train")
    phantoms.add_argument("--modality", choices=MODALITIES, default=CHEST)
    phantoms.set_defaults(command=_phantoms)


def _add_tree(tree: argparse.ArgumentParser) -> None:
    tree.add_argument("checkpoint", metavar="CHECKPOINT", help="hub id or folder")
    tree.add_argument("image", type=Path, nargs="?", help="DICOM, PNG or JPEG")
    tree.add_argument("--phantom", metavar="SPLIT:NUMBER", help="instead of an image, with truth")
    tree.add_argument("--question")
    tree.add_argument("--answer", metavar="TEXT", help="the right one, where it is known")
    tree.add_argument("--group", type=int, default=16, metavar="M", help="members in all")
    tree.add_argument(
        "--branching", choices=tuple(PRESETS), default="medvr", help="rule of the forks"
    )
    add_run_options(tree)
    tree.set_defaults(temperature=1.0, max_new_tokens=256, max_crops=1)
    tree.add_argument("--out", type=Path, required=True, metavar=f"FILE{GROUP_SUFFIX}")
    tree.set_defaults(command=_tree)


def _add_memory(memory: argparse.ArgumentParser) -> None:
    memory.add_argument("config", type=Path)
    memory.add_argument("overrides", nargs="*", metavar="key=value")
    memory.add_argument("--stage", choices=("sft", "medvr", "vlpo"), default="sft")
    memory.add_argument(
        "--record-tokens",
        type=int,
        default=512,
        metavar="N",
        help="of the longest record, or prompt, with its image (default: %(default)s)",
    )
    memory.add_argument("--devices", type=int, default=1)
    memory.add_argument("--sharded", action="store_true", help="weights are spread (FSDP2, ZeRO)")
    memory.set_defaults(command=_memory)


def _add_ablate(ablate: argparse.ArgumentParser) -> None:
    ablate.add_argument("method", choices=("medlvr", "medvr"))
    ablate.add_argument("overrides", nargs="*", metavar="key=value")
    ablate.add_argument("--config", type=Path, help="training/configs/ablate-METHOD.yaml")
    ablate.add_argument(
        "--seeds", action=_Several, nargs="+", default=[], help="instead of the configured ones"
    )
    ablate.add_argument(
        "--rows", action=_Several, nargs="+", default=[], help="only these and what they need"
    )
    ablate.add_argument("--json", action="store_true", help="with all that was measured")
    ablate.add_argument("--figures", type=Path, metavar="FOLDER", help="draw it as SVG, too")
    ablate.set_defaults(command=_ablate)


def _libraries_on_stderr() -> contextlib.AbstractContextManager[object]:
    """For as long as something is trained: on stdout there is nothing but what a command says.

    DeepSpeed, where it is installed, greets there when a checkpoint is saved.
    """
    return contextlib.redirect_stdout(sys.stderr)


def _report(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _phantoms(options: argparse.Namespace) -> int:
    if options.count < 1:
        raise ValueError(f"--count must be at least 1, not {options.count}.")
    path = write_dataset(options.out, options.count, options.seed, options.split, options.modality)
    sys.stdout.write(f"{options.count} phantoms and {path.name} written.\n")
    return 0


def _samples(options: argparse.Namespace) -> int:
    sys.stdout.write(f"{write_samples(options.out)} written.\n")
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    # Loading torch takes seconds, which `phantoms` and a mistyped option need not wait for.
    from training.pretrain import PretrainConfig, pretrain
    from training.rehearsal import rehearse_pretrain

    return _stage(options, PretrainConfig, pretrain, rehearse_pretrain)


def _sft(options: argparse.Namespace) -> int:
    from training.rehearsal import rehearse_finetune
    from training.sft import FinetuneConfig, finetune

    return _stage(options, FinetuneConfig, finetune, rehearse_finetune)


def _reinforce(options: argparse.Namespace) -> int:
    from training.rehearsal import rehearse_reinforcement
    from training.reinforcement import ReinforcementConfig, medvr, vlpo

    train = {"medvr": medvr, "vlpo": vlpo}[options.stage]
    return _stage(options, ReinforcementConfig, train, partial(rehearse_reinforcement, train))


def _stage(
    options: argparse.Namespace,
    kind: type[ConfigT],
    train: Callable[[ConfigT, Callable[[str], None]], Path],
    rehearse: Callable[[ConfigT, Callable[[str], None]], str],
) -> int:
    """Runs or rehearses a stage with the configuration that the command line names."""
    config = load_config(kind, options.config, options.overrides)
    if options.rehearse:
        with _libraries_on_stderr():
            sentence = rehearse(config, _report)
        _say_once(sentence)
        return 0
    try:
        with _libraries_on_stderr():
            folder = train(config, _report)
        _say_once(f"Checkpoint written to {folder}.")
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; the same command goes on from the last state that was saved.\n")
        return 1
    return 0


def _say_once(sentence: str) -> None:
    """Prints what all processes of a training have come to, in one of them."""
    # torch is imported only where something is trained.
    from training.processes import is_main_process

    if is_main_process():
        sys.stdout.write(f"{sentence}\n")


def _evaluate(options: argparse.Namespace) -> int:
    from training.evaluate import run_benchmark

    sys.stdout.write(run_benchmark(options, _report))
    return 0


def _ablate(options: argparse.Namespace) -> int:
    from training.ablation import AblationConfig, ablate, printed

    # Asked for hours before it is needed: say now if it cannot be drawn.
    draw = _drawing() if options.figures else None
    path = options.config or Path(f"training/configs/ablate-{options.method}.yaml")
    wrong = [seed for seed in options.seeds if not seed.isdecimal()]
    if wrong:
        raise ConfigError(
            f"--seeds takes whole numbers with spaces between them, not {wrong[0]!r}."
        )
    seeds = [f"seeds=[{', '.join(options.seeds)}]"] if options.seeds else []
    config = load_config(AblationConfig, path, [*options.overrides, *seeds])
    with _libraries_on_stderr():
        found = ablate(config, _report, options.rows)
    sys.stdout.write(printed(found, as_json=options.json))
    if draw is not None:
        for written in draw(options.figures, found):
            _report(f"{written} written")
    return 0


def _drawing() -> Callable[[Path, Mapping[str, Any]], list[Path]]:
    """What draws figures.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        from training.figures import write_figures
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--figures needs {error.name}: pip install -r requirements-dev.txt."
        ) from error
    return write_figures


def _memory(options: argparse.Namespace) -> int:
    from training.memory_count import memory_count, policy_memory_count, readable
    from training.reinforcement import ReinforcementConfig
    from training.sft import FinetuneConfig

    if options.stage == "sft":
        tuned = load_config(FinetuneConfig, options.config, options.overrides)
        count = memory_count(
            tuned.tuning,
            record_tokens=options.record_tokens,
            devices=options.devices,
            is_sharded=options.sharded,
            is_relaxed=tuned.latents is not None and tuned.latents.relaxation > 0,
        )
    else:
        if options.sharded:
            raise ValueError("A policy that is rolled out cannot be spread: leave out --sharded.")
        policy = load_config(ReinforcementConfig, options.config, options.overrides)
        count = policy_memory_count(
            policy, prompt_tokens=options.record_tokens, devices=options.devices
        )
    sys.stdout.write(f"{readable(count)}\n")
    return 0


def _bench(options: argparse.Namespace) -> int:
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, not {options.repeats}.")
    from training.bench import benchmark, readable

    report = benchmark(repeats=options.repeats)
    sys.stdout.write((json.dumps(report, indent=2) if options.json else readable(report)) + "\n")
    return 0


def _tree(options: argparse.Namespace) -> int:
    from training.trees import grow_tree

    sys.stdout.write(f"{grow_tree(options)}\n")
    return 0


def _score_group(options: argparse.Namespace) -> int:
    sys.stdout.write(score_file(options.file))
    return 0
