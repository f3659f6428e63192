"""The fold from events to what the page draws: plain JSON, cumulative, small.

The page receives everything again and again (only the difference travels), so every step is one
short line of JSON at the end of one text: Gradio copies and watches a text as a whole, where it
would walk through every value of every step of a list at each refresh. What is looked at one
step at a time, the alternatives and the maps, goes into `details`, which the page fetches by
byte range when it needs it.

An item is one of (numbers rounded to what can be seen):

- `["t", text, entropy_nats, probability, segment, flags, seconds, detail_length]`, where flags
  are the sum of `FORCED` and `UNSURE`
- `["l", step, steps, norm, cosine or null, seconds, detail_length]`
- `["c", number, box, box_source_px, box_seen_px, flags, trigger, grid, seconds]`
- `["b", moment, crop or null, probabilities, outside, seconds, text]`
- `["a", text, option or null, valid, probabilities, seconds]`
- `["f", reason, seconds, facts]` and `["x", code, message, seconds]`

A card is `[kind, first item]` and reaches to the item before the next card.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.trace import (
    Answered,
    Belief,
    Event,
    EvidenceMap,
    Failed,
    Finished,
    LatentStep,
    Reground,
    RunStarted,
    TokenStep,
)

Json = dict[str, Any]

SEGMENTS: Final = ("reasoning", "tool", "answer")
LIVE_GRID: Final = 12
LIVE_SECONDS: Final = 0.4
MAX_TEXT: Final = 400
# Nats above which a word is marked as unsure where neither the run nor its checkpoint says.
UNSURE_NATS: Final = 1.5
FORCED: Final = 1
UNSURE: Final = 2
_TAG: Final = re.compile(r"\s*<[^<>]{1,40}>\s*")
_MARKUP: Final = re.compile(r"\s*(<[^<>]{1,40}>\s*)?")


class RunView:
    """What the page knows of one run, event by event.

    Attributes:
        run: facts of the start, or None before it.
        items, cards: see the module's docstring; both only ever grow.
        details: one JSON line per token and latent step.
        pictures: PNG files by name: `display.png`, `seen.png`, `crop-N.png`.
        status: `running`, then the reason of the end: `answered`, `stopped`, `token_budget`,
            `no_answer` or `failed`.
    """

    def __init__(self) -> None:
        self.run: Json | None = None
        self.items: list[list[Any]] = []
        self._lines: list[str] = []
        self.cards: list[list[Any]] = []
        self.details: list[bytes] = []
        self.pictures: dict[str, bytes] = {}
        self.status = "running"
        self._scale = 0.0
        self._live: Json | None = None
        self._live_until = -1.0
        self._threshold: float | None = None
        self._unsure_above = UNSURE_NATS
        self._open_question = False
        self._awaits_crop = False

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> RunView:
        """The view of a whole trace."""
        view = cls()
        for event in events:
            view.apply(event)
        return view

    def apply(self, event: Event) -> None:
        """Takes one more event in."""
        match event:
            case RunStarted():
                self._start(event)
            case TokenStep():
                self._token(event)
            case LatentStep():
                self._latent(event)
            case Reground():
                self._crop(event)
            case Belief():
                self._belief(event)
            case Answered():
                self._answer(event)
            case Finished():
                self.status = event.reason
                self.items.append(["f", event.reason, _short(event.seconds), _end_facts(event)])
            case Failed():
                self.status = "failed"
                self._open_card("failed")
                self.items.append(["x", event.code, event.message, _short(event.seconds)])

    def to_json(self) -> Json:
        """A snapshot that later events do not change; `items` is one line of JSON for each."""
        self._lines += [
            json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n"
            for item in self.items[len(self._lines) :]
        ]
        return {
            "facts": self.run,
            "items": "".join(self._lines),
            "cards": [list(card) for card in self.cards],
            "live": self._live,
            "scale": _short(self._scale, 4),
            "status": self.status,
        }

    def _open_card(self, kind: str) -> None:
        if not self.cards or self.cards[-1][0] != kind:
            self.cards.append([kind, len(self.items)])

    def _start(self, event: RunStarted) -> None:
        self.run = start_facts(event)
        self._threshold = event.request.entropy_threshold
        self._unsure_above = unsure_above(event)
        self._open_question = not event.request.options
        self.pictures["display.png"] = event.image.display_png
        self.pictures["seen.png"] = event.image.seen_png

    def _token(self, event: TokenStep) -> None:
        if event.segment == "tool":
            self._open_card_for_tool(forced=event.forced)
        elif event.segment == "answer":
            self._open_card("answer")
        elif not (self.cards and _MARKUP.fullmatch(event.text)):
            # Tags such as <think> are no reasoning of their own: they join the card before.
            self._open_card("look")
        length = self._detail(event.attention, None, event, event.seconds)
        self.items.append([
            "t",
            event.text[:MAX_TEXT],
            _short(event.entropy_nats),
            _short(math.exp(min(event.logprob, 0.0))),
            SEGMENTS.index(event.segment),
            FORCED * event.forced + UNSURE * is_unsure(event, self._unsure_above),
            _short(event.seconds, 2),
            length,
        ])  # fmt: skip

    def _open_card_for_tool(self, *, forced: bool) -> None:
        if self.cards and self.cards[-1][0] == "crop" and self._awaits_crop:
            return
        # The program closes the reasoning before it opens a call: the word is further back.
        end = len(self.items)
        while end and self.items[end - 1][0] == "t" and self.items[end - 1][5] & FORCED:
            end -= 1
        word: list[Any] = self.items[end - 1] if end else [""]
        if forced and self._threshold is not None and word[0] == "t" and word[5] & UNSURE:
            # It holds no item of its own: the doubtful word is the item before it.
            self.cards.append(["unsure", end])
        self.cards.append(["crop", len(self.items)])
        self._awaits_crop = True

    def _latent(self, event: LatentStep) -> None:
        if event.step == 1:
            self.cards.append(["latent", len(self.items)])
        else:
            self._open_card("latent")
        length = self._detail(event.attention, event.similarity, None, event.seconds)
        cosine = event.cosine_to_previous
        self.items.append([
            "l",
            event.step,
            event.steps,
            _short(event.norm),
            None if cosine is None else _short(cosine),
            _short(event.seconds, 2),
            length,
        ])  # fmt: skip

    def _crop(self, event: Reground) -> None:
        if not self.cards or self.cards[-1][0] != "crop" or not self._awaits_crop:
            self.cards.append(["crop", len(self.items)])
        self._awaits_crop = False
        trigger = event.trigger
        self.pictures[f"crop-{event.number}.png"] = event.crop_png
        self.items.append([
            "c",
            event.number,
            [_short(value, 4) for value in event.box],
            list(event.box_source_px),
            [_short(value, 1) for value in event.box_seen_px],
            [int(event.clamped), int(event.skipped)],
            [
                trigger.kind,
                trigger.token_index,
                _maybe(trigger.entropy_nats),
                _maybe(trigger.threshold),
            ],
            [event.rows, event.columns, event.crop_width, event.crop_height],
            _short(event.seconds, 2),
        ])  # fmt: skip

    def _belief(self, event: Belief) -> None:
        if event.moment == "prefill":
            self._open_card("first")
        elif event.moment == "latent":
            # Of a segment without steps, nothing else has opened it.
            self._open_card("latent")
        self.items.append([
            "b",
            event.moment,
            event.crop,
            [_short(value) for value in event.probabilities],
            _short(event.outside),
            _short(event.seconds, 2),
            event.options[0][:MAX_TEXT] if self._open_question and event.options else "",
        ])  # fmt: skip

    def _answer(self, event: Answered) -> None:
        self._open_card("answer")
        self.items.append([
            "a",
            event.text[:MAX_TEXT],
            event.option,
            int(event.valid),
            [_short(value) for value in event.probabilities],
            _short(event.seconds, 2),
        ])  # fmt: skip

    def _detail(
        self,
        attention: tuple[EvidenceMap, ...],
        similarity: EvidenceMap | None,
        token: TokenStep | None,
        seconds: float,
    ) -> int:
        for evidence in attention:
            if evidence.image == 0:
                self._scale = max(self._scale, evidence.peak)
        # A map costs more than its word, and an eye cannot follow more of them.
        if seconds >= self._live_until:
            self._live_until = seconds + LIVE_SECONDS
            maps = [_map_json(coarse(evidence, LIVE_GRID)) for evidence in attention[:1]]
            self._live = {"item": len(self.items), "maps": maps}
        detail: Json = {"maps": [_map_json(evidence) for evidence in attention]}
        if similarity is not None:
            detail["similarity"] = _map_json(similarity)
        if token is not None:
            detail["alternatives"] = [
                [other.text[:MAX_TEXT], _short(math.exp(min(other.logprob, 0.0)))]
                for other in token.alternatives
            ]
        line = json.dumps(detail, separators=(",", ":")).encode("utf-8") + b"\n"
        self.details.append(line)
        return len(line)


def coarse(evidence: EvidenceMap, side: int) -> EvidenceMap:
    """The map with at most `side` cells each way: each keeps the largest value it covers."""
    if evidence.rows <= side and evidence.columns <= side:
        return evidence
    grid = np.frombuffer(evidence.values, np.uint8).reshape(evidence.rows, evidence.columns)
    small = _largest(_largest(grid, side, axis=0), side, axis=1)
    return EvidenceMap(
        image=evidence.image,
        rows=small.shape[0],
        columns=small.shape[1],
        values=small.tobytes(),
        peak=evidence.peak,
        total=evidence.total,
    )


def _largest(grid: npt.NDArray[np.uint8], side: int, axis: int) -> npt.NDArray[np.uint8]:
    length = grid.shape[axis]
    if length <= side:
        return grid
    starts = (np.arange(side) * length) // side
    shrunk: npt.NDArray[np.uint8] = np.maximum.reduceat(grid, starts, axis=axis)
    return shrunk


def _map_json(evidence: EvidenceMap) -> list[Any]:
    """`[image, rows, columns, peak, total, base64 values]`."""
    return [
        evidence.image,
        evidence.rows,
        evidence.columns,
        float(f"{evidence.peak:.4g}"),
        float(f"{evidence.total:.4g}"),
        base64.b64encode(evidence.values).decode("ascii"),
    ]


def _short(value: float, digits: int = 3) -> float:
    return round(float(value), digits)


def _maybe(value: float | None) -> float | None:
    return None if value is None else _short(value)


def unsure_above(event: RunStarted) -> float:
    """Nats above which a word of the run is marked as unsure: of the run, else the checkpoint."""
    limits = (event.request.entropy_threshold, event.model.entropy_threshold)
    return next((limit for limit in limits if limit is not None), UNSURE_NATS)


def is_unsure(token: TokenStep, limit: float) -> bool:
    """Whether a token is a word above the limit in nats, as the engine's entropy rule counts."""
    counted = token.segment == "reasoning" and not token.forced and not _TAG.fullmatch(token.text)
    return counted and token.entropy_nats > limit


