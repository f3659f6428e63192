"""What a whole picture shows, taught to the vision tower beside what every token covers.

A token that knows only its own finding leaves the language model to find it among sixty-four and
to work out where it lies, and from random weights it did neither: side and zone stayed at chance.
So a token also learns where on the image it is and in which zone its finding lies, and the mean
of all tokens learns the answer to every coarse question, as an image classifier does. Heads are
linear and are thrown away afterwards.

Numbers are taught once more, token by token. A classifier of the mean is told that there are two
nodules and not where the second is, and a large one adds more to the mean than a small one: it took
one for two. So a token also learns its share of a finding, as density maps do that are learned to
count crowds (Lempitsky and Zisserman, NIPS 2010): whatever its size, the shares of one finding add
up to 1, and summed over all tokens a linear reading of each, normalised, is their number. What is
read of the mean of tokens of one length can be nearly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from engine.geometry import PatchGrid
from training.phantoms import AnyTruth, labels_of, modality_of
from training.phantoms.label_names import CHEST_LABELS, LabelNames
from training.phantoms.truth import TUBE
from training.question_forms import COUNTS
from training.questions import FAMILIES_OF, questions_for
from training.vision import COVER_GAIN
from training.world import Case, ImageLabels, Picture, touched_cells

# About a marked place: no reading of the image.
_NOT_TAUGHT: Final = ("lung", "lung_name", "hemisphere")
# Of one kind on one side; phantoms have no more.
_NUMBERS: Final = ("none", *COUNTS)
# Of what is read as a share. A step of the optimiser moves the reading of all sixty-four cells of a
# view alike, and as many small errors are a large one of their sum.
_SHARE_SCALE: Final = 1 / 8
# Most cells hold nothing: the weight of one that does.
_PRESENT_WEIGHT: Final = 4.0
_UNKNOWN: Final = -1


def answers_of(labels: LabelNames) -> dict[str, tuple[str, ...]]:
    """Answers to tell apart: of coarse families, numbers on either side, and fine attributes.

    A family with one answer tells nothing of an image; fine attributes are shown by crops.
    """
    families = {
        name: family.answers
        for modality in labels.modalities
        for name, family in FAMILIES_OF[modality].items()
        if family.kind == "coarse" and len(family.answers) > 1 and name not in _NOT_TAUGHT
    }
    numbers = {number_name(kind, side): _NUMBERS for kind, side in labels.counted}
    return families | numbers | {name: labels.attributes[name] for name in labels.fine}


def number_name(kind: str, side: str) -> str:
    """What the number of findings of a kind on one side is called among the answers."""
    return f"number of {kind} {side}"


def gathered_answers(labels: LabelNames) -> dict[str, tuple[str, ...]]:
    """Answers that are read in the mean of an image: of families, and numbers on either side."""
    names = (*labels.gathered, *(number_name(kind, side) for kind, side in labels.counted))
    known = answers_of(labels)
    return {name: known[name] for name in names}


def box_names_of(labels: LabelNames) -> tuple[str, ...]:
    """Structures and kinds of findings whose boxes are taught."""
    return labels.boxed + labels.findings


def labelled_view(case: Case, labels: LabelNames = CHEST_LABELS) -> Picture:
    """The view of a phantom with its labels.

    Raises:
        ValueError: the case has no truth.
    """
    if case.truth is None:
        raise ValueError("A case without truth has no labels.")
    known = answers_of(labels)
    answers = np.full(len(known), _UNKNOWN, dtype=np.int8)
    # Wording and order of options are drawn; the right answer is not.
    for question in questions_for(case.truth, np.random.default_rng(0)):
        if question.family in known:
            place = known[question.family].index(question.answer)
            answers[tuple(known).index(question.family)] = place
    for kind, side in labels_of(modality_of(case.truth)).counted:
        number = min(len(case.truth.of_kind(kind, side)), len(_NUMBERS) - 1)
        answers[tuple(known).index(number_name(kind, side))] = number
    return replace(
        case.view,
        labels=ImageLabels(
            answers,
            _boxes(case.truth, labels),
            _places(case.truth, case.view, labels),
            _shares(case.truth, case.view, labels),
        ),
    )


def labelled_crop(crop: Picture, labels: LabelNames = CHEST_LABELS) -> Picture:
    """A crop with the fine attributes that all of its labelled cells agree on."""
    known = tuple(answers_of(labels))
    answers = np.full(len(known), _UNKNOWN, dtype=np.int8)
    for name in labels.fine:
        column = crop.attributes[:, tuple(labels.attributes).index(name)]
        found = np.unique(column[column >= 0])
        if len(found) == 1:
            answers[known.index(name)] = found[0]
    return replace(crop, labels=ImageLabels(answers, _no_boxes(labels)))


def _no_boxes(labels: LabelNames) -> npt.NDArray[np.float32]:
    return np.full((len(box_names_of(labels)), 4), np.nan, dtype=np.float32)


def _boxes(truth: AnyTruth, labels: LabelNames) -> npt.NDArray[np.float32]:
    """Boxes of organs, and of every finding that is the only one of its kind."""
    boxes = _no_boxes(labels)
    for row, name in enumerate(box_names_of(labels)):
        if name in truth.anatomy:
            boxes[row] = truth.anatomy[name].box
        elif len(found := truth.of_kind(name)) == 1:
            boxes[row] = found[0].focus if name == TUBE else found[0].box
    return boxes


def _places(truth: AnyTruth, view: Picture, labels: LabelNames) -> npt.NDArray[np.float32]:
    """Coverage of each cell of a view by the findings of each place."""
    places = np.zeros((view.grid.cells, len(labels.places)), dtype=np.float32)
    for finding in truth.findings:
        if finding.kind not in labels.findings:
            continue
        cells = touched_cells(tuple(finding.box), view.grid)
        column = view.cover[cells, labels.covers.index(finding.kind)] / np.float32(255)
        covered = np.minimum(column * np.float32(COVER_GAIN.get(finding.kind, 1.0)), 1)
        for index, (kind, place) in enumerate(labels.places):
            if kind == finding.kind and place in (finding.side, finding.zone):
                places[cells, index] = np.maximum(places[cells, index], covered)
    return places


def _shares(truth: AnyTruth, view: Picture, labels: LabelNames) -> npt.NDArray[np.float32]:
    """The share of a finding that each cell of a view holds, summed over those of a kind and side.

    It is in proportion to what is covered of each cell that the finding's box touches, by whichever
    finding of the kind: those of one finding add up to 1, also where another one is near.
    """
    shares = np.zeros((view.grid.cells, len(labels.counted)), dtype=np.float32)
    for index, (kind, side) in enumerate(labels.counted):
        for finding in truth.of_kind(kind, side):
            cells = touched_cells(tuple(finding.box), view.grid)
            covered = view.cover[cells, labels.covers.index(kind)].astype(np.float32)
            if covered.sum() == 0:
                # Too small to cover a 255th of any cell: each cell that it touches has as much.
                covered = np.ones(len(cells), dtype=np.float32)
            shares[cells, index] += covered / covered.sum()
    return shares


def centres_of(grid: PatchGrid) -> torch.Tensor:
    """Centres `(cells, 2)` of a view's cells, x and y in shares of its longer side."""
    index = torch.arange(grid.cells)
    places = torch.stack([index % grid.columns, index // grid.columns], dim=-1)
    return (places + 0.5) / max(grid.columns, grid.rows)


class ImageHeads(nn.Module):
    """Linear readings of where a token lies and of what the mean of a picture's tokens shows."""

    def __init__(self, width: int, labels: LabelNames = CHEST_LABELS) -> None:
        super().__init__()
        self.labels = labels
        self.sizes = {name: len(answers) for name, answers in answers_of(labels).items()}
        self.token_norm = nn.LayerNorm(width)
        self.places = nn.Linear(width, len(labels.places))
        self.centres = nn.Linear(width, 2)
        self.shares = nn.Linear(width, len(labels.counted)) if labels.counted else None
        if self.shares is not None:
            nn.init.zeros_(self.shares.weight)
            nn.init.zeros_(self.shares.bias)
        self.image_norm = nn.LayerNorm(width)
        self.answers = nn.Linear(width, sum(self.sizes.values()))
        self.boxes = nn.Linear(width, len(box_names_of(labels)) * 4)

    def read_tokens(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of tokens `(N, D)`: logits of places `(N, P)` and centres `(N, 2)`."""
        tokens = self.token_norm(tokens)
        return self.places(tokens), self.centres(tokens)

    def read_shares(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of tokens `(N, D)`: shares of what is counted `(N, K)`."""
        if self.shares is None:
            return tokens.new_zeros(len(tokens), 0)
        read: torch.Tensor = self.shares(self.token_norm(tokens))
        return _SHARE_SCALE * read

    def read_images(self, means: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Of mean tokens `(M, D)`: logits of each family's answers and boxes `(M, B, 4)`."""
        means = self.image_norm(means)
        sizes = list(self.sizes.values())
        return self.answers(means).split(sizes, dim=-1), self.boxes(means).unflatten(-1, (-1, 4))


@dataclass(frozen=True, slots=True)
class ImageWeights:
    """Weights of the parts of the loss.

    Attributes:
        places: of a sum over places.
        centres: of a mean distance, in shares of the longer side of a view.
        answers: of a mean over known answers.
        boxes: of a mean over edges, in shares of the longer side of a view.
        shares: of a sum of squared errors over the cells of a view.
    """

    places: float = 0.0
    centres: float = 0.0
    answers: float = 0.0
    boxes: float = 0.0
    shares: float = 0.0


def image_loss(
    heads: ImageHeads, tokens: torch.Tensor, pictures: Sequence[Picture]
) -> dict[str, torch.Tensor]:
    """Losses of labelled pictures.

    Places (BCE), centres (L1), answers (CE), boxes (L1) and shares (L2).

    Of shares each cell's is to be right. That their sum is, was asked, too, for a time: that says
    the same to all cells, and its gradient was several times that of all the rest.

    Args:
        heads: to read with.
        tokens: visual tokens of all pictures in order, `(sum of cells, D)`.
        pictures: with labels or without.
    """
    split = torch.split(tokens, [picture.grid.cells for picture in pictures])
    zero = tokens.new_zeros(())
    parts = {"places": zero, "centres": zero, "answers": zero, "boxes": zero, "shares": zero}
    views = [
        (own, picture.labels.places, picture.grid)
        for own, picture in zip(split, pictures, strict=True)
        if picture.labels is not None and picture.labels.places is not None
    ]
    if views:
        logits, centres = heads.read_tokens(torch.cat([own for own, _, _ in views]))
        places = torch.from_numpy(np.concatenate([places for _, places, _ in views]))
        count = len(heads.labels.places)
        weight = torch.full((count,), _PRESENT_WEIGHT)
        parts["places"] = count * functional.binary_cross_entropy_with_logits(
            logits, places, pos_weight=weight
        )
        true_centres = torch.cat([centres_of(grid) for _, _, grid in views])
        parts["centres"] = (centres - true_centres).abs().mean()
        parts["shares"] = _shares_loss(heads, split, pictures)
    labelled = [
        (own.mean(0), picture.labels, picture.labels.boxes * np.tile(picture.sides, 2))
        for own, picture in zip(split, pictures, strict=True)
        if picture.labels is not None
    ]
    if labelled:
        answers, boxes = heads.read_images(torch.stack([mean for mean, _, _ in labelled]))
        truths = torch.from_numpy(np.stack([labels.answers for _, labels, _ in labelled])).long()
        losses = [
            functional.cross_entropy(logits[known], truth[known], reduction="none")
            for logits, truth in zip(answers, truths.T, strict=True)
            if bool((known := truth >= 0).any())
        ]
        if losses:
            parts["answers"] = torch.cat(losses).mean()
        true_boxes = torch.from_numpy(np.stack([boxes for _, _, boxes in labelled])).float()
        known_edges = ~true_boxes.isnan()
        if bool(known_edges.any()):
            parts["boxes"] = (boxes - true_boxes.nan_to_num()).abs()[known_edges].mean()
    return parts


def _shares_loss(
    heads: ImageHeads, tokens: Sequence[torch.Tensor], pictures: Sequence[Picture]
) -> torch.Tensor:
    """Mean over views of the sum of squared errors of their cells (`tokens` of each picture)."""
    losses = []
    for own, picture in zip(tokens, pictures, strict=True):
        if picture.labels is not None and picture.labels.shares is not None:
            errors = heads.read_shares(own) - torch.from_numpy(picture.labels.shares)
            losses.append(errors.square().sum())
    return torch.stack(losses).mean() if losses else tokens[0].new_zeros(())


@torch.no_grad()
def number_scores(
    heads: ImageHeads, tokens: torch.Tensor, pictures: Sequence[Picture]
) -> dict[str, list[float]]:
    """1 where the nearest number to the sum of shares is right, else 0, by kind and side.

    Of both sides of views that have some of the kind on either: in all others there is nothing to
    count.

    Args:
        heads: to read with.
        tokens: visual tokens of all pictures in order, `(sum of cells, D)`.
        pictures: with labels of views.
    """
    scores: dict[str, list[float]] = {}
    cells = [picture.grid.cells for picture in pictures]
    for own, picture in zip(torch.split(tokens, cells), pictures, strict=True):
        if picture.labels is None or picture.labels.shares is None:
            continue
        true = picture.labels.shares.sum(0).round()
        read = heads.read_shares(own).sum(0).round().tolist()
        kinds = [kind for kind, _ in heads.labels.counted]
        shown = {kind for kind, number in zip(kinds, true, strict=True) if number}
        for (kind, side), number, guess in zip(heads.labels.counted, true, read, strict=True):
            if kind in shown:
                scores.setdefault(f"counted {kind} {side}", []).append(float(guess == number))
    return scores


@torch.no_grad()
def answer_scores(
    heads: ImageHeads, tokens: torch.Tensor, pictures: Sequence[Picture]
) -> dict[str, list[float]]:
    """1 for every known answer that is read right, 0 for every other, by family.

    Args:
        heads: to read with.
        tokens: visual tokens of all pictures in order, `(sum of cells, D)`.
        pictures: with labels.
    """
    cells = [picture.grid.cells for picture in pictures]
    means = [own.mean(0) for own in torch.split(tokens, cells)]
    answers, _ = heads.read_images(torch.stack(means))
    scores: dict[str, list[float]] = {}
    for column, (family, logits) in enumerate(zip(heads.sizes, answers, strict=True)):
        for guess, picture in zip(logits.argmax(-1).tolist(), pictures, strict=True):
            truth = int(picture.labels.answers[column]) if picture.labels else _UNKNOWN
            if truth != _UNKNOWN:
                scores.setdefault(f"answer {family}", []).append(float(guess == truth))
    return scores
