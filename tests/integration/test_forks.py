"""Branches that fork before the coordinates of a zoom, and what every branch was fed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from engine.decode import Decoder, Layout
from engine.engine import Engine
from engine.forking import Forking, Origin, ZoomUncertainty
from engine.loading import LoadedModel
from engine.request import Request, Sampling
from engine.rollout import Rollout
from engine.sequence import FedSequence
from engine.trace import Event, Finished, LatentStep, Reground, TokenStep
from tests.integration.conftest import MakeRequest

MOST_SEEDS = 40


@contextmanager
def positions_counted(loaded: LoadedModel) -> Iterator[list[int]]:
    """Positions that enter the first layer of the language model, pass by pass.

    Every row of a batch counts, whoever calls the layer and however.
    """
    seen: list[int] = []

    def count(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0].shape[0] * arguments[0].shape[1])

    first = loaded.model.model.language_model.layers[0]
    handle = first.register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def zooming(make_request: MakeRequest, seed: int, **changes: object) -> Request:
    """Random weights zoom where the entropy rule makes them."""
    defaults = {
        "method": "zoom",
        "entropy_threshold": 5.6,
        "sampling": Sampling(temperature=1.0),
        "max_new_tokens": 60,
        "max_crops": 1,
        "layers": "none",
        "belief": False,
        "options": (),
    }
    return make_request(seed=seed, **{**defaults, **changes})


def forked_run(
    engine: Engine, make_request: MakeRequest, count: int, total: int, wanted: int = 1
) -> tuple[Rollout, list[int], list[tuple[int, Event]], list[ZoomUncertainty]]:
    """The first seed whose branches fork; each call asks for as many forks as are wanted."""
    for seed in range(MOST_SEEDS):
        _, start = engine.prepare(zooming(make_request, seed))
        asked: list[ZoomUncertainty] = []

        def children(uncertainty: ZoomUncertainty, asked: list = asked) -> int:
            asked.append(uncertainty)
            return wanted

        rollout = Rollout(
            Decoder(engine.loaded), start, count=count, forking=Forking(total, children)
        )
        with positions_counted(engine.loaded) as seen:
            events = list(rollout.events())
        if rollout.origins:
            return rollout, seen, events, asked
    pytest.fail(f"No run of {MOST_SEEDS} forks.")


def relaid(decoder: Decoder, sequence: FedSequence) -> Layout:
    embeddings = decoder.embed(sequence.ids).clone()
    for column, tokens in sequence.images:
        embeddings[0, column : column + len(tokens)] = tokens
    for column, vector in sequence.latents:
        embeddings[0, column] = vector
    return Layout(embeddings, sequence.position_ids, (), 0, tuple(sequence.ids))


def replayed(loaded: LoadedModel, sequence: FedSequence) -> torch.Tensor:
    decoder = Decoder(loaded)
    columns = [token.predictor for token in sequence.written]
    logits = decoder.logits_at(relaid(decoder, sequence), columns)
    chosen = torch.tensor([token.token_id for token in sequence.written])[:, None]
    return torch.log_softmax(logits, -1).gather(-1, chosen)[:, 0]


def assert_replays(loaded: LoadedModel, sequence: FedSequence) -> None:
    recorded = torch.tensor([token.logprob for token in sequence.written])
    torch.testing.assert_close(replayed(loaded, sequence), recorded, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("count", "total"), [(1, 2), (2, 5), (3, 4)])
def test_a_group_has_exactly_its_total(
    engine: Engine, make_request: MakeRequest, count: int, total: int
) -> None:
    rollout, _, events, _ = forked_run(engine, make_request, count, total)

    ended = [branch for branch, event in events if isinstance(event, Finished)]
    assert sorted(ended) == list(range(total))
    assert len(rollout.branches) == len(rollout.sequences) == total
    for child, origin in rollout.origins.items():
        assert count <= child
        assert origin.parent < child


def test_a_fork_shares_what_came_before_the_coordinates_and_draws_on_alone(
    engine: Engine, make_request: MakeRequest
) -> None:
    rollout, _, events, _ = forked_run(engine, make_request, 1, 2)
    (child, origin), *_ = rollout.origins.items()
    own = [e.token_id for b, e in events if b == child and isinstance(e, TokenStep)]
    parent = rollout.branches[origin.parent].ids

    assert rollout.branches[child].ids == parent[: origin.tokens] + own
    assert parent[origin.tokens :] != own
    assert (
        rollout.branches[child].text.split("bbox_2d")[0]
        == (rollout.branches[origin.parent].text.split("bbox_2d")[0])
    )
    indices = [e.index for b, e in events if b == child and isinstance(e, TokenStep)]
    assert indices[0] == origin.tokens


def test_a_fork_equals_a_run_of_its_whole_sequence(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    rollout, _, events, _ = forked_run(engine, make_request, 2, 4)

    for branch, sequence in enumerate(rollout.sequences):
        assert [token.token_id for token in sequence.written] == rollout.branches[branch].ids
        assert_replays(loaded, sequence)
    crops = {branch for branch, event in events if isinstance(event, Reground)}
    assert crops & set(rollout.origins)


def segment_lengths(sequence: FedSequence) -> list[int]:
    """Of what was fed at once: the prompt, and every answer of the tool; 0 for a single token."""
    return [0 if isinstance(p, int) else p.shape[1] for p in sequence.positions]


def test_no_token_of_a_prefix_is_run_again(engine: Engine, make_request: MakeRequest) -> None:
    """Exactly: the prompt once, answers of the tool once each, and one position a row and step."""
    rollout, seen, _, _ = forked_run(engine, make_request, 1, 2)
    shared = rollout.origins[1].tokens
    parent, child = map(segment_lengths, rollout.sequences)
    # Behind the prompt nothing but single tokens is shared.
    assert (
        parent[: 1 + shared] == child[: 1 + shared] == [rollout.sequences[0].prompt, *[0] * shared]
    )

    # The call is answered at once, in the first segment behind the prompt.
    told = next(place for place, length in enumerate(parent) if place and length)
    before = told - 1
    after = parent[told:].count(0)
    own = child[1 + shared :]
    # A row that has ended stays in a batch of two.
    steps = before + 2 * max(after, own.count(0))
    assert before > shared > 0
    assert sum(seen) == sum(parent) + sum(own) + steps
    assert sum(seen) == rollout.decoder.forwarded


def test_forks_of_one_call_are_drawn_apart(engine: Engine, make_request: MakeRequest) -> None:
    """Four of a parent: none goes on as it did, and no two go on alike."""
    rollout, _, _, _ = forked_run(engine, make_request, 1, 5, wanted=4)
    begun = rollout.origins[1].tokens

    assert rollout.origins == {child: Origin(0, begun) for child in (1, 2, 3, 4)}
    went_on = [tuple(branch.ids[begun:]) for branch in rollout.branches]
    assert len(set(went_on)) == 5


def test_whoever_decides_sees_the_entropies_of_the_coordinates(
    engine: Engine, make_request: MakeRequest
) -> None:
    rollout, _, _, asked = forked_run(engine, make_request, 1, 2)
    first = asked[0]
    sequence = rollout.sequences[first.branch]
    begun = rollout.origins[1].tokens
    text = rollout.branches[first.branch].vocabulary
    drawn = [text.text_of(t.token_id) for t in sequence.written[begun:]]
    count = next(index for index, piece in enumerate(drawn) if "]" in piece)

    assert first.opening == tuple(t.entropy for t in sequence.written[:begun])
    assert first.coordinates == tuple(t.entropy for t in sequence.written[begun : begun + count])
    assert set("".join(drawn[:count])) <= set("0123456789, ")


def test_without_a_wish_to_fork_the_rest_are_fresh_branches(
    engine: Engine, make_request: MakeRequest
) -> None:
    request = zooming(make_request, 3)
    _, start = engine.prepare(request)
    alone = Rollout(Decoder(engine.loaded), start, count=3)
    list(alone.events())
    rollout = Rollout(
        Decoder(engine.loaded), start, count=1, forking=Forking(3, lambda uncertainty: 0)
    )
    list(rollout.events())

    assert not rollout.origins
    assert [branch.ids for branch in rollout.branches] == [branch.ids for branch in alone.branches]


def test_attention_and_forks_exclude_each_other(engine: Engine, make_request: MakeRequest) -> None:
    _, start = engine.prepare(zooming(make_request, 0, layers="all"))
    with pytest.raises(ValueError, match="fork"):
        Rollout(Decoder(engine.loaded), start, forking=Forking(2, lambda uncertainty: 1))


@pytest.mark.parametrize("method", ["direct", "latent", "zoom"])
def test_what_a_branch_was_fed_replays_it(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, method: str
) -> None:
    request = zooming(make_request, 5, method=method, max_new_tokens=30)
    _, start = engine.prepare(request)
    rollout = Rollout(Decoder(loaded), start, count=2)
    latents = sum(isinstance(event, LatentStep) for _, event in rollout.events())

    assert latents == (8 if method == "latent" else 0)
    for sequence in rollout.sequences:
        assert_replays(loaded, sequence)


# --- the evidence bottleneck --------------------------------------------------------------


def bottled(engine: Engine, make_request: MakeRequest, **changes: object) -> list[TokenStep]:
    request = make_request(method="latent", max_new_tokens=12, **changes)
    return [event for event in engine.stream(request) if isinstance(event, TokenStep)]


def test_past_the_bottleneck_no_token_attends_to_the_image(
    engine: Engine, make_request: MakeRequest
) -> None:
    free = bottled(engine, make_request)
    narrow = bottled(engine, make_request, bottleneck=True)

    # The first token opens the segment, before the bottleneck.
    assert all(m.total > 0 for m in narrow[0].attention)
    assert all(m.total > 0 for token in free for m in token.attention)
    assert all(m.total == 0 for token in narrow[2:] for m in token.attention)


def test_past_the_bottleneck_only_the_latents_carry_the_image(
    engine: Engine, make_request: MakeRequest
) -> None:
    """With K = 0 nothing is left, so that two images give the same logits."""
    changes = {"latent_steps": 0, "bottleneck": True, "belief": False}
    one, other = (bottled(engine, make_request, seed_of_image=i, **changes) for i in (0, 1))
    assert [t.logprob for t in one[2:]] == pytest.approx([t.logprob for t in other[2:]], abs=1e-5)
    latent = {**changes, "latent_steps": 4}
    one, other = (bottled(engine, make_request, seed_of_image=i, **latent) for i in (0, 1))
    assert [t.logprob for t in one[2:]] != pytest.approx([t.logprob for t in other[2:]], abs=1e-3)


def test_a_bottleneck_in_a_batch_is_the_bottleneck_alone(
    engine: Engine, make_request: MakeRequest
) -> None:
    changes = {"method": "latent", "bottleneck": True, "sampling": Sampling(temperature=1.0)}
    decoder, start = engine.prepare(make_request(seed=7, max_new_tokens=15, **changes))
    rollout = Rollout(decoder, start, count=2)
    together: list[list[int]] = [[], []]
    for branch, event in rollout.events():
        if isinstance(event, TokenStep):
            together[branch].append(event.token_id)
    alone = [
        [
            event.token_id
            for event in engine.stream(make_request(seed=7 + i, max_new_tokens=15, **changes))
            if isinstance(event, TokenStep)
        ]
        for i in range(2)
    ]
    assert together == alone
