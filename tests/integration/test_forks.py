"""Branches that fork before the coordinates of a zoom, and what every branch was fed."""

from __future__ import annotations

import pytest
import torch

from engine.decode import Decoder, DecodeState, Layout
from engine.engine import Engine
from engine.forking import Forking, ZoomUncertainty
from engine.loading import LoadedModel
from engine.request import Request, Sampling
from engine.rollout import Rollout
from engine.sequence import FedSequence
from engine.trace import Event, Finished, LatentStep, Reground, TokenStep
from tests.integration.conftest import MakeRequest

MOST_SEEDS = 40


class CountingDecoder(Decoder):
    """Counts what is sent through the model, kind by kind."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.prefills = 0
        self.appended = 0
        self.steps = 0

    def prefill(self, layout: Layout, recorder: object = None) -> DecodeState:
        self.prefills += 1
        return super().prefill(layout)

    def append(self, state: DecodeState, row: int, layout: Layout, recorder: object = None) -> None:
        self.appended += layout.embeddings.shape[1]
        super().append(state, row, layout)

    def step(self, state, inputs, recorder=None, blind=None) -> None:
        self.steps += 1
        super().step(state, inputs, recorder, blind)


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
    engine: Engine, make_request: MakeRequest, count: int, total: int
) -> tuple[Rollout, CountingDecoder, list[tuple[int, Event]], list[ZoomUncertainty]]:
    """The first seed whose branches fork."""
    for seed in range(MOST_SEEDS):
        _, _, start = engine.prepare(zooming(make_request, seed))
        decoder = CountingDecoder(engine.loaded)
        asked: list[ZoomUncertainty] = []

        def one(uncertainty: ZoomUncertainty, asked: list = asked) -> int:
            asked.append(uncertainty)
            return 1

        rollout = Rollout(decoder, start, count=count, forking=Forking(total, one))
        events = list(rollout.events())
        if rollout.origins:
            return rollout, decoder, events, asked
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
    torch.testing.assert_close(replayed(loaded, sequence), recorded, atol=2e-4, rtol=0)


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


def test_no_token_of_a_prefix_is_run_again(engine: Engine, make_request: MakeRequest) -> None:
    rollout, decoder, events, _ = forked_run(engine, make_request, 1, 2)
    (child, origin), *_ = rollout.origins.items()
    prompt = rollout.sequences[0].prompt
    crops = [event for _, event in events if isinstance(event, Reground)]
    answers = sum(len(s.ids) for s in rollout.sequences) - sum(
        len(branch.ids) for branch in rollout.branches
    )

    assert decoder.prefills == 1
    # Segments were appended only after calls: the tool's answers, each once.
    assert decoder.appended <= answers - len(rollout.branches) * prompt + len(rollout.branches)
    assert len(crops) <= 2
    # Steps: the parent's tokens up to its call, then both side by side.
    own = len(rollout.branches[child].ids) - origin.tokens
    assert decoder.steps <= len(rollout.branches[origin.parent].ids) + own
    assert decoder.steps < sum(len(branch.ids) for branch in rollout.branches)


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
    _, _, start = engine.prepare(request)
    alone = Rollout(Decoder(engine.loaded), start, count=3)
    list(alone.events())
    rollout = Rollout(
        Decoder(engine.loaded), start, count=1, forking=Forking(3, lambda uncertainty: 0)
    )
    list(rollout.events())

    assert not rollout.origins
    assert [branch.ids for branch in rollout.branches] == [branch.ids for branch in alone.branches]


def test_attention_and_forks_exclude_each_other(engine: Engine, make_request: MakeRequest) -> None:
    _, _, start = engine.prepare(zooming(make_request, 0, layers="all"))
    with pytest.raises(ValueError, match="fork"):
        Rollout(Decoder(engine.loaded), start, forking=Forking(2, lambda uncertainty: 1))


@pytest.mark.parametrize("method", ["direct", "latent", "zoom"])
def test_what_a_branch_was_fed_replays_it(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest, method: str
) -> None:
    request = zooming(make_request, 5, method=method, max_new_tokens=30)
    _, _, start = engine.prepare(request)
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
    decoder, _, start = engine.prepare(make_request(seed=7, max_new_tokens=15, **changes))
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
