"""The loop of rollouts and updates on a tiny random model: it learns, skips, stops and goes on."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.engine import Engine
from engine.loading import LoadedModel
from engine.request import DisplayImage
from engine.tiny import TinyShape, tiny_model
from tests.integration.conftest import picture
from tests.unit.training.conftest import question
from training.alarm import AlarmConfig, ToolAlarm
from training.loop import Stage, StepsConfig, run_stage
from training.objectives import LatentPolicyConfig
from training.packing import packed_group
from training.policy import policy_outputs
from training.policy_loss import ObjectiveConfig, Totals, policy_loss
from training.policy_updates import PolicyUpdates, UpdateConfig
from training.prompts import Prompt
from training.reinforcement import Policy, reference_of
from training.rewards import RewardConfig, TrajectoryOutcome
from training.rollout_groups import (
    PolicyMethod,
    RewardedGroup,
    RolloutConfig,
    policy_request,
    rewarded,
    rolled_out,
)
from training.stopping import DivergedError
from training.trajectories import Trajectory

PROMPT = Prompt(question(), DisplayImage(pixels=picture()))
REWARD = RewardConfig(tool_reward="none")
GAUSSIAN = LatentPolicyConfig(kind="gaussian", sigma=0.02)
# Two tokens of plain text.
ARMS = (40, 41)
ROLLOUTS = RolloutConfig(prompts=1, group=6, max_new_tokens=1, latent_steps=2)
Judge = Callable[[Trajectory], bool]


def first_written(trajectory: Trajectory) -> int:
    """The first token that the policy draws itself."""
    return next(t.token_id for t in trajectory.sequence.written if not t.forced)


def probability(loaded: LoadedModel, method: PolicyMethod, token: int) -> float:
    """Of a token as the first that the policy writes."""
    found = rolled_out(Engine(loaded), PROMPT, method, ROLLOUTS, LatentPolicyConfig(), [99])
    group = packed_group([found.trajectories[0].sequence])
    asked = dataclasses.replace(group, targets=torch.full_like(group.targets, token))
    with torch.no_grad():
        log_probs = policy_outputs(loaded.model, asked).log_probs[group.learned]
    return float(log_probs[0].exp())


def two_armed(method: PolicyMethod) -> LoadedModel:
    """A tiny model that begins with one of two tokens, each about half of the time."""
    loaded = tiny_model(TinyShape(hidden=32, layers=2, heads=2))
    loaded.model.model.visual.requires_grad_(False)
    found = rolled_out(Engine(loaded), PROMPT, method, ROLLOUTS, LatentPolicyConfig(), [1])
    group = packed_group([t.sequence for t in found.trajectories[:2]])
    targets = torch.tensor(ARMS)[group.owners]
    taught = dataclasses.replace(group, targets=targets)
    optimizer = torch.optim.Adam(loaded.model.model.language_model.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        (-policy_outputs(loaded.model, taught).log_probs[group.learned].mean()).backward()
        optimizer.step()
    return loaded


@pytest.fixture(scope="module")
def policies() -> dict[PolicyMethod, LoadedModel]:
    """Policies to begin with; do not change them."""
    return {"direct": two_armed("direct"), "latent": two_armed("latent")}


def copied(loaded: LoadedModel) -> LoadedModel:
    return dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))


def weights(loaded: LoadedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loaded.model.parameters()])


def pulls_the_second(trajectory: Trajectory) -> bool:
    """The rewarded behaviour."""
    return first_written(trajectory) == ARMS[1]


@dataclasses.dataclass
class Run:
    """A run of the loop on one prompt, whose rewards a judge decides."""

    folder: Path
    loaded: LoadedModel
    method: PolicyMethod = "direct"
    judge: Judge = pulls_the_second
    batches: int = 1
    latents: LatentPolicyConfig = dataclasses.field(
        default_factory=lambda: LatentPolicyConfig(sigma=1.0)
    )
    learning_rate: float = 0.003
    update: UpdateConfig = dataclasses.field(default_factory=UpdateConfig)
    kl_weight: float = 0.01
    alarm: AlarmConfig | None = None
    said: list[str] = dataclasses.field(default_factory=list)
    gathered: list[int] = dataclasses.field(default_factory=list)
    die_at: int | None = None

    def __post_init__(self) -> None:
        self.loaded = copied(self.loaded)

    def gather(self, batch: int) -> Sequence[RewardedGroup]:
        if batch == self.die_at:
            raise KeyboardInterrupt
        self.gathered.append(batch)
        engine = Engine(self.loaded)
        rollouts = rolled_out(engine, PROMPT, self.method, ROLLOUTS, self.latents, [5, batch])
        judged = tuple(
            dataclasses.replace(
                t, outcome=TrajectoryOutcome(correct=self.judge(t), well_formed=True)
            )
            for t in rollouts.trajectories
        )
        return [
            rewarded(PROMPT.question, dataclasses.replace(rollouts, trajectories=judged), REWARD)
        ]

    def train(self) -> None:
        policy = Policy(Engine(self.loaded), None)
        alarm = ToolAlarm(self.alarm, self.said.append) if self.alarm else None
        updates = PolicyUpdates(
            policy.model,
            reference_of(policy, 64) if self.kl_weight else None,
            self.gather,
            self.update,
            ObjectiveConfig(kl_weight=self.kl_weight, latents=self.latents),
            alarm=alarm,
        )
        count = self.update.steps
        modules = policy.trained
        stage = Stage(
            folder=self.folder,
            modules=modules if alarm is None else modules | {"alarm": alarm},
            config=StepsConfig(
                steps=self.batches * count,
                learning_rate=self.learning_rate,
                warmup=1,
                save_every=count,
                log_every=count,
            ),
            parts_at=updates.parts_at,
        )
        run_stage(stage, self.said.append)

    def records(self) -> list[dict[str, float]]:
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        clock = ("steps_per_second", "tokens_per_second", "rollout_seconds")
        return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@pytest.mark.parametrize(
    ("method", "latents"),
    [
        ("direct", LatentPolicyConfig()),
        ("latent", LatentPolicyConfig(kind="none")),
        ("latent", LatentPolicyConfig(sigma=1.0)),
        ("latent", GAUSSIAN),
    ],
)
def test_rewarded_behaviour_becomes_likelier(
    tmp_path: Path,
    policies: dict[PolicyMethod, LoadedModel],
    method: PolicyMethod,
    latents: LatentPolicyConfig,
) -> None:
    run = Run(tmp_path, policies[method], method=method, latents=latents, batches=8)
    tower = [p.detach().clone() for p in run.loaded.model.model.visual.parameters()]
    assert 0.25 < probability(run.loaded, method, ARMS[1]) < 0.75

    run.train()

    assert probability(run.loaded, method, ARMS[1]) > 0.9
    first, *_, last = run.records()
    assert last["reward"] > first["reward"]
    assert max(record.get("kl", 0.0) for record in run.records()) > 0
    assert all(map(torch.equal, run.loaded.model.model.visual.parameters(), tower))


def test_the_first_update_of_a_batch_is_on_policy(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    """Every ratio is 1, so that nothing is clipped and no latent has drifted; then both move."""
    run = Run(tmp_path, policies["latent"], method="latent")
    updates: list[dict[str, float]] = []
    model = run.loaded.model
    source = PolicyUpdates(
        model,
        reference_of(Policy(Engine(run.loaded), None), 64),
        run.gather,
        UpdateConfig(steps=2),
        ObjectiveConfig(latents=run.latents),
    )
    optimizer = torch.optim.SGD(model.model.language_model.parameters(), lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        of_the_batch, part = source.parts_at(None, step)
        loss, numbers = part()
        loss.backward()
        optimizer.step()
        updates.append(numbers)
        assert 0 < of_the_batch()[1]["reward"] < 1

    assert run.gathered == [0]
    first, second = updates
    assert first["clipped"] == first["latent_clipped"] == first["kl"] == 0
    assert first["latent_drift"] == pytest.approx(0, abs=1e-6)
    # Advantages of a group sum to zero, and so do the latents' terms at a ratio of 1.
    assert first["latent_loss"] == pytest.approx(0, abs=1e-6)
    assert second["latent_drift"] > 1e-3
    assert second["kl"] > 0
    assert second["latent_norm"] == pytest.approx(first["latent_norm"])


@pytest.mark.parametrize("bottleneck", [False, True])
def test_an_update_reads_rollouts_as_they_were_written(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel], bottleneck: bool
) -> None:
    """What it takes for the old log-probabilities is what the rollout recorded, token by token."""
    model = policies["latent"]
    config = dataclasses.replace(ROLLOUTS, bottleneck=bottleneck)
    found = rolled_out(Engine(model), PROMPT, "latent", config, LatentPolicyConfig(), [5, 0])
    sequences = [trajectory.sequence for trajectory in found.trajectories]
    source = PolicyUpdates(
        model.model,
        None,
        lambda _: [],
        UpdateConfig(),
        ObjectiveConfig(kl_weight=0.0),
        bottleneck=bottleneck,
    )
    group = rewarded(PROMPT.question, found, REWARD)
    (part,) = source._parts_of(group, needs_old=True)
    written = torch.tensor([w.logprob for s in sequences for w in s.written if not w.forced])
    old = part.old.log_probs[part.packed.learned]
    assert torch.equal(part.packed.recorded[part.packed.learned], written)
    # In float32 they differ by 2.1e-6 at most, the width of two roundings.
    torch.testing.assert_close(old, written, atol=2e-5, rtol=0)


class HeadRows(TorchDispatchMode):
    """Counts the rows of logits that are computed: through the head, or by its weight alone."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func.overloadpacket in (aten.mm, aten.addmm, aten.bmm):
            self.rows += found.numel() // self.vocabulary * (found.shape[-1] == self.vocabulary)
        return found


