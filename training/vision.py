"""Dense warm-up of the vision tower: every visual token predicts what it covers.

Trained from scratch on answers alone the small model learned question priors and nothing
visual; with this warm-up it sees. Heads are thrown away afterwards: coverage of structures
and findings, attributes where a finding is, and distances to the edges of the box that the
token belongs to (as FCOS regresses them, arXiv 1904.01355 eq. 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from training.phantoms.breast_ultrasound.words import BENIGN, CYST, MALIGNANT
from training.phantoms.head_ct.words import EPIDURAL, INTRAPARENCHYMAL, SUBDURAL
from training.phantoms.label_names import CHEST_LABELS, LabelNames
from training.world import Picture

# CLIP's normalisation, as Qwen2-VL's image processor applies it.
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
PATCH: Final = 14
# A nodule, a tube or a line fills little of any cell; a cell that it clearly enters counts as
# its own, or the tower would not be paid for finding it.
COVER_GAIN: Final = {
    "nodule": 6.0,
    "pneumothorax": 2.0,
    "endotracheal tube": 6.0,
    "central line": 6.0,
    **dict.fromkeys((INTRAPARENCHYMAL, SUBDURAL, EPIDURAL, CYST, BENIGN, MALIGNANT), 2.0),
}
# Of an organ's coverage in the loss, against a finding's.
STRUCTURE_WEIGHT: Final = 0.3
# Of a box, in shares of the longer side, when errors are measured by it.
LEAST_SIDE: Final = 0.04


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    """Grey images `(B, H, W)` in 0 to 255 as the tower's patches `(B * patches, 1176)`.

    Equal to transformers' image processor on an image that needs no resize (tested).
    """
    batch, height, width = pixels.shape
    rows, columns = height // (2 * PATCH), width // (2 * PATCH)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    blocks = pixels.reshape(batch, rows, 2, PATCH, columns, 2, PATCH) / 255.0
    blocks = blocks.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, -1, 1, 1, PATCH * PATCH)
    channels = (blocks - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return channels.expand(-1, -1, 3, 2, -1).reshape(batch * blocks.shape[1], -1)


def grid_thw_of(pixels: torch.Tensor) -> torch.Tensor:
    """`image_grid_thw` of same-sized images `(B, H, W)`: int64 `(B, 3)`."""
    batch, height, width = pixels.shape
    return torch.tensor([[1, height // PATCH, width // PATCH]]).expand(batch, -1).contiguous()


def visual_tokens(
    model: Qwen2_5_VLForConditionalGeneration, groups: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Visual tokens of groups of same-sized grey images, in order: `(sum of cells, D)`.

    On the device of the model, wherever the images lie.
    """
    pixel_values = torch.cat([patches_of(group) for group in groups]).to(model.device)
    grid_thw = torch.cat([grid_thw_of(group) for group in groups]).to(model.device)
    features = model.model.get_image_features(pixel_values, grid_thw, return_dict=True)
    return torch.cat(list(features.pooler_output))


def augmented(
    pixels: npt.NDArray[np.uint8], rng: np.random.Generator, strength: float = 0.5
) -> npt.NDArray[np.float32]:
    """A picture with other exposure, contrast, noise and blocked corners; 0 to 255."""
    image = pixels.astype(np.float32) / 255.0
    image = np.power(image, np.exp(rng.uniform(-0.45, 0.45) * strength))
    scale = np.exp(rng.uniform(-0.3, 0.3) * strength)
    image = (image - 0.5) * scale + 0.5 + rng.uniform(-0.12, 0.12) * strength
    if rng.random() < 0.5:
        image = image + rng.normal(0, 0.015 * rng.random() * strength, image.shape)
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, image.shape[int(rng.integers(2))], dtype=np.float32)
        tilt = rng.uniform(-0.1, 0.1) * strength * ramp
        image = image + (tilt[None, :] if len(ramp) == image.shape[1] else tilt[:, None])
    levels: npt.NDArray[np.float32] = (np.clip(image, 0, 1) * 255).astype(np.float32)
    return levels


