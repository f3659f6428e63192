"""The token ids that have a meaning to the loop, and which of them may not be drawn.

Chat-control tokens are never drawn (fine-tuned agents are known to spam them), the latent
slot and its end are always written by the engine (methods 2.4), and rows of the head beyond
the tokenizer are padding. Everything comes from one place, so that a comparison with another
decoder can suppress the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from engine.prompt import (
    IM_END,
    IM_START,
    IMAGE_PAD,
    LATENT_END,
    LATENT_SLOT,
    LATENT_START,
    TOOL_CALL_OPEN,
    TOOL_RESPONSE_CLOSE,
    TOOL_RESPONSE_OPEN,
)
from engine.request import Method

T = TypeVar("T")

_CONTROL = (
    IM_START,
    IMAGE_PAD,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|video_pad|>",
    TOOL_RESPONSE_OPEN,
    TOOL_RESPONSE_CLOSE,
)


class Vocabulary:
    """Token ids by name, token bytes by id, and the bans of each situation."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, head_size: int, stop_ids: Iterable[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.head_size = head_size
        self._known: dict[str, int] = tokenizer.get_vocab()
        self.latent_start = self._known[LATENT_START]
        self.latent_slot = self._known[LATENT_SLOT]
        self.latent_end = self._known[LATENT_END]
        self.im_end = self._known[IM_END]
        self.image_pad = self._known[IMAGE_PAD]
        ends = {self.im_end, *stop_ids}
        if "<|endoftext|>" in self._known:
            ends.add(self._known["<|endoftext|>"])
        self.stop_ids = frozenset(ends)
        self._bytes: dict[int, bytes] = {}
        self._added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        self._byte_of = byte_letters()
        self._tables: dict[str, Any] = {}
        self._bans: dict[tuple[bool, bool, torch.device], torch.Tensor] = {}

    def is_added(self, token_id: int) -> bool:
        """Whether the token is a control token or a tag rather than a piece of text."""
        return token_id in self._added

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for (part of a character is possible)."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._read_bytes(token_id)
        return known

    def text_of(self, token_id: int) -> str:
        """A token as text by itself; incomplete characters show as U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", errors="replace")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, control tokens and tags included."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def suppressed(self, method: Method) -> tuple[int, ...]:
        """Ids that are never drawn under a method, ascending.

        In `auto` the checkpoint itself may open a latent segment (once) or a tool call; in
        the other methods the opening tokens that do not belong to them are banned too.
        """
        zooms = method in ("zoom", "auto")
        return tuple(sorted(self._suppressed(allow_latent=method == "auto", allow_tool=zooms)))

    def ban(self, *, allow_latent: bool, allow_tool: bool, device: torch.device) -> torch.Tensor:
        """The bans as a bool mask `(V,)`, True where a token may not be drawn; cached."""
        key = (allow_latent, allow_tool, device)
        mask = self._bans.get(key)
        if mask is None:
            mask = torch.zeros(self.head_size, dtype=torch.bool)
            ids = self._suppressed(allow_latent=allow_latent, allow_tool=allow_tool)
            mask[sorted(ids)] = True
            mask = self._bans[key] = mask.to(device)
        return mask

    def remembered(self, name: str, make: Callable[[Vocabulary], T]) -> T:
        """A table over the whole vocabulary, made once under its name."""
        if name not in self._tables:
            self._tables[name] = make(self)
        table: T = self._tables[name]
        return table

    def _suppressed(self, *, allow_latent: bool, allow_tool: bool) -> set[int]:
        ids = {self._known[token] for token in _CONTROL if token in self._known}
        ids |= {self.latent_slot, self.latent_end}
        ids |= set(range(len(self.tokenizer), self.head_size))
        if not allow_latent:
            ids.add(self.latent_start)
        if not allow_tool and TOOL_CALL_OPEN in self._known:
            ids.add(self._known[TOOL_CALL_OPEN])
        return ids

    def _read_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        # None for a row of the head that no token belongs to.
        token = self.tokenizer.convert_ids_to_tokens(token_id) or ""
        return bytes(self._byte_of[letter] for letter in token if letter in self._byte_of)


def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level BPE vocabulary stands for (GPT-2's table).

    Printable Latin-1 bytes stand for themselves; the others follow from U+0100 in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [number for number in range(256) if number not in printable]
    table = {chr(number): number for number in printable}
    table.update({chr(256 + place): number for place, number in enumerate(others)})
    return table
