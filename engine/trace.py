"""The one data type that travels: an ordered list of small frozen events.

The engine yields events; the live view, the replay, the report, the command line, training
rollouts and the evaluation fold over them. Nothing here needs torch. Entropies and
log-probabilities are in nats; boxes follow `engine.geometry`; seconds count from the start
of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.geometry import PatientSide, SpacingKind
from engine.request import Interventions, Method, Sampling

SCHEMA_VERSION = 1

Segment = Literal["reasoning", "tool", "answer"]
BeliefMoment = Literal["prefill", "latent", "before_crop", "after_crop", "end"]
TriggerKind = Literal["tool_call", "entropy", "request"]
FinishReason = Literal["answered", "stopped", "token_budget", "no_answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceMap:
    """A map over the patch grid of one image, quantised to bytes.

    Attributes:
        image: 0 for the view of the whole image, n for crop n.
        rows, columns: the grid of visual tokens.
        values: `rows * columns` bytes in raster order; 255 is `peak`.
        peak: the largest value before quantisation (attention share or cosine).
        total: the sum before quantisation; for attention, the mass on this image.
    """

    image: int
    rows: int
    columns: int
    values: bytes
    peak: float
    total: float

    def __post_init__(self) -> None:
        if len(self.values) != self.rows * self.columns:
            raise ValueError(
                f"An evidence map of {self.rows} x {self.columns} needs "
                f"{self.rows * self.columns} bytes, not {len(self.values)}."
            )

    def to_array(self) -> npt.NDArray[np.float32]:
        """The map as float32 `(rows, columns)`, within half a step of the original."""
        grid = np.frombuffer(self.values, dtype=np.uint8).astype(np.float32)
        return (grid * (self.peak / 255.0)).reshape(self.rows, self.columns)


def peak_place(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Where a map is highest, to a fraction of a cell: `(x, y)`, normalised to its image.

    The centre of the highest cell, moved along each axis to the vertex of the parabola through
    it and its two neighbours, as peaks of sampled signals are located (quadratic interpolation);
    at most half a cell, and not at all at the border. A finding smaller than a cell may hold the
    centre of none.

    Args:
        values: `(rows, columns)`, at least one cell.

    >>> peak_place(np.array([[0.0, 2.0, 2.0, 0.0]]))
    (0.5, 0.5)
    """
    row, column = divmod(int(values.argmax()), values.shape[1])
    across, down = values[row].tolist(), values[:, column].tolist()
    return _vertex(across, column) / len(across), _vertex(down, row) / len(down)


def _vertex(line: Sequence[float], best: int) -> float:
    """Place of the highest value along a line of cells, in cells from its beginning."""
    if not 0 < best < len(line) - 1:
        return best + 0.5
    before, own, after = line[best - 1 : best + 2]
    bend = before - 2 * own + after
    # Nothing bends where three are equal.
    return best + 0.5 + (0.5 * (before - after) / bend if bend < 0 else 0.0)


