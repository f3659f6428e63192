"""Three ways to look at one image, side by side: what each zoom costs and what it changes.

The same question with the same seed is run without a zoom, with the zooms that the model asks
for, and with those that the entropy rule opens; then, for every crop that came of it, once more
with that crop withheld. This module says which runs those are and folds their traces into one
report. The page and the command line print the same report. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

from engine.request import Request
from engine.trace import (
    Answered,
    Belief,
    BeliefMoment,
    Failed,
    Finished,
    ModelFacts,
    Reground,
    RunStarted,
    TokenStep,
    Trace,
)

Way = Literal["direct", "own_calls", "entropy_rule"]
Effect = Literal["nothing", "answer", "surer", "less_sure", "on_the_way", "elsewhere", "unknown"]

WAYS: Final[tuple[Way, ...]] = get_args(Way)
# Beliefs that differ by less look the same in whole percentage points.
NOTICEABLE: Final = 0.01
# Characters of an invalid answer that a verdict quotes: what is longer is no answer but a text.
QUOTED: Final = 60

_UNLIKE: Final = (
    "This image is unlike what the checkpoint was trained on: expect a meaningless answer."
)

_DOES: Final[Mapping[Way, str]] = {
    "direct": "one look at the whole image, no zoom",
    "own_calls": "zooms where the model itself asks for them",
    "entropy_rule": "zooms after every word that it is unsure of, as long as closer looks are left",
}


@dataclass(frozen=True, slots=True, order=True)
class RunKey:
    """Which run of a comparison.

    Attributes:
        way: how the model may look again.
        withheld: number of the crop whose pixels are kept from the model; 0 for none.
    """

    way: Way
    withheld: int = 0

    @property
    def name(self) -> str:
        """A short name without spaces, fit for a file."""
        name = self.way.replace("_", "-")
        return f"{name}-without-{self.withheld}" if self.withheld else name


def request_of(base: Request, key: RunKey) -> Request:
    """What one run of a comparison is asked.

    The entropy rule takes the threshold of `base`, and without one that of the checkpoint.
    """
    if key.way == "direct":
        return replace(base, method="direct", entropy_threshold=None)
    threshold = base.entropy_threshold if base.entropy_threshold is not None else "checkpoint"
    skipped = {*base.interventions.skip_crops, key.withheld} - {0}
    return replace(
        base,
        method="zoom",
        entropy_threshold=threshold if key.way == "entropy_rule" else None,
        interventions=replace(base.interventions, skip_crops=tuple(sorted(skipped))),
    )


def planned_runs(done: Mapping[RunKey, Trace]) -> tuple[RunKey, ...]:
    """Every run of a comparison that is known by now, in order.

    First the three ways; each of them that ended well adds one run for every crop that the
    model was shown.
    """
    withheld = [
        RunKey(way, reground.number)
        for way in WAYS
        if (trace := done.get(RunKey(way))) is not None and _failure(trace) is None
        for reground in trace.regrounds
        if not reground.skipped
    ]
    return (*(RunKey(way) for way in WAYS), *withheld)


def next_run(done: Mapping[RunKey, Trace]) -> RunKey | None:
    """The run that comes next, or None when all have been made."""
    return next((key for key in planned_runs(done) if key not in done), None)


def progress(done: Mapping[RunKey, Trace], key: RunKey) -> str:
    """One sentence on what runs now: which of how many, and what it does."""
    runs = planned_runs(done)
    # How many crops there will be to withhold, only the first three runs tell.
    settled = all(RunKey(way) in done for way in WAYS)
    what = _DOES[key.way]
    if key.withheld:
        what = f"{what}, but crop {key.withheld} is withheld"
    count = f"{len(runs)}" if settled else f"at least {len(runs)}"
    return f"Run {runs.index(key) + 1} of {count}: {what}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The belief at one moment.

    Attributes:
        probabilities: of each answer option; of the text alone for an open question.
        text: the likeliest option, or what would be answered to an open question.
    """

    probabilities: tuple[float, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """The same run with one crop withheld; `failure` is a sentence, or empty.

    `answer`, `option` and `valid` are as in `WayReport`; `elsewhere` says that it was shown another
    crop in place of the one that was withheld.
    """

    answer: str
    option: int | None
    valid: bool
    end: Standing | None
    tokens: int
    seconds: float
    failure: str
    elsewhere: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom:
    """One zoom: its cost and its gain.

    Attributes:
        number: of the crop, from 1.
        trigger: `tool_call` (the model asked), `entropy` or `request`.
        entropy_nats, threshold: of the word that set off the entropy rule; else None.
        box: normalised `(x0, y0, x1, y1)`.
        cut: what was cut, the padding of the checkpoint included, normalised.
        tokens: written for the call since the crop before, calls that failed included.
        image_tokens: visual tokens of the crop, read and not written.
        seconds: of writing the call and reading the crop; probing the belief is left out.
        before, after: belief just before and just after the crop.
        withheld: the run without this crop; None until there is one.
        step: change of the belief in the run's answer from before to after the crop.
        gain: belief in the run's answer at its end, less that in the run without the crop.
        effect: what the zoom did, in a word; `verdict` says it in a sentence.
    """

    number: int
    trigger: str
    entropy_nats: float | None
    threshold: float | None
    box: tuple[float, float, float, float]
    cut: tuple[float, float, float, float]
    tokens: int
    image_tokens: int
    seconds: float
    before: Standing | None
    after: Standing | None
    withheld: Withheld | None
    step: float | None
    gain: float | None
    effect: Effect
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WayReport:
    """One way to look, and what came of it.

    Attributes:
        answer: as text; `option` is its index, None for an open or an invalid answer.
        start, end: belief after the image was read, and at the end of the run.
        tokens: written; `forwarded`: positions sent through the model, probes included.
        seconds: of the whole run, probes included.
        reason: why it ended, as in `Finished`; empty when it failed.
        failure: one sentence, or empty.
    """

    way: Way
    answer: str
    option: int | None
    valid: bool
    start: Standing | None
    end: Standing | None
    tokens: int
    forwarded: int
    seconds: float
    reason: str
    failure: str
    zooms: tuple[Zoom, ...]


def compare(done: Mapping[RunKey, Trace]) -> tuple[WayReport, ...]:
    """The report on every way that has been run, in the order of `WAYS`."""
    return tuple(_way_report(way, done) for way in WAYS if RunKey(way) in done)


def report_json(done: Mapping[RunKey, Trace]) -> dict[str, Any]:
    """The report as JSON: what the page shows and `python -m engine compare --json` prints.

    `notices` are those of the first run that began; where `unlike` says that the image is unlike
    those that the checkpoint was trained on, the last of them is about that.
    """
    started = next((trace.started for trace in done.values() if trace.started), None)
    return {
        "model": started.model.id if started else None,
        "revision": started.model.revision if started else None,
        "question": started.request.question if started else None,
        "options": list(started.request.options) if started else [],
        "seed": started.request.seed if started else None,
        "temperature": started.request.sampling.temperature if started else None,
        "zoom_note": zoom_note(started.model) if started else "",
        "notices": _notices(started) if started else [],
        "unlike": started is not None and _unlike(started),
        "threshold": _threshold(done),
        "ways": [asdict(way) for way in compare(done)],
    }


def zoom_note(model: ModelFacts) -> str:
    """A sentence for the user when the checkpoint's zooms are not to be taken at face value."""
    if not model.trained_methods:
        return "Nobody has said whether this checkpoint was trained to zoom."
    if not {"zoom", "auto"} & set(model.trained_methods):
        return "This checkpoint was not trained to zoom: where it looks again is guesswork."
    return ""


def _unlike(started: RunStarted) -> bool:
    distance = started.out_of_distribution
    return distance is not None and distance.flagged


def _notices(started: RunStarted) -> list[str]:
    # The engine names a strange image last; an older trace may only carry the flag.
    return list(started.notices) or ([_UNLIKE] if _unlike(started) else [])


def _threshold(done: Mapping[RunKey, Trace]) -> float | None:
    trace = done.get(RunKey("entropy_rule"))
    return trace.started.request.entropy_threshold if trace and trace.started else None


def _way_report(way: Way, done: Mapping[RunKey, Trace]) -> WayReport:
    trace = done[RunKey(way)]
    answered, finished = trace.answered, _finished(trace)
    failure = _failure(trace)
    followed = _followed(trace)
    return WayReport(
        way=way,
        answer=answered.text if answered else "",
        option=answered.option if answered else None,
        valid=bool(answered and answered.valid),
        start=_standing(trace, "prefill"),
        end=_standing(trace, "end"),
        tokens=finished.counts.generated if finished else len(trace.tokens),
        forwarded=finished.counts.forwarded if finished else 0,
        seconds=finished.seconds if finished else failure.seconds if failure else 0.0,
        reason=finished.reason if finished else "",
        failure=failure.message if failure else "",
        zooms=tuple(
            _zoom(trace, reground, cost, done.get(RunKey(way, reground.number)), followed)
            for reground, cost in zip(trace.regrounds, _costs(trace), strict=True)
        ),
    )


def _zoom(
    trace: Trace,
    reground: Reground,
    cost: tuple[int, float],
    without: Trace | None,
    followed: int | None,
) -> Zoom:
    before = _standing(trace, "before_crop", reground.number)
    after = _standing(trace, "after_crop", reground.number)
    withheld = None if without is None else _withheld(without, _shown(trace))
    end = _standing(trace, "end")
    gain = _change(withheld.end if withheld else None, end, followed)
    effect = _effect(trace, withheld, (before, after), gain)
    image = trace.started.image if trace.started else None
    width, height = (image.source_width, image.source_height) if image else (1, 1)
    x0, y0, x1, y1 = reground.box_source_px
    return Zoom(
        number=reground.number,
        trigger=reground.trigger.kind,
        entropy_nats=reground.trigger.entropy_nats,
        threshold=reground.trigger.threshold,
        box=reground.box,
        cut=(x0 / width, y0 / height, x1 / width, y1 / height),
        tokens=cost[0],
        image_tokens=0 if reground.skipped else reground.rows * reground.columns,
        seconds=cost[1],
        before=before,
        after=after,
        withheld=withheld,
        step=_change(before, after, followed),
        gain=gain,
        effect=effect,
        verdict=_verdict(effect, trace, withheld, gain),
    )


def _costs(trace: Trace) -> list[tuple[int, float]]:
    """Tokens written and seconds of every crop: a sum over the events that made it.

    Every event took the time since the one before. What the program writes to end the
    reasoning before it opens a call belongs to the call.
    """
    costs: list[tuple[int, float]] = []
    tokens, seconds, last = 0, 0.0, 0.0
    closing, closing_seconds = 0, 0.0
    for event in trace:
        took, last = event.seconds - last, event.seconds
        if isinstance(event, TokenStep):
            if event.segment == "tool":
                tokens, seconds = tokens + closing + 1, seconds + closing_seconds + took
                closing, closing_seconds = 0, 0.0
            elif event.forced:
                closing, closing_seconds = closing + 1, closing_seconds + took
            else:
                closing, closing_seconds = 0, 0.0
        elif isinstance(event, Reground):
            costs.append((tokens, seconds + took))
            tokens, seconds = 0, 0.0
            closing, closing_seconds = 0, 0.0
    return costs


def _shown(trace: Trace) -> int:
    """How many crops the model saw."""
    return sum(not reground.skipped for reground in trace.regrounds)


def _withheld(trace: Trace, shown: int) -> Withheld:
    """What came of a run without a crop; the run with it showed so many."""
    answered, finished, failure = trace.answered, _finished(trace), _failure(trace)
    return Withheld(
        answer=answered.text if answered else "",
        option=answered.option if answered else None,
        valid=bool(answered and answered.valid),
        end=_standing(trace, "end"),
        tokens=finished.counts.generated if finished else len(trace.tokens),
        seconds=finished.seconds if finished else 0.0,
        failure=failure.message if failure else "",
        elsewhere=_shown(trace) >= shown,
    )


def _effect(
    trace: Trace,
    withheld: Withheld | None,
    around: tuple[Standing | None, Standing | None],
    gain: float | None,
) -> Effect:
    answered: Answered | None = trace.answered
    if withheld is None or withheld.failure or answered is None:
        return "unknown"
    if withheld.elsewhere:
        return "elsewhere"
    if _read(withheld) != _read(answered):
        return "answer"
    if gain is not None and abs(gain) >= NOTICEABLE:
        return "surer" if gain > 0 else "less_sure"
    unmoved = _same(withheld.end, _standing(trace, "end")) and _same(*around)
    return "nothing" if unmoved else "on_the_way"


def _read(run: Answered | Withheld) -> int | str | None:
    """What answers compare by: the option, else the words; None where none can be read."""
    if not run.valid:
        return None
    if run.option is not None:
        return run.option
    return run.text if isinstance(run, Answered) else run.answer


def _verdict(effect: Effect, trace: Trace, withheld: Withheld | None, gain: float | None) -> str:
    answered, started = trace.answered, trace.started
    if effect == "unknown" or withheld is None or answered is None:
        why = f"broke off. {withheld.failure}" if withheld and withheld.failure else "is missing."
        return f"What it changed is not known: the run without it {why}"
    if effect == "elsewhere":
        return (
            "What it changed cannot be told: without it, the model looked somewhere else instead."
        )
    temperature = started.request.sampling.temperature if started else 0.0
    if effect == "answer":
        text = _changed_answer(answered, withheld, drawn=temperature > 0)
    elif answered.valid:
        text = _same_answer(effect, gain, "Same answer without it", "it")
    else:
        none = (
            "Neither with it nor without it is the answer one of the options"
            if answered.options
            else "No readable answer with it or without it"
        )
        text = _same_answer(effect, gain, none, "the likeliest option")
    if temperature > 0:
        # After the crop, the same seed draws from other probabilities.
        text += f" This is one draw at temperature {temperature:g}: chance alone can do as much."
    return text


def _changed_answer(answered: Answered, withheld: Withheld, *, drawn: bool) -> str:
    says = "In this draw the answer is another" if drawn else "This zoom decided the answer"
    if not answered.valid:
        read = _unread(answered.text, answered.options)
        return f"{says}: without it, it is “{withheld.answer}”; with it, {read}."
    if not withheld.valid:
        return f"{says}: without it, {_unread(withheld.answer, answered.options)}."
    return f"{says}: without it, it is “{withheld.answer}”."


def _unread(text: str, options: tuple[str, ...]) -> str:
    """What is said of an answer that is invalid: it may well be one, but to no option."""
    if not options or not text or len(text) > QUOTED:
        return "there is no readable answer"
    return f"it answered “{text}”, which is none of the options"


def _same_answer(effect: Effect, gain: float | None, answers: str, followed: str) -> str:
    points = "" if gain is None else f"{abs(gain) * 100:.0f}"
    unit = "percentage point" if points == "1" else "percentage points"
    match effect:
        case "surer":
            return f"{answers}; with it, the belief in {followed} is {points} {unit} higher."
        case "less_sure":
            return f"{answers}; with it, the belief in {followed} is {points} {unit} lower."
        case "on_the_way":
            return f"{answers}; it moved other beliefs alone."
        case _:
            return f"{answers}; this zoom changed nothing: no belief, by a whole point."


def _same(one: Standing | None, other: Standing | None) -> bool:
    """Whether two beliefs look the same; where one was not probed, nothing tells them apart."""
    if one is None or other is None:
        return True
    if len(one.probabilities) == 1:
        # To an open question: how probable one wording is says little.
        return one.text == other.text
    pairs = zip(one.probabilities, other.probabilities, strict=False)
    return one.text == other.text and all(abs(a - b) < NOTICEABLE for a, b in pairs)


def _change(before: Standing | None, after: Standing | None, followed: int | None) -> float | None:
    if before is None or after is None or followed is None:
        return None
    return after.probabilities[followed] - before.probabilities[followed]


def _followed(trace: Trace) -> int | None:
    """The option whose belief is followed: the answer, else the likeliest at the end.

    None for an open question, whose probes are of different texts and do not compare.
    """
    started, answered = trace.started, trace.answered
    if started is None or not started.request.options:
        return None
    if answered is not None and answered.option is not None:
        return answered.option
    end = _standing(trace, "end")
    return end.probabilities.index(max(end.probabilities)) if end else None


def _standing(trace: Trace, moment: BeliefMoment, crop: int | None = None) -> Standing | None:
    belief: Belief | None = next(
        (one for one in trace.beliefs if one.moment == moment and one.crop == crop), None
    )
    if belief is None or not belief.probabilities:
        return None
    best = belief.probabilities.index(max(belief.probabilities))
    return Standing(probabilities=belief.probabilities, text=belief.options[best])


def _finished(trace: Trace) -> Finished | None:
    return next((event for event in trace if isinstance(event, Finished)), None)


def _failure(trace: Trace) -> Failed | None:
    return next((event for event in trace if isinstance(event, Failed)), None)


def readable_rows(report: Mapping[str, Any]) -> list[str]:
    """A report of `report_json` as lines of text."""
    lines = [f"{report['model']}, seed {report['seed']}, temperature {report['temperature']}"]
    lines += [*report["notices"], *([report["zoom_note"]] if report["zoom_note"] else [])]
    for way in report["ways"]:
        lines += ["", f"{way['way']}: {_DOES[way['way']]}", *_way_lines(way, report["options"])]
    return lines


def _way_lines(way: Mapping[str, Any], options: list[str]) -> list[str]:
    if way["failure"]:
        return [f"  {way['failure']}"]
    lines = [
        f"  answer    {way['answer']!r}{'' if way['valid'] else ' (not a valid answer)'}",
        f"  start     {_shares(way['start'], options)}",
        f"  end       {_shares(way['end'], options)}",
        f"  cost      {way['tokens']} tokens, {way['forwarded']} positions forwarded, "
        f"{way['seconds']:.2f} s",
    ]
    for zoom in way["zooms"]:
        box = ", ".join(f"{value:.3f}" for value in zoom["box"])
        without = zoom["withheld"]
        lines += [
            f"  crop {zoom['number']} at ({box}) by {zoom['trigger']}",
            f"    cost    {zoom['tokens']} tokens written, {zoom['image_tokens']} read, "
            f"{zoom['seconds']:.2f} s",
            f"    before  {_shares(zoom['before'], options)}",
            f"    after   {_shares(zoom['after'], options)}",
            f"    end     {_shares(way['end'], options)}",
            f"    without {_shares(without['end'] if without else None, options)}",
            f"    {zoom['verdict']}",
        ]
    return lines if way["zooms"] or way["way"] == "direct" else [*lines, "  no zoom"]


def _shares(standing: Mapping[str, Any] | None, options: list[str]) -> str:
    if standing is None:
        return "not known"
    if not options:
        return f"{standing['text']!r}"
    pairs = zip(options, standing["probabilities"], strict=False)
    return "  ".join(f"{option}: {probability:.3f}" for option, probability in pairs)
