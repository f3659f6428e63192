"""Whether a saved run is what a checkpoint computes from an image.

The run is laid out once more as one sequence (`engine.replay`), and the log-probability of every
token that was recorded is compared with the one that comes out. A trace whose answer was written
in, or that another checkpoint made, does not stand that.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from engine.engine import Engine
from engine.loading import LoadedModel
from engine.rasters import encoded_png
from engine.replay import replayed_logprobs
from engine.request import Budgets, DisplayImage, Request
from engine.trace import LatentStep, RequestFacts, RunStarted, Trace

# Nats. In single precision only the order of the sums differs (1e-4 at most in the tests); in
# bf16 logits of about 20 are rounded to an eighth.
LIMIT_FLOAT32: Final = 1e-3
LIMIT_HALF: Final = 0.25
MOST_TOKENS: Final = 16_384


class VerificationError(ValueError):
    """A run that cannot be compared; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Recorded log-probabilities beside replayed ones, nats.

    Attributes:
        recorded, replayed: of every token, in order.
        limit: the largest difference that the number formats explain.
    """

    recorded: tuple[float, ...]
    replayed: tuple[float, ...]
    limit: float

    @property
    def worst(self) -> int:
        """Index of the token that differs most."""
        return max(range(len(self.recorded)), key=self.difference)

    @property
    def agrees(self) -> bool:
        """Whether no token differs by more than the limit."""
        return self.difference(self.worst) <= self.limit

    def difference(self, index: int) -> float:
        """Of a token; infinite where a number is not one."""
        distance = abs(self.recorded[index] - self.replayed[index])
        return distance if np.isfinite(distance) else float("inf")


def verify(engine: Engine, image: DisplayImage, trace: Trace) -> Verification:
    """Replays a run on the image that it is said to be of.

    Args:
        engine: with the checkpoint that is said to have made it.
        image: the original, shown as it was in the run.
        trace: the run, as read from a file.

    Raises:
        VerificationError: it is of another image, or nothing in it can be compared.
        ImageShapeError: the model cannot take the image.
        RequestError: the trace holds a request that cannot be run.
    """
    started = next((event for event in trace if isinstance(event, RunStarted)), None)
    if started is None or not trace.tokens:
        raise VerificationError("The trace holds no token to compare.")
    loaded = engine.loaded
    _check_fits(trace, loaded)
    request = _request(started.request, image)
    if request.bottleneck or request.interventions.latents == "blind":
        raise VerificationError(
            "A run under the bottleneck, or with blinded latents, cannot be replayed: its "
            "tokens saw less than a pass over all of it shows."
        )
    decoder, seen, start = engine.prepare(request)
    _check_seen(started, encoded_png(loaded.image_processor.seen_pixels(seen)))
    formats = {started.model.dtype, loaded.facts.dtype}
    return Verification(
        recorded=tuple(token.logprob for token in trace.tokens),
        replayed=replayed_logprobs(decoder, start.request, trace),
        limit=LIMIT_FLOAT32 if formats == {"float32"} else LIMIT_HALF,
    )


def _check_fits(trace: Trace, loaded: LoadedModel) -> None:
    """A trace is anybody's: its numbers go nowhere before they are known to fit the model."""
    if len(trace.tokens) + len(trace.latents) > MOST_TOKENS:
        raise VerificationError(f"The trace holds more than {MOST_TOKENS} tokens.")
    config = loaded.model.config.get_text_config()
    if not all(0 <= token.token_id < config.vocab_size for token in trace.tokens):
        raise VerificationError("The trace holds a token that this checkpoint does not know.")
    width = 4 * config.hidden_size
    if any(len(event.vector) != width for event in trace if isinstance(event, LatentStep)):
        raise VerificationError("The trace holds latents of another size than this checkpoint's.")


def _request(facts: RequestFacts, image: DisplayImage) -> Request:
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
    )


def _check_seen(started: RunStarted, seen_png: bytes) -> None:
    """Whether the model is shown what it was shown then, to the pixel."""
    with Image.open(io.BytesIO(started.image.seen_png)) as kept:
        then = np.asarray(kept.convert("RGB"))
    with Image.open(io.BytesIO(seen_png)) as made:
        now = np.asarray(made.convert("RGB"))
    if then.shape != now.shape or not np.array_equal(then, now):
        raise VerificationError(
            "The checkpoint sees this image otherwise than the run saw its own: give the frame "
            "and the window of the run (--frame, --window), or its own image and checkpoint."
        )