def window_of(
    picture: Picture, cells: int, rng: np.random.Generator, around: int | None = None
) -> Picture:
    """A random square of `cells` by `cells` visual tokens of a picture (fewer where it is small).

    Distances to edges stay shares of the whole picture, so that a token reads the same in a
    window; those of boxes that the window cuts are left out.

    Args:
        picture: to cut from.
        cells: side of the window.
        rng: chooses the place.
        around: a visual token that the window must hold.
    """
    grid = picture.grid
    rows, columns = min(cells, grid.rows), min(cells, grid.columns)
    row = int(rng.integers(grid.rows - rows + 1))
    column = int(rng.integers(grid.columns - columns + 1))
    if around is not None:
        row = around // grid.columns - int(rng.integers(rows))
        column = around % grid.columns - int(rng.integers(columns))
        row = min(max(row, 0), grid.rows - rows)
        column = min(max(column, 0), grid.columns - columns)
    kept = (
        np.arange(row, row + rows)[:, None] * grid.columns + np.arange(column, column + columns)
    ).ravel()
    x, y = kept % grid.columns + 0.5, kept // grid.columns + 0.5
    # From each cell's centre to the window's own edges, in shares of the picture.
    room = np.stack(
        [
            (x - column) / grid.columns,
            (y - row) / grid.rows,
            (column + columns - x) / grid.columns,
            (row + rows - y) / grid.rows,
        ],
        axis=-1,
    )
    edges = picture.edges[kept]
    whole = (edges <= room[:, None] + 1e-3).all(axis=-1, keepdims=True)
    size = 2 * PATCH
    part = picture.pixels[
        row * size : (row + rows) * size, column * size : (column + columns) * size
    ]
    return Picture(
        pixels=np.ascontiguousarray(part),
        region=picture.region,
        cover=picture.cover[kept],
        attributes=picture.attributes[kept],
        edges=np.where(whole, edges, np.float16(np.nan)),
        cut_from=picture.cut_from or grid,
    )


class DenseHeads(nn.Module):
    """Linear readings of a visual token; used only while the tower is trained."""

    def __init__(self, width: int, labels: LabelNames = CHEST_LABELS) -> None:
        super().__init__()
        self.labels = labels
        self.sizes = [len(values) for values in labels.attributes.values()]
        self.norm = nn.LayerNorm(width)
        self.cover = nn.Linear(width, len(labels.covers))
        self.attributes = nn.Linear(width, sum(self.sizes))
        self.edges = nn.Linear(width, len(labels.box_groups) * 4)

    def forward(
        self, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        """Logits of coverage `(N, C)`, of each attribute, and edge distances `(N, G, 4)`."""
        tokens = self.norm(tokens)
        attributes = self.attributes(tokens).split(self.sizes, dim=-1)
        return self.cover(tokens), attributes, self.edges(tokens).unflatten(-1, (-1, 4))


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """Stacked targets of a batch of pictures, in the order of their visual tokens."""

    cover: torch.Tensor
    attributes: torch.Tensor
    edges: torch.Tensor
    owners: torch.Tensor

    @classmethod
    def of(cls, pictures: Sequence[Picture], labels: LabelNames = CHEST_LABELS) -> DenseTargets:
        """Floats `(N, C)` in 0 to 1, int64 `(N, A)`, float `(N, G, 4)` with NaN for none.

        Edges are in shares of the longer side of the whole picture. `owners`, int64 `(N,)`, is
        the index of the picture that a token belongs to.
        """
        gain = torch.tensor([COVER_GAIN.get(name, 1.0) for name in labels.covers])
        cover = torch.from_numpy(np.concatenate([p.cover for p in pictures])).float() / 255.0
        return cls(
            (cover * gain).clamp(max=1.0),
            torch.from_numpy(np.concatenate([p.attributes for p in pictures])).long(),
            torch.cat(
                [
                    torch.from_numpy(p.edges).float() * torch.tensor(p.sides).repeat(2)
                    for p in pictures
                ]
            ),
            torch.repeat_interleave(torch.tensor([p.grid.cells for p in pictures])),
        )


def attribute_losses(
    logits: torch.Tensor, labels: torch.Tensor, owners: torch.Tensor
) -> torch.Tensor:
    """Cross-entropies of one attribute, each read from all tokens of a finding together.

    The logits of a picture's tokens with one label are averaged first. A fine texture shows in
    each token only faintly; asked token by token, the tower stayed at chance.

    Args:
        logits: `(N, classes)`.
        labels: int64 `(N,)`; -1 where the attribute is not known.
        owners: int64 `(N,)`: picture of each token.

    Returns:
        One loss for every pair of a picture and a label in it, `(P,)`.
    """
    known = labels >= 0
    classes = logits.shape[-1]
    keys, groups = torch.unique(owners[known] * classes + labels[known], return_inverse=True)
    sums = logits.new_zeros(len(keys), classes).index_add(0, groups, logits[known])
    means = sums / torch.bincount(groups, minlength=len(keys)).unsqueeze(-1)
    return functional.cross_entropy(means, keys % classes, reduction="none")


def dense_loss(
    outputs: tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor],
    targets: DenseTargets,
    known_cover: torch.Tensor | None = None,
    labels: LabelNames = CHEST_LABELS,
) -> dict[str, torch.Tensor]:
    """The parts of the loss: cover (BCE), attributes (CE of each finding), edges and extents.

    Edges are plain distances (L1), extents the same in sides of the box (`extent_loss`).

    Args:
        outputs: of `DenseHeads`.
        targets: for the same tokens.
        known_cover: bool `(N, C)`: which coverages are known (a real radiograph says only
            where its lungs are); None: all.
        labels: what the columns are.
    """
    cover, attributes, edges = outputs
    # Findings are rare: weighing their positives keeps the tower from calling all tokens clear.
    # Organs are large and soon learned: at full weight they would drown the findings.
    finding = torch.tensor([name not in labels.structures for name in labels.covers])
    per_token = functional.binary_cross_entropy_with_logits(
        cover, targets.cover, pos_weight=1 + 3.0 * finding, reduction="none"
    )
    per_token = per_token * torch.where(finding, 1.0, STRUCTURE_WEIGHT)
    if known_cover is not None:
        per_token = per_token * known_cover
    parts = {"cover": per_token.sum(-1).mean()}
    # All readings count alike: one tube tip in a batch must not weigh as much as twenty margins.
    read = torch.cat(
        [
            attribute_losses(logits, values, targets.owners)
            for logits, values in zip(attributes, targets.attributes.T, strict=True)
        ]
    )
    parts["attributes"] = read.mean() if len(read) else cover.new_zeros(())
    known = ~targets.edges.isnan()
    parts["edges"] = (
        (edges - targets.edges.nan_to_num()).abs()[known].mean()
        if bool(known.any())
        else cover.new_zeros(())
    )
    parts["extents"] = extent_loss(edges, targets.edges)
    return parts


