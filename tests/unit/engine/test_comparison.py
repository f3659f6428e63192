"""What a comparison of ways to look says, by traces made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.comparison import (
    NOTICEABLE,
    RunKey,
    Way,
    WayReport,
    Zoom,
    compare,
    next_run,
    planned_runs,
    progress,
    readable_rows,
    report_json,
    request_of,
    zoom_note,
)
from engine.request import Interventions, Sampling
from engine.trace import (
    Answered,
    Belief,
    Event,
    Failed,
    Finished,
    Reground,
    RunStarted,
    TokenStep,
    Trace,
    Trigger,
)
from tests.factories import finished, request, started

OPTIONS = ("smooth", "spiculated")
BASE = request(options=OPTIONS, entropy_threshold=1.5)


def word(seconds: float, segment: str = "reasoning", *, forced: bool = False) -> TokenStep:
    return TokenStep(
        seconds=seconds,
        index=0,
        token_id=1,
        text=" a",
        logprob=0.0,
        entropy_nats=0.0,
        alternatives=(),
        segment=segment,  # type: ignore[arg-type]
        forced=forced,
        attention=(),
    )


def belief(moment: str, first: float, crop: int | None = None) -> Belief:
    return Belief(
        seconds=0.0,
        moment=moment,  # type: ignore[arg-type]
        token_index=0,
        crop=crop,
        options=OPTIONS,
        probabilities=(first, 1 - first),
        outside=0.0,
    )


def crop(seconds: float, number: int = 1, *, skipped: bool = False) -> Reground:
    return Reground(
        seconds=seconds,
        number=number,
        box=(0.25, 0.25, 0.5, 0.5),
        box_source_px=(64, 64, 128, 192),
        box_seen_px=(56, 56, 112, 112),
        clamped=False,
        skipped=skipped,
        trigger=Trigger(kind="tool_call", token_index=0, entropy_nats=None, threshold=None),
        rows=3,
        columns=4,
        crop_width=112,
        crop_height=84,
        crop_png=b"",
    )


def answer(option: int = 1) -> Answered:
    return Answered(
        seconds=0.0,
        text=OPTIONS[option],
        option=option,
        valid=True,
        options=OPTIONS,
        probabilities=(),
    )


def run(
    *,
    before: float = 0.5,
    after: float = 0.5,
    end: float = 0.5,
    option: int = 1,
    zooms: int = 1,
    tokens: int = 30,
) -> Trace:
    """A run with zooms, all with the same beliefs (of the option `smooth`)."""

    def events() -> Iterator[Event]:
        yield started(BASE, "run")
        yield belief("prefill", 0.6)
        for number in range(1, zooms + 1):
            yield replace(belief("before_crop", before, number), seconds=1.0)
            yield crop(1.5, number)
            yield belief("after_crop", after, number)
        yield belief("end", end)
        yield answer(option)
        yield finished(4.0, tokens)

    return Trace.from_events(events())


def failed(message: str = "It broke.") -> Trace:
    return Trace((Failed(seconds=2.0, code="x", message=message),))


OWN = RunKey("own_calls")


def withholding(trace: Trace) -> Trace:
    """The run with the first crop withheld."""
    return Trace(
        tuple(
            replace(event, skipped=True)
            if isinstance(event, Reground) and event.number == 1
            else event
            for event in trace
        )
    )


def zoom_of(whole: Trace, without: Trace | None) -> Zoom:
    done = {OWN: whole}
    if without is not None:
        done[RunKey("own_calls", 1)] = withholding(without)
    (way,) = compare(done)
    return way.zooms[0]


# --- which runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "method", "threshold", "skipped"),
    [
        (RunKey("direct"), "direct", None, ()),
        (RunKey("own_calls"), "zoom", None, ()),
        (RunKey("own_calls", 2), "zoom", None, (2,)),
        (RunKey("entropy_rule", 1), "zoom", 1.5, (1,)),
    ],
)
def test_a_run_differs_from_what_was_asked_in_the_way_alone(
    key: RunKey, method: str, threshold: float | None, skipped: tuple[int, ...]
) -> None:
    asked = request_of(BASE, key)

    assert (asked.method, asked.entropy_threshold) == (method, threshold)
    assert asked.interventions.skip_crops == skipped
    assert replace(
        asked,
        method=BASE.method,
        entropy_threshold=BASE.entropy_threshold,
        interventions=BASE.interventions,
    ) == replace(BASE, image=asked.image)


def test_without_a_number_the_rule_takes_the_limit_of_the_checkpoint() -> None:
    base = replace(BASE, entropy_threshold=None, interventions=Interventions(skip_crops=(3,)))

    asked = request_of(base, RunKey("entropy_rule", 1))

    assert asked.entropy_threshold == "checkpoint"
    assert asked.interventions.skip_crops == (1, 3)


def test_every_crop_that_came_adds_a_run_without_it() -> None:
    done: dict[RunKey, Trace] = {}
    order = []
    while (key := next_run(done)) is not None:
        order.append(key.name)
        zooms = {"direct": 0, "own_calls": 1, "entropy_rule": 2}[key.way]
        done[key] = run(zooms=zooms)

    assert order == [
        *("direct", "own-calls", "entropy-rule", "own-calls-without-1"),
        *("entropy-rule-without-1", "entropy-rule-without-2"),
    ]


def test_a_way_that_broke_off_or_was_shown_nothing_adds_none() -> None:
    withheld = Trace((crop(1.0, skipped=True), finished(2.0, 3)))
    broken = Trace((*run().events[:-1], *failed().events))
    ways: dict[RunKey, Trace] = {
        RunKey("direct"): run(zooms=0),
        OWN: broken,
        RunKey("entropy_rule"): withheld,
    }

    assert planned_runs(ways) == tuple(ways)


def test_progress_is_told_in_words() -> None:
    done: dict[RunKey, Trace] = {RunKey("direct"): run(zooms=0)}
    assert progress(done, OWN).startswith("Run 2 of at least 3: zooms where the model itself")
    # The rule ends with the budget of crops.
    assert progress(done, RunKey("entropy_rule")).endswith(", as long as closer looks are left.")

    done |= {OWN: run(), RunKey("entropy_rule"): run(zooms=0)}
    assert progress(done, RunKey("own_calls", 1)) == (
        "Run 4 of 4: zooms where the model itself asks for them, but crop 1 is withheld."
    )


# --- cost ---------------------------------------------------------------------------------


def test_a_zoom_costs_its_call_and_its_crop_but_not_the_probes() -> None:
    trace = Trace((
        started(BASE, "run"),
        word(1.0),
        word(1.5, forced=True),
        word(2.0, "tool", forced=True),
        word(2.25, "tool"),
        replace(belief("before_crop", 0.5, 1), seconds=9.0),
        crop(9.5),
        replace(belief("after_crop", 0.5, 1), seconds=19.0),
        word(19.5, forced=True),
        word(20.0),
        word(20.5, "tool"),
        crop(21.5, 2),
        finished(30.0, 8),
    ))  # fmt: skip

    (way,) = compare({OWN: trace})

    assert [(zoom.tokens, zoom.seconds) for zoom in way.zooms] == [(3, 1.75), (1, 1.5)]
    assert way.zooms[0].image_tokens == 12
    assert way.zooms[0].cut == (0.25, 0.25, 0.5, 0.75)
    assert (way.tokens, way.forwarded, way.seconds) == (8, 228, 30.0)


# --- gain ---------------------------------------------------------------------------------


def test_the_gain_is_that_of_the_answer() -> None:
    zoom = zoom_of(run(before=0.5, after=0.25, end=0.125), run(end=0.5))

    assert (zoom.step, zoom.gain, zoom.effect) == (0.25, 0.375, "surer")
    assert zoom.verdict == (
        "Same answer without it; with it, the belief in it is 38 percentage points higher."
    )


@pytest.mark.parametrize(
    ("whole", "without", "effect", "says"),
    [
        (run(), run(), "nothing", "changed nothing"),
        (run(after=0.5 + NOTICEABLE / 2), run(), "nothing", "changed nothing"),
        (run(after=0.7), run(), "on_the_way", "Same answer without it; it moved other beliefs"),
        (run(end=0.52), run(), "less_sure", "2 percentage points lower"),
        (run(end=0.49), run(), "surer", "1 percentage point higher"),
        (run(), run(option=0), "answer", "without it, it is “smooth”"),
        (run(), None, "unknown", "the run without it is missing"),
        (run(), failed(), "unknown", "broke off. It broke."),
    ],
)
def test_what_a_zoom_did_is_said_plainly(
    whole: Trace, without: Trace | None, effect: str, says: str
) -> None:
    zoom = zoom_of(whole, without)

    assert zoom.effect == effect
    assert says in zoom.verdict


def test_another_crop_in_place_of_the_withheld_one_is_no_effect_of_it() -> None:
    """The two runs then differ in more than the crop."""
    zoom = zoom_of(run(zooms=1), run(zooms=2, option=0))

    assert zoom.effect == "elsewhere"
    assert "looked somewhere else instead" in zoom.verdict
    assert zoom_of(run(zooms=2), run(zooms=2, option=0)).effect == "answer"
    assert zoom_of(run(zooms=2), run(zooms=1, option=0)).effect == "answer"


def unreadable(trace: Trace, text: str = "") -> Trace:
    def said(event: Event) -> Event:
        if isinstance(event, Answered):
            return replace(event, text=text, option=None, valid=False)
        return event

    return Trace(tuple(said(event) for event in trace))


def drawn(trace: Trace, temperature: float = 0.7) -> Trace:
    def said(event: Event) -> Event:
        if isinstance(event, RunStarted):
            facts = replace(event.request, sampling=Sampling(temperature=temperature))
            return replace(event, request=facts)
        return event

    return Trace(tuple(said(event) for event in trace))


@pytest.mark.parametrize(
    ("whole", "without", "effect", "says"),
    [
        (unreadable(run(), "a b"), unreadable(run(), "c"), "nothing", "Neither with it nor"),
        (unreadable(run(end=0.6)), unreadable(run()), "surer", "likeliest option is 10"),
        (unreadable(run(after=0.7)), unreadable(run()), "on_the_way", "Neither with it nor"),
        (run(), unreadable(run()), "answer", "without it, there is no readable answer."),
        (run(), unreadable(run(), "a " * 40), "answer", "there is no readable answer."),
        (run(), unreadable(run(), "left"), "answer", "“left”, which is none of the options."),
        (unreadable(run(), "x"), run(), "answer", "“spiculated”; with it, it answered “x”, which"),
    ],
)
def test_what_cannot_be_read_is_no_answer(
    whole: Trace, without: Trace, effect: str, says: str
) -> None:
    zoom = zoom_of(whole, without)

    assert zoom.effect == effect
    assert says in zoom.verdict
    assert "Same answer" not in zoom.verdict
    assert zoom.withheld is not None
    assert (zoom.withheld.option, zoom.withheld.valid) == (
        (None, False) if without.answered != run().answered else (1, True)
    )


def test_options_compare_by_their_place_and_not_by_their_words() -> None:
    other = Trace(
        tuple(replace(e, text="Spiculated.") if isinstance(e, Answered) else e for e in run())
    )

    assert zoom_of(run(), other).effect == "nothing"


@pytest.mark.parametrize("without", [run(option=0), run(end=0.2), run()])
def test_what_was_drawn_is_called_one_draw(without: Trace) -> None:
    zoom = zoom_of(drawn(run()), drawn(without))

    assert zoom.verdict.endswith("one draw at temperature 0.7: chance alone can do as much.")
    assert "decided" not in zoom.verdict
    assert "draw" not in zoom_of(run(), without).verdict


def test_answers_to_an_open_question_compare_by_their_words() -> None:
    def open_run(text: str) -> Trace:
        def said(event: Event) -> Event:
            if isinstance(event, Belief):
                chance = 0.9 if event.moment == "after_crop" else 0.3
                return replace(event, options=(text,), probabilities=(chance,))
            if isinstance(event, Answered):
                return replace(event, text=text, option=None, options=())
            return event

        start = started(request(options=()), "run")
        return Trace((start, *(said(event) for event in run().events[1:])))

    same = zoom_of(open_run("a nodule"), open_run("a nodule"))
    other = zoom_of(open_run("a nodule"), open_run("a mass"))

    assert (same.effect, same.gain) == ("nothing", None)
    assert (other.effect, other.before and other.before.text) == ("answer", "a nodule")


# --- whole reports ------------------------------------------------------------------------


def ways_of(report: tuple[WayReport, ...]) -> list[Way]:
    return [way.way for way in report]


def test_a_failed_run_keeps_its_place_and_its_reason() -> None:
    done = {RunKey("entropy_rule"): failed("No limit."), RunKey("direct"): run(zooms=0)}

    report = compare(done)

    assert ways_of(report) == ["direct", "entropy_rule"]
    assert (report[1].failure, report[1].zooms, report[1].seconds) == ("No limit.", (), 2.0)
    assert "  No limit." in readable_rows(report_json(done))


def test_a_run_without_an_answer_follows_the_likeliest_option() -> None:
    silent = Trace(tuple(e for e in run(end=0.75).events if not isinstance(e, Answered)))

    (way,) = compare({OWN: silent})

    assert (way.answer, way.option, way.valid) == ("", None, False)
    assert way.zooms[0].step == 0.0
    assert way.zooms[0].effect == "unknown"


def test_a_checkpoint_that_was_not_trained_to_zoom_says_so() -> None:
    facts = started(BASE, "run").model

    assert zoom_note(facts) == ""
    assert zoom_note(replace(facts, trained_methods=("auto",))) == ""
    assert "not trained to zoom" in zoom_note(replace(facts, trained_methods=("direct",)))
    assert "Nobody has said" in zoom_note(replace(facts, trained_methods=()))


@pytest.mark.parametrize("notices", [(), ("Drawn images only.", "A strange image.")])
def test_a_strange_image_is_told_with_the_report(notices: tuple[str, ...]) -> None:
    start = replace(started(BASE, "run", flagged=True), notices=notices)
    done = {RunKey("direct"): failed(), OWN: Trace((start, *run().events[1:]))}

    report = report_json(done)

    assert report["unlike"]
    assert report["notices"] == list(notices) or "unlike what" in report["notices"][0]
    assert report["notices"]
    assert readable_rows(report)[1 : 1 + len(report["notices"])] == report["notices"]
    plain = report_json({OWN: run()})
    assert (plain["unlike"], plain["notices"]) == (False, [])


def test_an_empty_report_is_empty() -> None:
    assert report_json({})["ways"] == report_json({})["notices"] == []
    assert next_run({}) == RunKey("direct")
    assert isinstance(run().events[-1], Finished)
