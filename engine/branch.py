"""What one branch does next: the rules of the four methods, without a tensor of the model.

A branch is told its logits and answers with a token; it keeps the transcript, the forced
words, the latent segment, the open zoom call and the budgets. The loop in `engine.rollout`
feeds what branches decide.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import torch

from engine.belief import leading_text
from engine.latent import LatentSegment
from engine.prompt import ZOOM_CALL_HEAD, ZOOM_CALL_TAIL
from engine.reground import NO_ZOOMS_LEFT, refusal
from engine.request import Request
from engine.sampling import BANNED, Draw, InvalidLogitsError, draw
from engine.script import Script
from engine.tool_call import (
    CoordinateGrammar,
    CoordinateWriter,
    ImageSizes,
    opens_coordinates,
)
from engine.trace import FinishReason, Segment, Trigger
from engine.transcript import Transcript
from engine.vocabulary import Vocabulary

ANSWER_TOKENS: Final = 32


@dataclass(frozen=True, slots=True)
class Written:
    """One token as the trace shows it."""

    index: int
    text: str
    segment: Segment
    forced: bool


@dataclass(frozen=True, slots=True)
class Opening:
    """The moment before a zoom call or an answer was begun.

    Attributes:
        columns: how long the cache was.
        text: what the turn held.
        thinking: whether a think block was open.
    """

    columns: int
    text: str
    thinking: bool


class Branch:
    """The state of one branch beside its tensors.

    Attributes:
        index: of the branch in its run.
        ids: everything written, latent slots included.
        pending: the token that is to be fed next; None while one is to be decided.
        reason: why the branch ended; None while it runs.
        reported: whether its end has been told.
        failed_calls: zoom calls that could not be carried out.
        latent_column: column of the cache that holds `<|lat_start|>`, once it has been fed.
    """

    def __init__(
        self,
        request: Request,
        sizes: ImageSizes,
        vocabulary: Vocabulary,
        device: torch.device,
        index: int = 0,
        script: Script | None = None,
    ) -> None:
        self.request = request
        self.index = index
        self.sizes = sizes
        self.vocabulary = vocabulary
        self.transcript = Transcript()
        self.ids: list[int] = []
        self.turns: list[str] = []
        self.pending: int | None = None
        self.reason: FinishReason | None = None
        self.latent: LatentSegment | None = None
        self.reported = False
        self.latent_column = 0
        self.crops = 0
        self.last_turn = False
        self.trigger: Trigger | None = None
        self._device = device
        self._script = script
        self._generator = self._seeded(index)
        self._budget = request.budgets.max_new_tokens
        self._forced: deque[int] = deque()
        self._writer: CoordinateWriter | None = None
        self._writer_waits = False
        self._columns: list[int] = []
        self.failed_calls = 0
        self._calls_seen = 0
        self._latent_opened = False
        self._answer_forced = False
        # What it has been fed beside its tokens; a fork has been fed the same.
        self.latents_fed = 0
        self.crop_tokens = 0
        self._answer_turn = False
        self._looks_ahead = False
        self._opening: Opening | None = None
        self._zooms = request.method in ("zoom", "auto")
        skipped = request.interventions.latents == "skip"
        self._latent_steps = 0 if skipped else request.budgets.latent_steps
        self._latent_allowed = request.method == "auto"
        if request.method == "latent":
            self._forced.append(vocabulary.latent_start)

    def _seeded(self, index: int) -> torch.Generator:
        seed = (self.request.seed + index) % 2**63
        return torch.Generator(device=self._device).manual_seed(seed)

    def copied(self, index: int) -> Branch:
        """A branch that has written the same, and draws on from a seed of its own."""
        twin = copy.copy(self)
        twin.index = index
        twin.transcript = copy.deepcopy(self.transcript)
        twin.ids, twin.turns = list(self.ids), list(self.turns)
        twin.latent = copy.copy(self.latent)
        twin._forced = self._forced.copy()
        twin._writer = copy.copy(self._writer)
        twin._columns = list(self._columns)
        twin._generator = self._seeded(index)
        return twin

    @property
    def at_coordinates(self) -> bool:
        """Whether the next token is the first of the coordinates of a zoom call."""
        if not self._zooms or self.transcript.segment != "tool":
            return False
        return opens_coordinates(self.transcript.tool_call_text)

    @property
    def finished(self) -> bool:
        """Whether nothing more will be written."""
        return self.reason is not None

    @property
    def tokens(self) -> int:
        """How many tokens have been written, latent slots not counted."""
        return self.transcript.tokens

    @property
    def text(self) -> str:
        """Everything written, over all turns."""
        return "\n".join([*self.turns, self.transcript.text])

    @property
    def in_latent(self) -> bool:
        """Whether the next input is a hidden state."""
        return self.latent is not None and self.latent.open

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of logits `(V,)`: forced, or drawn under the bans. int64 scalar."""
        if self._forced:
            return torch.tensor(self._forced[0], device=self._device)
        if self._writer is not None:
            allowed = torch.tensor(self._writer.allowed(), device=self._device)
            masked = torch.full_like(logits, BANNED)
            masked[allowed] = logits[allowed]
        else:
            ban = self.vocabulary.ban(
                allow_latent=self._latent_allowed and not self._latent_opened,
                allow_tool=self._zooms and not self.last_turn,
                device=self._device,
            )
            masked = logits.masked_fill(ban, BANNED)
        if self._script is not None:
            return self._script.token(masked, self.tokens, self._unwritten())
        return draw(masked[None], self.request.sampling, self._generator)[0]

    def _unwritten(self) -> Collection[int] | None:
        """Tokens that would only end something if they were drawn now; see `write`."""
        if self._looks_ahead:
            return frozenset(range(len(self.vocabulary.tokenizer))) - self.vocabulary.stop_ids
        return None if self._writer is None else self._writer.ends

    def write(self, drawn: Draw, columns: int) -> Written | None:
        """Takes a decided token; None when it only ended something and is not written.

        Args:
            drawn: the token and what is known of it.
            columns: the length of the cache when it was decided.

        Raises:
            InvalidLogitsError: when its numbers are not finite.
        """
        if not math.isfinite(drawn.entropy) or math.isnan(drawn.logprob):
            raise InvalidLogitsError
        forced = bool(self._forced)
        token = drawn.token_id
        if self._looks_ahead and token not in self.vocabulary.stop_ids:
            self.reason = "answered"
            return None
        if self._writer is not None and not forced and not self._writer.accept(token):
            self._writer = None
            self._forced.extend(self.vocabulary.encode(ZOOM_CALL_TAIL))
            return None
        written = self._write(token, forced, columns)
        self._follow(token, written, drawn.entropy)
        return written

    def fed(self, columns: int) -> None:
        """The pending token has been fed; `columns` is how long the cache is now."""
        token, self.pending = self.pending, None
        if token == self.vocabulary.latent_start:
            self._latent_opened = True
            self.latent_column = columns - 1
            self.latent = LatentSegment(self._latent_steps)
            if not self.latent.open:
                self._forced.append(self.vocabulary.latent_end)
        if self.trigger is not None and self.trigger.kind == "entropy" and self._opening is None:
            self._open_call(columns)

    def latent_fed(self) -> None:
        """A latent slot has been fed and recorded."""
        self.ids.append(self.vocabulary.latent_slot)
        if self.latent is not None and not self.latent.open:
            self._forced.append(self.vocabulary.latent_end)

    def closed_call(self) -> str | None:
        """The text of a tool call that has just been completed, once."""
        if not self._zooms or self.transcript.calls_closed == self._calls_seen:
            return None
        self._calls_seen = self.transcript.calls_closed
        if self._opening is None:
            self._opening = self.opening()
            self.trigger = Trigger(
                kind="tool_call",
                token_index=self.transcript.opened_token,
                entropy_nats=None,
                threshold=None,
            )
        return self.transcript.tool_call_text

    def opening(self) -> Opening:
        """The moment before the last tool call or answer of this turn was begun."""
        if self._opening is not None:
            return self._opening
        text = self.transcript.text_before_opening()
        return Opening(
            columns=self._columns[self.transcript.opened_in_turn],
            text=text,
            thinking=self.transcript.thinking,
        )

    def here(self, columns: int) -> Opening:
        """This moment."""
        return Opening(columns, self.transcript.text, self.transcript.thinking)

    def refuse_call(self, message: str) -> str:
        """What the model is told about a call that cannot be carried out."""
        self.failed_calls += 1
        answer = refusal(message, self.failed_calls, self.crops_left)
        self.last_turn = self.last_turn or answer == NO_ZOOMS_LEFT
        return answer

    def take_answer_turn(self) -> bool:
        """Whether the model ended its turn without an answer and is to be asked once more."""
        asked, self._answer_turn = self._answer_turn, False
        return asked

    @property
    def _in_call(self) -> bool:
        """Whether the engine writes a call that it opened, or one is about to be carried out."""
        written = self._zooms and self.transcript.calls_closed > self._calls_seen
        return written or self._writer is not None or self._writer_waits or bool(self._forced)

    @property
    def has_opened_answer(self) -> bool:
        """Whether the last thing opened in this turn is an answer, closed or not."""
        return self.transcript.answers_closed > 0 or self.transcript.segment == "answer"

    @property
    def may_zoom(self) -> bool:
        """Whether a call of the zoom tool would be carried out now."""
        return self.crops_left > 0 and not self.last_turn

    @property
    def crops_left(self) -> int:
        """How many zooms the budget still holds."""
        return self.request.budgets.max_crops - self.crops

    def begin_turn(self) -> None:
        """The tool has answered and the model writes again."""
        self.turns.append(self.transcript.text)
        self.transcript.begin_turn()
        self._columns = []
        self._opening = None
        self.trigger = None

    def _write(self, token: int, forced: bool, columns: int) -> Written:
        if forced:
            self._forced.popleft()
        self.ids.append(token)
        self._columns.append(columns)
        index = self.tokens
        ends = token in self.vocabulary.stop_ids
        piece = b"" if ends else self.vocabulary.bytes_of(token)
        text, segment = self.transcript.write(piece)
        self.pending = None if ends else token
        return Written(index, text, segment, forced)

    def _follow(self, token: int, written: Written, entropy: float) -> None:
        """Decides what a written token leads to."""
        if self._looks_ahead:
            self.reason = "answered"
        elif token in self.vocabulary.stop_ids:
            self._force_answer("no_answer", in_new_turn=True)
            self._answer_turn = not self.finished
        elif self.transcript.answers_closed:
            self._looks_ahead = True
            self._forced.clear()
        elif self.tokens >= self._budget and not self._in_call:
            self._force_answer("token_budget")
        elif self._peaks(token, written, entropy):
            self.trigger = Trigger(
                kind="entropy",
                token_index=written.index,
                entropy_nats=entropy,
                threshold=self.request.entropy_limit,
            )
        elif self._writer_waits and not self._forced:
            self._writer_waits = False
            self._writer = CoordinateWriter(self.vocabulary, CoordinateGrammar(self.sizes))

    @property
    def made_to_answer(self) -> bool:
        """Whether its answer was opened for it: the budget had ended, or a turn without one."""
        return self._answer_forced

    def _force_answer(self, reason: FinishReason, *, in_new_turn: bool = False) -> None:
        """Makes the model answer once; text-only runs end as any other decoder ends them.

        Args:
            reason: why the branch ends if it was made to answer before.
            in_new_turn: whether the answer begins a turn of its own, so that nothing of this one
                needs to be closed.
        """
        if self._answer_forced or self.request.method == "direct":
            self.reason = reason
            return
        self._answer_forced = self.last_turn = True
        self._forced.clear()
        self._writer, self._writer_waits = None, False
        self.trigger = self._opening = None
        if self.transcript.segment == "answer" and not in_new_turn:
            self._budget = self.tokens + ANSWER_TOKENS
            return
        if self.transcript.segment == "tool":
            self.transcript.leave_segment()
        before = ("", False) if in_new_turn else (self.transcript.text, self.transcript.thinking)
        words = leading_text(*before)
        self._forced.extend(self.vocabulary.encode(words))
        self._budget = self.tokens + len(self._forced) + ANSWER_TOKENS

    def _peaks(self, token: int, written: Written, entropy: float) -> bool:
        """Whether a token is an entropy peak that opens a zoom."""
        threshold = self.request.entropy_limit
        return (
            threshold is not None
            and entropy > threshold
            and self._zooms
            and self.may_zoom
            and not written.forced
            and written.segment == "reasoning"
            and self.transcript.segment == "reasoning"
            and not self.vocabulary.is_added(token)
            and not self.transcript.inside_tag()
        )

    def _open_call(self, columns: int) -> None:
        self._opening = self.here(columns)
        closing = "</think>\n" if self.transcript.thinking else ""
        if not closing and self.transcript.text and not self.transcript.text.endswith("\n"):
            closing = "\n"
        self._forced.extend(self.vocabulary.encode(closing + ZOOM_CALL_HEAD))
        self._writer_waits = True
