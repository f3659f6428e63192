"""`python -m training sft`: fine-tunes a Qwen2.5-VL checkpoint on a mix of record forms.

With tool calls in the mix it is the cold start of the zoom format: a correct call, the crop,
an answer. The whole language model or a LoRA adapter of it is trained; the vision tower stays as
it is, with its tokens computed once, unless it is asked for. Started by `accelerate launch` or
`torchrun`, all processes train together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.attention import register_row_attention
from engine.engine import Engine
from engine.loading import LoadedModel, load_checkpoint
from engine.manifest import CheckpointError, Manifest
from engine.request import Method
from training.accelerated import Accelerated
from training.adapters import AdapterConfig, add_adapter
from training.cold_start import check_boxes
from training.config import ConfigError
from training.corner_readings import learn_to_read
from training.dense_warmup import HEAD_RATE
from training.evaluate import ASKED_BUDGETS, AskConfig, greedy_scores
from training.export import AS_TRAINED, ExportConfig, export_adapter, export_checkpoint
from training.features import FeatureBank, TrainedTower
from training.kept_weights import weights_keeper
from training.language import LanguageConfig, MixConfig
from training.latents import LatentConfig, LatentPhase
from training.loop import PartLoss, Report, Stage, prefixed, run_stage
from training.materials import Materials, load_materials
from training.metrics import require_tensorboard
from training.network import LanguageNetwork, part_losses, planned
from training.numbers import smooth_curve
from training.own_records import RecordsConfig, asked_of_records, read_records
from training.places import PlaceTerms
from training.pretrain import FeatureConfig, calibrated, place_terms
from training.prompts import PromptConfig, PromptPool
from training.record_draw import RecordDraw
from training.run_settings import claim_run
from training.world import WorldConfig

# Settings that may change when a run goes on: schedules, and what is only looked at.
MAY_CHANGE: Final = (
    *("out", "threads", "world", "language.*", "export*", "questions*", "*.workers"),
    *("tuning.evaluate_*", "tuning.gradient_checkpointing", "tuning.head_chunk"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """What of the model is trained, in which precision, in parts of which size.

    Attributes:
        lora: an adapter; None: all weights of the language model.
        vision: whether the tower is trained, too. Its tokens are computed once when it is not.
        precision: `bf16` keeps frozen weights in bfloat16 and trained ones in float32, and
            computes in bfloat16.
        gradient_checkpointing: compute the layers again in the backward pass, for memory.
        micro_batch: records that go through the model at a time.
        head_chunk: tokens whose logits are held at a time; 0: all of a part.
        smooth_numbers: put embeddings of numbers on a smooth curve (`training.numbers`), before the
            first step.
        evaluate_every: steps between evaluations on records of validation phantoms; 0: none.
        evaluate_records: of an evaluation.
    """

    lora: AdapterConfig | None = None
    vision: Literal["frozen", "trained"] = "frozen"
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    micro_batch: int = 8
    head_chunk: int = 0
    smooth_numbers: bool = False
    evaluate_every: int = 0
    evaluate_records: int = 64

    def __post_init__(self) -> None:
        for name, least in (
            ("micro_batch", 1),
            ("head_chunk", 0),
            ("evaluate_every", 0),
            ("evaluate_records", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if self.lora is not None and self.vision == "trained":
            raise ValueError("An adapter holds no tower: leave out lora, or keep vision frozen.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsConfig:
    """Questions that are asked greedily at every evaluation, through the engine.

    Attributes:
        prompts: about phantoms that are not trained on.
        phantoms: folder of drawn prompts, which runs may share.
        method: how they are asked; latent segments have as many steps as in training.
    """

    prompts: PromptConfig
    phantoms: Path = Path("runs/phantoms")
    method: Method = "direct"

    def __post_init__(self) -> None:
        if self.prompts.split == "train":
            raise ValueError("questions.prompts.split must not be train.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Everything of a fine-tuning run.

    Attributes:
        out: folder of the training state and of the exported checkpoint.
        base: checkpoint to begin with: a folder, an adapter's folder, or a hub id.
        world: folder of prepared phantoms; built where they are missing.
        seed: of batches.
        train, validation: which phantoms; none are needed where all records are one's own.
        records: records of one's own, as often as `mix.own` says.
        latents: how latent segments are trained; needed when the mix holds any.
        tuning: what is trained, and in which precision.
        questions: asked at every evaluation (`tuning.evaluate_every`); None: none, and records
            alone are scored.
    """

    out: Path
    base: str
    seed: int
    language: LanguageConfig
    mix: MixConfig
    world: Path = Path("runs/base/world")
    train: WorldConfig = field(default_factory=lambda: WorldConfig(count=0))
    validation: WorldConfig = field(
        default_factory=lambda: WorldConfig(count=0, split="validation")
    )
    records: RecordsConfig | None = None
    latents: LatentConfig | None = None
    real_images: Path | None = None
    features: FeatureConfig = field(default_factory=FeatureConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    threads: int = 2
    export: ExportConfig = field(default_factory=ExportConfig)
    questions: QuestionsConfig | None = None

    def __post_init__(self) -> None:
        if self.questions is not None and not self.tuning.evaluate_every:
            raise ValueError("questions are asked at evaluations: give tuning.evaluate_every.")
        if (self.mix.latent > 0) != (self.latents is not None):
            raise ValueError("The section latents and a share mix.latent above 0 go together.")
        for name in ("grounding", "pointing"):
            if getattr(self.language, name) and self.tuning.gradient_checkpointing:
                raise ValueError(
                    f"language.{name} takes attention that gradient_checkpointing does not keep: "
                    "leave out one of them."
                )
        self._check_own()
        # Said at once: the phantoms, which tell it too, may take hours to draw.
        check_boxes(self.train, self.validation, self.mix, self.language)

    def _check_own(self) -> None:
        """Refuses shares of what is not there.

        Raises:
            ValueError: with what to change.
        """
        if (self.mix.own > 0) != (self.records is not None):
            raise ValueError("The section records and a share mix.own above 0 go together.")
        if self.mix.own < 1 and not (self.train.count and self.validation.count):
            raise ValueError("Phantoms are needed unless mix.own is 1: give train and validation.")
        if self.mix.own < 1:
            return
        if self.mix.letters:
            raise ValueError("mix.letters asks about phantoms: it must be 0 where mix.own is 1.")
        if self.language.corners:
            raise ValueError(
                "language.corners is read off phantoms: it must be 0 where mix.own is 1."
            )
        if self.export.embedded:
            raise ValueError(
                "Thresholds of an embedded checkpoint are read off phantoms: set export.embedded "
                "to false where mix.own is 1."
            )
        if self.tuning.evaluate_every and (self.records is None or not self.records.validation):
            raise ValueError(
                "tuning.evaluate_every needs records to score: give records.validation, or set it "
                "to 0."
            )

    @property
    def step_records(self) -> int:
        """Records of a step: the batch, and beside it those of letters alone."""
        return self.language.batch + self.mix.letters


@dataclass(frozen=True, slots=True)
class Tuned:
    """A checkpoint that is being fine-tuned.

    Attributes:
        loaded: the checkpoint, with its adapter inside where it has one.
        adapter: None when all weights are trained.
    """

    loaded: LoadedModel
    adapter: PeftModel | None

    @property
    def model(self) -> Qwen2_5_VLForConditionalGeneration:
        """Called as ever."""
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own."""
        return self.loaded.tokenizer

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The modules that hold what is trained, by their names in a state."""
        modules: dict[str, nn.Module] = {"language": self.model.model.language_model}
        head: nn.Module = self.model.lm_head
        if not self.model.config.tie_word_embeddings:
            modules["head"] = head
        modules["tower"] = self.model.model.visual
        return {
            name: module
            for name, module in modules.items()
            if any(parameter.requires_grad for parameter in module.parameters())
        }


def tuned_model(base: str, tuning: TuningConfig) -> Tuned:
    """Opens a checkpoint and says what of it is trained.

    Raises:
        ConfigError: when the checkpoint is missing or cannot be used.
    """
    half = torch.bfloat16 if tuning.precision == "bf16" else torch.float32
    try:
        # What is trained stays in float32: bfloat16 would swallow small updates.
        loaded = load_checkpoint(base, "cpu", half if tuning.lora else torch.float32)
    except CheckpointError as error:
        raise ConfigError(
            f"{error} Run the stage that makes {base} first, or change base."
        ) from error
    model = loaded.model
    model.set_attn_implementation("sdpa")
    model.requires_grad_(True)
    model.model.visual.requires_grad_(tuning.vision == "trained")
    adapter = add_adapter(model, tuning.lora, base) if tuning.lora else None
    if tuning.smooth_numbers:
        try:
            smooth_curve(model, loaded.tokenizer)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(half)
    if tuning.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # Layers are only computed again in training mode; there is no dropout to switch on.
        model.train()
    return Tuned(loaded, adapter)


def finetune(config: FinetuneConfig, report: Report) -> Path:
    """Runs the stage and exports a checkpoint folder, whose path is returned.

    Raises:
        ConfigError: the base checkpoint is not there or cannot be used, the folder holds a run
            of other settings, or DeepSpeed is to train with Muon.
        ValueError: the parts of a step cannot be shared by the processes.
        DivergedError: see `training.loop.run_stage`.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processes = Accelerated(unused=config.tuning.vision == "trained")
    if config.language.optimizer == "muon" and not processes.keeps_matrices:
        raise ConfigError(
            "Muon needs whole matrices, which DeepSpeed cuts into flat pieces: set "
            "language.optimizer to adamw, or spread the weights with fsdp2.yaml."
        )
    require_tensorboard(config.language.tensorboard)
    processes.expect(-(-config.step_records // config.tuning.micro_batch))
    claim_run(config.out, config, MAY_CHANGE, writes=processes.is_main)
    if processes.is_main and processes.count > 1:
        report(f"{processes.count} processes train together.")
    tuned = tuned_model(config.base, config.tuning)
    with processes.main_first():
        materials = materials_of(config, report)
    network = train(config, tuned, materials, processes, report)
    weights = processes.whole_state(network) if processes.is_sharded else None
    if processes.is_main:
        if weights is not None:
            tuned = whole_model(config, weights)
        export(config, tuned, materials)
    processes.close()
    return config.out / "checkpoint"


def materials_of(config: FinetuneConfig, report: Report) -> Materials:
    """Everything that records are drawn from.

    Raises:
        ConfigError: a record of one's own cannot be used.
        ValueError: see `load_materials`.
    """
    if config.mix.own < 1:
        materials = load_materials(
            config.world, config.train, config.validation, config.real_images, report
        )
    else:
        materials = Materials([], [], [], [])
    own = config.records
    if own is None:
        return materials
    train = asked_of_records(read_records(own.train, "train"), own, config.seed)
    unseen = []
    if own.validation is not None:
        unseen = asked_of_records(read_records(own.validation, "validation"), own, config.seed)
    report(f"{len(train)} records of one's own, and {len(unseen)} to validate with.")
    return replace(materials, own_train=train, own_validation=unseen)


def train(
    config: FinetuneConfig,
    tuned: Tuned,
    materials: Materials,
    processes: Accelerated,
    report: Report,
) -> LanguageNetwork:
    """Trains on records of the mix; returns the network that was trained."""
    tuning, latents = config.tuning, config.latents
    kind = TrainedTower if tuning.vision == "trained" else FeatureBank
    bank = kind(tuned.model, config.seed)
    draw, unseen = draws(config, tuned.tokenizer, materials)
    draw.register(bank, config.features.view_variants)
    if tuning.evaluate_every:
        unseen.register(bank, 1)
    tuned.model.to(processes.device)  # type: ignore[arg-type]
    said = report if processes.is_main else lambda _: None
    places = places_to_keep(config, tuned, materials, said)
    if processes.is_sharded and kind is FeatureBank:
        # Once its weights are spread, no process can run the tower by itself.
        bank.encode_all()
    network = LanguageNetwork(
        tuned.model,
        bank,
        latents,
        bf16=tuning.precision == "bf16",
        head_chunk=tuning.head_chunk,
        spread=processes.is_sharded,
        places=places,
    )

    def phase_at(step: int) -> LatentPhase | None:
        return latents.at(step / config.language.steps) if latents else None

    def parts_at(wrapped: nn.Module, step: int) -> list[Callable[[], PartLoss]]:
        rng = np.random.default_rng([config.seed, 3, step])
        records = draw.records(config.language.batch, rng)
        phase = phase_at(step)
        parts = planned(records, bank, tuned.tokenizer, rng, tuning.micro_batch, phase)
        return part_losses(wrapped, parts, phase, places)

    answered = question_scores(config, tuned, processes)

    def evaluate(done: int) -> dict[str, float]:
        """Mean loss of the words on the same records each time, latents fed by the teacher.

        Targets of coordinates are spread as in training: compare it between runs of one `spread`.
        """
        del done
        rng = np.random.default_rng([config.seed, 5])
        records = unseen.records(tuning.evaluate_records, rng)
        parts = planned(records, bank, tuned.tokenizer, rng, tuning.micro_batch)
        sums: dict[str, float] = {}
        with torch.no_grad():
            for part in part_losses(network, parts):
                loss, numbers = part()
                for name, number in {**numbers, "loss": float(loss)}.items():
                    sums[name] = sums.get(name, 0.0) + number
        sums.pop("tokens")
        found = {f"validation_{name}": number for name, number in sums.items()}
        return found | (answered() if answered is not None else {})

    stage = Stage(
        folder=config.out / "language",
        modules=tuned.trained | ({"corners": places.corners} if places.corners is not None else {}),
        # They read the network, and AdamW trains them.
        readings={"head": 1.0, "corners": HEAD_RATE},
        config=config.language,
        parts_at=parts_at,
        network=network,
        evaluate=evaluate if tuning.evaluate_every else None,
        evaluate_every=tuning.evaluate_every,
        after_step=None if processes.is_sharded else weights_keeper(tuned.model, tuned.tokenizer),
        rate_key="language.learning_rate",
    )
    run_stage(stage, prefixed(report, "language"), processes)
    return network


def places_to_keep(
    config: FinetuneConfig, tuned: Tuned, materials: Materials, report: Report
) -> PlaceTerms:
    """What the stage asks of places, its readings learned on what the model makes of them now."""
    places = place_terms(tuned.model, tuned.tokenizer, config.language, materials)
    if places.corners is not None:
        places.corners.to(tuned.model.device)
        # A run that goes on reads its readings with the rest of its state.
        if materials.train and not any((config.out / "language").glob("state*")):
            error = learn_to_read(
                tuned.model, tuned.tokenizer, places.corners, materials.train, config.seed
            )
            report(f"Places can be read to {error:.3f} sides of their box to begin with.")
    return places


def question_scores(
    config: FinetuneConfig, tuned: Tuned, processes: Accelerated
) -> Callable[[], dict[str, float]] | None:
    """What asks the questions of an evaluation; None where there are none.

    Raises:
        ConfigError: the weights are spread, so that no process can answer by itself.
    """
    if config.questions is None:
        return None
    if processes.is_sharded:
        raise ConfigError(
            "Questions are answered by each process alone, which needs all weights: leave out "
            "questions where weights are spread."
        )
    # As the records of training are written, whatever the base was spoken to like.
    engine = Engine(replace(tuned.loaded, manifest=spoken_as_trained(config)))
    pool = PromptPool(config.questions.phantoms, config.questions.prompts)
    steps = config.latents.steps if config.latents else ASKED_BUDGETS.latent_steps
    how = AskConfig(
        method=config.questions.method, budgets=replace(ASKED_BUDGETS, latent_steps=steps)
    )

    def scores() -> dict[str, float]:
        with answering(tuned.model):
            return greedy_scores(engine, pool, how, processes)

    return scores


@contextmanager
def answering(model: Qwen2_5_VLForConditionalGeneration) -> Iterator[None]:
    """A model in training answers questions as a loaded checkpoint does, then trains on."""
    # With layers that are computed again there is no cache in training.
    was_training = model.training
    model.train(False)
    # What the engine traces is taken by its own attention, and training has plain SDPA.
    language = model.model.language_model
    language.set_attn_implementation(register_row_attention())
    try:
        yield
    finally:
        language.set_attn_implementation("sdpa")
        model.train(was_training)


def draws(
    config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase, materials: Materials
) -> tuple[RecordDraw, RecordDraw]:
    """What draws the records that are trained on, and those of validation phantoms.

    The latter ask for no letters on their own: a step's worth of them, however many records are
    evaluated, would be most of a small evaluation.
    """
    parts = (
        (materials, config.mix),
        (validation_only(materials), replace(config.mix, letters=0)),
    )
    training, validation = (
        RecordDraw(part, mix, tokenizer, config.latents, config.features.real_variants, config.seed)
        for part, mix in parts
    )
    return training, validation


def validation_only(materials: Materials) -> Materials:
    """The validation phantoms and records where training ones would be; a copy."""
    return replace(
        materials,
        train=materials.validation,
        real_train=materials.real_validation,
        real_validation=[],
        own_train=materials.own_validation,
    )


def whole_model(config: FinetuneConfig, weights: dict[str, torch.Tensor]) -> Tuned:
    """The checkpoint again, with weights that were gathered from all processes."""
    tuned = tuned_model(config.base, config.tuning)
    whole = "model."
    named = {
        name.removeprefix(whole): tensor
        for name, tensor in weights.items()
        if name.startswith(whole)
    }
    tuned.model.load_state_dict(named)
    return tuned


def spoken_as_trained(config: FinetuneConfig) -> Manifest:
    """How the records of a run are written and their pictures made."""
    if config.records is None:
        return AS_TRAINED
    return replace(AS_TRAINED, view=config.records.budget, crop=config.records.budget)


def export(config: FinetuneConfig, tuned: Tuned, materials: Materials) -> Path:
    """Writes the checkpoint folder: weights, or the adapter alone."""
    model: Any = tuned.model
    model.train(False)
    thresholds = None
    if config.export.embedded:
        thresholds = calibrated(model.to("cpu"), tuned.tokenizer, materials)
    folder = config.out / "checkpoint"
    spoken = spoken_as_trained(config)
    if tuned.adapter is not None:
        return export_adapter(folder, tuned.adapter, config.export, thresholds, spoken)
    return export_checkpoint(folder, model, tuned.tokenizer, config.export, thresholds, spoken)
