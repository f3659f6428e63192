"""Whether a saved run is what a checkpoint computes from an image.

The run is made once more by the same loop, on the same request, with its recorded tokens in place
of draws (`engine.script`), and every event is compared with the recorded one: probabilities and
entropies, texts, latents, heat maps, crops, beliefs, the answer. Numbers may differ by what another
order of sums explains, pictures by what another version of a library does.

What is not compared: times, memory, the device, the number of positions forwarded, and, at a
temperature above 0, whether the seed draws these tokens.
"""

from __future__ import annotations

import io
import math
import struct
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.display import display_image
from engine.engine import Engine, failure_of
from engine.imaging import SourceImage, Window
from engine.imaging.window import WINDOW_FUNCTIONS
from engine.interventions import occluded
from engine.rasters import DISPLAY_SIDE, encoded_png
from engine.request import Budgets, DisplayImage, Request, Sampling, TracedLayers, Tracing
from engine.rollout import Rollout
from engine.script import Script, ScriptError
from engine.trace import (
    Alternative,
    Answered,
    Belief,
    Event,
    EvidenceMap,
    Failed,
    Finished,
    ImageFacts,
    LatentStep,
    Reground,
    RunStarted,
    TokenStep,
    Trace,
)
from engine.trace_io import TraceFileError, check_png

MOST_DIFFERENCES: Final = 8
LONGEST_TEXT: Final = 80
# Below the likeliest, at temperature 1: nobody has drawn a token of e^-30.
RAREST_NATS: Final = 30.0
MOST_CHUNKS: Final = 65_536
# Grey levels: pictures are scaled by Pillow, whose versions round otherwise now and then.
PICTURE_LEVELS: Final = 2
_FLOAT32: Final = "float32"


class VerificationError(ValueError):
    """A run that cannot be compared; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What number formats explain.

    Attributes:
        nats: of log-probabilities and entropies.
        share: of probabilities, cosines and attention, of 1.
        vector: of a latent, of its length.
        levels: of a heat map, of 255.
    """

    nats: float
    share: float
    vector: float
    levels: int

    @property
    def is_single(self) -> bool:
        """Whether it is that of single precision."""
        return self == SINGLE


