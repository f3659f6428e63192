"""The engine: a request in, events out, one run at a time on one model.

Whatever goes wrong inside a run becomes a `Failed` event with one sentence for the user; logs
carry the run's id and the kind of error, never a question, an answer or a file name.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from engine.decode import Decoder
from engine.encoded_views import EncodedViews
from engine.interventions import occluded
from engine.loading import NO_LATENT_NOTICE, LoadedModel, load_checkpoint
from engine.manifest import CheckpointError
from engine.processor import ImageShapeError
from engine.prompt import request_prompt
from engine.rasters import DISPLAY_SIDE, encoded_png
from engine.request import Request, RequestError
from engine.rollout import Rollout, Start
from engine.sampling import InvalidLogitsError
from engine.trace import (
    Event,
    Failed,
    Finished,
    ImageFacts,
    OutOfDistribution,
    RequestFacts,
    RunStarted,
    TokenCounts,
)

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.05
OUT_OF_MEMORY = (
    "Not enough memory for this run: try a smaller image, fewer zooms or a smaller checkpoint."
)
INVALID_LOGITS = (
    "The model's output is not a number: the checkpoint is damaged or its precision does not "
    "suit this device."
)
UNEXPECTED = "The run failed for a reason that was not foreseen; the log names its kind."
UNKNOWN_IMAGE = (
    "This image lies outside of what the model was trained on: nothing below should be relied on."
)


class Engine:
    """Runs requests on one checkpoint, strictly one after the other.

    Args:
        loaded: a model in memory, or a function that loads it on the first run.
        views: keeps visual tokens from run to run, for a tower that does not change; None: every
            run encodes its image.
    """

    def __init__(
        self,
        loaded: LoadedModel | Callable[[], LoadedModel],
        views: EncodedViews | None = None,
    ) -> None:
        self._source = loaded
        self._views = views
        self._loaded = loaded if isinstance(loaded, LoadedModel) else None
        self._lock = threading.Lock()

    @classmethod
    def load(cls, checkpoint: str | Path, device: str | None = None) -> Engine:
        """Loads a checkpoint (hub id, folder, peft adapter) now.

        Raises:
            CheckpointError: when it cannot be used.
        """
        return cls(load_checkpoint(checkpoint, device))

    @classmethod
    def deferred(cls, checkpoint: str | Path, device: str | None = None) -> Engine:
        """Loads a checkpoint on the first run; a failure then is that run's `Failed`."""
        return cls(lambda: load_checkpoint(checkpoint, device))

    @property
    def loaded(self) -> LoadedModel:
        """The model in memory, loaded if need be.

        Raises:
            CheckpointError: when it cannot be loaded.
        """
        if self._loaded is None:
            source = self._source
            self._loaded = source if isinstance(source, LoadedModel) else source()
        return self._loaded

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        """Runs a request; yields its events as they happen.

        A second request waits until the first has ended. Closing the iterator, or setting
        `stop`, ends the run within one token and frees what it held; what is under way before
        the first token (loading, the tower, the pass over the prompt) is finished first.
        """
        if not self._wait_for_turn(stop):
            yield _stopped_before_start()
            return
        run_id = uuid.uuid4().hex
        clock = time.perf_counter()
        failure: Failed | None = None
        rollout: list[Rollout] = []
        try:
            yield from self._run(request, stop, run_id, clock, rollout)
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001 - a run ends in an event, whatever fails
            failure = failure_of(error, time.perf_counter() - clock)
            logger.warning("run %s ended with %s", run_id, type(error).__name__)
        finally:
            for one in rollout:
                one.release()
            rollout.clear()
            self._free()
            self._lock.release()
        if failure is not None:
            yield failure

    def prepare(self, request: Request) -> tuple[Decoder, Start]:
        """Encodes the image and lays out the prompt, without running the language model.

        Raises:
            ImageShapeError: when the model cannot take an image of this shape.
            RequestError: the checkpoint's own entropy threshold is asked for, and it has none.
        """
        loaded = self.loaded
        request = request.settled(loaded.manifest.entropy_threshold)
        decoder = Decoder(loaded)
        pixels = occluded(request.image.pixels, request.interventions.occlude)
        seen = loaded.image_processor(pixels, loaded.manifest.view)
        if self._views is None:
            view = decoder.encode(seen)
        else:
            view = self._views.tokens(seen, decoder.encode).to(decoder.device)
        text = request_prompt(loaded.manifest, request)
        prompt = decoder.lay_out(text, [(0, view, seen.grid)], 0)
        start = Start(request=request, pixels=pixels, seen=seen, view=view, prompt=prompt)
        return decoder, start

    def _run(
        self,
        request: Request,
        stop: threading.Event | None,
        run_id: str,
        clock: float,
        rollout: list[Rollout],
    ) -> Iterator[Event]:
        loaded = self.loaded
        if loaded.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(loaded.device)
        if _is_set(stop):
            # It was set while the checkpoint was loaded.
            yield _stopped_before_start()
            return
        decoder, start = self.prepare(request)
        yield self.started(start, run_id, clock)
        run = Rollout(decoder, start, clock=clock, stop=stop)
        rollout.append(run)
        del start
        for _, event in run.events():
            yield event

    def started(self, start: Start, run_id: str, clock: float) -> RunStarted:
        """The first event of a run that `prepare` has prepared.

        Args:
            start: the view and the prompt, as prepared.
            run_id: of the run.
            clock: `time.perf_counter()` at its start.
        """
        loaded, request = self.loaded, start.request
        distance = None if loaded.detector is None else loaded.detector.judge(start.view)
        return RunStarted(
            seconds=time.perf_counter() - clock,
            run_id=run_id,
            model=loaded.facts,
            request=request_facts(request),
            image=_image_facts(start, loaded),
            out_of_distribution=distance,
            notices=_notices(loaded, request, distance),
        )

    def _wait_for_turn(self, stop: threading.Event | None) -> bool:
        while not self._lock.acquire(timeout=WAIT_SECONDS):
            if _is_set(stop):
                return False
        if _is_set(stop):
            self._lock.release()
            return False
        return True

    def _free(self) -> None:
        if self._loaded is not None and self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()