@pytest.mark.parametrize(("steps", "passes"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("chunk", [5, 64])
def test_only_completions_reach_the_head(
    tmp_path: Path,
    policies: dict[PolicyMethod, LoadedModel],
    chunk: int,
    steps: int,
    passes: int,
) -> None:
    """Neither the prompt nor a latent has logits, in a pass before the update or in its own.

    With one update a batch there is no pass before it; a group that is learned from twice has one.
    """
    run = Run(tmp_path, policies["latent"], method="latent")
    (group,) = run.gather(0)
    assert group.varies
    sequences = [trajectory.sequence for trajectory in group.rollouts.trajectories]
    completion = sum(len(sequence.written) for sequence in sequences)
    assert completion < packed_group(sequences).columns
    model = run.loaded.model
    config = UpdateConfig(steps=steps, head_chunk=chunk)
    source = PolicyUpdates(
        model, None, lambda _: [group], config, ObjectiveConfig(kl_weight=0.0, latents=run.latents)
    )

    with HeadRows(model.lm_head.out_features) as before:
        _, part = source.parts_at(None, 0)
    with HeadRows(model.lm_head.out_features) as own:
        loss, _ = part()

    assert loss.requires_grad
    assert before.rows == passes * completion
    assert own.rows == completion


def test_groups_of_the_first_update_are_not_passed_through_before_it(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    """Of three groups in two updates, the one that is learned from second alone."""
    run = Run(tmp_path, policies["latent"], method="latent")
    drawn = (run.gather(batch)[0] for batch in range(20))
    groups = [group for group in drawn if group.varies][:3]
    source = PolicyUpdates(
        run.loaded.model,
        None,
        lambda _: groups,
        UpdateConfig(steps=2),
        ObjectiveConfig(kl_weight=0.0, latents=run.latents),
    )
    with HeadRows(run.loaded.model.lm_head.out_features) as before:
        first = source.parts_at(None, 0)
    second = source.parts_at(None, 1)

    assert (len(first), len(second)) == (3, 2)
    asked = groups[1].rollouts.trajectories
    assert before.rows == sum(len(trajectory.sequence.written) for trajectory in asked)


@pytest.mark.parametrize("latents", [LatentPolicyConfig(sigma=1.0), GAUSSIAN])
def test_an_update_that_is_its_own_past_learns_what_one_with_a_pass_before_it_does(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel], latents: LatentPolicyConfig
) -> None:
    run = Run(tmp_path, policies["latent"], method="latent", latents=latents)
    (group,) = run.gather(0)
    assert group.varies
    model = run.loaded.model
    config = ObjectiveConfig(latents=latents)
    reference = reference_of(Policy(Engine(copied(run.loaded)), None), 64)
    source = PolicyUpdates(model, reference, lambda _: [group], UpdateConfig(steps=1), config)
    found = []
    for needs_old in (False, True):
        (part,) = source._parts_of(group, needs_old=needs_old)
        assert (part.old is None) is not needs_old
        model.zero_grad()
        now = policy_outputs(model, part.packed)
        loss, numbers = policy_loss(now, part, Totals.of([part]), config)
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((numbers, torch.cat(gradients)))

    (numbers, gradient), (expected, asked) = found
    assert float(asked.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, asked, atol=1e-6, rtol=1e-5)
    assert numbers == pytest.approx(expected, abs=1e-6)
    assert numbers["clipped"] == numbers["latent_drift"] == 0


def test_layers_computed_again_change_memory_and_not_what_is_learned(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    def run(folder: str, *, again: bool) -> tuple[Run, int]:
        found = Run(
            tmp_path / folder,
            policies["latent"],
            method="latent",
            batches=2,
            update=UpdateConfig(gradient_checkpointing=again),
        )
        calls = []
        norm = found.loaded.model.model.language_model.layers[0].input_layernorm
        norm.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        found.train()
        assert not found.loaded.model.training
        return found, sum(calls)

    (plain, once), (spared, twice) = run("plain", again=False), run("spared", again=True)
    assert twice == 2 * once > 0
    for record, expected in zip(spared.records(), plain.records(), strict=True):
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(weights(spared.loaded), weights(plain.loaded))


def test_a_run_that_stopped_goes_on_as_if_it_never_had(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    def run(folder: str, die_at: int | None = None) -> Run:
        return Run(
            tmp_path / folder,
            policies["latent"],
            method="latent",
            latents=GAUSSIAN,
            batches=3,
            die_at=die_at,
            alarm=AlarmConfig(share=0.5, batches=2),
        )

    whole, cut = run("whole"), run("cut", die_at=1)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = run("cut")
    resumed.train()

    assert resumed.gathered == [1, 2]
    assert not torch.equal(weights(whole.loaded), weights(policies["latent"]))
    assert torch.equal(weights(whole.loaded), weights(resumed.loaded))
    assert whole.records() == resumed.records()
    assert [record["tool_alarm"] for record in resumed.records()] == [0, 1, 1]
    assert sum(line.startswith("ALARM: tool use is 0.0%") for line in resumed.said) == 1


def test_groups_without_variance_teach_nothing(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    run = Run(tmp_path, policies["direct"], judge=lambda _: True)
    run.train()

    assert torch.equal(weights(run.loaded), weights(policies["direct"]))
    (record,) = run.records()
    assert (record["skipped"], record["reward"], record["loss"]) == (1, 1, 0)


def test_parts_of_branches_train_as_whole_groups_do(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    runs = []
    for branches in (0, 4):
        update = UpdateConfig(branches=branches)
        runs.append(Run(tmp_path / str(branches), policies["direct"], update=update))
        runs[-1].train()
    moved = weights(runs[0].loaded) - weights(policies["direct"])
    assert float(moved.abs().max()) > 1e-3
    # AdamW's first steps are those of signs, which noise of the last digit can turn.
    agree = (weights(runs[0].loaded) - weights(runs[1].loaded)).abs() < 1e-4
    assert float(agree.float().mean()) > 0.99
    numbers = [run.records()[0] for run in runs]
    for name in ("loss", "kl", "reward"):
        assert numbers[1][name] == pytest.approx(numbers[0][name], abs=1e-4)


def test_a_policy_that_leaves_its_reference_stops_the_run(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    run = Run(
        tmp_path,
        policies["direct"],
        batches=9,
        learning_rate=0.02,
        update=UpdateConfig(most_kl=0.01),
    )
    with pytest.raises(DivergedError, match=r"nats a token .* lower steps.learning_rate.* go on"):
        run.train()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    # Not from the policy that was just refused, which would be so again.
    assert state["step"] == 2 * (len(run.gathered) - 2) > 0


def test_numbers_are_logged_from_the_first_batch_on(
    tmp_path: Path, policies: dict[PolicyMethod, LoadedModel]
) -> None:
    run = Run(tmp_path, policies["latent"], method="latent")
    run.train()
    (record,) = run.records()
    assert record["step"] == 2
    assert set(record) >= {
        "tool_rate",
        "box_area",
        "sibling_overlap",
        "entropy",
        "reward_accuracy",
        "reward_format",
        "reward_tool",
        "kl",
        "clipped",
        "latent_clipped",
        "latent_norm",
        "latent_drift",
        "rollout_tokens",
    }
    assert any("steps/s" in line and "left" in line for line in run.said)


def test_requests_of_the_policy_are_sampled_and_not_traced() -> None:
    request = policy_request(PROMPT, "zoom", RolloutConfig(prompts=1, group=2), 7)
    assert request.sampling.temperature == 1.0
    assert request.tracing.layers == "none"
    assert not request.tracing.distribution
    assert request.entropy_threshold is None
