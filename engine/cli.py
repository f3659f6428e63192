"""The command line: `python -m engine trace | compare | show | verify | render | bench`.

Bad input ends with status 2 and one line on stderr, a run that fails for another reason with
status 1 and one line. `show` and `render` need no torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.command_line import (
    USAGE_STATUS,
    OneLineParser,
    UsageError,
    leave_output,
    printable,
    refused,
    system_error_line,
)
from engine.comparison import RunKey, next_run, progress, readable_rows, report_json, request_of
from engine.display import display_image
from engine.geometry import Box, BoxError
from engine.group import readable_rows as group_rows
from engine.group_io import is_group_file, read_group
from engine.imaging import ImagingError, SourceImage, Window, open_image, render
from engine.manifest import CheckpointError
from engine.request import (
    LATENT_INTERVENTIONS,
    METHODS,
    Budgets,
    DisplayImage,
    Interventions,
    Request,
    RequestError,
    Sampling,
)
from engine.trace import (
    Answered,
    Belief,
    Event,
    Failed,
    Finished,
    LatentStep,
    Reground,
    RequestFacts,
    RunStarted,
    TokenStep,
    Trace,
)
from engine.trace_io import SUFFIX, TraceFileError, dumps, file_bytes, read_trace, write_trace

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.verification import Verification

DEFAULT_CHECKPOINT: Final = Path(__file__).resolve().parent.parent / "assets/checkpoints/base"
FAILED_STATUS: Final = 1
INTERRUPTED_STATUS: Final = 130
# Codes of `Failed` that the user's input is the reason of.
USAGE_CODES: Final = ("image_shape", "request")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except (UsageError, RequestError, TraceFileError, ImagingError) as error:
        return refused(error.message if isinstance(error, ImagingError) else str(error))
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough.
        leave_output()
        return 0
    except OSError as error:
        leave_output()
        return refused(system_error_line(error))
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m engine", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, parser_class=OneLineParser)
    _add_trace(commands.add_parser("trace", help="one run on one image"))
    _add_compare(commands.add_parser("compare", help="ways to look again, and what each zoom did"))
    show = commands.add_parser("show", help="a saved trace or group as a readable table")
    show.add_argument("file", type=Path)
    show.set_defaults(run=_show)
    _add_verify(commands.add_parser("verify", help="whether a checkpoint computes a saved trace"))
    draw = commands.add_parser("render", help="the image as the viewer shows it")
    _add_image(draw)
    draw.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    draw.set_defaults(run=_render)
    bench = commands.add_parser("bench", help="the performance ratios of this machine")
    bench.add_argument("--json", action="store_true", help="machine-readable")
    bench.add_argument("--group", choices=("random", "embedded", "all"), default="all")
    bench.add_argument("--repeats", type=int, default=9, help="interleaved rounds, at least 7")
    bench.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT))
    bench.set_defaults(run=_bench)
    return parser


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path)
    _add_view(parser)


def _add_view(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frame", type=int, default=0, help="of the image, from 0")
    parser.add_argument("--window", type=float, nargs=2, metavar=("CENTER", "WIDTH"))


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that asks a checkpoint about an image.

    What differs from command to command (how image, question and checkpoint are named) is left
    to them; defaults that differ are set with `set_defaults`.
    """
    _add_view(parser)
    parser.add_argument("--option", action="append", default=[], metavar="TEXT")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--max-crops", type=int, default=2)
    parser.add_argument(
        "--entropy-threshold",
        type=_nats,
        metavar="NATS",
        help="look closer after a word less sure than this; checkpoint: its own limit",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """What every run takes, whatever its method."""
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    add_run_options(parser)
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), metavar="ID_OR_DIR")
    parser.add_argument("--latent-steps", type=int, default=8)