def _is_set(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()


def request_facts(request: Request) -> RequestFacts:
    """The request without its image."""
    return RequestFacts(
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
        bottleneck=request.bottleneck,
    )


def _image_facts(start: Start, loaded: LoadedModel) -> ImageFacts:
    image, seen = start.request.image, start.seen
    return ImageFacts(
        sha256=image.sha256,
        source_width=image.width,
        source_height=image.height,
        modality=image.modality,
        window_center=image.window_center,
        window_width=image.window_width,
        window_source=image.window_source,
        spacing_mm=image.spacing_mm,
        seen_width=seen.width,
        seen_height=seen.height,
        rows=seen.grid.rows,
        columns=seen.grid.columns,
        # As it was encoded: what is covered may be a name, and must not be in a saved trace.
        display_png=encoded_png(start.pixels, DISPLAY_SIDE),
        seen_png=encoded_png(loaded.image_processor.seen_pixels(seen)),
        left_edge=image.left_edge,
        spacing_kind=image.spacing_kind,
    )


def _notices(
    loaded: LoadedModel, request: Request, distance: OutOfDistribution | None
) -> tuple[str, ...]:
    known = loaded.manifest.trained_methods
    # Left to decide, a checkpoint that learned to decide takes those steps only that it learned.
    goes_latent = request.method == "latent" or (request.method == "auto" and "auto" not in known)
    notices = [n for n in loaded.notices if goes_latent or n != NO_LATENT_NOTICE]
    if known and request.method not in known and request.method != "latent":
        notices.append(f"This checkpoint was not trained for the method {request.method}.")
    if distance is not None and distance.flagged:
        notices.append(UNKNOWN_IMAGE)
    return tuple(notices)


def failure_of(error: Exception, seconds: float) -> Failed:
    """What a user is told of an error inside a run."""
    code, message = "unexpected", UNEXPECTED
    if isinstance(error, CheckpointError):
        code, message = "checkpoint", str(error)
    elif isinstance(error, ImageShapeError):
        code, message = "image_shape", str(error)
    elif isinstance(error, RequestError):
        code, message = "request", str(error)
    elif isinstance(error, InvalidLogitsError):
        code, message = "invalid_logits", INVALID_LOGITS
    elif _is_out_of_memory(error):
        code, message = "out_of_memory", OUT_OF_MEMORY
    return Failed(seconds=seconds, code=code, message=message)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What torch raises on a CPU has no type of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _stopped_before_start() -> Finished:
    counts = TokenCounts(prompt=0, image=0, generated=0, latent=0, crop=0, forwarded=0)
    return Finished(
        seconds=0.0,
        reason="stopped",
        prefill_seconds=0.0,
        decode_seconds=0.0,
        counts=counts,
        peak_memory_bytes=0,
    )
