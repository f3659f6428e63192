"""What one branch has written: text without broken characters, tags, segments.

Tags are found in the text, not in the ids, because most tokenizers spell them in pieces
(Qwen2.5 writes `<answer>B` as `<`, `answer`, `>B`).
"""

from __future__ import annotations

import bisect
import codecs
from typing import Final

from engine.prompt import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    TAG_PAIRS,
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_CALL_CLOSE,
    TOOL_CALL_OPEN,
)
from engine.trace import Segment

_TAGS: Final = tuple(tag for pair in TAG_PAIRS.items() for tag in pair)
_LONGEST_TAG: Final = max(map(len, _TAGS))


class Transcript:
    """The text of one branch, token by token.

    Attributes:
        text: everything written in the current turn.
        tokens: how many tokens have been written in the run.
        segment: where the text stands now.
        thinking: whether a `<think>` block is open.
        calls_closed, answers_closed: how many tool calls and answers have been completed.
        opened_in_turn: index within the turn of the token at which the last tool call or
            answer began.
        opened_token: the same, counted over the run.
    """

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.segment: Segment = "reasoning"
        self.thinking = False
        self.calls_closed = 0
        self.answers_closed = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._scanned = 0
        self._starts: list[int] = []
        self.opened_in_turn = 0
        self.opened_token = 0

    def write(self, piece: bytes) -> tuple[str, Segment]:
        """Adds one token; returns the text it adds and the segment it belongs to."""
        before = self.segment
        added = self._decoder.decode(piece)
        self._starts.append(len(self.text))
        self.text += added
        index = self.tokens
        self.tokens += 1
        if "<" in added or ">" in added:
            self._scan(index)
        # A token that opens or closes a segment belongs to it.
        return added, before if before != "reasoning" else self.segment

    def begin_turn(self) -> None:
        """The model starts a new turn; an open block does not reach over."""
        self.text = ""
        self.segment = "reasoning"
        self.thinking = False
        self._scanned = 0
        self._starts = []
        self._decoder.reset()

    def leave_segment(self) -> None:
        """An open tool call or answer is given up; what follows is reasoning again."""
        self.segment = "reasoning"

    @property
    def tool_call_text(self) -> str:
        """What stands inside the last tool call, closed or still open."""
        start = self.text.rfind(TOOL_CALL_OPEN)
        if start < 0:
            return ""
        inner = self.text[start + len(TOOL_CALL_OPEN) :]
        return inner.split(TOOL_CALL_CLOSE, 1)[0]

    def text_before_opening(self) -> str:
        """The text up to the token at which the last tool call or answer began."""
        return self.text[: self._starts[self.opened_in_turn]]

    def inside_tag(self) -> bool:
        """Whether the text ends in what could become a tag."""
        start = self.text.rfind("<")
        if start < 0 or len(self.text) - start >= _LONGEST_TAG:
            return False
        tail = self.text[start:]
        return any(tag.startswith(tail) and tag != tail for tag in _TAGS)

    def _scan(self, index: int) -> None:
        while True:
            found = [
                (place, tag) for tag in _TAGS if (place := self.text.find(tag, self._scanned)) >= 0
            ]
            if not found:
                self._scanned = max(self._scanned, len(self.text) - _LONGEST_TAG + 1)
                return
            place, tag = min(found)
            self._scanned = place + len(tag)
            self._meet(tag, place, index)

    def _meet(self, tag: str, place: int, index: int) -> None:
        if tag == THINK_OPEN:
            self.thinking = True
        elif tag == THINK_CLOSE:
            self.thinking = False
        elif tag == TOOL_CALL_OPEN and self.segment == "reasoning":
            self.segment = "tool"
            self._open(place, index)
        elif tag == TOOL_CALL_CLOSE and self.segment == "tool":
            self.segment = "reasoning"
            self.calls_closed += 1
        elif tag == ANSWER_OPEN and self.segment != "tool":
            self.segment = "answer"
            self._open(place, index)
        elif tag == ANSWER_CLOSE and self.segment == "answer":
            self.segment = "reasoning"
            self.answers_closed += 1

    def _open(self, place: int, index: int) -> None:
        self.opened_in_turn = bisect.bisect_right(self._starts, place) - 1
        self.opened_token = index - (len(self._starts) - 1 - self.opened_in_turn)
