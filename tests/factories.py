"""Synthetic traces and an engine without a model, for tests and for work on the page."""

from __future__ import annotations

import functools
import io
import math
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.live import StreamEngine
from app.models import Checkpoint, Model, Models
from engine.geometry import Box
from engine.group import ForkDecision, Group, Member, shared_events
from engine.group_io import member_start
from engine.request import Budgets, DisplayImage, Request
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
    ModelFacts,
    OutOfDistribution,
    Reground,
    RequestFacts,
    RunStarted,
    TokenCounts,
    TokenStep,
    Trace,
    Trigger,
    quantised_map,
)

GRID = 8
NODULE = Box(0.205, 0.52, 0.455, 0.77)
REASONING = (
    "The lungs are well expanded . The heart is of normal width . In the right lower zone there"
    " is a round density of about two centimetres with a margin"
)
SECOND = (
    "that cannot be told from afar . Seen closer , it is spiculated , with fine strands that"
    " reach into the lung around it ."
)
TOOL = '<tool_call>{"name":"zoom","arguments":{"bbox_2d":[46,116,102,172]}}</tool_call>'


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


@functools.cache
def chest(side: int = 256, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A drawing that resembles a chest radiograph, `(side, side)`."""
    y, x = np.mgrid[0:side, 0:side] / side
    rng = np.random.default_rng(seed)
    body = ((x - 0.5) / 0.47) ** 4 + ((y - 0.62) / 0.58) ** 4 < 1
    picture = np.where(body, 0.62, 0.05)
    for centre in (0.31, 0.69):
        lung = ((x - centre) / 0.15) ** 2 + ((y - 0.5) / 0.32) ** 2 < 1
        picture = np.where(lung, 0.22 + 0.1 * y, picture)
    for rib in range(7):
        arc = np.abs(y - 0.2 - rib * 0.085 - 0.5 * (np.abs(x - 0.5) - 0.2) ** 2) < 0.008
        picture = picture + np.where(arc & body, 0.08, 0.0)
    heart = ((x - 0.55) / 0.13) ** 2 + ((y - 0.62) / 0.16) ** 2 < 1
    picture = np.where(heart, 0.68, picture)
    picture = picture + np.where(np.abs(x - 0.5) < 0.035, 0.15, 0.0) * body
    nodule = np.exp(-(((x - 0.33) / 0.035) ** 2 + ((y - 0.64) / 0.035) ** 2))
    picture = picture + 0.35 * nodule + rng.normal(0.0, 0.02, picture.shape)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def blob(
    row: float, column: float, peak: float, image: int = 0, rows: int = GRID, columns: int = GRID
) -> EvidenceMap:
    """A map with one bump at the given cell."""
    y, x = np.mgrid[0:rows, 0:columns]
    bump = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2.5) + 0.04
    return quantised_map((peak * bump / bump.max()).astype(np.float32), image)


def words(text: str) -> list[str]:
    """A crude tokenizer: words with the space before them."""
    return [f" {word}" for word in text.split()]


def tool_pieces(box: Box = NODULE) -> list[str]:
    """The tool call for a box in pieces of six characters."""
    numbers = ",".join(f"{edge:.0f}" for edge in box.to_pixels(224, 224))
    text = TOOL.replace("46,116,102,172", numbers)
    return [text[start : start + 6] for start in range(0, len(text), 6)]


class _Script:
    """Writes the events of one synthetic run and keeps count of tokens and seconds."""

    def __init__(self, request: Request, seed: int) -> None:
        self.request = request
        self.rng = np.random.default_rng(seed)
        self.index = 0
        self.seconds = 0.0
        self.crops = 0

    def tick(self, seconds: float = 0.02) -> float:
        self.seconds += seconds
        return round(self.seconds, 4)

    def token(
        self, text: str, segment: str, entropy: float | None = None, *, forced: bool = False
    ) -> TokenStep:
        nats = float(self.rng.gamma(1.2, 0.25)) if entropy is None else entropy
        top = math.exp(-nats * 0.7)
        others = [(1 - top) * share for share in (0.5, 0.25, 0.15, 0.06)]
        texts = (text, " clear", " round", " the", " left")
        step = TokenStep(
            seconds=self.tick(),
            index=self.index,
            token_id=1000 + self.index,
            text=text,
            logprob=math.log(top),
            entropy_nats=nats,
            alternatives=tuple(
                Alternative(token_id=7 + rank, text=word, logprob=math.log(max(p, 1e-9)))
                for rank, (word, p) in enumerate(zip(texts, (top, *others), strict=True))
            ),
            segment=segment,  # type: ignore[arg-type]
            forced=forced,
            attention=self.attention(),
        )
        self.index += 1
        return step

    def attention(self) -> tuple[EvidenceMap, ...]:
        angle = self.index / 9
        view = blob(4 + 2.2 * math.sin(angle), 3 + 2.5 * math.cos(angle), 0.05)
        return (view, *(blob(3, 3, 0.04, image) for image in range(1, self.crops + 1)))

    def belief(self, moment: str, probabilities: tuple[float, ...], crop: int | None) -> Belief:
        return Belief(
            seconds=self.tick(0.001),
            moment=moment,  # type: ignore[arg-type]
            token_index=self.index,
            crop=crop,
            options=self.request.options,
            probabilities=probabilities,
            outside=0.02,
        )

    def latents(self) -> Iterator[LatentStep | TokenStep]:
        steps = self.request.budgets.latent_steps
        if self.request.interventions.latents == "skip":
            # The engine opens the segment and closes it at once.
            yield self.token("<|lat_start|>", "reasoning", 0.0, forced=True)
            yield self.token("<|lat_end|>", "reasoning", 0.0, forced=True)
            return
        for step in range(1, steps + 1):
            # Of the image, as a model's own are.
            seed = [int(self.request.image.sha256[:8] or "0", 16), self.request.seed, step]
            vector = np.random.default_rng(seed).normal(size=16).astype("<f4")
            yield LatentStep(
                seconds=self.tick(0.03),
                step=step,
                steps=steps,
                attention=self.attention(),
                similarity=blob(5 - 0.2 * step, 2, 0.3 + 0.05 * step),
                norm=float(np.linalg.norm(vector)),
                cosine_to_previous=None if step == 1 else 0.8 + 0.01 * step,
                vector=vector.tobytes(),
            )

    def crop(self, pixels: npt.NDArray[np.uint8], box: Box) -> Reground:
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = box.to_pixels_outward(width, height)
        self.crops += 1
        unsure = self.crops == 1 and self.request.entropy_limit is not None
        picture = np.asarray(Image.fromarray(pixels[y0:y1, x0:x1]).resize((224, 224)))
        return Reground(
            seconds=self.tick(0.05),
            number=self.crops,
            box=box.as_tuple(),
            box_source_px=(x0, y0, x1, y1),
            box_seen_px=box.to_pixels(224, 224),
            clamped=False,
            skipped=self.crops in self.request.interventions.skip_crops,
            trigger=Trigger(
                kind="entropy" if unsure else "tool_call",
                token_index=self.index - 1,
                entropy_nats=1.9 if unsure else None,
                threshold=self.request.entropy_limit if unsure else None,
            ),
            rows=GRID,
            columns=GRID,
            crop_width=224,
            crop_height=224,
            crop_png=png(picture),
        )


def spread(count: int, first: float) -> tuple[float, ...]:
    """`first` for the first option, the rest shared."""
    return (first, *([(1 - first) / (count - 1)] * (count - 1))) if count > 1 else (1.0,) * count


def started(request: Request, run_id: str, *, flagged: bool = False) -> RunStarted:
    """The first event of a synthetic run."""
    pixels = request.image.pixels
    height, width = pixels.shape[:2]
    longest = max(height, width)
    shown = (max(1, width * 512 // longest), max(1, height * 512 // longest))
    return RunStarted(
        seconds=0.0,
        run_id=run_id,
        model=ModelFacts(
            id="synthetic",
            revision="0",
            stage="base",
            dtype="float32",
            device="cpu",
            parameters=3_600_000,
            layers=6,
            embedded=True,
            trained_methods=("direct", "zoom"),
            entropy_threshold=0.4,
        ),
        request=RequestFacts(
            question=request.question,
            options=request.options,
            method=request.method,
            seed=request.seed,
            sampling=request.sampling,
            max_new_tokens=request.budgets.max_new_tokens,
            max_crops=request.budgets.max_crops,
            latent_steps=request.budgets.latent_steps,
            entropy_threshold=request.entropy_limit,
            interventions=request.interventions,
        ),
        image=ImageFacts(
            sha256=request.image.sha256,
            source_width=width,
            source_height=height,
            modality=request.image.modality,
            window_center=request.image.window_center,
            window_width=request.image.window_width,
            window_source=request.image.window_source,
            spacing_mm=request.image.spacing_mm,
            spacing_kind=request.image.spacing_kind,
            left_edge=request.image.left_edge,
            seen_width=224,
            seen_height=224,
            rows=GRID,
            columns=GRID,
            display_png=png(np.asarray(Image.fromarray(pixels).resize(shown))),
            seen_png=png(np.asarray(Image.fromarray(pixels).resize((224, 224)))),
        ),
        out_of_distribution=OutOfDistribution(
            score=3.1 if flagged else 0.4, threshold=1.0, flagged=flagged
        ),
        notices=(),
    )


def events_of(
    request: Request,
    run_id: str = "run",
    *,
    flagged: bool = False,
    box: Box = NODULE,
    choice: int = 0,
) -> Iterator[Event]:
    """A whole synthetic run for the request: look, doubt, zoom, latents, answer.

    The zoom goes to `box`, and the answer is the option with the number `choice`.
    """
    script = _Script(request, request.seed)
    count = len(request.options)
    final = spread(count, 0.91)
    yield started(request, run_id, flagged=flagged)
    script.tick(0.2)
    yield script.belief("prefill", spread(count, 0.42), None)
    if request.method in ("latent", "auto"):
        yield from script.latents()
        yield script.belief("latent", spread(count, 0.45), None)
    for word in words(REASONING):
        yield script.token(word, "reasoning", 1.9 if word == " margin" else None)
    if request.method in ("zoom", "auto") and request.budgets.max_crops:
        for piece in tool_pieces(box):
            forced = request.entropy_threshold is not None
            yield script.token(piece, "tool", 0.02, forced=forced)
        yield script.belief("before_crop", spread(count, 0.48), 1)
        yield script.crop(request.image.pixels, box)
        withheld = 1 in request.interventions.skip_crops
        yield script.belief("after_crop", spread(count, 0.5 if withheld else 0.83), 1)
        # The crop is what makes it sure.
        final = spread(count, 0.55) if withheld else final
        for word in words(SECOND):
            yield script.token(word, "reasoning")
    answer = request.options[choice] if request.options else "a spiculated nodule"
    yield script.belief("end", final, None)
    for word in words(answer):
        yield script.token(word, "answer", 0.1)
    yield Answered(
        seconds=script.tick(),
        text=answer,
        option=choice if request.options else None,
        valid=True,
        options=request.options,
        probabilities=final if request.options else (),
    )
    yield finished(script.tick(), script.index)


def finished(seconds: float, tokens: int, reason: str = "answered") -> Finished:
    """The last event."""
    return Finished(
        seconds=seconds,
        reason=reason,  # type: ignore[arg-type]
        prefill_seconds=0.2,
        decode_seconds=max(seconds - 0.2, 0.0),
        counts=TokenCounts(
            prompt=90, image=64, generated=tokens, latent=8, crop=64, forwarded=tokens + 220
        ),
        peak_memory_bytes=120 * 2**20,
    )


def request(**changes: object) -> Request:
    """A request on the drawing of a chest."""
    base = Request(
        image=DisplayImage(pixels=chest(), sha256="a" * 64, modality="DX", left_edge="right"),
        question="What is the margin of the nodule?",
        options=("Spiculated", "Smooth", "Lobulated"),
        method="auto",
        entropy_threshold=1.5,
        budgets=Budgets(latent_steps=4),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def trace(**changes: object) -> Trace:
    """A whole synthetic trace."""
    return Trace.from_events(events_of(request(**changes)))


# Parent, whether anything is weighed at the zoom, box, and answer of the members of a group.
MEMBERS: tuple[tuple[int | None, float | None, Box, int], ...] = (
    (None, 0.65, NODULE, 0),
    (None, 0.0, Box(0.6, 0.2, 0.8, 0.45), 1),
    (None, 0.3, Box(0.55, 0.55, 0.8, 0.8), 2),
    (0, 0.9, Box(0.22, 0.5, 0.5, 0.78), 0),
    (2, None, Box(0.2, 0.52, 0.4, 0.72), 0),
    (3, None, Box(0.25, 0.15, 0.45, 0.4), 1),
)


def group(**changes: object) -> Group:
    """Three runs from the prompt and three that branched off them before their zoom."""
    asked = request(method="zoom", **changes)
    at = len(words(REASONING)) + TOOL.index("[") // 6
    members: list[Member] = []
    for number, (parent, chance, box, choice) in enumerate(MEMBERS):
        seed = asked.seed + number
        run = list(events_of(replace(asked, seed=seed), box=box, choice=choice))
        start = member_start(started(asked, "run"), number)
        own = run[1:]
        if parent is not None:
            before = members[parent].trace
            shared = before.events[1 : shared_events(before, at)]
            own = [*shared, *run[shared_events(Trace.from_events(run), at) :]]
        decision = ForkDecision(
            token_index=at,
            baseline_nats=0.31,
            coordinates_nats=0.31 + (chance or 0.0),
            probability=chance or 0.0,
        )
        members.append(
            Member(
                trace=Trace((start, *own)),
                parent=parent,
                shared_tokens=0 if parent is None else at,
                decisions=() if chance is None else (decision,),
                correct=choice == 0,
            )
        )
    return Group(members=tuple(members), truth=asked.options[0] if asked.options else "")


def long_events(count: int, of: Request) -> Iterator[Event]:
    """A run of `count` reasoning tokens and an answer."""
    script = _Script(of, 1)
    yield started(of, "long")
    for number in range(count):
        yield script.token(f" word{number % 90}", "reasoning")
    yield Answered(
        seconds=script.tick(), text="yes", option=None, valid=True, options=(), probabilities=()
    )
    yield finished(script.tick(), count)


class FakeEngine:
    """Replays a synthetic run for any request, with a pause before every event.

    Args:
        delay: seconds before each event.
        tokens: length of a plain run instead of the scripted one; 0 for the scripted one.
        fails: raises inside the stream when set, as a bug in an engine would.
        flagged: whether every image is unlike those of the training.
        name: of its model.
    """

    def __init__(
        self,
        delay: float = 0.0,
        *,
        tokens: int = 0,
        fails: str = "",
        flagged: bool = False,
        name: str = "synthetic",
    ) -> None:
        self.delay = delay
        self.flagged = flagged
        self.tokens = tokens
        self.fails = fails
        self.name = name
        self.stopped = threading.Event()
        self.runs = 0

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        """The events of the run; ends early with `Finished(reason="stopped")`."""
        self.runs += 1
        request = request.settled(0.4)
        run_id = f"fake-{id(self):x}-{self.runs}"
        waiter = stop or threading.Event()
        written = 0
        events = (
            long_events(self.tokens, request)
            if self.tokens
            else events_of(request, run_id, flagged=self.flagged)
        )
        for event in events:
            if waiter.wait(self.delay) if self.delay else waiter.is_set():
                self.stopped.set()
                yield finished(event.seconds, written, "stopped")
                return
            if self.fails == "raise" and written == 5:
                raise RuntimeError("secret detail that must not reach the page")
            if self.fails == "memory" and written == 5:
                yield Failed(
                    seconds=event.seconds,
                    code="E301",
                    message="Not enough memory; try a smaller image or fewer crops.",
                )
                return
            written += isinstance(event, TokenStep)
            if isinstance(event, RunStarted):
                yield replace(event, model=replace(event.model, id=self.name))
            else:
                yield event


def offered(*engines: StreamEngine) -> Models:
    """Models around engines, the first with the key `base`, the others `other-1`, `other-2`, …"""
    keys = ("base", *(f"other-{number}" for number in range(1, len(engines))))
    return Models(
        Model(Checkpoint(key, "", getattr(engine, "name", key), "base", ("direct", "zoom")), engine)
        for key, engine in zip(keys, engines, strict=False)
    )


def vector_bytes(values: list[float]) -> bytes:
    """Little-endian float32 bytes."""
    return struct.pack(f"<{len(values)}f", *values)


class Curves:
    """Stands in for TensorBoard's writer, which need not be installed."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.points.append((tag, scalar_value, global_step))

    def close(self) -> None:
        self.closed = True