def _add_trace(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--method", choices=METHODS, default="direct")
    _add_interventions(parser)
    parser.add_argument("--out", type=Path, metavar=f"FILE{SUFFIX}")
    parser.add_argument("--jsonl", action="store_true", help="events to stdout as they come")
    parser.set_defaults(run=_trace)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    """Runs without a zoom, with the model's own, by the entropy rule, and without each crop."""
    _add_run(parser)
    parser.set_defaults(run=_compare, method="zoom", entropy_threshold="checkpoint")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="save the trace of every run")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar=f"FILE{SUFFIX}")
    parser.add_argument("image", type=Path, help="the file that the run was about")
    parser.add_argument("--frame", type=int, default=0, help="of the image, from 0")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), metavar="ID_OR_DIR")
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=_verify)


def _add_interventions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "interventions", "changes to the evidence; boxes in shares of the image, 0 to 1"
    )
    group.add_argument(
        "--latents",
        choices=LATENT_INTERVENTIONS,
        default="none",
        help="feed zeros, random directions (noise) or another image's latents (shuffle) into the "
        "steps, keep them from the image (blind), or leave them out (skip)",
    )
    group.add_argument(
        "--latent-donor",
        type=Path,
        metavar=f"FILE{SUFFIX}",
        help="another image's run, whose latents --latents shuffle feeds",
    )
    group.add_argument(
        "--skip-crop", type=int, action="append", default=[], metavar="N", help="from 1"
    )
    group.add_argument(
        "--move-crop",
        nargs=5,
        type=float,
        action="append",
        default=[],
        metavar=("N", "X0", "Y0", "X1", "Y1"),
        help="cut crop N there instead",
    )
    group.add_argument(
        "--occlude",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="paint a region over before anything is seen",
    )


def _donor(options: argparse.Namespace) -> Trace | None:
    """The saved run whose latents are fed, if there is to be one.

    Raises:
        UsageError: it has none, or they are not what a model made of an image.
    """
    if options.latent_donor is None:
        if options.latents == "shuffle":
            raise UsageError(
                "--latents shuffle needs --latent-donor: a saved run on another image."
            )
        return None
    name = options.latent_donor.name
    run = read_trace(_content(options.latent_donor))
    if not run.latents:
        raise UsageError(f"{name} holds no latent steps to take.")
    if run.started is not None and run.started.request.interventions.latents != "none":
        raise UsageError(
            f"The latents of {name} were changed themselves: give --latent-donor a run without "
            "--latents."
        )
    return run


def _interventions(options: argparse.Namespace, donor: Trace | None) -> Interventions:
    for number, *_ in options.move_crop:
        if number != int(number) or number < 1:
            raise UsageError(f"--move-crop: crops are numbered from 1, not {number:g}.")
    if any(number < 1 for number in options.skip_crop):
        raise UsageError("--skip-crop: crops are numbered from 1.")
    try:
        changes = Interventions(
            latents=options.latents,
            latent_donor=tuple(step.vector for step in donor.latents) if donor else (),
            skip_crops=tuple(options.skip_crop),
            move_crops=tuple((int(number), Box(*box)) for number, *box in options.move_crop),
            occlude=tuple(Box(*box) for box in options.occlude),
        )
    except BoxError as error:
        raise UsageError(str(error)) from error
    _check_method(options)
    return changes


def _check_method(options: argparse.Namespace) -> None:
    """Refuses changes of what a run never has: a trace would say that they had made no difference.

    Raises:
        UsageError: with the option and the methods that know what it changes.
    """
    for option, given, method in (
        ("--latents", options.latents != "none", "latent"),
        ("--skip-crop", bool(options.skip_crop), "zoom"),
        ("--move-crop", bool(options.move_crop), "zoom"),
    ):
        if given and options.method not in (method, "auto"):
            raise UsageError(
                f"{option} changes nothing under --method {options.method}: use {method} or auto."
            )
    if options.latent_donor is not None and options.latents != "shuffle":
        raise UsageError("--latent-donor is for --latents shuffle: give both, or neither.")


def _content(path: Path) -> bytes:
    try:
        return file_bytes(path)
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}.") from error


