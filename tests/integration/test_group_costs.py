"""What a group costs, counted at the model and not by the engine: positions, images, rows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.decode import Decoder, DecodeState, ForkPoint
from engine.engine import Engine
from engine.forking import Forking
from engine.loading import LoadedModel
from engine.request import Request, Sampling
from engine.rollout import Rollout
from engine.trace import Event, LatentStep, Reground
from tests.integration.conftest import MakeRequest
from tests.integration.test_forks import assert_replays, zooming
from training.objectives import LatentPolicyConfig
from training.rollout_groups import latent_draw

BRANCHES = 4


@dataclasses.dataclass
class Seen:
    """What reached the model.

    Attributes:
        layers: rows and columns of everything that went through the first layer.
        images: how often the vision tower ran.
    """

    layers: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    images: int = 0

    @property
    def positions(self) -> int:
        return sum(rows * columns for rows, columns in self.layers)

    @property
    def batches(self) -> list[int]:
        """Rows of every step of all branches, in which each is fed one position."""
        # The first forward is that of the prompt.
        return [rows for rows, _ in self.layers[1:]]


@contextlib.contextmanager
def seen_by(loaded: LoadedModel) -> Iterator[Seen]:
    seen = Seen()

    def layer(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.layers.append((inputs[0].shape[0], inputs[0].shape[1]))

    def tower(*_: object) -> None:
        seen.images += 1

    inner = loaded.model.model
    hooks = [
        inner.language_model.layers[0].register_forward_pre_hook(layer),
        inner.visual.register_forward_pre_hook(tower),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def grouped(engine: Engine, request: Request, count: int) -> tuple[Rollout, Decoder, list[Event]]:
    """A group without forks, from the image on."""
    decoder, start = engine.prepare(request)
    rollout = Rollout(decoder, start, count=count)
    return rollout, decoder, [event for _, event in rollout.events()]


def sampled(make_request: MakeRequest, method: str, seed: int, **changes: object) -> Request:
    return zooming(make_request, seed, **{"method": method, "max_new_tokens": 15, **changes})


# --- the prompt once, what each branch was fed once, every image once ------------


# Of these seeds all branches are fed until the last round: none waits in the batch for others.
@pytest.mark.parametrize(("method", "seed"), [("direct", 3), ("latent", 0), ("zoom", 5)])
def test_a_group_runs_its_prompt_once_and_encodes_every_image_once(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, method: str, seed: int
) -> None:
    with seen_by(loaded) as seen:
        rollout, decoder, events = grouped(engine, sampled(make_request, method, seed), BRANCHES)

    prompt = rollout.sequences[0].prompt
    own = [len(sequence.ids) - prompt for sequence in rollout.sequences]
    crops = {event.box_source_px for event in events if isinstance(event, Reground)}
    latents = sum(isinstance(event, LatentStep) for event in events)
    assert (len(crops) > 0, latents > 0) == (method == "zoom", method == "latent")
    assert seen.positions == decoder.forwarded == prompt + sum(own)
    assert seen.images == 1 + len(crops)
    assert seen.layers.count((1, prompt)) == 1


def test_siblings_that_choose_the_same_box_share_its_tokens(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    """Without chance all branches do the same."""
    request = sampled(make_request, "zoom", 5, sampling=Sampling(temperature=0.0))
    with seen_by(loaded) as seen:
        rollout, _, events = grouped(engine, request, BRANCHES)

    assert sum(isinstance(event, Reground) for event in events) == BRANCHES
    assert seen.images == 2
    for sequence in rollout.sequences:
        assert_replays(loaded, sequence)


# --- latents of all branches in one forward --------------------------------------


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
def test_latents_of_a_group_are_fed_together(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, kind: str
) -> None:
    """K forwards of all branches, one behind the other: not one for every latent."""
    steps = 3
    request = sampled(make_request, "latent", 0, latent_steps=steps)
    decoder, start = engine.prepare(request)
    draw = latent_draw(LatentPolicyConfig(kind=kind, sigma=0.1), engine.loaded.device, 0)
    rollout = Rollout(decoder, start, count=BRANCHES, draw_latent=draw)
    fed: dict[int, list[int]] = {}
    with seen_by(loaded) as seen:
        for branch, event in rollout.events():
            if isinstance(event, LatentStep):
                # How many forwards there have been is the number of the one that fed it.
                fed.setdefault(len(seen.layers), []).append(branch)

    first = min(fed)
    assert fed == {number: list(range(BRANCHES)) for number in range(first, first + steps)}
    # And the one before them, which opens the segments.
    assert seen.layers[first - 2 : first + steps - 1] == [(BRANCHES, 1)] * (steps + 1)


# --- ended branches leave the batch ----------------------------------------------


@contextlib.contextmanager
def ending_early(loaded: LoadedModel, nats: float) -> Iterator[None]:
    """Makes the model stop more often: so much is added to the logits of what ends a turn."""
    stops = sorted(loaded.vocabulary.stop_ids)
    added = torch.zeros(loaded.model.lm_head.out_features)
    added[stops] = nats

    def raised(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        return logits + added

    hook = loaded.model.lm_head.register_forward_hook(raised)
    try:
        yield
    finally:
        hook.remove()


def batches_of(lengths: list[int]) -> list[int]:
    """Rows of every step, if rows leave as soon as fewer than half of those there are alive."""
    rows, batches = len(lengths), []
    for step in range(max(lengths)):
        alive = sum(length > step for length in lengths)
        rows = alive if 2 * alive < rows else rows
        batches.append(rows)
    return batches


def test_rows_leave_when_fewer_than_half_are_alive() -> None:
    """The expectation of the next test, by hand."""
    assert batches_of([3, 2, 2, 1]) == [4, 4, 1]
    assert batches_of([2, 2, 1, 1]) == [4, 4]
    assert batches_of([5, 3, 3, 1, 1, 1, 1, 1]) == [8, 3, 3, 1, 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_ended_branches_leave_the_batch(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, seed: int
) -> None:
    request = sampled(make_request, "direct", seed, max_new_tokens=24)
    with ending_early(loaded, 3.0):
        with seen_by(loaded) as seen:
            rollout, _, _ = grouped(engine, request, 8)

        prompt = rollout.sequences[0].prompt
        lengths = [len(sequence.ids) - prompt for sequence in rollout.sequences]
        assert seen.batches == batches_of(lengths)
        # They leave in two goes; without, every step would have eight rows.
        assert sorted(set(seen.batches)) == [1, 3, 8]
        # Those that stay are still themselves.
        for sequence in rollout.sequences:
            assert_replays(loaded, sequence)


# --- a fork is the moment it began at, to the bit --------------------------------


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made, and do not only look at others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage().data_ptr()
            for one in tree_leaves((args, kwargs))
            if isinstance(one, torch.Tensor)
        }
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in given:
                self.bytes += one.untyped_storage().nbytes()
        return found


def test_a_fork_is_its_parent_at_that_moment_to_the_bit(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    decoder, start = engine.prepare(make_request(sampling=Sampling(temperature=1.0)))
    state = decoder.expanded(decoder.prefill(start.prompt), 2)
    before, after = ([40, 41], [42, 43]), ([44, 45], [46, 47], [48, 49])
    for tokens in before:
        decoder.step(state, decoder.embed_step(tokens))
    row = 1
    mark = decoder.point_of(state, row)
    went_on = []
    for tokens in after:
        decoder.step(state, decoder.embed_step(tokens))
        went_on.append(state.logits[row].clone())
    parents = (state.logits.clone(), state.hidden.clone(), list(state.next_positions))
    keys = [layer.keys.clone() for layer in state.cache.layers]
    values = [layer.values.clone() for layer in state.cache.layers]

    with seen_by(loaded) as seen:
        with Allocations() as made:
            child = decoder.forked(state, row, mark)
            whole = decoder.branched(state, row)
        forked = decoder.joined([state, child])

    assert seen.positions == 0
    # Until it joins the batch it is a window on it: no tensor is made for it.
    assert made.bytes == 0
    assert torch.equal(whole.cache.layers[0].keys[0], keys[0][row])
    assert torch.equal(child.logits[0], mark.logits)
    assert torch.equal(child.hidden[0], mark.hidden)
    for layer, key, value in zip(child.cache.layers, keys, values, strict=True):
        assert torch.equal(layer.keys[0], key[row, :, : mark.columns])
        assert torch.equal(layer.values[0], value[row, :, : mark.columns])
    assert torch.equal(forked.logits[2], mark.logits)
    assert torch.equal(forked.hidden[2], mark.hidden)
    assert not torch.equal(forked.logits[2], forked.logits[row])
    for found in (forked, state):
        assert torch.equal(found.logits[:2], parents[0])
        assert torch.equal(found.hidden[:2], parents[1])
        assert found.next_positions[:2] == parents[2]
        for layer, key, value in zip(found.cache.layers, keys, values, strict=True):
            assert torch.equal(layer.keys[:2], key)
            assert torch.equal(layer.values[:2], value)
    for layer, one in zip(forked.cache.layers, child.cache.layers, strict=True):
        assert torch.equal(layer.keys[2, :, : mark.columns], one.keys[0])
        assert torch.equal(layer.values[2, :, : mark.columns], one.values[0])
    # Fed what its parent was fed, it says what that said, beside the batch and in it; in it a mask
    # makes another kernel run.
    for (_, token), expected in zip(after, went_on, strict=True):
        decoder.step(child, decoder.embed_step([token]))
        torch.testing.assert_close(child.logits[0], expected, atol=2e-5, rtol=0)
        decoder.step(forked, decoder.embed_step([50, 51, token]))
        torch.testing.assert_close(forked.logits[2], expected, atol=2e-5, rtol=0)


def test_forks_of_a_round_join_their_batch_together(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of the batch are copied once, however many branches fork, and how often.

    Many branch off branches whose rows have padding, and all are still what they would be alone.
    """
    joined: list[tuple[int, list[int]]] = []
    join, fork = Decoder.joined, Decoder.forked
    parents: list[int] = []

    def counted(self: Decoder, states: list[DecodeState]) -> DecodeState:
        joined.append((len(seen.layers), list(parents)))
        parents.clear()
        return join(self, states)

    def noted(self: Decoder, state: DecodeState, row: int, point: ForkPoint) -> DecodeState:
        parents.append(row)
        return fork(self, state, row, point)

    monkeypatch.setattr(Decoder, "joined", counted)
    monkeypatch.setattr(Decoder, "forked", noted)
    _, start = engine.prepare(zooming(make_request, 0, entropy_threshold=5.0))
    rollout = Rollout(Decoder(loaded), start, count=8, forking=Forking(24, lambda _: 1))
    with seen_by(loaded) as seen:
        list(rollout.events())

    rounds = [number for number, _ in joined]
    assert len(set(rounds)) == len(rounds)
    # Several branches fork in one round, and one forks in several.
    assert max(len(set(rows)) for _, rows in joined) > 1
    assert sum(len(rows) for _, rows in joined) == len(rollout.origins) > 8
    assert set(rollout.origins) & {origin.parent for origin in rollout.origins.values()}
    for sequence in rollout.sequences:
        assert_replays(loaded, sequence)