def length_spread(tokens: torch.Tensor) -> torch.Tensor:
    """Variance of the logarithm of the mean square of tokens `(N, D)`.

    The language model normalises every token to one length: what a token says of its place would
    be louder in a short one.
    """
    return tokens.square().mean(-1).log().var()


def length_error(tokens: torch.Tensor) -> torch.Tensor:
    """Mean of the squared logarithm of the mean square of tokens `(N, D)`: 0 where that is 1.

    Beside what `length_spread` asks for it keeps a network from making its tokens longer and
    longer, which drowns whatever is written in them once and for all.
    """
    return tokens.square().mean(-1).log().square().mean()


def extent_loss(edges: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Errors of edges in sides of their box (`in_sides`).

    Args:
        edges: `(N, G, 4)`, distances to left, top, right and bottom edges, in shares of the longer
            side.
        true: the same, NaN where a token knows of no box.
    """
    return in_sides(edges - true, true)


def in_sides(errors: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Size of errors in sides of the box; a mean over the groups of boxes, each a mean.

    Most tokens lie in lungs, whose edges are known to a few hundredths of the picture. A nodule
    has a token or two and is hardly larger than that: in a plain mean its edges hardly count.

    Args:
        errors: `(N, G, 4)`, of what is read for left, top, right and bottom; NaN where a token
            knows of no box.
        edges: true distances to the edges, in the unit of the errors; NaN at the same places.
    """
    known = ~edges.isnan()
    sides = (edges[..., :2] + edges[..., 2:]).repeat(1, 1, 2).nan_to_num(1.0).clamp(min=LEAST_SIDE)
    # Elsewhere NaN is left to be seen: it would be a network that has diverged.
    shares = torch.where(known, errors, 0.0).abs() / sides
    groups = [
        shares[:, group][known[:, group]].mean()
        for group in range(edges.shape[1])
        if bool(known[:, group].any())
    ]
    return torch.stack(groups).mean() if groups else errors.new_zeros(())