# In single precision only the order of the sums differs; in half precision logits of about 20
# are rounded to an eighth.
SINGLE: Final = Tolerance(nats=1e-3, share=1e-3, vector=1e-3, levels=3)
HALF: Final = Tolerance(nats=0.25, share=0.05, vector=0.1, levels=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What came of a comparison.

    Attributes:
        events: how many were compared.
        tokens: how many of them are tokens.
        largest_nats: the largest difference of a token's log-probability.
        tolerance: that was granted.
        is_whole: whether the run was compared to its end.
        differences: sentences, in the order of the run; the first `MOST_DIFFERENCES`.
        notes: what was not compared, or by another measure, in sentences.
    """

    events: int
    tokens: int
    largest_nats: float
    tolerance: Tolerance
    is_whole: bool
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def image_of_run(source: SourceImage, started: RunStarted) -> DisplayImage:
    """An opened image under the window of a run.

    Args:
        source: the file that the run was about, at its frame.
        started: the run. The function of a chosen window is not among its facts: the one that
            shows the picture which was kept.
    """
    facts, covered = started.image, started.request.interventions.occlude
    shown = display_image(source)
    center, width = facts.window_center, facts.window_width
    if source.is_color or facts.window_source not in ("preset", "request"):
        return shown
    if center is None or width is None:
        raise VerificationError("The trace names a chosen window and not which: it is damaged.")
    kept = _decoded(facts.display_png)
    nearest = math.inf
    for function in WINDOW_FUNCTIONS:
        try:
            window = Window(center, width, function)
        except ValueError:
            continue
        candidate = display_image(source, window, facts.window_source)
        # Runs from before what is covered was painted over in their picture show what lies there.
        distance = min(
            float(_distance(kept, _trusted(encoded_png(pixels, DISPLAY_SIDE))).mean())
            for pixels in (occluded(candidate.pixels, covered), candidate.pixels)
        )
        if distance < nearest:
            shown, nearest = candidate, distance
    return shown


def verify(engine: Engine, image: DisplayImage, trace: Trace) -> Verification:
    """Makes a run once more with its own tokens, and compares.

    Args:
        engine: with the checkpoint that is said to have made it.
        image: the original, shown as it was in the run.
        trace: the run, as read from a file.

    Raises:
        VerificationError: nothing in it can be compared, or it cannot be made once more.
        RequestError: the trace holds a request that cannot be run.
    """
    started = trace.started
    if started is None or not trace.tokens:
        raise VerificationError("The trace holds no token to compare.")
    found = _compared(engine, image, trace, started, "default")
    if found.differences and all("heat map" in one for one in found.differences):
        # Which layers were traced is not in the file.
        other = _compared(engine, image, trace, started, "all")
        return other if other.agrees else found
    return found


def _compared(
    engine: Engine,
    image: DisplayImage,
    trace: Trace,
    started: RunStarted,
    layers: TracedLayers,
) -> Verification:
    formats = {started.model.dtype, engine.loaded.facts.dtype}
    comparison = _Comparison(SINGLE if formats == {_FLOAT32} else HALF, image)
    if comparison.tolerance is HALF:
        comparison.notes.append(
            f"The run says that it was computed in {started.model.dtype}, and this one was in "
            f"{engine.loaded.facts.dtype}: differences of half precision were let pass."
        )
    sampling = started.request.sampling
    script = Script([token.token_id for token in trace.tokens], sampling.temperature)
    recorded = _to_compare(trace, comparison)
    made = _made_again(engine, _request(trace, started, image, layers), script)
    try:
        for event in recorded:
            other = _next_event(made)
            if type(other) is not type(event):
                what = "nothing" if other is None else f"a {type(other).__name__} event"
                comparison.differ(f"a {type(event).__name__} event", "in the trace", f"{what} here")
                break
            comparison.compare(event, other)
    except ScriptError as error:
        comparison.differ("the tokens", "in the trace", f"here {error}")
    finally:
        made.close()
    comparison.check_draws(script, sampling)
    if sampling.temperature > 0.0:
        comparison.notes.append(
            f"Its tokens were drawn at a temperature of {sampling.temperature:g}: whether this "
            "seed draws them was not compared."
        )
    return comparison.result()


def _made_again(engine: Engine, request: Request, script: Script) -> Generator[Event]:
    clock = time.perf_counter()
    decoder, start = engine.prepare(request)
    yield engine.started(start, "", clock)
    rollout = Rollout(decoder, start, script=script, clock=clock)
    try:
        for _, event in rollout.events():
            yield event
    finally:
        rollout.release()


def _next_event(made: Iterator[Event]) -> Event | None:
    """The next event of the run; None behind the last.

    Raises:
        ScriptError: the recorded tokens cannot have been written.
        VerificationError: the run failed.
    """
    try:
        return next(made, None)
    except ScriptError:
        raise
    except Exception as error:
        failure = failure_of(error, 0.0)
        said = failure.message if failure.code != "unexpected" else type(error).__name__
        raise VerificationError(f"The run cannot be made once more: {said}") from error


def _to_compare(trace: Trace, comparison: _Comparison) -> list[Event]:
    """The events up to where the run was broken off from outside."""
    events = list(trace)
    last = events[-1]
    comparison.is_whole = isinstance(last, Finished) and last.reason != "stopped"
    if isinstance(last, Failed):
        comparison.notes.append(
            "The run ended in an error, whose message is the file's own and was not compared."
        )
        return events[:-1]
    if isinstance(last, Finished) and last.reason == "stopped":
        comparison.notes.append("The run was stopped; what came before was compared.")
        return events[:-1]
    if not isinstance(last, Finished):
        comparison.differ("the end of the run", "not in the trace", "here")
    return events


def _request(
    trace: Trace, started: RunStarted, image: DisplayImage, layers: TracedLayers
) -> Request:
    facts, tokens = started.request, trace.tokens
    answered = trace.answered
    is_traced = any(token.attention for token in tokens)
    return Request(
        image=image,
        question=facts.question,
        options=facts.options,
        method=facts.method,
        seed=facts.seed,
        sampling=facts.sampling,
        budgets=Budgets(
            max_new_tokens=facts.max_new_tokens,
            max_crops=facts.max_crops,
            latent_steps=facts.latent_steps,
        ),
        entropy_threshold=facts.entropy_threshold,
        bottleneck=facts.bottleneck,
        interventions=facts.interventions,
        tracing=Tracing(
            layers=layers if is_traced else "none",
            alternatives=min(len(tokens[0].alternatives), 50),
            belief=bool(trace.beliefs),
            distribution=answered is None or bool(answered.probabilities),
        ),
    )


class _Comparison:
    """Goes along two runs and collects what differs."""

    def __init__(self, tolerance: Tolerance, image: DisplayImage) -> None:
        self.tolerance = tolerance
        self._original = image
        self.notes: list[str] = []
        self.is_whole = True
        self._differences: list[str] = []
        self._count = 0
        self._largest = 0.0
        self._events = self._tokens = 0

    def result(self) -> Verification:
        """What has been found."""
        return Verification(
            events=self._events,
            tokens=self._tokens,
            largest_nats=self._largest,
            tolerance=self.tolerance,
            is_whole=self.is_whole,
            differences=tuple(self._differences),
            notes=tuple(self.notes),
        )

    def differ(self, what: str, then: object, now: object) -> None:
        """Something is otherwise than it was recorded."""
        self._count += 1
        if self._count <= MOST_DIFFERENCES:
            self._differences.append(f"{what}: {_short(then)} / {_short(now)}")

    def compare(self, then: Event, now: Event) -> None:
        """Two events of the same kind."""
        self._events += 1
        match then, now:
            case RunStarted(), RunStarted():
                self._started(then, now)
            case TokenStep(), TokenStep():
                self._token(then, now)
            case LatentStep(), LatentStep():
                self._latent(then, now)
            case Reground(), Reground():
                self._reground(then, now)
            case Belief(), Belief():
                where = f"belief ({then.moment}, token {then.token_index})"
                self._same(where, then, now, "moment", "token_index", "crop", "options")
                self._near(
                    where,
                    (*then.probabilities, then.outside),
                    (*now.probabilities, now.outside),
                    self.tolerance.share,
                )
            case Answered(), Answered():
                self._same("answer", then, now, "text", "option", "valid", "options")
                self._near("answer", then.probabilities, now.probabilities, self.tolerance.share)
            case Finished(), Finished():
                self._same("end", then, now, "reason")
                if then.failed_calls:
                    # Runs from before these were kept name none.
                    self._same("end", then, now, "failed_calls")
                # `forwarded` counts what a group computed for all its members, too.
                counted = ("prompt", "image", "generated", "latent", "crop")
                self._same("end", then.counts, now.counts, *counted)
            case _:
                raise ValueError("Two events of one kind are compared.")

    def check_draws(self, script: Script, sampling: Sampling) -> None:
        """Every token can have been drawn: at temperature 0, only the likeliest."""
        allowed = self.tolerance.nats + RAREST_NATS * sampling.temperature
        mass = sampling.top_p + self.tolerance.share
        for index, nats in script.shortfalls.items():
            if nats > allowed or script.masses_above[index] > mass:
                self.differ(
                    f"token {index}",
                    f"drawn at temperature {sampling.temperature:g}, top_p {sampling.top_p:g}",
                    f"{nats:.3f} nats below the likeliest",
                )
                return

    def _started(self, then: RunStarted, now: RunStarted) -> None:
        names = ("id", "stage", "parameters", "layers", "embedded", "trained_methods")
        self._same("model", then.model, now.model, *names, "entropy_threshold")
        if then.model.revision and now.model.revision:
            # A folder has none.
            self._same("model", then.model, now.model, "revision")
        self._same("run", then, now, "notices")
        self._image(then, now)
        if (then.out_of_distribution is None) != (now.out_of_distribution is None):
            self.differ("distance", then.out_of_distribution, now.out_of_distribution)
        elif then.out_of_distribution is not None and now.out_of_distribution is not None:
            one, other = then.out_of_distribution, now.out_of_distribution
            self._same("distance", one, other, "flagged")
            self._relative("distance", one.score, other.score)
            self._relative("distance threshold", one.threshold, other.threshold)

    def _image(self, started: RunStarted, again: RunStarted) -> None:
        then, now = started.image, again.image
        pictures = ("display_png", "seen_png")
        # Runs from before these were kept leave them open.
        younger = {name for name in ("left_edge", "spacing_kind") if getattr(then, name) == ""}
        names = {field.name for field in fields(then)} - {*pictures, *younger}
        self._same("image", then, now, *sorted(names))
        if again.request.interventions.occlude and self._shows_what_was_covered(then, now):
            self.notes.append("The saved picture shows what was covered: run it again to share it.")
        else:
            self._picture("image.display_png", then.display_png, now.display_png)
        self._picture("image.seen_png", then.seen_png, now.seen_png)

    def _shows_what_was_covered(self, then: ImageFacts, now: ImageFacts) -> bool:
        """Whether the kept picture is the whole one, as in runs that did not paint over it."""
        whole = encoded_png(self._original.pixels, DISPLAY_SIDE)
        return _is_other(then.display_png, now.display_png) and not _is_other(
            then.display_png, whole
        )

    def _token(self, then: TokenStep, now: TokenStep) -> None:
        self._tokens += 1
        where = f"token {then.index} ({then.text[:LONGEST_TEXT]!r})"
        self._same(where, then, now, "index", "token_id", "text", "segment", "forced")
        distance = abs(then.logprob - now.logprob)
        self._largest = max(self._largest, math.inf if math.isnan(distance) else distance)
        nats = self.tolerance.nats
        self._near(f"{where} log-probability", (then.logprob,), (now.logprob,), nats)
        self._near(f"{where} entropy", (then.entropy_nats,), (now.entropy_nats,), nats)
        self._alternatives(where, then, now)
        self._maps(where, then.attention, now.attention)

    def _alternatives(self, where: str, then: TokenStep, now: TokenStep) -> None:
        known = {one.token_id: one for one in now.alternatives}
        least = min((one.logprob for one in now.alternatives), default=0.0)
        if len(then.alternatives) != len(now.alternatives):
            self.differ(f"{where} alternatives", len(then.alternatives), len(now.alternatives))
            return
        for one in then.alternatives:
            other = known.get(one.token_id)
            # Of two that are as likely, either may be the last of the list.
            likely = least if other is None else other.logprob
            if not abs(one.logprob - likely) <= self.tolerance.nats or (
                other is not None and one.text != other.text
            ):
                said = "not among the likeliest" if other is None else other
                self.differ(f"{where} alternative", one, said)

    def _latent(self, then: LatentStep, now: LatentStep) -> None:
        where = f"latent {then.step}"
        self._same(where, then, now, "step", "steps")
        self._relative(f"{where} norm", then.norm, now.norm)
        if not self._is_near_vector(then.vector, now.vector):
            self.differ(where, "fed in the trace", "another is fed here")
        self._near(
            f"{where} cosine",
            () if then.cosine_to_previous is None else (then.cosine_to_previous,),
            () if now.cosine_to_previous is None else (now.cosine_to_previous,),
            self.tolerance.share,
        )
        self._maps(where, (*then.attention, then.similarity), (*now.attention, now.similarity))

    def _is_near_vector(self, then: bytes, now: bytes) -> bool:
        if len(then) != len(now):
            return False
        one, other = (np.frombuffer(raw, dtype="<f4").astype(np.float64) for raw in (then, now))
        length = max(float(np.linalg.norm(other)), 1e-6)
        return float(np.linalg.norm(one - other)) <= self.tolerance.vector * length

    def _reground(self, then: Reground, now: Reground) -> None:
        where = f"crop {then.number}"
        names = ("number", "clamped", "skipped", "rows", "columns", "crop_width", "crop_height")
        self._same(where, then, now, *names, "box_source_px")
        self._same(where, then.trigger, now.trigger, "kind", "token_index", "threshold")
        self._near(f"{where} box", then.box, now.box, 1e-6)
        self._near(f"{where} box", then.box_seen_px, now.box_seen_px, 1e-3)
        self._near(
            f"{where} entropy",
            () if then.trigger.entropy_nats is None else (then.trigger.entropy_nats,),
            () if now.trigger.entropy_nats is None else (now.trigger.entropy_nats,),
            self.tolerance.nats,
        )
        self._picture(f"{where} picture", then.crop_png, now.crop_png)

    def _maps(
        self, where: str, then: tuple[EvidenceMap, ...], now: tuple[EvidenceMap, ...]
    ) -> None:
        if len(then) != len(now):
            self.differ(f"{where} heat maps", len(then), len(now))
            return
        for one, other in zip(then, now, strict=True):
            what = f"{where} heat map of image {one.image}"
            if (one.image, one.rows, one.columns) != (other.image, other.rows, other.columns):
                self.differ(what, "of another grid", "here")
                continue
            distance = float(np.abs(one.to_array() - other.to_array()).max())
            levels = 255.0 * distance / max(one.peak, other.peak, 1e-6)
            total = abs(one.total - other.total) / max(abs(other.total), 1.0)
            if not (levels <= self.tolerance.levels and total <= self.tolerance.share):
                self.differ(what, "another", "here")

    def _same(self, where: str, then: object, now: object, *names: str) -> None:
        for name in names:
            one, other = getattr(then, name), getattr(now, name)
            if one != other:
                self.differ(f"{where} {name}", one, other)

    def _near(self, where: str, then: Iterable[float], now: Iterable[float], limit: float) -> None:
        one, other = tuple(then), tuple(now)
        if len(one) != len(other) or not all(
            abs(a - b) <= limit for a, b in zip(one, other, strict=True)
        ):
            self.differ(where, one, other)

    def _relative(self, where: str, then: float, now: float) -> None:
        if not abs(then - now) <= self.tolerance.vector * max(abs(now), 1e-6):
            self.differ(where, then, now)

    def _picture(self, where: str, then: bytes, now: bytes) -> None:
        if _is_other(then, now):
            self.differ(where, "another picture", "here")


def _is_other(then: bytes, now: bytes) -> bool:
    """Whether a kept picture differs from one that is made here."""
    return int(_distance(_decoded(then), _trusted(now)).max()) > PICTURE_LEVELS


def _distance(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Grey levels between two pictures; more than there are, where their sizes differ."""
    if one.shape != other.shape:
        return np.array([256], dtype=np.int16)
    return np.abs(one.astype(np.int16) - other.astype(np.int16))


def _decoded(png: bytes) -> npt.NDArray[np.uint8]:
    """A picture of a trace, which is anybody's: plain grey or RGB PNG, as the engine writes it.

    Whatever else a PNG can hold (transparency, colour profiles, frames, another file in front of
    or behind it) lets a browser show something else than what is compared.
    """
    damaged = VerificationError("A picture in the trace is damaged, or is no plain picture.")
    try:
        width, height = check_png(png)
        kinds = _chunks(png)
        depth, colour, interlaced = png[24], png[25], png[28]
        if kinds != ["IHDR", *["IDAT"] * (len(kinds) - 2), "IEND"]:
            raise damaged
        if depth != 8 or colour not in (0, 2) or interlaced:
            raise damaged
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            pixels = np.asarray(picture)
    except (TraceFileError, OSError, SyntaxError, ValueError, struct.error) as error:
        raise damaged from error
    if pixels.shape[:2] != (height, width):
        raise damaged
    return _as_rgb(pixels)


def _chunks(png: bytes) -> list[str]:
    """Types of the chunks of a PNG (ISO/IEC 15948, 5.3), which end where the file does."""
    kinds, place = [], 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        kinds.append(kind.decode("latin-1"))
        place += 12 + length
        if len(kinds) > MOST_CHUNKS:
            raise ValueError("too many chunks")
    if place != len(png):
        raise ValueError("the file is cut off")
    return kinds


def _trusted(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return _as_rgb(np.asarray(picture))


def _as_rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def _short(value: object) -> str:
    if isinstance(value, Alternative):
        text = f"{value.text[:LONGEST_TEXT]!r} {value.logprob:.5f}"
    elif isinstance(value, float):
        text = f"{value:.5f}"
    elif isinstance(value, tuple):
        text = ", ".join(_short(item) for item in value[:MOST_DIFFERENCES]) or "none"
    else:
        whole = value[: LONGEST_TEXT + 1] if isinstance(value, str) else value
        text = "none" if whole is None else str(whole)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "..."
