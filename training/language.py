"""Training of the language model on frozen visual tokens, and the mix of records it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.geometry import Box
from engine.positions import PositionCursor
from engine.prompt import IMAGE_PAD
from engine.request import Method
from training.embedded import single_id
from training.loop import StepsConfig
from training.questions import Question, lung_questions, questions_for
from training.real_images import RealRadiograph, real_picture, shifted_view
from training.records import Form, Record, RecordWriter
from training.vision import augmented, visual_tokens
from training.world import CROP_PADDING, Case, Picture, jittered, resized


class FeatureBank:
    """Visual tokens of pictures, encoded by the frozen tower when first drawn; kept as float16.

    Args:
        model: its tower must not change any more.
        seed: of the exposures of variants.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._numbers: dict[int, int] = {}
        self._variants: dict[int, int] = {}
        self._tokens: dict[tuple[int, int], torch.Tensor] = {}

    def add(self, pictures: Sequence[Picture], *, variants: int) -> None:
        """Registers pictures, to be seen as they are and with `variants - 1` other exposures."""
        for picture in pictures:
            self._numbers.setdefault(id(picture), len(self._numbers))
            self._variants[id(picture)] = variants

    def draw(self, pictures: Sequence[Picture], rng: np.random.Generator) -> list[torch.Tensor]:
        """One variant of each picture, float16 `(cells, D)` each.

        Raises:
            KeyError: a picture that was not added.
        """
        chosen = [(picture, int(rng.integers(self._variants[id(picture)]))) for picture in pictures]
        missing: dict[tuple[int, ...], dict[tuple[int, int], Picture]] = {}
        for picture, variant in chosen:
            key = (self._numbers[id(picture)], variant)
            if key not in self._tokens:
                missing.setdefault(picture.pixels.shape, {})[key] = picture
        for group in missing.values():
            self._encode(group)
        return [self._tokens[self._numbers[id(picture)], variant] for picture, variant in chosen]

    def _encode(self, group: dict[tuple[int, int], Picture]) -> None:
        """Encodes same-sized pictures in one go."""
        images = [
            # From the picture's number, not from the step: a resumed run sees the same exposure.
            augmented(picture.pixels, np.random.default_rng([self._seed, number, variant]))
            if variant
            else picture.pixels.astype(np.float32)
            for (number, variant), picture in group.items()
        ]
        with torch.no_grad():
            tokens = visual_tokens(self._model, [torch.from_numpy(np.stack(images))])
        cells = [picture.grid.cells for picture in group.values()]
        for key, part in zip(group, torch.split(tokens.to(torch.float16), cells), strict=True):
            self._tokens[key] = part.clone()


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question with its pictures, ready to be written in any form."""

    question: Question
    view: Picture
    crops: dict[Box, tuple[Picture, ...]]
    forms: tuple[Form, ...]


def asked_of(case: Case, rng: np.random.Generator) -> Asked:
    """A question about a phantom: half of the time the one that it was made for."""
    if case.truth is None or case.asked is None:
        raise ValueError("A case without truth has no questions of its own.")
    question = case.asked
    if rng.random() < 0.5:
        others = questions_for(case.truth, rng)
        fine = [q for q in others if q.kind == "fine"]
        pool = fine if fine and rng.random() < 0.3 else others
        question = pool[int(rng.integers(len(pool)))]
    if rng.random() < 0.2:
        question = question.as_open()
    return Asked(question, case.view, case.crops, ("direct", "zoom"))


def real_cases(
    radiographs: Sequence[RealRadiograph], variants: int, seed: int
) -> list[tuple[Picture, dict[str, Box], dict[Box, tuple[Picture, ...]]]]:
    """Shifted views of real radiographs with their lung boxes and crops of these."""
    found = []
    rng = np.random.default_rng([seed, 11])
    for radiograph in radiographs:
        for _ in range(variants):
            pixels, lungs = shifted_view(radiograph, rng)
            view = real_picture(pixels, lungs)
            crops: dict[Box, tuple[Picture, ...]] = {}
            for box in lungs.values():
                region = jittered(box, rng, 0.1).padded(CROP_PADDING)
                x0, y0, x1, y1 = region.to_pixels_outward(pixels.shape[1], pixels.shape[0])
                part = resized(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
                blank = real_picture(part, {})
                crops[box] = (blank,)
            found.append((view, lungs, crops))
    return found


def asked_of_real(
    case: tuple[Picture, dict[str, Box], dict[Box, tuple[Picture, ...]]],
    rng: np.random.Generator,
) -> Asked:
    """A question about a lung of a real radiograph."""
    view, lungs, crops = case
    boxes = {name.split()[0]: box.as_tuple() for name, box in lungs.items()}
    questions = lung_questions(boxes, rng)
    question = questions[int(rng.integers(len(questions)))]
    if rng.random() < 0.2:
        question = question.as_open()
    return Asked(question, view, crops, ("direct", "zoom"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig(StepsConfig):
    """Optimiser and schedule of a language stage.

    Attributes:
        batch: records a step.
    """

    batch: int

    def __post_init__(self) -> None:
        # Without arguments `super` looks for the class that `slots=True` has replaced.
        StepsConfig.__post_init__(self)
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """Shares of the record forms, and of real radiographs.

    Attributes:
        zoom: of records that call the tool; 0 in pretraining's first stage.
        probe: of records that answer at once (belief probes).
        auto: of the records whose prompt leaves the choice to the model.
        real: of records about real radiographs.
    """

    zoom: float
    probe: float
    auto: float
    real: float

    def __post_init__(self) -> None:
        for name in ("zoom", "probe", "auto", "real"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in 0 to 1, not {getattr(self, name)}.")


def drawn_record(
    asked: Asked, mix: MixConfig, writer: RecordWriter, rng: np.random.Generator
) -> Record:
    """One record: its form is drawn from the mix, as far as the question allows it."""
    question = asked.question
    target, crop = _zoom_of(asked, rng)
    probe = rng.random() < mix.probe
    if crop is None or rng.random() >= mix.zoom:
        if probe:
            return writer.write(question, "early", asked.view, method=_early_method(rng))
        # A closer look is never needed for a coarse question, and `auto` says so.
        auto = question.kind == "coarse" and rng.random() < mix.auto
        zoom_without_target = not question.target_boxes and mix.zoom > 0 and rng.random() < 0.3
        method: Method = "auto" if auto else "zoom" if zoom_without_target else "direct"
        return writer.write(question, "direct", asked.view, method=method)
    if probe:
        form: Form = "before_zoom" if rng.random() < 0.5 else "after_zoom"
        return writer.write(question, form, asked.view, crop, target)
    auto = question.kind == "fine" and rng.random() < mix.auto
    return writer.write(
        question, "zoom", asked.view, crop, target, method="auto" if auto else "zoom"
    )


def _early_method(rng: np.random.Generator) -> Method:
    methods: tuple[Method, ...] = ("direct", "zoom", "auto")
    return methods[int(rng.integers(len(methods)))]


def _zoom_of(asked: Asked, rng: np.random.Generator) -> tuple[Box | None, Picture | None]:
    """Where a zoom goes: the one place that the question is about; nowhere when several are."""
    if len(asked.question.target_boxes) != 1:
        return None, None
    target = Box(*asked.question.target_boxes[0])
    variants = asked.crops.get(target)
    if not variants:
        return None, None
    return target, variants[int(rng.integers(len(variants)))]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded records: `(B, T)` ids and weights, `(3, B, T)` positions, visual tokens."""

    ids: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor


