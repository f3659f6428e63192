"""Trees of real forks: every member is a run that replays, also after it was saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.decode import Decoder
from engine.engine import Engine
from engine.group import Group, shared_events
from engine.group_io import read_group, write_group
from engine.loading import LoadedModel
from engine.request import Budgets, DisplayImage, Request, Sampling, Tracing
from engine.tiny import tiny_manifest
from tests.factories import chest
from tests.integration.conftest import picture
from tests.integration.test_loading import save
from tests.replay import replayed_logprobs
from training.cli import main
from training.outcomes import coordinates_nats
from training.prompts import Prompt
from training.questions import Question, case_for
from training.regrounding import BranchRule, branch_probability
from training.rollout_groups import RolloutConfig, policy_request
from training.trajectories import TrajectoryGroup, roll_out
from training.trees import tree_of

pytestmark = pytest.mark.timeout(900)

MOST_SEEDS = 40
# Any rise will do, and every draw succeeds.
ALWAYS = BranchRule(base=1.0, gamma=0.0, least_rise=-np.inf)
TRUTH = Question(
    family="asked",
    kind="coarse",
    text="Where is the nodule?",
    options=(),
    answer="left",
    target_boxes=(),
    reasoning="",
    reasoning_before_zoom="",
    reasoning_after_zoom="",
)


def zooming(seed: int) -> Request:
    """Random weights zoom where the entropy rule makes them."""
    return Request(
        image=DisplayImage(pixels=picture()),
        question="Where is the nodule?",
        options=(),
        method="zoom",
        seed=seed,
        entropy_threshold=5.6,
        sampling=Sampling(temperature=1.0),
        budgets=Budgets(max_new_tokens=60, max_crops=1),
        tracing=Tracing(layers="none"),
    )


@pytest.fixture(scope="module")
def grown(loaded: LoadedModel) -> tuple[Request, Group]:
    """The first seed whose rollouts fork; do not change it."""
    engine = Engine(loaded)
    for seed in range(MOST_SEEDS):
        request = zooming(seed)
        forks = (ALWAYS, np.random.default_rng(seed))
        rollouts = roll_out(engine, request, TRUTH, 6, forks)
        if any(trajectory.origin for trajectory in rollouts.trajectories):
            return request, tree_of(engine, request, rollouts, TRUTH)
    pytest.fail(f"No group of {MOST_SEEDS} forks.")


def test_the_tree_says_where_the_rollouts_forked_and_on_what(grown: tuple[Request, Group]) -> None:
    _, tree = grown
    forks = [number for number, member in enumerate(tree.members) if member.parent is not None]

    assert len(tree.members) == 6
    assert forks
    for number in forks:
        member, decision = tree.members[number], tree.decision_of(number)
        assert decision is not None
        assert decision.probability == branch_probability(
            decision.baseline_nats, decision.coordinates_nats, ALWAYS
        )
        parent = tree.members[member.parent or 0].trace
        tokens = parent.tokens[: decision.token_index]
        opening = [token.entropy_nats for token in tokens[: ALWAYS.opening]]
        assert decision.baseline_nats == pytest.approx(float(np.mean(opening)))
        assert "".join(token.text for token in tokens).rstrip().endswith("[")
        shared = shared_events(parent, member.shared_tokens)
        assert member.trace.events[shared:] != parent.events[shared:]
    assert tree.truth == "left"
    assert {member.correct for member in tree.members} <= {True, False}


def test_a_benchmark_reads_the_entropy_that_decided_about_forks(
    grown: tuple[Request, Group],
) -> None:
    _, tree = grown
    zoomed = [m for m in tree.members if m.decisions and m.trace.regrounds]

    assert zoomed
    for member in zoomed:
        found = coordinates_nats(member.trace)
        assert found == pytest.approx(member.decisions[0].coordinates_nats, abs=1e-12)


@pytest.fixture(scope="module")
def agent() -> Engine:
    """The shipped agent, which calls the tool by itself."""
    return Engine.load("assets/checkpoints/medvr")


def forked(agent: Engine, count: int, most_crops: int = 1) -> tuple[Request, TrajectoryGroup]:
    """A group of the shipped agent in which every fork is taken that there is room for."""
    prompt = Prompt(
        case_for("nodule_margin", "smooth", 5).question, DisplayImage(pixels=chest(448))
    )
    config = RolloutConfig(prompts=1, group=count, max_new_tokens=120, max_crops=most_crops)
    request = policy_request(prompt, "zoom", config, seed=1)
    draws = np.random.default_rng(0)
    return request, roll_out(agent, request, prompt.question, count, (ALWAYS, draws))


def test_a_call_that_cannot_be_carried_out_makes_no_fork(agent: Engine) -> None:
    """Its children would be told that no zooms are left, whatever they wrote."""
    (_, none), (_, one) = forked(agent, 8, most_crops=0), forked(agent, 8)

    assert any("<tool_call>" in trajectory.text for trajectory in none.trajectories)
    assert none.decisions == ()
    assert [t.origin for t in none.trajectories] == [None] * 8
    assert any(trajectory.origin for trajectory in one.trajectories)


@pytest.mark.parametrize(("count", "roots"), [(7, 3), (8, 4)])
def test_half_of_a_group_are_roots_and_half_forks_where_every_fork_is_taken(
    agent: Engine, count: int, roots: int
) -> None:
    _, found = forked(agent, count)
    origins = [trajectory.origin for trajectory in found.trajectories]

    assert origins[:roots] == [None] * roots
    assert None not in origins[roots:]
    assert len(origins) == count
    # Nothing was asked once the group was full.
    assert len(found.decisions) == count - roots


def test_no_member_of_a_group_is_a_copy_and_each_has_a_seed_of_its_own(agent: Engine) -> None:
    request, found = forked(agent, 8)
    tree = tree_of(agent, request, found, TRUTH)
    written = [
        tuple(token.token_id for token in trajectory.sequence.written)
        for trajectory in found.trajectories
    ]
    forks = [t.origin for t in found.trajectories if t.origin is not None]

    assert len(forks) == 4
    assert all(written[o.parent] != own for o, own in zip(forks, written[4:], strict=True))
    assert len(set(written)) == 8
    seeds = [member.trace.started.request.seed for member in tree.members if member.trace.started]
    assert seeds == [request.seed + number for number in range(8)]


def test_every_member_of_a_saved_tree_replays_to_its_own_log_probabilities(
    grown: tuple[Request, Group], loaded: LoadedModel, tmp_path: Path
) -> None:
    request, tree = grown
    file = tmp_path / "tree.radgroup.zip"

    write_group(file, tree)
    again = read_group(file)

    assert again == tree
    decoder = Decoder(loaded)
    for member in again.members:
        recorded = [token.logprob for token in member.trace.tokens]
        replayed = replayed_logprobs(decoder, request, member.trace)
        assert replayed == pytest.approx(recorded, abs=2e-4)


def test_a_root_of_a_tree_is_the_run_of_its_seed(
    grown: tuple[Request, Group], loaded: LoadedModel
) -> None:
    request, tree = grown
    for number in range(2):
        started = tree.members[number].trace.started
        assert started is not None
        alone = dataclasses.replace(request, seed=started.request.seed)
        tokens = [e.token_id for e in Engine(loaded).stream(alone) if hasattr(e, "token_id")]
        assert tokens == [token.token_id for token in tree.members[number].trace.tokens]


@pytest.fixture(scope="module")
def checkpoint(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees") / "base"
    save(dataclasses.replace(loaded, manifest=tiny_manifest()), folder)
    return folder


def test_the_command_saves_a_tree(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "DOE_JANE.png"
    Image.fromarray(picture()).save(image)
    out = tmp_path / "tree.radgroup.zip"
    options = ["--question", "Where?", "--option", "left", "--option", "right", "--group", "3"]
    budgets = ["--max-new-tokens", "8", "--seed", "4"]

    assert main(["tree", str(checkpoint), str(image), *options, *budgets, "--out", str(out)]) == 0

    tree = read_group(out)
    assert capsys.readouterr().out.startswith("3 members (0 forks, 0 zoomed) in tree.radgroup.zip")
    assert [member.correct for member in tree.members] == [None] * 3
    assert tree.started.request.question == "Where?"
    assert b"DOE" not in out.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DOE_JANE.png", out.name]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], "either an image or --phantom", id="nothing"),
        pytest.param(["--phantom", "test"], "SPLIT:NUMBER", id="no number"),
        pytest.param(["--phantom", "exam:1"], "SPLIT:NUMBER", id="no split"),
        pytest.param(["--phantom", "test:1", "--question", "x"], "brings its own", id="question"),
        pytest.param(["a.png"], "needs --question", id="no question"),
        pytest.param(["--phantom", "test:1", "--group", "65"], "2 to 64", id="too many"),
        pytest.param(["--phantom", "test:1", "--group", "1"], "2 to 64", id="too few"),
    ],
)
def test_bad_input_of_the_command_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tree.radgroup.zip"

    assert main(["tree", "no/such", *arguments, "--out", str(out)]) == 2

    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not out.exists()
