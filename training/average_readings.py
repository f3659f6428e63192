"""What the mean of all visual tokens tells, fitted for the head that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from training.averages import AVERAGING_LAYER, Apart, Inputs, Reading, average_evenly
from training.batches import collate
from training.features import FeatureBank
from training.first_layer import first_layer, said
from training.image_labels import answers_of, gathered_answers, labelled_view
from training.loop import Report
from training.materials import Materials
from training.phantoms.label_names import LabelNames
from training.questions import questions_for
from training.records import RecordWriter
from training.world import Case

# Training phantoms that readings are fitted on, those of which most is known first.
MOST_PHANTOMS: Final = 1500
# On the squares of a reading's weights, behind inputs of unit deviation.
_PENALTY: Final = 0.01
# On the squares of what is read in words, which visual tokens look at.
_SILENCE: Final = 0.001
_BATCH: Final = 32


def begin_averaging(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    materials: Materials,
    seed: int,
    report: Report,
) -> None:
    """Sets queries, keys and values of the head in place; nothing where nothing is counted.

    Args:
        model: with a trained first layer.
        tokenizer: of the model.
        materials: phantoms; readings are scored on those of validation.
        seed: of exposures and prompts.
        report: takes a line with the share of answers that the readings tell.

    Raises:
        ValueError: a head is narrower than what it is to read.
    """
    labels = materials.labels
    asked = gathered_answers(labels)
    if not asked:
        return
    answers = _known(materials.train, labels)
    chosen = (answers < 0).sum(dim=1).argsort(stable=True)[:MOST_PHANTOMS]
    inputs = inputs_of(model, tokenizer, [materials.train[i] for i in chosen.tolist()], seed)
    readings = fitted_readings(inputs, answers[chosen], [len(one) for one in asked.values()])
    average_evenly(model, inputs, readings)
    held = inputs_of(model, tokenizer, materials.validation, seed, inputs.apart)
    scores = []
    for name, reading, true in zip(
        asked, readings, _known(materials.validation, labels).T, strict=True
    ):
        told = (reading.guesses(held.means) == true)[true >= 0].float()
        scores.append(f"{name} {float(told.mean()):.3f}" if len(told) else f"{name} not asked")
    report(f"mean of the image: {', '.join(scores)}")


def _known(cases: Sequence[Case], labels: LabelNames) -> torch.Tensor:
    """Gathered answers of views, int64 `(N, A)`; -1 where one is not known."""
    names = tuple(answers_of(labels))
    columns = [names.index(name) for name in gathered_answers(labels)]
    found = [labelled_view(case, labels).labels for case in cases]
    return torch.tensor(np.stack([one.answers[columns] for one in found if one])).long()


@torch.no_grad()
def inputs_of(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    seed: int,
    apart: Apart | None = None,
) -> Inputs:
    """What goes into the layer for prompts about the views of phantoms with truth.

    Args:
        model: with a trained first layer.
        tokenizer: of the model.
        cases: phantoms.
        seed: of exposures and prompts.
        apart: what tells visual tokens from words; None: it is found in some of these prompts.

    Raises:
        ValueError: there is no phantom.
    """
    layer: Any = model.model.language_model.layers[AVERAGING_LAYER]
    rng = np.random.default_rng([seed, 8])
    bank = FeatureBank(model, seed)
    bank.add([case.view for case in cases], variants=2)
    writer = RecordWriter(tokenizer)
    means, words = [], torch.empty(0)
    for start in range(0, len(cases), _BATCH):
        records = []
        for case in cases[start : start + _BATCH]:
            assert case.truth is not None
            questions = questions_for(case.truth, rng)
            records.append(writer.asked(questions[int(rng.integers(len(questions)))], case.view))
        batch = collate(records, bank, tokenizer, rng).to(model.device)
        states = layer.input_layernorm(first_layer(model, batch)).float()
        shown = batch.ids == model.config.image_token_id
        if start == 0:
            words = states[said(batch.ids, shown, int(tokenizer.pad_token_id))]
        apart = apart or Apart.of(states[shown], words)
        means += [apart.mean(own[there]) for own, there in zip(states, shown, strict=True)]
    if apart is None:
        raise ValueError("There must be at least one phantom.")
    return Inputs(torch.stack(means), words, apart)


def fitted_readings(inputs: Inputs, answers: torch.Tensor, sizes: Sequence[int]) -> list[Reading]:
    """A logistic regression for each answer, that reads means and is silent on words.

    Args:
        inputs: of the layer.
        answers: int64 `(N, A)`, of the means; -1 where an answer is not known.
        sizes: classes of each answer.
    """
    middle, deviation = inputs.means.mean(0), inputs.means.std(0).clamp_min(1e-4)
    scaled, words = (inputs.means - middle) / deviation, (inputs.words - middle) / deviation
    found = []
    for column, size in enumerate(sizes):
        known = answers[:, column] >= 0
        reading = nn.Linear(scaled.shape[1], size)
        nn.init.zeros_(reading.weight)
        nn.init.zeros_(reading.bias)
        if bool(known.any()):
            _fit(reading, scaled[known], answers[known, column], words)
        weight = reading.weight.detach() / deviation
        found.append(Reading(weight, reading.bias.detach() - weight @ middle))
    return found


def _fit(
    reading: nn.Linear, inputs: torch.Tensor, targets: torch.Tensor, words: torch.Tensor
) -> None:
    optimizer = torch.optim.LBFGS(reading.parameters(), max_iter=100)
    spread = words.T @ words / len(words)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = functional.cross_entropy(reading(inputs), targets)
        found = found + _PENALTY * reading.weight.square().sum()
        found = found + _SILENCE * ((reading.weight @ spread) * reading.weight).sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