def _trace(options: argparse.Namespace) -> int:
    if options.out is not None:
        _check_target(options.out)
    donor = _donor(options)
    request = _request(options, _interventions(options, donor))
    engine = _engine_fed(options, request, donor.started if donor else None)
    events: list[Event] = []
    unheard: OSError | None = None
    for event in engine.stream(request):
        events.append(event)
        if unheard is None:
            try:
                _print_event(event, as_json=options.jsonl)
            except OSError as error:
                # Nobody reads any more, or there is no room: what is to be saved still is.
                unheard = error
        if unheard is not None and options.out is None:
            break
    if options.out is not None:
        _save(options.out, events)
    if unheard is not None:
        raise unheard
    failed = next((event for event in events if isinstance(event, Failed)), None)
    if failed is not None:
        sys.stderr.write(failed.message + "\n")
        return USAGE_STATUS if failed.code in USAGE_CODES else FAILED_STATUS
    return 0


def _engine_fed(options: argparse.Namespace, request: Request, donor: RunStarted | None) -> Engine:
    """The engine, where the latents that it is to be fed are of another file and of its model.

    Of the model as far as a trace tells: its stage, revision and size.

    Raises:
        UsageError: they are not; with what to give instead.
    """
    if donor is None:
        return _engine(options)
    name = options.latent_donor.name
    if donor.image.sha256 and donor.image.sha256 == request.image.sha256:
        raise UsageError(
            f"{name} is a run on this very file: give --latent-donor a run on another one."
        )
    engine = _engine(options)
    giver, taker = donor.model, engine.loaded.facts
    told = [(one.stage, one.revision, one.parameters) for one in (giver, taker)]
    if told[0] != told[1]:
        raise UsageError(
            f"{name} was made by a model called {giver.id}, whose latent steps mean nothing to "
            f"{taker.id}: make the donor with the same checkpoint."
        )
    return engine


def _print_event(event: Event, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(dumps(event) + "\n")
    else:
        _write_rows(_rows([event]))
    sys.stdout.flush()


def _engine_stream(options: argparse.Namespace) -> Callable[[Request], Iterator[Event]]:
    """What runs requests on the checkpoint that the command line names."""
    return _engine(options).stream


def _engine(options: argparse.Namespace) -> Engine:
    _silence_libraries()
    # torch is imported only where a model runs.
    from engine.engine import Engine

    try:
        return Engine.load(options.checkpoint, options.device)
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def _save(path: Path, events: Iterable[Event]) -> None:
    try:
        write_trace(path, events)
    except OSError as error:
        raise _unwritable(path, error) from error


def _compare(options: argparse.Namespace) -> int:
    if options.out is not None:
        _check_target_folder(options.out)
    request = _request(options, Interventions())
    stream = _engine_stream(options)
    done: dict[RunKey, Trace] = {}
    while (key := next_run(done)) is not None:
        if not options.json:
            _write_rows([progress(done, key)])
            sys.stdout.flush()
        done[key] = Trace.from_events(stream(request_of(request, key)))
        if options.out is not None:
            _save(options.out / f"{key.name}{SUFFIX}", done[key])
    failed = [event for trace in done.values() for event in trace if isinstance(event, Failed)]
    if len(failed) == len(done) and all(event.code in USAGE_CODES for event in failed):
        raise UsageError(failed[0].message)
    report = report_json(done)
    if options.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        _write_rows(["", *readable_rows(report)])
    sys.stderr.writelines(f"{event.message}\n" for event in failed[:1])
    return FAILED_STATUS if failed else 0


def _silence_libraries() -> None:
    """Errors reach the user as one line of our own, so libraries neither log nor warn."""
    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    for name in ("engine", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _nats(text: str) -> float | str:
    """An entropy of the command line, or the word that stands for the checkpoint's own."""
    try:
        return text if text == "checkpoint" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a number of nats, or checkpoint, not {text!r}"
        ) from error


def _request(options: argparse.Namespace, interventions: Interventions) -> Request:
    return Request(
        image=named_image(options),
        question=options.question,
        options=tuple(options.option),
        method=options.method,
        seed=options.seed,
        sampling=Sampling(temperature=options.temperature),
        budgets=Budgets(
            max_new_tokens=options.max_new_tokens,
            max_crops=options.max_crops,
            latent_steps=options.latent_steps,
        ),
        entropy_threshold=options.entropy_threshold,
        interventions=interventions,
    )


def named_image(options: argparse.Namespace) -> DisplayImage:
    """The image that a command line names, as the viewer shows it.

    Args:
        options: `image` (a path), `frame` from 0, and `window` as center and width or None.

    Raises:
        ImagingError: it cannot be opened.
        UsageError: the window is out of range.
    """
    source = open_image(options.image, frame=options.frame)
    return display_image(source, _window(options.window, source))


def _window(values: Sequence[float] | None, source: SourceImage) -> Window | None:
    """The window that was asked for, of the image's own VOI LUT function (PS3.3 C.11.2.1.3).

    As in the viewer, where dragging changes center and width alone.
    """
    if values is None:
        return None
    if source.is_color:
        raise UsageError("--window is for grey images, and this one is in colour: leave it out.")
    own = source.default_window
    try:
        return Window(values[0], values[1], "LINEAR" if own is None else own.function)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_target(path: Path) -> None:
    """Before anything is computed: whether a file can be written at `path`."""
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder.name!r} to write {path.name} into.")
    if path.is_dir():
        raise UsageError(f"{path.name} is a folder: name a file to write.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path.name} is not a plain file: name one to write.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path.name} cannot be written: its folder is read-only.")