def collate(
    records: Sequence[Record],
    bank: FeatureBank,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
) -> Batch:
    """Pads records and gathers their visual tokens; padding has weight 0 and is never seen.

    Right padding under a causal mask needs no attention mask: no token attends to what
    follows it.
    """
    image_id = single_id(tokenizer, IMAGE_PAD)
    length = max(len(record.ids) for record in records)
    ids = torch.full((len(records), length), int(tokenizer.pad_token_id))
    weights = torch.zeros(len(records), length)
    positions = torch.zeros(3, len(records), length, dtype=torch.int64)
    for row, record in enumerate(records):
        count = len(record.ids)
        ids[row, :count] = torch.tensor(record.ids)
        weights[row, :count] = torch.tensor(record.weights)
        grids = [picture.grid for picture in record.pictures]
        positions[:, row, :count] = PositionCursor().sequence(record.ids, image_id, grids)
    visual = bank.draw([picture for record in records for picture in record.pictures], rng)
    return Batch(ids, weights, positions, torch.cat(visual).float())


@dataclass(frozen=True, slots=True)
class LanguageLoss:
    """Sums over the targets of a batch; batches are added before they are divided.

    Attributes:
        total: weighted cross-entropies.
        weight: their weights.
        right: answer tokens that the model would have written.
        answers: answer tokens.
    """

    total: torch.Tensor
    weight: float
    right: int
    answers: int


def target_logits(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits before every weighted target: `(N, V)`, with the row and column of that target."""
    embeddings = model.get_input_embeddings()(batch.ids)
    mask = batch.ids == model.config.image_token_id
    embeddings = embeddings.masked_scatter(mask.unsqueeze(-1), batch.visual)
    hidden = model.model.language_model(
        inputs_embeds=embeddings, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    rows, columns = torch.nonzero(batch.weights[:, 1:], as_tuple=True)
    return model.lm_head(hidden[rows, columns]), rows, columns + 1


def language_loss(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> LanguageLoss:
    """Weighted cross-entropy of the next token; only weighted targets reach the head."""
    logits, rows, columns = target_logits(model, batch)
    weights, targets = batch.weights[rows, columns], batch.ids[rows, columns]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    answers = weights > 1
    right = (logits.argmax(-1) == targets)[answers]
    return LanguageLoss(
        (losses * weights).sum(), float(weights.sum()), int(right.sum()), int(answers.sum())
    )


def batch_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    records: Sequence[Record],
    bank: FeatureBank,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    chunk: int = 16,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The mean loss of records, `chunk` of similar length at a time: next to no padding.

    Equal to the loss of one padded batch (tested).
    """
    ordered = sorted(records, key=lambda record: len(record.ids))
    parts = [
        language_loss(model, collate(ordered[first : first + chunk], bank, tokenizer, rng))
        for first in range(0, len(ordered), chunk)
    ]
    loss = torch.stack([part.total for part in parts]).sum() / sum(part.weight for part in parts)
    right = sum(part.right for part in parts) / max(1, sum(part.answers for part in parts))
    return loss, {"answer_tokens_right": right}
