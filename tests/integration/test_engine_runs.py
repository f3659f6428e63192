"""Runs that fail, stop, meet and are changed on purpose."""

from __future__ import annotations

import dataclasses
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from engine import rollout
from engine.branch import Branch
from engine.engine import Engine
from engine.geometry import Box
from engine.loading import LoadedModel
from engine.reground import Crop
from engine.request import DisplayImage, Interventions, Request, Sampling
from engine.tiny import tiny_model
from engine.trace import (
    Belief,
    Event,
    Failed,
    Finished,
    LatentStep,
    RunStarted,
    TokenStep,
    Trace,
)
from tests.integration.conftest import MakeRequest, picture
from tests.integration.test_engine_equivalence import run, run_with_crops, token_ids

Hook = Callable[..., Any]


@pytest.fixture
def hooked(loaded: LoadedModel) -> Iterator[Callable[[Hook], None]]:
    """Puts a hook before the first layer of the language model, for one test."""
    handles: list[Any] = []

    def add(hook: Hook) -> None:
        layer = loaded.model.model.language_model.layers[0]
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    yield add
    for handle in handles:
        handle.remove()


def last(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed)
    assert events[-1].message.endswith(".")
    assert "\n" not in events[-1].message
    return events[-1]


# --- failures -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["direct", "latent", "zoom", "auto"])
@pytest.mark.parametrize("belief", [True, False])
def test_logits_that_are_no_numbers_fail_before_anything_is_shown(
    make_request: MakeRequest, method: str, belief: bool
) -> None:
    damaged = tiny_model(seed=1)
    with torch.no_grad():
        damaged.model.model.language_model.norm.weight[0] = float("nan")
    events = list(Engine(damaged).stream(make_request(method=method, belief=belief)))

    assert last(events).code == "invalid_logits"
    assert not any(isinstance(event, TokenStep | LatentStep | Belief) for event in events)


