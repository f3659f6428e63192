"""The one decode loop: a batch of branches in, events out.

The live view, the command line, replays and training rollouts all run through `Rollout`. In
every round each branch decides a token (or takes its last hidden state as a latent), all of
them are fed in one forward, and crops are appended to the branches that asked for one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.answers import read_answer
from engine.attention import ATTENTION_NAME, AttentionRecorder, BatchRecorder, traced_layers
from engine.belief import Distribution, feed, leading_text, probe
from engine.branch import Branch, Opening, Written
from engine.decode import Decoder, DecodeState, ForkPoint, Layout
from engine.forking import Forking, ForkMark, Origin, ZoomUncertainty, coordinate_entropies
from engine.geometry import PatchGrid
from engine.interventions import LatentChange
from engine.latent import LatentDraw, attention_maps, bottleneck_columns, unit
from engine.memory import peak_memory_bytes
from engine.processor import SeenImage
from engine.prompt import tool_message_text, tool_response_text
from engine.reground import ANSWER_TURN, NO_ZOOMS_LEFT, SKIPPED_MESSAGE, cut_crop
from engine.request import Request
from engine.sampling import Draw, packed_step, unpacked_steps
from engine.script import Script
from engine.sequence import FedSequence
from engine.tool_call import ImageSizes, ToolCallError, parse_zoom_call
from engine.trace import (
    Alternative,
    Answered,
    Belief,
    BeliefMoment,
    Event,
    EvidenceMap,
    Finished,
    TokenCounts,
    TokenStep,
    Trigger,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a rollout starts.

    Attributes:
        request: what is asked; the same for all branches but for their seeds.
        pixels: the image that crops are cut from (occlusions already painted).
        seen: the view as the vision tower takes it.
        view: its visual tokens `(N, D)`.
        prompt: the prompt, laid out.
    """

    request: Request
    pixels: npt.NDArray[np.uint8]
    seen: SeenImage
    view: torch.Tensor
    prompt: Layout


