"""The loss of a step of stage 1 against a naive twin: one record at a time, every pass by hand."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from tests.unit.training.conftest import picture, question
from training.batches import Batch, collate
from training.features import FeatureBank
from training.language_loss import hidden_states
from training.latents import Feeding, LatentConfig, LatentPhase, bottleneck_mask
from training.network import batch_loss
from training.records import Record, RecordWriter
from training.roi import RoiLoss, RoiTarget, roi_loss, roi_targets

STEPS = 3
WEIGHT = 2.0


def phase_of(
    feeding: Feeding = "teacher",
    target: RoiTarget = "roi_pooled",
    kind: RoiLoss = "cosine",
    *,
    bottled: bool = False,
) -> LatentPhase:
    """A phase that leaves nothing to chance."""
    return LatentPhase(
        config=LatentConfig(steps=STEPS, target=target, loss=kind, weight=WEIGHT),
        own=float(feeding == "own"),
        bottleneck=float(bottled),
        relaxed=feeding == "relaxed",
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What a step comes to: its loss, the parts of it, what else is logged, and a gradient."""

    loss: float
    text: float
    roi: float
    entropy: float
    latent_norm: float
    latent_error: float
    gradient: torch.Tensor

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of it but the gradient."""
        latents = (self.latent_norm, self.latent_error)
        return (self.loss, self.text, self.roi, self.entropy, *latents)


class Stage:
    """A step of three records as stage 1 computes it (`found`), and by hand (`wanted`).

    One record has a region, one has slots and no region, and one has no slots.
    """

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.bank = FeatureBank(model, seed=0)
        views = [picture(1, 84, 56), picture(2, 84, 84), picture(3, 84, 56)]
        self.bank.add(views, variants=1)
        writer = RecordWriter(tokenizer)
        self.records: dict[RoiTarget, list[Record]] = {}
        # One column of two tokens, and a whole view of nine.
        counts: dict[RoiTarget, tuple[int, int]]
        counts = {"roi_pooled": (STEPS, STEPS), "roi_full": (2, 9)}
        for target, (boxed, unboxed) in counts.items():
            self.records[target] = [
                writer.write(question(), "latent", views[0], latent_steps=boxed),
                writer.write(question(targets=()), "latent", views[1], latent_steps=unboxed),
                writer.write(question(), "direct", views[2]),
            ]
        # Deep enough that what is fed, what is seen and what is asked of slots all reach it.
        self.probe = model.model.language_model.layers[0].self_attn.q_proj.weight

    def found(self, phase: LatentPhase) -> Step:
        """As `training sft` computes it, in two parts."""
        loss, numbers = batch_loss(
            self.model,
            self.records[phase.config.target],
            self.bank,
            self.tokenizer,
            np.random.default_rng(0),
            chunk=2,
            latents=phase,
        )
        (gradient,) = torch.autograd.grad(loss, self.probe)
        names = ("text", "roi", "entropy", "latent_norm", "latent_error")
        return Step(loss.item(), *(numbers[name] for name in names), gradient)

    def wanted(self, feeding: Feeding, target: RoiTarget, kind: RoiLoss, bottled: bool) -> Step:
        """Record by record, from what is tested by itself: targets, masks and hidden states."""
        text, roi = torch.zeros(()), torch.zeros(())
        weight, slots, targets = 0.0, 0, 0
        entropy = norm = drift = 0.0
        for record in self.records[target]:
            batch = self.alone(record, target, bottled)
            count = len(batch.slot_targets)
            hidden = hidden_states(self.model, batch, self.inputs(batch, feeding))[0]
            losses = functional.cross_entropy(
                self.model.lm_head(hidden[:-1]), batch.ids[0, 1:], reduction="none"
            )
            text = text + (losses * batch.weights[0, 1:]).sum()
            weight += float(batch.weights.sum())
            for column in range(1, len(record.ids)):
                if batch.weights[0, column]:
                    logits = self.model.lm_head(hidden[column - 1]).detach()
                    entropy += float(torch.distributions.Categorical(logits=logits).entropy())
                    targets += 1
            if count:
                first = int(batch.slots[0].nonzero()[0])
                before = hidden[first - 1 : first - 1 + count]
                roi = roi + count * roi_loss(before, batch.slot_targets, kind)
                slots += count
                norm += sum(float(mean.norm()) for mean in before.detach())
                pairs = zip(before.detach(), batch.slot_targets, strict=True)
                drift += sum(float((mean - held).norm()) for mean, held in pairs)
        text, roi = text / weight, roi / slots
        # The relaxation asks nothing of the regions.
        loss = text if feeding == "relaxed" else text + WEIGHT * roi
        (gradient,) = torch.autograd.grad(loss, self.probe)
        means = (entropy / targets, norm / slots, drift / slots)
        return Step(loss.item(), text.item(), roi.item(), *means, gradient)

    def alone(self, record: Record, target: RoiTarget, bottled: bool) -> Batch:
        """A batch of one record, whose targets and mask are put in by hand."""
        rng = np.random.default_rng(0)
        batch = collate([record], self.bank, self.tokenizer, rng, LatentConfig(steps=STEPS))
        if not batch.slots.any():
            return batch
        images = batch.ids == self.model.config.image_token_id
        return replace(
            batch,
            slot_targets=roi_targets(
                batch.visual, record.pictures[0].grid, record.roi, target, STEPS
            ),
            mask=bottleneck_mask(images, batch.slots, float(bottled), rng),
        )

    def inputs(self, batch: Batch, feeding: Feeding) -> torch.Tensor | None:
        """What goes into the slots: one after the other, as the engine decodes them."""
        if feeding == "teacher" or not len(batch.slot_targets):
            return None
        first = int(batch.slots[0].nonzero()[0])
        fed = torch.zeros_like(batch.slot_targets)
        for index in range(len(fed)):
            with torch.no_grad():
                fed[index] = hidden_states(self.model, batch, fed)[0, first - 1 + index]
        if feeding == "own":
            return fed
        # The same once more, with gradients through this pass alone.
        return hidden_states(self.model, batch, fed)[0, first - 1 : first - 1 + len(fed)]


@pytest.fixture(scope="module")
def stage(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> Stage:
    return Stage(model, tokenizer)


@pytest.mark.parametrize("bottled", [False, True], ids=["seeing", "bottled"])
@pytest.mark.parametrize("kind", ["cosine", "mse"])
@pytest.mark.parametrize("target", ["roi_pooled", "roi_full"])
@pytest.mark.parametrize("feeding", ["teacher", "own", "relaxed"])
def test_a_step_does_what_its_phase_says(
    stage: Stage, feeding: Feeding, target: RoiTarget, kind: RoiLoss, bottled: bool
) -> None:
    found = stage.found(phase_of(feeding, target, kind, bottled=bottled))
    wanted = stage.wanted(feeding, target, kind, bottled)
    assert found.numbers == pytest.approx(wanted.numbers, rel=1e-4)
    torch.testing.assert_close(found.gradient, wanted.gradient, atol=1e-6, rtol=1e-3)


def test_every_setting_of_a_phase_changes_the_step(stage: Stage) -> None:
    """Else the comparison above would hold, whichever of them the stage passes on."""
    plain = stage.found(phase_of())
    fed, relaxed = (stage.found(phase_of(feeding)) for feeding in ("own", "relaxed"))
    assert fed.text != pytest.approx(plain.text, rel=2e-4)
    assert relaxed.text == pytest.approx(fed.text, rel=1e-5)
    assert relaxed.loss == pytest.approx(relaxed.text, rel=1e-5)
    assert stage.found(phase_of(bottled=True)).text != pytest.approx(plain.text, rel=2e-4)
    other = stage.found(phase_of(kind="mse"))
    assert other.text == pytest.approx(plain.text, rel=1e-5)
    assert other.roi != pytest.approx(plain.roi, rel=1e-2)


def test_only_a_relaxed_step_lets_the_answer_shape_the_latents(stage: Stage) -> None:
    """Fed the same and asked for the same words, it has another gradient."""
    own = phase_of("own")
    fed = stage.found(replace(own, config=replace(own.config, weight=0.0)))
    relaxed = stage.found(phase_of("relaxed"))
    assert relaxed.loss == pytest.approx(fed.loss, rel=1e-5)
    change = (relaxed.gradient - fed.gradient).norm() / fed.gradient.norm()
    assert float(change) > 0.01
