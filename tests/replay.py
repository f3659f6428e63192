"""The naive twin of a run: laid out as one sequence, and sent through the model in one forward.

Teacher-forced: the recorded tokens, the recorded latent vectors and the crops cut again, so that
the log-probability of every token comes from one pass. It shows that a trace holds everything that
the run depended on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.decode import Decoder, Layout
from engine.geometry import Box, PatchGrid
from engine.interventions import occluded
from engine.processor import crop_pixels
from engine.prompt import request_prompt, tool_message_text, tool_response_text
from engine.reground import ANSWER_TURN, NO_ZOOMS_LEFT, SKIPPED_MESSAGE, refusal
from engine.request import Request
from engine.tool_call import ImageSizes, ToolCallError, parse_zoom_call
from engine.trace import LatentStep, Reground, TokenStep, Trace
from engine.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Replay:
    """A run laid out as one sequence.

    Attributes:
        layout: embeddings and positions of everything that was fed.
        token_ids: every written token, in order.
        predictors: the column whose output predicts each token.
        prefix: how many columns the prompt takes.
    """

    layout: Layout
    token_ids: tuple[int, ...]
    predictors: tuple[int, ...]
    prefix: int


def replayed_logprobs(decoder: Decoder, request: Request, trace: Trace) -> tuple[float, ...]:
    """Log-probability of every `TokenStep` of a run, in nats at temperature 1.

    Args:
        decoder: of the checkpoint that made the run.
        request: the request of the run, image included.
        trace: its events.

    Raises:
        ValueError: latents were blinded, or the bottleneck was on: a plain causal mask is not
            what the run saw.
    """
    if request.bottleneck or request.interventions.latents == "blind":
        raise ValueError("A run under the bottleneck, or with blind latents, cannot be replayed.")
    replay = lay_out_trace(decoder, request, trace)
    logits = decoder.logits_at(replay.layout, list(replay.predictors))
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = torch.tensor(replay.token_ids, device=logprobs.device)[:, None]
    values: list[float] = logprobs.gather(-1, chosen)[:, 0].tolist()
    return tuple(values)


def lay_out_trace(decoder: Decoder, request: Request, trace: Trace) -> Replay:
    """Everything that a run fed to the model, as one sequence."""
    writer = _Writer(decoder, request)
    events = list(trace)
    for place, event in enumerate(events):
        if isinstance(event, TokenStep):
            rest = events[place + 1 :]
            looked = next((e for e in rest if isinstance(e, TokenStep | Reground)), None)
            writer.token(event.token_id, isinstance(looked, Reground))
        elif isinstance(event, LatentStep):
            writer.latent(event.vector)
        elif isinstance(event, Reground):
            writer.look(event)
    return writer.replay()


class _Writer:
    """Follows a run event by event."""

    def __init__(self, decoder: Decoder, request: Request) -> None:
        loaded = decoder.loaded
        self._decoder, self._request = decoder, request
        self._pixels = occluded(request.image.pixels, request.interventions.occlude)
        self._seen = loaded.image_processor(self._pixels, loaded.manifest.view)
        text = request_prompt(loaded.manifest, request)
        view = decoder.encode(self._seen)
        self._parts = [decoder.lay_out(text, [(0, view, self._seen.grid)], 0)]
        self._prefix = self._columns = self._parts[0].embeddings.shape[1]
        self._tokens: list[int] = []
        self._predictors: list[int] = []
        self._transcript = Transcript()
        self._crops = self._failed_calls = self._calls = 0
        self._ended = False

    def token(self, token_id: int, looks: bool) -> None:
        """A token was written; `looks` says that a crop follows before the next one."""
        vocabulary = self._decoder.loaded.vocabulary
        if self._ended:
            # The model had ended its turn without an answer and was asked once more.
            self._segment(ANSWER_TURN, [])
            self._ended = False
        self._tokens.append(token_id)
        self._predictors.append(self._columns - 1)
        if token_id in vocabulary.stop_ids:
            self._ended = True
            return
        self._extend(self._decoder.text_layout([token_id], self._next))
        self._transcript.write(vocabulary.bytes_of(token_id))
        if self._transcript.calls_closed > self._calls and self._request.method in ("zoom", "auto"):
            self._calls = self._transcript.calls_closed
            if not looks:
                self._refuse()

    def latent(self, vector: bytes) -> None:
        """A latent slot was fed."""
        values = torch.from_numpy(np.frombuffer(vector, dtype="<f4").copy())
        slot = self._decoder.loaded.vocabulary.latent_slot
        layout = self._decoder.text_layout([slot], self._next)
        self._extend(replace(layout, embeddings=values.to(layout.embeddings)[None, None]))

    def look(self, event: Reground) -> None:
        """The model looked again."""
        self._crops += 1
        loaded = self._decoder.loaded
        if event.skipped:
            self._segment(tool_message_text(SKIPPED_MESSAGE), [])
            return
        padded = Box(*event.box).padded(loaded.manifest.crop_padding)
        seen = loaded.image_processor(crop_pixels(self._pixels, padded), loaded.manifest.crop)
        tokens = self._decoder.encode(seen)
        self._segment(tool_response_text(), [(event.number, tokens, seen.grid)])

    def replay(self) -> Replay:
        """Everything followed so far."""
        layout = Layout(
            torch.cat([part.embeddings for part in self._parts], dim=1),
            torch.cat([part.positions for part in self._parts], dim=1),
            self._parts[0].images,
            self._next,
            tuple(token for part in self._parts for token in part.ids),
        )
        return Replay(layout, tuple(self._tokens), tuple(self._predictors), self._prefix)

    def _refuse(self) -> None:
        """The call could not be carried out; the words are found again from the call."""
        height, width = self._pixels.shape[:2]
        left = self._request.budgets.max_crops - self._crops
        message = NO_ZOOMS_LEFT
        try:
            counted = self._decoder.loaded.manifest.coordinates
            sizes = ImageSizes(self._seen.width, self._seen.height, width, height, counted)
            parse_zoom_call(self._transcript.tool_call_text, sizes)
        except ToolCallError as error:
            self._failed_calls += 1
            message = refusal(str(error), self._failed_calls, left)
        self._segment(tool_message_text(message), [])

    def _segment(self, text: str, images: list[tuple[int, torch.Tensor, PatchGrid]]) -> None:
        self._extend(self._decoder.lay_out(text, images, self._next))
        self._transcript.begin_turn()

    def _extend(self, layout: Layout) -> None:
        self._parts.append(layout)
        self._columns += layout.embeddings.shape[1]

    @property
    def _next(self) -> int:
        return self._parts[-1].next_position
