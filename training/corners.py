"""Linear readings of where the box lies that a visual token belongs to.

The language model's first layer learns them before any word (`training.first_layer`), the layers
behind it begin by reading them (`training.detectors`), and they have to stay readable: left alone,
the language model wrote over them. After its training the corners of a nodule's box were read from
its own token to 6 pixels of 224 behind the first layer and to 9 behind the second, where they had
been known to 3, so that no layer above could have copied a better box. `KeptCorners` goes on
asking for them while words are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from training.grounding import COORDINATE_STRIDE, GROUNDED_LAYER, Look
from training.image_labels import centres_of
from training.phantoms.label_names import CHEST_LABELS, LabelNames
from training.vision import LEAST_SIDE, DenseTargets, in_sides, length_error
from training.world import Picture

# Whose output is asked: the layers that the detectors of the second and the third read.
KEPT_LAYERS: Final = (0, 1)
# Weight of tokens of one length, beside the corners.
KEPT_LENGTHS: Final = 10.0


class CornerHead(nn.Module):
    """A linear reading of where the box lies that a visual token belongs to."""

    def __init__(self, width: int, labels: LabelNames = CHEST_LABELS) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.corners = nn.Linear(width, len(labels.box_groups) * 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Corners `(N, G, 4)` of tokens `(N, D)`: left, top, right, bottom.

        In shares of the longer side of a view.
        """
        read: torch.Tensor = self.corners(self.norm(tokens))
        return read.view(*read.shape[:-1], -1, 4)


def corner_loss(corners: torch.Tensor, edges: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Errors of corners in sides of their box (`training.vision.in_sides`).

    Args:
        corners: `(N, G, 4)`, in shares of the longer side.
        edges: true distances to the edges, `(N, G, 4)`, NaN where a token knows of no box.
        centres: of the tokens, `(N, 2)`.
    """
    outwards = edges.new_tensor([-1.0, -1.0, 1.0, 1.0])
    true = centres.repeat(1, 2).unsqueeze(1) + outwards * edges
    return in_sides(corners - true, edges)


class KeptCorners(nn.Module):
    """Corners read from visual tokens behind the first layers, while the language model learns.

    And the coordinate that comes next, read from the token that is to write it, behind the layer
    that looks at the box: what is copied there is a number on a line, and two layers are left to
    find its word.

    Args:
        width: of a token.
        labels: of the phantoms.
        begin: what the readings begin as; None: as nothing.
    """

    def __init__(self, width: int, labels: LabelNames, begin: CornerHead | None = None) -> None:
        super().__init__()
        self._labels = labels
        self.heads = nn.ModuleList(CornerHead(width, labels) for _ in KEPT_LAYERS)
        self.next_norm = nn.LayerNorm(width)
        self.next = nn.Linear(width, 1)
        if begin is not None:
            for head in self.heads:
                head.load_state_dict(begin.state_dict())

    @property
    def read_states(self) -> frozenset[int]:
        """Numbers of the states that are read, of those that `forward` takes."""
        return frozenset(layer + 1 for layer in (*KEPT_LAYERS, GROUNDED_LAYER))

    def forward(
        self,
        states: Sequence[torch.Tensor],
        images: torch.Tensor,
        views: Sequence[Picture | None],
        looks: Sequence[Look] = (),
    ) -> torch.Tensor:
        """Mean error of corners in sides of their box, over layers and what is written; a scalar.

        On top comes how far the mean squares of the tokens are from 1. Whatever reads a token
        normalises it: a place that is written in tokens of lengths that differ by a tenth is read
        wrong by a tenth of its distance from the middle, and in tokens that have become thirty
        times as long it is hardly read at all.

        Args:
            states: what goes into each layer in turn, and what comes out of the last, `(B, T, D)`.
            images: bool `(B, T)`, True at visual tokens.
            views: the first picture of each record; None where it has none.
            looks: boxes that the records write.
        """
        seen = [(row, view) for row, view in enumerate(views) if view is not None]
        if not seen:
            return states[0].new_zeros(())
        places = [(row, images[row].nonzero().flatten()[: view.grid.cells]) for row, view in seen]
        device = states[0].device
        edges = DenseTargets.of([view for _, view in seen], self._labels).edges.to(device)
        centres = torch.cat([centres_of(view.grid) for _, view in seen]).to(device)
        losses = []
        for layer, head in zip(KEPT_LAYERS, self.heads, strict=True):
            behind = states[layer + 1]
            tokens = torch.cat([behind[row, columns] for row, columns in places])
            error = corner_loss(head(tokens.float()), edges, centres)
            losses.append(error + KEPT_LENGTHS * length_error(tokens.float()))
        if known := [look for look in looks if look.corners is not None]:
            losses.append(self._written(states[GROUNDED_LAYER + 1], known))
        return torch.stack(losses).mean()

    def _written(self, states: torch.Tensor, looks: Sequence[Look]) -> torch.Tensor:
        """Mean error of the coordinates that come next, in sides of their box."""
        rows = torch.tensor([look.row for look in looks], device=states.device)
        written = [look.coordinates[::COORDINATE_STRIDE] for look in looks]
        columns = torch.stack(written).to(states.device)
        corners = torch.tensor([look.corners for look in looks], device=states.device)
        sides = (corners[:, 2:] - corners[:, :2]).clamp(min=LEAST_SIDE).repeat(1, 2)
        tokens = states[rows.unsqueeze(-1), columns].float()
        read = self.next(self.next_norm(tokens)).squeeze(-1)
        error: torch.Tensor = ((read - corners) / sides).abs().mean()
        return error