class Rollout:
    """Runs one prompt in one or several branches.

    Attributes:
        branches: what each branch has written, in order of their numbers.
        recorders: the attention rows of each branch; empty when none are traced.
        sequences: what each branch was fed.
        origins: where each forked branch comes from, by its number.
    """

    def __init__(
        self,
        decoder: Decoder,
        start: Start,
        *,
        count: int = 1,
        forking: Forking | None = None,
        draw_latent: LatentDraw | None = None,
        script: Script | None = None,
        clock: float | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Prepares a run; nothing is computed yet.

        Args:
            decoder: runs the model.
            start: the prompt.
            count: branches to begin with.
            forking: lets branches fork before the coordinates of a zoom, up to a total; what
                forks leave over is filled with fresh branches from the prompt. Attention is not
                traced then.
            draw_latent: draws what a latent slot is fed from its mean; None: the mean itself.
            script: tokens of a saved run, which the one branch writes instead of drawing its own.
            clock: `time.perf_counter()` at the start of the run.
            stop: ends the run within one token when set.

        Raises:
            ValueError: attention is to be traced while branches may fork, or by a model whose
                attention function keeps no rows.
        """
        self.decoder = decoder
        self.start = start
        self.request = start.request
        self.vocabulary = decoder.loaded.vocabulary
        self._clock = time.perf_counter() if clock is None else clock
        self._stop = stop
        height, width = start.pixels.shape[:2]
        counted = decoder.loaded.manifest.coordinates
        self._sizes = ImageSizes(start.seen.width, start.seen.height, width, height, counted)
        self.branches = [
            Branch(self.request, self._sizes, self.vocabulary, decoder.device, index, script)
            for index in range(count)
        ]
        # Row of the batch -> branch; shrinks as branches end.
        self._rows = list(self.branches)
        layers = traced_layers(self.request.tracing.layers, decoder.loaded.facts.layers)
        self.recorders = [AttentionRecorder(layers, decoder.device) for _ in self.branches]
        self._traces = bool(layers)
        if forking is not None and self._traces:
            raise ValueError("Attention is not traced while branches may fork.")
        if self._traces and decoder.attention != ATTENTION_NAME:
            # Rows that nobody takes would be whatever lay in memory.
            raise ValueError(
                f"Attention is traced by {ATTENTION_NAME}, and the model runs {decoder.attention}: "
                "set the former as its language model's attention."
            )
        self._forking = forking
        self._draw_latent = draw_latent
        self._marks: dict[int, ForkMark] = {}
        # Forks of this round, until they join the batch.
        self._beside: list[tuple[Branch, int, ForkPoint]] = []
        # Visual tokens of crops by what was cut: branches of a group may choose the same box.
        self._crops: dict[tuple[int, int, int, int], torch.Tensor] = {}
        self._root: DecodeState | None = None
        self.origins: dict[int, Origin] = {}
        self.sequences = [self._prompt_sequence() for _ in self.branches]
        self._unit_view = unit(start.view.float()) if self._may_go_latent() else start.view
        self._change = LatentChange(
            self.request.interventions, self.request.seed, start.view.shape[-1]
        )
        self._state: DecodeState | None = None
        self._prefill_seconds = 0.0
        self._prefill_end = self._clock

    def events(self) -> Iterator[tuple[int, Event]]:
        """Runs until every branch has ended; pairs of a branch's number and its event.

        Raises:
            InvalidLogitsError: when the model's output is not finite.
            RequestError: when latents of another run do not fit the model.
        """
        if self._stopped():
            yield from self._break_off()
            return
        self._prefill()
        for row in range(len(self._rows)):
            yield from self._believe(row, "prefill", self._rows[row].here(self.state.length))
        while self._rows:
            while any(not branch.finished for branch in self._rows):
                if self._stopped():
                    yield from self._break_off()
                    break
                yield from self._round()
            self._begin_missing()
        for recorder in self.recorders:
            recorder.finish()

    @property
    def state(self) -> DecodeState:
        """The tensors of the batch."""
        if self._state is None:
            raise RuntimeError("The prompt has not been run yet.")
        return self._state

    def release(self) -> None:
        """Drops every tensor of the run."""
        self._state = self._root = None
        self._marks.clear()
        self._beside.clear()
        self._crops.clear()
        self.recorders = []

    def _prefill(self) -> None:
        begun = time.perf_counter()
        if self._traces:
            for recorder in self.recorders:
                recorder.begin_step(self.start.prompt.images)
        state = self.decoder.prefill(self.start.prompt, self.recorders[0] if self._traces else None)
        if self._forking is not None:
            # A fork of its own: the batch grows away from it.
            self._root = self.decoder.branched(state, 0)
        if len(self.branches) > 1:
            state = self.decoder.expanded(state, len(self.branches))
            for recorder in self.recorders[1:]:
                recorder.copy_step(self.recorders[0])
        self._state = state
        self._prefill_end = time.perf_counter()
        self._prefill_seconds = self._prefill_end - begun

    def _break_off(self) -> Iterator[tuple[int, Event]]:
        for branch in self._rows:
            if not branch.finished:
                branch.reason = "stopped"
                yield branch.index, self._finished(branch)

    def _round(self) -> Iterator[tuple[int, Event]]:
        """Every branch decides, all are fed, and what follows is done."""
        yield from self._decide()
        for row, branch in enumerate(self._rows):
            if branch.finished and not branch.reported:
                yield from self._conclude(row)
        if all(branch.finished for branch in self._rows) or self._stopped():
            return
        self._drop_finished()
        latents = self._feed()
        for row, branch in enumerate(self._rows):
            if branch.finished:
                continue
            if row in latents:
                yield branch.index, self._latent_step(row, latents[row])
            else:
                yield from self._after_token(row)
        self._join()

    def _decide(self) -> Iterator[tuple[int, Event]]:
        rows = [r for r, b in enumerate(self._rows) if not b.finished and not b.in_latent]
        while rows:
            self._mark(rows)
            draws = self._draws(rows)
            again: list[int] = []
            for row, drawn in zip(rows, draws, strict=True):
                branch = self._rows[row]
                written = branch.write(drawn, self.state.length)
                if written is not None:
                    self.sequences[branch.index].write(
                        drawn.token_id, drawn.logprob, drawn.entropy, forced=written.forced
                    )
                    yield branch.index, self._token_step(row, drawn, written)
                if branch.pending is None and not branch.finished:
                    again.append(row)
                if branch.take_answer_turn():
                    self._append(row, ANSWER_TURN, [])
            rows = again

    @torch.inference_mode()
    def _draws(self, rows: list[int]) -> list[Draw]:
        logits = self.state.logits
        chosen = torch.stack([self._rows[row].choose(logits[row]) for row in rows])
        alone = len(self._rows) == 1
        extra = None
        if alone and self._traces:
            extra = self.recorders[self._rows[0].index].mean_row()[None]
        picked = logits if alone else logits[rows]
        count = min(self.request.tracing.alternatives, logits.shape[-1])
        return unpacked_steps(packed_step(picked, chosen, count, extra), count)

    def _token_step(self, row: int, drawn: Draw, written: Written) -> TokenStep:
        branch = self._rows[row]
        attention: tuple[EvidenceMap, ...] = ()
        if self._traces:
            recorder = self.recorders[branch.index]
            values = drawn.extra if len(drawn.extra) else recorder.mean_row().cpu()
            attention = attention_maps(values, recorder.spans)
        return TokenStep(
            seconds=self._seconds(),
            index=written.index,
            token_id=drawn.token_id,
            text=written.text,
            logprob=drawn.logprob,
            entropy_nats=drawn.entropy,
            alternatives=tuple(
                Alternative(
                    token_id=token_id, text=self.vocabulary.text_of(token_id), logprob=logprob
                )
                for token_id, logprob in drawn.alternatives
            ),
            segment=written.segment,
            forced=written.forced,
            attention=attention,
        )

    @torch.inference_mode()
    def _feed(self) -> dict[int, torch.Tensor]:
        """One forward for all branches; returns the latents fed, by row."""
        state = self.state
        latents = {
            row: self._change.apply(self._drawn(state.hidden[row]), branch.latent.fed)
            for row, branch in enumerate(self._rows)
            if branch.latent is not None and branch.latent.open and not branch.finished
        }
        filler = self.vocabulary.im_end
        tokens = [filler if b.pending is None else b.pending for b in self._rows]
        inputs = self.decoder.embed_step(tokens)
        for row, latent in latents.items():
            inputs[row, 0] = latent
        blind = {}
        if self._change.blind:
            blind = {row: self._rows[row].latent_column + 1 for row in latents}
        for row, branch in enumerate(self._rows):
            position = state.next_positions[row]
            sequence = self.sequences[branch.index]
            if row in latents:
                sequence.feed_latent(self.vocabulary.latent_slot, position, latents[row])
            elif branch.pending is not None:
                sequence.feed(branch.pending, position)
        self.decoder.step(state, inputs, self._begin_step_rows(), blind)
        return latents

    def _drawn(self, mean: torch.Tensor) -> torch.Tensor:
        return mean if self._draw_latent is None else self._draw_latent(mean)

    def _begin_step_rows(self) -> AttentionRecorder | BatchRecorder | None:
        if not self._traces:
            return None
        chosen = [self.recorders[branch.index] for branch in self._rows]
        for row, recorder in enumerate(chosen):
            recorder.begin_step(self.state.images[row])
        return chosen[0] if len(chosen) == 1 else BatchRecorder(chosen)

    def _latent_step(self, row: int, latent: torch.Tensor) -> Event:
        branch = self._rows[row]
        if branch.latent is None:
            raise RuntimeError("A latent was fed outside of a segment.")
        attention: tuple[EvidenceMap, ...] = ()
        if self._traces:
            recorder = self.recorders[branch.index]
            attention = attention_maps(recorder.mean_row().cpu(), recorder.spans)
        event = branch.latent.record(
            latent, self._unit_view, self.start.seen.grid, attention, self._seconds()
        )
        branch.latents_fed += 1
        branch.latent_fed()
        self._narrow(row)
        return event

    def _after_token(self, row: int) -> Iterator[tuple[int, Event]]:
        branch = self._rows[row]
        token = branch.pending
        branch.fed(self.state.length)
        if token == self.vocabulary.latent_start:
            self._narrow(row)
        if token == self.vocabulary.latent_end:
            yield from self._believe(row, "latent", branch.here(self.state.length))
        call = branch.closed_call()
        if call is not None:
            if branch.may_zoom:
                self._fork(row)
            yield from self._call(row, call)

    def _call(self, row: int, call: str) -> Iterator[tuple[int, Event]]:
        """Carries out a zoom call, or tells the model why not."""
        branch = self._rows[row]
        try:
            box, clamped = parse_zoom_call(call, self._sizes)
        except ToolCallError as error:
            self._tell(row, branch.refuse_call(str(error)))
            return
        if branch.crops_left == 0:
            branch.last_turn = True
            self._tell(row, NO_ZOOMS_LEFT)
            return
        branch.crops += 1
        # Probed before anything of the crop is made, so that cutting it counts as its cost.
        yield from self._believe(row, "before_crop", branch.opening(), branch.crops)
        crop = cut_crop(
            pixels=self.start.pixels,
            number=branch.crops,
            box=box,
            clamped=clamped,
            processor=self.decoder.loaded.image_processor,
            manifest=self.decoder.loaded.manifest,
            interventions=self.request.interventions,
        )
        trigger = branch.trigger or Trigger(
            kind="request", token_index=branch.tokens, entropy_nats=None, threshold=None
        )
        seen = self.start.seen
        if crop.skipped:
            self._tell(row, SKIPPED_MESSAGE)
        else:
            tokens = self._crops.get(crop.source_px)
            if tokens is None:
                tokens = self._crops[crop.source_px] = self.decoder.encode(crop.seen)
            branch.crop_tokens += crop.seen.grid.cells
            self._append(row, tool_response_text(), [(crop.number, tokens, crop.seen.grid)])
        if self.decoder.device.type == "cuda":
            # The crop is in the cache once the device has done what it was given.
            torch.cuda.synchronize(self.decoder.device)
        yield branch.index, crop.event(trigger, seen.width, seen.height, self._seconds())
        yield from self._believe(row, "after_crop", branch.here(self.state.length), crop.number)

    def _tell(self, row: int, message: str) -> None:
        self._append(row, tool_message_text(message), [])

    def _append(
        self, row: int, text: str, images: list[tuple[int, torch.Tensor, PatchGrid]]
    ) -> None:
        state, branch = self.state, self._rows[row]
        layout = self.decoder.lay_out(text, images, state.next_positions[row])
        recorder = None
        if self._traces:
            recorder = self.recorders[branch.index]
            offset = state.length
            moved = tuple(
                type(span)(span.image, span.start + offset, span.grid) for span in layout.images
            )
            recorder.begin_step(state.images[row] + moved)
        columns = [
            (span.start, tokens) for span, (_, tokens, _) in zip(layout.images, images, strict=True)
        ]
        self.sequences[branch.index].extend(layout.ids, layout.positions, columns)
        self.decoder.append(state, row, layout, recorder)
        branch.begin_turn()

    def _believe(
        self, row: int, moment: BeliefMoment, opening: Opening, crop: int | None = None
    ) -> Iterator[tuple[int, Event]]:
        if not self.request.tracing.belief:
            return
        branch = self._rows[row]
        distribution = self._probe(row, opening)
        yield branch.index, self._belief(branch, moment, distribution, crop)

    def _belief(
        self,
        branch: Branch,
        moment: BeliefMoment,
        distribution: Distribution,
        crop: int | None = None,
    ) -> Belief:
        return Belief(
            seconds=self._seconds(),
            moment=moment,
            token_index=branch.tokens,
            crop=crop,
            options=distribution.options,
            probabilities=distribution.probabilities,
            outside=distribution.outside,
        )

    @torch.inference_mode()
    def _probe(self, row: int, opening: Opening) -> Distribution:
        state = self.state
        fork = self.decoder.branched(state, row, state.length - opening.columns)
        pending = self._rows[row].pending
        if pending is not None and opening.columns == state.length:
            # The last token of a run that ended on its budget has been written, not fed.
            feed(self.decoder, fork, [pending])
        leading = leading_text(opening.text, opening.thinking)
        return probe(self.decoder, fork, leading, self.request.options)

    def _conclude(self, row: int) -> Iterator[tuple[int, Event]]:
        """The end of one branch: its belief, its answer, its counts."""
        branch = self._rows[row]
        branch.reported = True
        reading = read_answer(branch.text, self.request.options)
        if branch.reason == "no_answer" and reading.valid:
            # It was given, in another form than between its tags.
            branch.reason = "answered"
        probabilities: tuple[float, ...] = ()
        tracing = self.request.tracing
        if (self.request.options and tracing.distribution) or tracing.belief:
            opening = (
                branch.opening() if branch.has_opened_answer else branch.here(self.state.length)
            )
            distribution = self._probe(row, opening)
            probabilities = distribution.probabilities if self.request.options else ()
            if tracing.belief:
                yield branch.index, self._belief(branch, "end", distribution)
        yield (
            branch.index,
            Answered(
                seconds=self._seconds(),
                text=reading.text,
                option=reading.option,
                valid=reading.valid,
                options=self.request.options,
                probabilities=probabilities,
            ),
        )
        yield branch.index, self._finished(branch)

    def _finished(self, branch: Branch) -> Finished:
        seconds = self._seconds()
        return Finished(
            seconds=seconds,
            reason=branch.reason or "stopped",
            prefill_seconds=self._prefill_seconds,
            decode_seconds=time.perf_counter() - self._prefill_end,
            counts=TokenCounts(
                prompt=self.start.prompt.embeddings.shape[1],
                image=self.start.seen.grid.cells,
                generated=branch.tokens,
                latent=branch.latents_fed,
                crop=branch.crop_tokens,
                forwarded=self.decoder.forwarded,
            ),
            peak_memory_bytes=peak_memory_bytes(self.decoder.device),
            failed_calls=branch.failed_calls,
        )

    def _drop_finished(self) -> None:
        """Lets go of ended branches once fewer than half are alive."""
        alive = [row for row, branch in enumerate(self._rows) if not branch.finished]
        if len(alive) * 2 >= len(self._rows):
            return
        self._state = self.decoder.selected(self.state, alive)
        self._rows = [self._rows[row] for row in alive]

    def _narrow(self, row: int) -> None:
        """The evidence bottleneck: past its latents a branch sees neither image nor its readers."""
        branch = self._rows[row]
        if not self.request.bottleneck or branch.latent is None or branch.latent.open:
            return
        first = min(span.start for span in self.state.images[row])
        opening = branch.latent_column
        _, keys = bottleneck_columns(first, opening + 1, opening + branch.latent.fed)
        self.decoder.hide(self.state, row, keys)

    def _prompt_sequence(self) -> FedSequence:
        prompt = self.start.prompt
        sequence = FedSequence(prompt=len(prompt.ids))
        images = [(span.start, self.start.view) for span in prompt.images]
        sequence.extend(prompt.ids, prompt.positions, images)
        return sequence

    def _mark(self, rows: list[int]) -> None:
        """Remembers the moment before a branch writes the coordinates of a zoom."""
        if self._forking is None:
            return
        for row in rows:
            branch = self._rows[row]
            if branch.at_coordinates:
                sequence = self.sequences[branch.index]
                self._marks[branch.index] = ForkMark(
                    branch=branch.copied(branch.index),
                    sequence=sequence.prefix(len(sequence.ids)),
                    point=self.decoder.point_of(self.state, row),
                )

    def _fork(self, row: int) -> None:
        """Lets a branch that has written a zoom call go on from before its coordinates, too."""
        branch = self._rows[row]
        mark = self._marks.pop(branch.index, None)
        if self._forking is None or mark is None:
            return
        room = self._forking.total - len(self.branches)
        written = self.sequences[branch.index].written
        begun = mark.branch.tokens
        uncertainty = ZoomUncertainty(
            branch=branch.index,
            opening=tuple(token.entropy for token in written[:begun]),
            coordinates=coordinate_entropies(written[begun:], self.vocabulary),
        )
        wanted = self._forking.children(uncertainty) if room > 0 else 0
        for _ in range(min(room, wanted)):
            index = len(self.branches)
            child = mark.branch.copied(index)
            self.branches.append(child)
            self.recorders.append(AttentionRecorder((), self.decoder.device))
            self.sequences.append(mark.sequence.prefix(len(mark.sequence.ids)))
            self.origins[index] = Origin(branch.index, begun)
            self._beside.append((child, row, mark.point))

    def _join(self) -> None:
        """Takes all forks of a round into the batch, which is copied once for all of them."""
        if self._beside:
            # Not before: each would keep the tensors of its moment while the batch grows.
            forks = [self.decoder.forked(self.state, row, at) for _, row, at in self._beside]
            self._state = self.decoder.joined([self.state, *forks])
            self._rows += [branch for branch, _, _ in self._beside]
            self._beside.clear()

    def _begin_missing(self) -> None:
        """Fresh branches from the prompt for what forks have left over; else no rows are left."""
        missing = 0 if self._forking is None else self._forking.total - len(self.branches)
        self._rows = []
        if missing <= 0 or self._root is None or self._stopped():
            return
        for index in range(len(self.branches), len(self.branches) + missing):
            branch = Branch(self.request, self._sizes, self.vocabulary, self.decoder.device, index)
            self.branches.append(branch)
            self.recorders.append(AttentionRecorder((), self.decoder.device))
            self.sequences.append(self._prompt_sequence())
            self._rows.append(branch)
        self._state = self.decoder.expanded(self._root, missing)

    def _stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def _may_go_latent(self) -> bool:
        return self.request.method in ("latent", "auto")

    def _seconds(self) -> float:
        return time.perf_counter() - self._clock