def start_facts(event: RunStarted) -> Json:
    """What the page says of a run before it has written a word."""
    request, image, model = event.request, event.image, event.model
    distance = event.out_of_distribution
    changes = request.interventions
    return {
        "id": event.run_id,
        "question": request.question,
        "options": list(request.options),
        "method": request.method,
        "seed": request.seed,
        "temperature": request.sampling.temperature,
        "max_new_tokens": request.max_new_tokens,
        "max_crops": request.max_crops,
        "latent_steps": request.latent_steps,
        "threshold": _maybe(request.entropy_threshold),
        "unsure": _short(unsure_above(event)),
        "changes": {
            "latents": changes.latents,
            "skip_crops": list(changes.skip_crops),
            "moved_crops": [number for number, _ in changes.move_crops],
            "occlude": [[_short(value, 4) for value in box.as_tuple()] for box in changes.occlude],
        },
        "model": {
            "id": model.id,
            "revision": model.revision,
            "stage": model.stage,
            "dtype": model.dtype,
            "device": model.device,
            "parameters": model.parameters,
            "embedded": model.embedded,
            "methods": list(model.trained_methods),
        },
        "image": {
            "sha256": image.sha256,
            "source": [image.source_width, image.source_height],
            "seen": [image.seen_width, image.seen_height],
            "grid": [image.rows, image.columns],
            "modality": image.modality,
            "window": None
            if image.window_center is None or image.window_width is None
            else [_short(image.window_center), _short(image.window_width), image.window_source],
            "spacing": None if image.spacing_mm is None else list(image.spacing_mm),
            "spacing_kind": image.spacing_kind,
            "left_edge": image.left_edge,
        },
        "distance": None
        if distance is None
        else {
            "score": _short(distance.score),
            "threshold": _short(distance.threshold),
            "flagged": distance.flagged,
        },
        "notices": list(event.notices),
    }


def _end_facts(event: Finished) -> Json:
    return {
        "prefill": _short(event.prefill_seconds),
        "decode": _short(event.decode_seconds),
        "generated": event.counts.generated,
        "latent": event.counts.latent,
        "forwarded": event.counts.forwarded,
        "memory": event.peak_memory_bytes,
        "failed_calls": event.failed_calls,
    }
