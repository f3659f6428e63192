"""How exactly a linear reading tells where a visual token lies, behind every layer.

The boxes that a model writes are no better than what its visual tokens know of their own place:
the tower tells where in its token a nodule lies, but which token that is has to be known, too.
`training evaluate --benchmark places` asks it of a checkpoint; so it was found
that the counts of rows and columns had been lost (`training.counts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from engine.loading import LoadedModel
from training.batches import collate
from training.features import FeatureBank
from training.image_labels import centres_of
from training.language_loss import all_states
from training.records import RecordWriter
from training.world import Case

# Of the ridge regression, beside the variance of standardised dimensions.
_RIDGE: Final = 1e-4
_AT_A_TIME: Final = 16


def place_errors(
    loaded: LoadedModel, known: Sequence[Case], held: Sequence[Case]
) -> dict[str, dict[str, float]]:
    """Errors of linear readings, by what comes out of the tower and of each layer in turn.

    Args:
        loaded: a checkpoint.
        known: phantoms that the readings are fitted to.
        held: others, that they are scored on.

    Returns:
        For `tower`, `layer_1` and so on: root mean square error of the place of a token, `x` and
        `y`, in pixels of the view; `length`, the mean length of the tokens; and `length_spread`,
        the standard deviation of its logarithm.
    """
    (fitted, places), (scored, true) = (_states(loaded, cases) for cases in (known, held))
    found = {}
    for layer, (tokens, others) in enumerate(zip(fitted, scored, strict=True)):
        error = _read(tokens, places, others) - true
        x, y = error.square().mean(0).sqrt().tolist()
        found[f"layer_{layer}" if layer else "tower"] = {
            "x": x,
            "y": y,
            "length": float(others.norm(dim=-1).mean()),
            "length_spread": float(others.norm(dim=-1).log().std()),
        }
    return found


@torch.inference_mode()
def _states(loaded: LoadedModel, cases: Sequence[Case]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What goes into every layer and comes out of the last, `(N, D)` each, and places `(N, 2)`.

    Every view stands behind the question that its phantom was made for.
    """
    model: Qwen2_5_VLForConditionalGeneration = loaded.model
    tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
    bank, writer = FeatureBank(model, seed=0), RecordWriter(tokenizer)
    bank.add([case.view for case in cases], variants=1)
    rng = np.random.default_rng(0)
    states: list[list[torch.Tensor]] = []
    for first in range(0, len(cases), _AT_A_TIME):
        some = cases[first : first + _AT_A_TIME]
        records = [writer.asked(case.asked, case.view) for case in some if case.asked is not None]
        batch = collate(records, bank, tokenizer, rng).to(model.device)
        images = batch.ids == model.config.image_token_id
        states.append([state[images] for state in all_states(model, batch, between=True)])
    places = [centres_of(case.view.grid) * max(case.view.pixels.shape) for case in cases]
    tokens = [torch.cat(layer).cpu().float() for layer in zip(*states, strict=True)]
    return tokens, torch.cat(places)


def _read(tokens: torch.Tensor, places: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Places `(M, 2)` of other tokens, by a ridge regression of those of tokens `(N, D)`."""
    mean, spread = tokens.mean(0), tokens.std(0) + 1e-6
    known, asked = (
        torch.cat([(part - mean) / spread, torch.ones(len(part), 1)], dim=1).double()
        for part in (tokens, others)
    )
    gram = known.T @ known + _RIDGE * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
    read: torch.Tensor = asked @ torch.linalg.solve(gram, known.T @ places.double())
    return read