def quantised_map(weights: npt.NDArray[np.floating], image: int) -> EvidenceMap:
    """An `EvidenceMap` from non-negative weights `(rows, columns)`; negatives count as 0."""
    grid = np.maximum(np.asarray(weights, dtype=np.float32), 0.0)
    peak = float(grid.max())
    if not np.isfinite(peak):
        grid = np.nan_to_num(grid)
        peak = float(grid.max())
    scaled = grid * (255.0 / peak) if peak > 0 else grid
    return EvidenceMap(
        image=image,
        rows=int(grid.shape[0]),
        columns=int(grid.shape[1]),
        values=np.rint(scaled).astype(np.uint8).tobytes(),
        peak=peak,
        total=float(grid.sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Which model ran.

    Attributes:
        id: hub id or the checkpoint's own name, never a local path.
        stage: the training stage (`base`, `medlvr`, ...), or `unknown`.
        embedded: whether it is the small model shipped with the project.
        trained_methods: the methods that the checkpoint was trained for; empty if unknown.
        entropy_threshold: nats above which a reasoning token counts as unsure, set on validation
            images; None if nobody set one.
    """

    id: str
    revision: str
    stage: str
    dtype: str
    device: str
    parameters: int
    layers: int
    embedded: bool
    trained_methods: tuple[str, ...]
    entropy_threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """The request without its image."""

    question: str
    options: tuple[str, ...]
    method: Method
    seed: int
    sampling: Sampling
    max_new_tokens: int
    max_crops: int
    latent_steps: int
    entropy_threshold: float | None
    interventions: Interventions
    bottleneck: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """The image, as it was and as the model saw it.

    Attributes:
        source_width, source_height: pixels of the displayed original.
        left_edge: the patient's side at the left edge of the image; '' where it is not known,
            as in every trace that was saved before this was kept.
        spacing_kind: what `spacing_mm` is a distance of (`engine.imaging.SourceImage`); '' where
            it is not known, as in every trace that was saved before this was kept.
        seen_width, seen_height: pixels after the model's own resize.
        rows, columns: the grid of visual tokens over the seen image.
        display_png: the 8-bit image as displayed (PNG), at most 2048 pixels a side; regions that
            were covered (`Interventions.occlude`) are painted over.
        seen_png: the 8-bit image as the model saw it (PNG).
    """

    sha256: str
    source_width: int
    source_height: int
    modality: str
    window_center: float | None
    window_width: float | None
    window_source: str
    spacing_mm: tuple[float, float] | None
    seen_width: int
    seen_height: int
    rows: int
    columns: int
    display_png: bytes
    seen_png: bytes
    left_edge: PatientSide = ""
    spacing_kind: SpacingKind = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfDistribution:
    """How far the image lies from what the checkpoint was trained on.

    Attributes:
        score: distance of the vision features; larger is further.
        threshold: set on validation images; above it the run is flagged.
        flagged: `score > threshold`.
    """

    score: float
    threshold: float
    flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """First event: what is run on what.

    Attributes:
        out_of_distribution: None when the checkpoint carries no such detector.
        notices: sentences for the user about limits of this run.
    """

    seconds: float
    run_id: str
    model: ModelFacts
    request: RequestFacts
    image: ImageFacts
    out_of_distribution: OutOfDistribution | None
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One of the likeliest tokens of a step."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStep:
    """One token of the model's output.

    Attributes:
        index: 0-based position among the tokens of the run (forced ones included).
        text: what this token adds to the text; empty while a character is incomplete.
        logprob: of the token under the model at temperature 1.
        entropy_nats: of the model's whole next-token distribution at temperature 1.
        forced: whether the engine wrote the token instead of drawing it.
        attention: of this step's query over each image in context, mean of heads and layers.
    """

    seconds: float
    index: int
    token_id: int
    text: str
    logprob: float
    entropy_nats: float
    alternatives: tuple[Alternative, ...]
    segment: Segment
    forced: bool
    attention: tuple[EvidenceMap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentStep:
    """One latent visual step: a hidden state that is fed back as the next input.

    Attributes:
        step: from 1; `steps` is how many the segment has.
        attention: where the step's query looked, per image.
        similarity: cosine of the latent to every visual token of the view, negatives at 0.
        norm: Euclidean norm of the vector that was fed.
        cosine_to_previous: None on the first step.
        vector: what was fed, little-endian float32, so that a run can be replayed.
    """

    seconds: float
    step: int
    steps: int
    attention: tuple[EvidenceMap, ...]
    similarity: EvidenceMap
    norm: float
    cosine_to_previous: float | None
    vector: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """Why the model looked again.

    Attributes:
        kind: the model's own tool call, an entropy peak, or the request.
        token_index: `TokenStep.index` at which it was decided.
        entropy_nats, threshold: of an entropy peak; None for the other kinds.
    """

    kind: TriggerKind
    token_index: int
    entropy_nats: float | None
    threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reground:
    """A crop of the original pixels, encoded and added to the context.

    Attributes:
        number: from 1.
        box: normalised `(x0, y0, x1, y1)`.
        box_source_px: what was cut from the displayed original, in its pixels: the box with the
            padding of the checkpoint, rounded outward.
        box_seen_px: the box in pixels of the image as the model saw it.
        clamped: whether the model's box reached outside the image and was cut.
        skipped: whether an intervention kept the pixels from the model.
        rows, columns: the crop's own grid of visual tokens.
        crop_png: the crop as the model saw it (PNG).
    """

    seconds: float
    number: int
    box: tuple[float, float, float, float]
    box_source_px: tuple[int, int, int, int]
    box_seen_px: tuple[float, float, float, float]
    clamped: bool
    skipped: bool
    trigger: Trigger
    rows: int
    columns: int
    crop_width: int
    crop_height: int
    crop_png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """The answer if the model had to answer now, probed on a fork of the KV cache.

    Attributes:
        token_index: how many tokens had been written when it was probed.
        crop: the number of the crop for `before_crop` and `after_crop`, else None.
        options: the request's options, or, for an open question, the one greedy answer.
        probabilities: of each option, summing to 1 over several options.
        outside: probability of answering something else than an option.
    """

    seconds: float
    moment: BeliefMoment
    token_index: int
    crop: int | None
    options: tuple[str, ...]
    probabilities: tuple[float, ...]
    outside: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer.

    Attributes:
        text: the answer as text (the option's text when one was chosen).
        option: index into the request's options, None for an open or an invalid answer.
        valid: False when no answer could be read, or none of the options was named.
        probabilities: the distribution over the options at the answer; empty if open.
    """

    seconds: float
    text: str
    option: int | None
    valid: bool
    options: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """How many tokens a run took; `forwarded` counts every position sent through the model."""

    prompt: int
    image: int
    generated: int
    latent: int
    crop: int
    forwarded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Last event of a run that did not fail.

    Attributes:
        failed_calls: zoom calls that could not be carried out as they stood; 0 in every trace that
            was saved before this was kept.
    """

    seconds: float
    reason: FinishReason
    prefill_seconds: float
    decode_seconds: float
    counts: TokenCounts
    peak_memory_bytes: int
    failed_calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Last event of a run that failed: a code and one sentence for the user."""

    seconds: float
    code: str
    message: str


Event = RunStarted | TokenStep | LatentStep | Reground | Belief | Answered | Finished | Failed

EVENT_TYPES: tuple[type[Event], ...] = (
    RunStarted,
    TokenStep,
    LatentStep,
    Reground,
    Belief,
    Answered,
    Finished,
    Failed,
)


@dataclass(frozen=True, slots=True)
class Trace:
    """An ordered, immutable run."""

    events: tuple[Event, ...]

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> Trace:
        """Collects a stream."""
        return cls(tuple(events))

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    @property
    def started(self) -> RunStarted | None:
        """The first `RunStarted`, if the run got that far."""
        return next((event for event in self.events if isinstance(event, RunStarted)), None)

    @property
    def tokens(self) -> tuple[TokenStep, ...]:
        """All tokens in order."""
        return tuple(event for event in self.events if isinstance(event, TokenStep))

    @property
    def latents(self) -> tuple[LatentStep, ...]:
        """All latent steps in order."""
        return tuple(event for event in self.events if isinstance(event, LatentStep))

    @property
    def regrounds(self) -> tuple[Reground, ...]:
        """All crops in order."""
        return tuple(event for event in self.events if isinstance(event, Reground))

    @property
    def beliefs(self) -> tuple[Belief, ...]:
        """All belief probes in order."""
        return tuple(event for event in self.events if isinstance(event, Belief))

    @property
    def answered(self) -> Answered | None:
        """The answer, if there was one."""
        return next((event for event in self.events if isinstance(event, Answered)), None)

    @property
    def text(self) -> str:
        """Everything the model wrote."""
        return "".join(token.text for token in self.tokens)