@pytest.mark.parametrize("options", [(), ("yes", "no")])
def test_latents_that_are_no_numbers_fail(
    engine: Engine, make_request: MakeRequest, hooked: Any, options: tuple[str, ...]
) -> None:
    fed = 0

    def poison(module: Any, args: Any, kwargs: Any) -> Any:
        nonlocal fed
        fed += args[0].shape[1] == 1
        return ((args[0] * float("nan"), *args[1:]), kwargs) if fed == 2 else None

    hooked(poison)
    events = list(engine.stream(make_request(method="latent", options=options, belief=False)))

    assert last(events).code == "invalid_logits"
    for event in events:
        if isinstance(event, LatentStep):
            assert np.isfinite(event.norm)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 97 GiB"),
        MemoryError(),
        "cpu",
    ],
)
def test_memory_that_runs_out_is_said_and_the_next_run_works(
    engine: Engine, make_request: MakeRequest, hooked: Any, error: Exception | str
) -> None:
    expected = token_ids(run(engine, make_request()))
    armed = True

    def exhaust(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal armed
        if armed and args[0].shape[1] == 1:
            armed = False
            if isinstance(error, str):
                torch.empty(10**15)  # what torch itself raises on a CPU
            else:
                raise error

    hooked(exhaust)
    failed = last(list(engine.stream(make_request())))

    assert failed.code == "out_of_memory"
    assert token_ids(run(engine, make_request())) == expected


def test_a_failure_that_nobody_foresaw_says_nothing_of_its_cause(
    engine: Engine, make_request: MakeRequest, hooked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("SECRET^NAME")

    hooked(fail)
    # The command line, which other tests call in this process, keeps the engine's logger quiet.
    caplog.set_level(logging.WARNING, logger="engine.engine")
    failed = last(list(engine.stream(make_request(question="SECRET question?"))))

    assert failed.code == "unexpected"
    assert "SECRET" not in failed.message + caplog.text
    assert "KeyError" in caplog.text


def test_an_image_of_an_extreme_shape(engine: Engine, make_request: MakeRequest) -> None:
    image = DisplayImage(pixels=np.zeros((2, 900), np.uint8))
    (failed,) = engine.stream(make_request(image=image))

    assert isinstance(failed, Failed)
    assert failed.code == "image_shape"


def test_latents_of_another_model(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="latent", latents="shuffle", latent_donor=(bytes(12),))

    assert last(list(engine.stream(request))).code == "request"


# --- stopping -----------------------------------------------------------------------------


def cache_watcher(seen: list[weakref.ref[Any]]) -> Hook:
    def watch(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(weakref.ref(kwargs["past_key_values"]))

    return watch


@pytest.mark.parametrize("way", ["stop", "close", "fail"])
def test_a_run_that_ends_early_lets_go_of_its_cache(
    engine: Engine, make_request: MakeRequest, hooked: Any, way: str
) -> None:
    caches: list[weakref.ref[Any]] = []
    hooked(cache_watcher(caches))

    armed = way == "fail"

    def fail(*_: Any) -> None:
        nonlocal armed
        if armed and len(caches) > 12:
            armed = False
            raise MemoryError

    hooked(fail)
    stop = threading.Event()
    events = engine.stream(make_request(method="zoom", entropy_threshold=1.0), stop)
    for number, _ in enumerate(events):
        if number == 6 and way == "stop":
            stop.set()
        if number == 6 and way == "close":
            events.close()  # type: ignore[attr-defined]
            break
    gc.collect()

    assert len(caches) > 3
    assert [cache() for cache in caches if cache() is not None] == []
    # The next run does not wait for this one.
    assert run(engine, make_request()).tokens


@pytest.mark.parametrize("own", [0.0, None])
def test_the_entropy_rule_can_take_the_limit_of_the_checkpoint(
    engine: Engine, make_request: MakeRequest, own: float | None
) -> None:
    manifest = dataclasses.replace(engine.loaded.manifest, entropy_threshold=own)
    loaded = dataclasses.replace(engine.loaded, manifest=manifest)

    wanted = make_request(method="zoom", entropy_threshold="checkpoint", max_crops=1)
    trace = Trace.from_events(Engine(loaded).stream(wanted))

    if own is None:
        assert isinstance(trace.events[0], Failed)
        assert "give a number" in trace.events[0].message
    else:
        assert trace.started is not None
        assert trace.started.request.entropy_threshold == own
        assert trace.regrounds[0].trigger.threshold == own


def test_a_run_that_waits_for_its_turn_can_be_stopped(
    engine: Engine, make_request: MakeRequest
) -> None:
    first = engine.stream(make_request())
    next(first)
    stop = threading.Event()
    stop.set()
    (finished,) = engine.stream(make_request(), stop)

    assert isinstance(finished, Finished)
    assert finished.reason == "stopped"
    assert finished.counts.generated == 0
    first.close()  # type: ignore[attr-defined]


def test_an_answer_without_its_tags_is_an_answer_all_the_same(
    engine: Engine,
    loaded: LoadedModel,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checkpoints of others seldom write the tags."""
    written = [*loaded.vocabulary.encode("The answer is B."), loaded.vocabulary.im_end]
    monkeypatch.setattr(Branch, "choose", lambda self, _: torch.tensor(written[len(self.ids)]))
    trace = Trace.from_events(engine.stream(make_request(method="direct")))

    assert trace.answered is not None
    assert (trace.answered.option, trace.answered.valid) == (1, True)
    assert isinstance(trace.events[-1], Finished)
    assert trace.events[-1].reason == "answered"


def test_requests_of_several_threads_never_mix(engine: Engine, make_request: MakeRequest) -> None:
    requests = [
        make_request(
            image=DisplayImage(pixels=picture(number), sha256=f"{number:064x}"),
            method=("direct", "latent", "zoom")[number % 3],
            entropy_threshold=1.0,
            question=f"Question {number}?",
            sampling=Sampling(temperature=1.0),
            seed=number,
        )
        for number in range(6)
    ]
    alone = [token_ids(run(engine, request)) for request in requests]
    traces: list[Trace | None] = [None] * len(requests)

    def work(number: int) -> None:
        traces[number] = Trace.from_events(engine.stream(requests[number]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    run_ids = set()
    for number, trace in enumerate(traces):
        assert trace is not None
        assert trace.started is not None
        run_ids.add(trace.started.run_id)
        assert trace.started.image.sha256 == f"{number:064x}"
        assert trace.started.request.question == f"Question {number}?"
        assert token_ids(trace) == alone[number]
    assert len(run_ids) == len(requests)


# --- interventions ------------------------------------------------------------------------


def vectors(trace: Trace) -> list[np.ndarray]:
    return [np.frombuffer(step.vector, "<f4") for step in trace.latents]


def image_mass(trace: Trace) -> list[float]:
    return [sum(part.total for part in step.attention) for step in trace.latents]


def test_zeroed_latents_still_look_at_the_image_and_blind_ones_do_not(
    engine: Engine, make_request: MakeRequest
) -> None:
    plain, zero, blind = (
        run(engine, make_request(method="latent", latents=kind))
        for kind in ("none", "zero", "blind")
    )

    assert [len(trace.latents) for trace in (plain, zero, blind)] == [4, 4, 4]
    assert all(vector.any() for vector in vectors(plain))
    assert not any(vector.any() for vector in (*vectors(zero), *vectors(blind)))
    assert min(image_mass(zero)) > 0.01
    assert max(image_mass(blind)) == 0.0
    # What is written behind the segment is told by it.
    after = [[t.logprob for t in trace.tokens[1:4]] for trace in (plain, zero, blind)]
    assert after[0] != after[1] != after[2] != after[0]


def test_an_answer_behind_blind_latents_alone_knows_nothing_of_the_image(
    engine: Engine, make_request: MakeRequest
) -> None:
    """With the bottleneck: what stands between image and latents has read the image, too."""
    logprobs = {
        kind: [
            run(engine, make_request(
                method="latent", latents=kind, bottleneck=True, seed_of_image=seed, belief=False
            )).tokens[2].logprob
            for seed in (0, 1, 2)
        ]
        for kind in ("none", "blind")
    }  # fmt: skip
    assert logprobs["blind"] == pytest.approx([logprobs["blind"][0]] * 3, abs=1e-6)
    assert max(logprobs["none"]) - min(logprobs["none"]) > 1e-4


def test_blind_slots_are_those_of_a_forward_without_the_image(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    """One pass over the whole sequence under an explicit mask gives the same logits."""
    request = make_request(method="latent", latents="blind", latent_steps=3, belief=False)
    trace = run(engine, request)
    decoder, start = engine.prepare(request)
    vocabulary = loaded.vocabulary
    prompt, (span,) = start.prompt, start.prompt.images
    length, slots = prompt.embeddings.shape[1], 3
    texts = decoder.embed([vocabulary.latent_start, vocabulary.latent_end])
    embeddings = torch.cat(
        [prompt.embeddings, texts[:, :1], torch.zeros(1, slots, texts.shape[2]), texts[:, 1:]], 1
    )
    added = torch.arange(slots + 2).expand(3, -1) + prompt.next_position
    total = length + slots + 2
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[length + 1 : length + 1 + slots, span.start : length + 1] = False
    with torch.no_grad():
        hidden = loaded.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=torch.cat([prompt.positions, added], 1)[:, None],
            attention_mask={"full_attention": mask[None, None]},
        ).last_hidden_state
        logprobs = torch.log_softmax(loaded.model.lm_head(hidden[0, -1]), -1)
    first = trace.tokens[2]

    assert [t.token_id for t in trace.tokens[:2]] == [
        vocabulary.latent_start,
        vocabulary.latent_end,
    ]
    assert first.logprob == pytest.approx(float(logprobs[first.token_id]), abs=1e-4)


def test_noise_keeps_the_norm_of_the_first_latent(
    engine: Engine, make_request: MakeRequest
) -> None:
    plain = run(engine, make_request(method="latent"))
    noise = run(engine, make_request(method="latent", latents="noise"))

    assert noise.latents[0].norm == pytest.approx(plain.latents[0].norm, rel=1e-4)
    assert abs(np.corrcoef(vectors(plain)[0], vectors(noise)[0])[0, 1]) < 0.6


def test_shuffled_latents_are_the_donors(engine: Engine, make_request: MakeRequest) -> None:
    donor = run(engine, make_request(method="latent", seed_of_image=1))
    given = tuple(step.vector for step in donor.latents)
    trace = run(engine, make_request(method="latent", latents="shuffle", latent_donor=given))

    assert tuple(step.vector for step in trace.latents) == given
    assert given != tuple(s.vector for s in run(engine, make_request(method="latent")).latents)


@pytest.mark.parametrize("changes", [{"latents": "skip"}, {"latent_steps": 0}])
def test_no_slots_leave_the_segment_empty(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, changes: dict[str, Any]
) -> None:
    """K = 0: opened and closed by the engine, nothing fed back."""
    trace = run(engine, make_request(method="latent", **changes))
    words = loaded.vocabulary

    assert trace.latents == ()
    assert token_ids(trace)[:2] == [words.latent_start, words.latent_end]
    assert trace.tokens[0].forced
    assert trace.tokens[1].forced
    assert not trace.tokens[2].forced
    assert [belief.moment for belief in trace.beliefs] == ["prefill", "latent", "end"]


def test_skipping_is_the_same_as_no_slots(engine: Engine, make_request: MakeRequest) -> None:
    skipped = run(engine, make_request(method="latent", latents="skip"))
    none = run(engine, make_request(method="latent", latent_steps=0))

    assert [t.logprob for t in skipped.tokens] == [t.logprob for t in none.tokens]


def test_nothing_can_be_drawn_inside_a_segment_and_it_closes_by_force(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    events = list(
        engine.stream(
            make_request(
                method="latent", latent_steps=6, sampling=Sampling(temperature=10.0), belief=False
            )
        )
    )
    kinds = [type(event).__name__ for event in events]
    first = kinds.index("LatentStep")

    assert kinds[first - 1 : first + 7] == ["TokenStep", *["LatentStep"] * 6, "TokenStep"]
    assert [e.step for e in events if isinstance(e, LatentStep)] == [1, 2, 3, 4, 5, 6]
    closing = events[first + 6]
    assert isinstance(closing, TokenStep)
    assert closing.forced
    assert closing.token_id == loaded.vocabulary.latent_end
    drawn = [e.token_id for e in events if isinstance(e, TokenStep) and not e.forced]
    assert not set(drawn) & {
        loaded.vocabulary.latent_start,
        loaded.vocabulary.latent_slot,
        loaded.vocabulary.latent_end,
    }


def same_until_first_crop(one: Trace, other: Trace) -> None:
    index = one.regrounds[0].trigger.token_index
    assert [t.logprob for t in one.tokens[: index + 1]] == [
        t.logprob for t in other.tokens[: index + 1]
    ]


def changed(engine: Engine, request: Request, **interventions: Any) -> Trace:
    return run(engine, dataclasses.replace(request, interventions=Interventions(**interventions)))


def test_a_skipped_crop_is_answered_without_pixels(
    engine: Engine, make_request: MakeRequest
) -> None:
    request, plain = run_with_crops(engine, make_request, 1, max_crops=1)
    skipped = changed(engine, request, skip_crops=(1,))

    same_until_first_crop(plain, skipped)
    assert skipped.regrounds[0].skipped
    assert skipped.regrounds[0].box == plain.regrounds[0].box
    assert {part.image for t in plain.tokens for part in t.attention} == {0, 1}
    assert {part.image for t in skipped.tokens for part in t.attention} == {0}
    end = skipped.events[-1]
    assert isinstance(end, Finished)
    assert end.counts.crop == 0


def test_a_moved_crop_shows_another_place(engine: Engine, make_request: MakeRequest) -> None:
    request, plain = run_with_crops(engine, make_request, 1, max_crops=1)
    place = Box(0.5, 0.0, 1.0, 0.5)
    moved = changed(engine, request, move_crops=((1, place),))
    crop = moved.regrounds[0]

    same_until_first_crop(plain, moved)
    assert crop.box == place.as_tuple()
    assert crop.crop_png != plain.regrounds[0].crop_png
    # The call is still the model's own: only what came back was changed.
    calls = [
        "".join(t.text for t in trace.tokens if t.segment == "tool") for trace in (plain, moved)
    ]
    assert calls[0] == calls[1]


def test_an_occluded_region_is_in_neither_view_nor_crop_nor_what_is_kept(
    engine: Engine, make_request: MakeRequest
) -> None:
    """Two regions, one at the lower right corner, of an image in colour that is kept smaller."""
    pixels = np.dstack([picture(seed, 300, 2600) for seed in range(3)])
    boxes = (Box(0.0, 0.0, 0.5, 1.0), Box(0.9, 0.5, 1.0, 1.0))
    image = DisplayImage(pixels=pixels)
    request, trace = run_with_crops(
        engine, make_request, 1, max_crops=1, image=image, occlude=boxes
    )
    covered = pixels.copy()
    mean = np.rint(pixels.mean(axis=(0, 1)))
    covered[:, :1300], covered[150:, 2340:] = mean, mean
    plain = dataclasses.replace(
        request, image=DisplayImage(pixels=covered), interventions=Interventions()
    )
    painted = run(engine, plain)

    assert trace.started is not None
    assert painted.started is not None
    assert trace.started.image.seen_png == painted.started.image.seen_png
    assert trace.started.image.display_png == painted.started.image.display_png
    assert [c.crop_png for c in trace.regrounds] == [c.crop_png for c in painted.regrounds]
    assert [t.logprob for t in trace.tokens] == [t.logprob for t in painted.tokens]


# --- what an event says -------------------------------------------------------------------


def test_a_run_begins_with_what_is_run_on_what(engine: Engine, make_request: MakeRequest) -> None:
    events = list(engine.stream(make_request(max_new_tokens=3)))
    started = events[0]

    assert isinstance(started, RunStarted)
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    assert (started.image.source_width, started.image.source_height) == (400, 300)
    assert started.image.rows * started.image.columns > 0
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds)
    assert sum(isinstance(event, Finished | Failed) for event in events) == 1


def test_entropy_and_alternatives_are_those_of_the_whole_distribution(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    request = make_request(max_new_tokens=1, belief=False, alternatives=5)
    (token,) = run(engine, request).tokens
    decoder, start = engine.prepare(request)
    logprobs = torch.log_softmax(decoder.prefill(start.prompt).logits[0].double(), -1)
    best = logprobs.topk(5)

    assert token.entropy_nats == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), rel=1e-5)
    assert token.logprob == pytest.approx(float(logprobs[token.token_id]), rel=1e-5)
    assert [a.token_id for a in token.alternatives] == best.indices.tolist()
    assert [a.logprob for a in token.alternatives] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_an_entropy_peak_says_its_value_and_threshold(
    engine: Engine, make_request: MakeRequest
) -> None:
    _, trace = run_with_crops(engine, make_request, 1, max_crops=1)
    trigger = trace.regrounds[0].trigger
    peak = trace.tokens[trigger.token_index]

    assert trigger.kind == "entropy"
    assert trigger.threshold == 1.0
    assert trigger.entropy_nats == peak.entropy_nats
    assert peak.entropy_nats > 1.0
    before = trace.tokens[: trigger.token_index]
    assert all(t.entropy_nats <= 1.0 or t.segment != "reasoning" for t in before)


def test_the_seconds_of_a_crop_hold_the_cutting(
    engine: Engine, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = rollout.cut_crop

    def slowly(**arguments: Any) -> Crop:
        time.sleep(0.5)
        return cut(**arguments)

    monkeypatch.setattr(rollout, "cut_crop", slowly)
    _, trace = run_with_crops(engine, make_request, 1, max_crops=1)

    (crop,) = trace.regrounds
    (before,) = [one for one in trace.beliefs if one.moment == "before_crop"]
    assert before.crop == crop.number
    assert crop.seconds - before.seconds >= 0.5


def test_without_a_budget_for_crops_no_peak_opens_a_call(
    engine: Engine, make_request: MakeRequest
) -> None:
    trace = run(engine, make_request(method="zoom", entropy_threshold=0.0, max_crops=0))

    assert trace.regrounds == ()
