"""What one run is asked to do: image, question, method, sampling, budgets, interventions.

Everything here is per request; what belongs to a process (model, device) is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.geometry import Box, PatientSide, SpacingKind

Method = Literal["direct", "latent", "zoom", "auto"]
LatentIntervention = Literal["none", "zero", "noise", "shuffle", "blind", "skip"]
TracedLayers = Literal["none", "default", "all"]

METHODS: tuple[Method, ...] = get_args(Method)
LATENT_INTERVENTIONS: tuple[LatentIntervention, ...] = get_args(LatentIntervention)

MAX_QUESTION_CHARACTERS = 1000
MAX_OPTIONS = 10
MAX_OPTION_CHARACTERS = 200


class RequestError(ValueError):
    """A request that cannot be run; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DisplayImage:
    """The 8-bit image as the viewer shows it, with the few facts that may travel with it.

    Attributes:
        pixels: uint8, `(H, W)` or `(H, W, 3)`; the original size, windowed and, for
            MONOCHROME1, already inverted.
        sha256: hex digest of the source file's bytes.
        modality: DICOM modality code such as `CR`, or an empty string.
        window_center, window_width: the window that made the pixels, in modality units.
        window_source: where that window came from (`file`, `preset`, `percentile`, ...).
        spacing_mm: row and column spacing in millimetres where the file has it.
        spacing_kind: what lies so far apart (`engine.imaging.SourceImage`); '' when unknown.
        left_edge: the patient's side at the left edge of the image; '' where it is not known.
    """

    pixels: npt.NDArray[np.uint8]
    sha256: str = ""
    modality: str = ""
    window_center: float | None = None
    window_width: float | None = None
    window_source: str = "identity"
    spacing_mm: tuple[float, float] | None = None
    spacing_kind: SpacingKind = ""
    left_edge: PatientSide = ""

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8:
            raise RequestError("The image must be 8-bit by the time it reaches the model.")
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or 0 in shape:
            raise RequestError(f"The image has the shape {shape}; grey or RGB is needed.")

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise RequestError(f"temperature must lie in 0 to 10, not {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p must lie above 0 and up to 1, not {self.top_p}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Upper bounds of one run.

    Attributes:
        max_new_tokens: after so many the model is made to answer: a zoom call that is being
            written is finished, and up to 32 tokens of an answer follow; `direct` just ends.
        max_crops: zooms.
        latent_steps: slots of the latent segment, K.
    """

    max_new_tokens: int = 512
    max_crops: int = 2
    latent_steps: int = 8

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_new_tokens", 1, 8192),
            ("max_crops", 0, 16),
            ("latent_steps", 0, 64),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise RequestError(f"{name} must lie in {low} to {high}, not {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interventions:
    """Changes to the evidence, to ask whether what is shown matters.

    Attributes:
        latents: `zero`, `noise` and `shuffle` change what is fed into each latent slot;
            `blind` also keeps the slots from attending to the image and to what stands between
            it and them, which has read it; `skip` is K = 0: the segment is opened and closed at
            once.
        latent_donor: for `shuffle`, the latent vectors of another image's run, each the raw
            little-endian float32 bytes that `LatentStep.vector` carries.
        skip_crops: numbers (from 1) of the crops that are answered with no new pixels.
        move_crops: pairs of a crop number and the box to cut there instead.
        occlude: regions of the image painted over with the image's mean before encoding.
    """

    latents: LatentIntervention = "none"
    latent_donor: tuple[bytes, ...] = ()
    skip_crops: tuple[int, ...] = ()
    move_crops: tuple[tuple[int, Box], ...] = ()
    occlude: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if self.latents not in LATENT_INTERVENTIONS:
            raise RequestError(
                f"latents must be one of {', '.join(LATENT_INTERVENTIONS)}, not {self.latents!r}."
            )
        if self.latents == "shuffle" and not self.latent_donor:
            raise RequestError("Shuffled latents need the latents of another image's run.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """What is recorded beside the tokens; it never changes the tokens.

    Attributes:
        layers: whose attention rows are kept: none, up to a third of them, or all.
        alternatives: how many of the likeliest tokens each step lists.
        belief: whether the answer options are probed along the run.
        distribution: whether the answer carries the distribution over the options; training has
            no use for it, and it costs a fork of the cache a branch.
    """

    layers: TracedLayers = "default"
    alternatives: int = 5
    belief: bool = True
    distribution: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alternatives <= 50:
            raise RequestError(f"alternatives must lie in 0 to 50, not {self.alternatives}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question about one image.

    Attributes:
        entropy_threshold: nats; a reasoning token above it opens a zoom while crops are left
            (methods `zoom` and `auto`). `checkpoint` takes the number that was set for the
            checkpoint on validation images; None switches the rule off.
        bottleneck: once a latent segment has been closed, nothing written attends to an image
            that came before it, nor to the text between: the evidence passes through the
            latents or not at all.
    """

    image: DisplayImage
    question: str
    options: tuple[str, ...] = ()
    method: Method = "direct"
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    budgets: Budgets = field(default_factory=Budgets)
    entropy_threshold: float | Literal["checkpoint"] | None = None
    bottleneck: bool = False
    interventions: Interventions = field(default_factory=Interventions)
    tracing: Tracing = field(default_factory=Tracing)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise RequestError("Ask a question: the question is empty.")
        if len(self.question) > MAX_QUESTION_CHARACTERS:
            raise RequestError(
                f"The question has {len(self.question)} characters; "
                f"at most {MAX_QUESTION_CHARACTERS} are allowed."
            )
        if self.method not in METHODS:
            raise RequestError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}.")
        self._check_options()
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must lie in 0 to 2**63 - 1, not {self.seed}.")
        self._check_threshold()

    def _check_options(self) -> None:
        if len(self.options) == 1 or len(self.options) > MAX_OPTIONS:
            raise RequestError(f"Give no options, or 2 to {MAX_OPTIONS}, not {len(self.options)}.")
        if any(not option.strip() for option in self.options):
            raise RequestError("An answer option is empty.")
        if len({" ".join(option.split()) for option in self.options}) < len(self.options):
            raise RequestError("Two answer options are the same.")
        if any(len(option) > MAX_OPTION_CHARACTERS for option in self.options):
            raise RequestError(
                f"An answer option is longer than {MAX_OPTION_CHARACTERS} characters."
            )

    def _check_threshold(self) -> None:
        threshold = self.entropy_threshold
        if isinstance(threshold, str):
            if threshold != "checkpoint":
                raise RequestError(
                    f"entropy_threshold must be nats or 'checkpoint', not {threshold!r}."
                )
        elif threshold is not None and not 0.0 <= threshold <= 100.0:
            raise RequestError(f"entropy_threshold must lie in 0 to 100 nats, not {threshold}.")

    @property
    def entropy_limit(self) -> float | None:
        """Nats of the entropy rule, once the engine has looked up what `checkpoint` means."""
        return None if isinstance(self.entropy_threshold, str) else self.entropy_threshold

    def settled(self, entropy_threshold: float | None) -> Request:
        """The request with the checkpoint's own entropy threshold where it asks for it.

        Raises:
            RequestError: when it asks and the checkpoint has none.
        """
        if self.entropy_threshold != "checkpoint":
            return self
        if entropy_threshold is None:
            raise RequestError(
                "This checkpoint names no limit of its own from which a word is unsure: "
                "give a number of nats."
            )
        return replace(self, entropy_threshold=entropy_threshold)