def _check_target_folder(path: Path) -> None:
    """Before anything is computed: makes the folder that traces are saved into."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.name} cannot be made a folder: {error.strerror}.") from error
    # Those of another comparison would lie among the new ones and be taken for theirs.
    if any(path.glob(f"*{SUFFIX}")):
        raise UsageError(f"{path.name} holds saved traces already: name an empty folder.")
    _check_target(path / "trace")


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path.name} cannot be written: {error.strerror}.")


def _show(options: argparse.Namespace) -> int:
    content = _content(options.file)
    is_group = is_group_file(content)
    _write_rows(group_rows(read_group(content)) if is_group else _rows(read_trace(content)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    content = _content(options.file)
    if is_group_file(content):
        raise UsageError("A group is verified run by run: save one of its runs from the page.")
    trace = read_trace(content)
    started = trace.started
    if started is None:
        raise UsageError("The trace holds no token to compare.")
    source = open_image(options.image, frame=options.frame)
    if started.image.sha256 and started.image.sha256 != source.sha256:
        raise UsageError(f"{options.image.name} is not the file that the run was about.")
    engine = _engine(options)
    # torch is imported only where a model runs.
    from engine.verification import VerificationError, image_of_run, verify

    try:
        found = verify(engine, image_of_run(source, started), trace)
    except VerificationError as error:
        raise UsageError(str(error)) from error
    if options.json:
        report = {
            "agrees": found.agrees,
            "events": found.events,
            "tokens": found.tokens,
            "whole": found.is_whole,
            "limit_nats": found.tolerance.nats,
            "largest_difference_nats": _finite(found.largest_nats),
            "differences": found.differences,
            "notes": found.notes,
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        _write_rows(_verified_rows(found))
    return 0 if found.agrees else FAILED_STATUS


def _verified_rows(found: Verification) -> Iterator[str]:
    yield (
        f"{found.events} events compared, {found.tokens} of them tokens, whose log-probabilities "
        f"differ by {found.largest_nats:.6f} nats at most (limit {found.tolerance.nats:g})."
    )
    yield from found.notes
    if found.agrees:
        how = "" if found.tolerance.is_single else ", within what half precision explains"
        far = "" if found.is_whole else ", as far as it went"
        yield f"This checkpoint computes this run{far}{how}."
    else:
        yield "This checkpoint does not compute this run. In the trace / here:"
        yield from (f"  {difference}" for difference in found.differences)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _render(options: argparse.Namespace) -> int:
    from engine.rasters import encoded_png

    _check_target(options.out)
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"{options.out.name} must end in .png: that is what is written.")
    source = open_image(options.image, frame=options.frame)
    pixels = render(source, _window(options.window, source))
    try:
        options.out.write_bytes(encoded_png(pixels))
    except OSError as error:
        raise _unwritable(options.out, error) from error
    return 0


def _bench(options: argparse.Namespace) -> int:
    if options.repeats < 1:
        raise UsageError("--repeats must be at least 1.")
    checkpoint = Path(options.checkpoint)
    if checkpoint != DEFAULT_CHECKPOINT and not checkpoint.is_dir():
        raise UsageError(f"There is no checkpoint {checkpoint.name}: give a folder that exists.")
    _silence_libraries()
    # torch is imported only where a model runs.
    from engine.bench import BenchmarkError, benchmark, readable

    groups = ("random", "embedded") if options.group == "all" else (options.group,)
    try:
        report = benchmark(groups, repeats=options.repeats, checkpoint=checkpoint)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    except BenchmarkError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED_STATUS
    text = json.dumps(report, indent=2) if options.json else readable(report)
    sys.stdout.write(text + "\n")
    return 0


def _write_rows(rows: Iterable[str]) -> None:
    for row in rows:
        sys.stdout.write(printable(row) + "\n")


def _rows(events: Iterable[Event]) -> Iterator[str]:
    """Readable lines: seconds, what happened, and what there is to know of it."""
    for event in events:
        yield f"{event.seconds:8.3f}  {type(event).__name__:<10}  {_summary(event)}"


def _changes(request: RequestFacts) -> str:
    """What was changed in a run to ask whether it matters; '' of an honest one."""
    changes = request.interventions
    said = [f"latents {changes.latents}"] if changes.latents != "none" else []
    said += [f"crop {number} skipped" for number in changes.skip_crops]
    said += [f"crop {number} moved" for number, _ in changes.move_crops]
    if changes.occlude:
        said.append(f"regions occluded: {len(changes.occlude)}")
    if request.bottleneck:
        said.append("answer kept from the image")
    return f", CHANGED: {', '.join(said)}" if said else ""


def _summary(event: Event) -> str:  # noqa: PLR0911 - one for every kind of event
    match event:
        case RunStarted():
            facts, image = event.model, event.image
            notices = "".join(f" [{notice}]" for notice in event.notices)
            return (
                f"{facts.id} on {facts.device}, method {event.request.method}, "
                f"image {image.source_width} x {image.source_height} seen at "
                f"{image.seen_width} x {image.seen_height}{_changes(event.request)}{notices}"
            )
        case TokenStep():
            forced = " forced" if event.forced else ""
            return (
                f"{event.segment:<9} {event.text!r:<24} logprob {event.logprob:8.3f}  "
                f"entropy {event.entropy_nats:6.3f}{forced}"
            )
        case LatentStep():
            return f"{event.step}/{event.steps}  norm {event.norm:.3f}"
        case Reground():
            box = ", ".join(f"{value:.3f}" for value in event.box)
            skipped = ", kept from the model" if event.skipped else ""
            return f"crop {event.number} at ({box}) by {event.trigger.kind}{skipped}"
        case Belief():
            return f"{event.moment:<12} {_shares(event.options, event.probabilities)}"
        case Answered():
            validity = "" if event.valid else " (not a valid answer)"
            return f"{event.text!r}{validity} {_shares(event.options, event.probabilities)}"
        case Finished():
            counts = event.counts
            failed = f", calls that failed: {event.failed_calls}" if event.failed_calls else ""
            return (
                f"{event.reason}: {counts.generated} tokens, {counts.latent} latents, "
                f"{counts.forwarded} positions forwarded{failed}"
            )
        case Failed():
            return f"{event.code}: {event.message}"


def _shares(options: tuple[str, ...], probabilities: tuple[float, ...]) -> str:
    pairs = zip(options, probabilities, strict=False)
    return "  ".join(f"{option}: {probability:.3f}" for option, probability in pairs)
