"""The images that the embedded model is trained on, prepared once and kept on disk.

A `World` is a list of phantoms, each with the picture of it that the model sees, crops of the
places that its questions point to, and per visual token what is there: coverage of each
structure and finding, attributes, and distances to the edges of the box that the token
belongs to. It is built in shards, each written whole or not at all, so that an interrupted
build goes on where it stopped. Beside the shards lies the fingerprint of what decided their
content, so that phantoms of other settings or of an older generator are refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from engine.geometry import FULL_IMAGE, Box, PatchGrid, clamped_box
from engine.manifest import PixelBudget
from engine.processor import TOKEN_SIZE, crop_pixels
from training.checkpoints import write_whole
from training.phantoms import CHEST, MASK_GRID, AnyTruth, labels_of, to_view8, truth_from_json
from training.phantoms.label_names import CHEST_LABELS, LabelNames, joined
from training.phantoms.truth import SPLITS, seed_for
from training.questions import FAMILIES_OF, Question, QuestionCase, case_for, questions_for

VIEW_BUDGET: Final = PixelBudget(least=224 * 224, most=224 * 224)
CROP_PADDING: Final = 0.2
# Of the side of a nodule's box: grains of calcium lie within 0.68 of its radius, the box
# reaches to 1.55 (`training.phantoms.detail`, `training.phantoms.findings`).
CORE_SHARE: Final = 0.5
# Native pixels per seen pixel up to which a crop shows fine texture.
CLOSE: Final = 1.25

UNKNOWN: Final = -1
# Modalities are spread by multiples of the golden ratio, which leave no gap to any of them.
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
# To be raised with every change to phantoms, questions or pictures that changes what a shard
# holds.
GENERATOR_VERSION: Final = 4

ZoomBoxes = Literal["targets", "random"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageLabels:
    """What a whole picture shows (`training.image_labels` makes them; they are not saved).

    Attributes:
        answers: int8 `(families,)`, index of the right answer or -1.
        boxes: float32 `(names, 4)` in shares of the picture; NaN where not exactly one.
        places: float32 `(cells, names)` in 0 to 1, how far a finding in a place covers a cell;
            None on crops, where a place cannot be told.
        shares: float32 `(cells, counted)`, the share of a finding that a cell holds, summed over
            those of one kind on one side, whose number all cells add up to; None on crops.
    """

    answers: npt.NDArray[np.int8]
    boxes: npt.NDArray[np.float32]
    places: npt.NDArray[np.float32] | None = None
    shares: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One image as the model sees it, with what every visual token shows.

    Attributes:
        pixels: uint8 `(height, width)`, already resized.
        region: the part of the full image that it shows.
        cover: uint8 `(cells, covers)`, 255 = wholly covered (`covers`, `attributes` and
            `box_groups` are those of the `LabelNames` of its world).
        attributes: int8 `(cells, attributes)`, class index or -1.
        edges: float16 `(cells, box_groups, 4)`: distances from the cell's centre to the
            left, top, right and bottom edge of its box, in shares of this picture; NaN: none.
        known_cover: bool, as `cover`: where the coverage is known; None: everywhere.
        labels: of the whole picture, where they are taught.
        cut_from: grid of the picture that this is a window of; None: it is whole.
    """

    pixels: npt.NDArray[np.uint8]
    region: Box
    cover: npt.NDArray[np.uint8]
    attributes: npt.NDArray[np.int8]
    edges: npt.NDArray[np.float16]
    known_cover: npt.NDArray[np.bool_] | None = None
    labels: ImageLabels | None = None
    cut_from: PatchGrid | None = None

    @property
    def grid(self) -> PatchGrid:
        """Visual tokens after merging."""
        return PatchGrid(self.pixels.shape[0] // TOKEN_SIZE, self.pixels.shape[1] // TOKEN_SIZE)

    @property
    def sides(self) -> tuple[float, float]:
        """Width and height of the whole picture, in shares of its longer side.

        What is read of a token is taught in shares of the longer side, as pixels are counted. In
        shares of the picture a token would have to know how wide the picture is.
        """
        return sides_of(self.cut_from or self.grid)


def sides_of(grid: PatchGrid) -> tuple[float, float]:
    """Width and height of a grid, in shares of its longer side."""
    longer = max(grid.columns, grid.rows)
    return grid.columns / longer, grid.rows / longer


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One phantom (or real radiograph) with its pictures.

    Attributes:
        truth: None for a real radiograph.
        view: the whole image.
        crops: for each box that a question may point to, pictures of it (boxes jittered as a
            model's own would be).
        asked: the question for which a phantom was made, if any.
        blind: whether the crops are of boxes drawn at random, whatever is asked.
    """

    truth: AnyTruth | None
    view: Picture
    crops: dict[Box, tuple[Picture, ...]] = field(default_factory=dict)
    asked: Question | None = None
    blind: bool = False


def resized(
    pixels: npt.NDArray[np.uint8], budget: PixelBudget = VIEW_BUDGET
) -> npt.NDArray[np.uint8]:
    """A grey image `(H, W)` as the model sees it: what `engine.processor` makes of it (tested).

    One channel and no normalisation: several times faster than the whole preprocessing.
    """
    rows, columns = pixels.shape
    height, width = smart_resize(
        rows,
        columns,
        factor=TOKEN_SIZE,
        min_pixels=budget.least,
        max_pixels=budget.most,
    )
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def seen_picture(
    pixels: npt.NDArray[np.uint8],
    region: Box,
    truth: AnyTruth,
    labels: LabelNames = CHEST_LABELS,
) -> Picture:
    """The picture of a region of a phantom, through transformers' own preprocessing."""
    part = pixels if region == FULL_IMAGE else crop_pixels(pixels, region)
    seen = resized(part)
    grid = PatchGrid(seen.shape[0] // TOKEN_SIZE, seen.shape[1] // TOKEN_SIZE)
    return Picture(
        pixels=seen,
        region=region,
        cover=cover_of(truth, region, grid, labels),
        attributes=attributes_of(truth, region, grid, labels),
        edges=edges_of(truth, region, grid, labels),
    )


def cover_of(
    truth: AnyTruth, region: Box, grid: PatchGrid, labels: LabelNames = CHEST_LABELS
) -> npt.NDArray[np.uint8]:
    """Share of every cell that each structure and finding covers, 0 to 255."""
    masks = np.zeros((len(labels.covers), MASK_GRID, MASK_GRID), dtype=np.float32)
    for index, name in enumerate(labels.structures):
        if name in truth.anatomy:
            masks[index] = truth.anatomy[name].mask
    for finding in truth.findings:
        if finding.kind in labels.findings:
            index = labels.covers.index(finding.kind)
            masks[index] = np.maximum(masks[index], finding.mask)
    cells = np.stack([_sampled(mask, region, grid) for mask in masks], axis=-1)
    levels: npt.NDArray[np.uint8] = np.rint(cells * 255).astype(np.uint8)
    return levels.reshape(grid.cells, len(labels.covers))


def _sampled(
    mask: npt.NDArray[np.float32], region: Box, grid: PatchGrid
) -> npt.NDArray[np.float32]:
    """Mean of a full-image mask in each cell of a region's grid, by 8 x 8 samples a cell."""
    rows, columns = grid.rows * 8, grid.columns * 8
    x = (region.x0 + (np.arange(columns) + 0.5) / columns * (region.x1 - region.x0)) * mask.shape[1]
    y = (region.y0 + (np.arange(rows) + 0.5) / rows * (region.y1 - region.y0)) * mask.shape[0]
    map_x, map_y = np.meshgrid((x - 0.5).astype(np.float32), (y - 0.5).astype(np.float32))
    fine = cv2.remap(mask, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    blocks = fine.reshape(grid.rows, 8, grid.columns, 8)
    means: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3))
    return means


def _relative(box: tuple[float, float, float, float], region: Box) -> tuple[float, ...]:
    """A full-image box in shares of a region, not cut."""
    width, height = region.x1 - region.x0, region.y1 - region.y0
    return (
        (box[0] - region.x0) / width,
        (box[1] - region.y0) / height,
        (box[2] - region.x0) / width,
        (box[3] - region.y0) / height,
    )


def touched_cells(box: tuple[float, ...], grid: PatchGrid) -> list[int]:
    """Cells that a region-relative box touches; empty when it lies outside."""
    x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in box)
    if x1 - x0 <= 1e-6 or y1 - y0 <= 1e-6:
        return []
    return list(grid.cells_of(Box(x0, y0, x1, y1)))


def attributes_of(
    truth: AnyTruth, region: Box, grid: PatchGrid, labels: LabelNames = CHEST_LABELS
) -> npt.NDArray[np.int8]:
    """Attribute classes of the cells that a finding touches, else -1.

    What the whole image shows is told by the cells of one structure, such as the heart.
    """
    values = labels.attributes
    classes = np.full((grid.cells, len(values)), UNKNOWN, dtype=np.int8)
    names = tuple(values)
    traits = truth.traits if region == FULL_IMAGE else {}
    for name, value in traits.items():
        cells = touched_cells(_relative(truth.anatomy[labels.carriers[name]].box, region), grid)
        classes[cells, names.index(name)] = values[name].index(value)
    for finding in truth.findings:
        for name, value in finding.attributes.items():
            if value in values.get(name, ()) and _readable(name, region, truth, labels):
                place = core_of(finding.focus) if name in labels.cored else finding.focus
                cells = touched_cells(_relative(place, region), grid)
                classes[cells, names.index(name)] = values[name].index(value)
    return classes


def core_of(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The middle of the box of a nodule or mass, where its calcium lies if it has any.

    Cells outside of it hold nothing that tells; labelled all the same they taught the tower to
    guess.
    """
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_width = CORE_SHARE * (box[2] - box[0]) / 2
    half_height = CORE_SHARE * (box[3] - box[1]) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def _readable(name: str, region: Box, truth: AnyTruth, labels: LabelNames) -> bool:
    """Fine attributes are taught where the picture shows the texture: on close crops alone."""
    if name not in labels.fine:
        return True
    width, height = region.x1 - region.x0, region.y1 - region.y0
    pixels = width * truth.width * height * truth.height
    return pixels <= CLOSE**2 * VIEW_BUDGET.most


def edges_of(
    truth: AnyTruth, region: Box, grid: PatchGrid, labels: LabelNames = CHEST_LABELS
) -> npt.NDArray[np.float16]:
    """Distances from cell centres to the edges of the boxes that the cells belong to."""
    groups = labels.box_groups
    edges = np.full((grid.cells, len(groups), 4), np.nan, dtype=np.float32)
    boxes = [
        (truth.anatomy[name].box, groups.index(name))
        for name in labels.boxed
        if name in truth.anatomy
    ]
    # Larger findings first, so that a small one inside keeps its own cells.
    ordered = sorted(
        (finding for finding in truth.findings if finding.kind in labels.findings),
        key=lambda f: -(f.focus[2] - f.focus[0]) * (f.focus[3] - f.focus[1]),
    )
    boxes += [(finding.focus, groups.index("finding")) for finding in ordered]
    return fill_edges(edges, [(_relative(box, region), group) for box, group in boxes], grid)


def fill_edges(
    edges: npt.NDArray[np.float32],
    boxes: Sequence[tuple[tuple[float, ...], int]],
    grid: PatchGrid,
) -> npt.NDArray[np.float16]:
    """Writes edge distances of region-relative boxes into the cells that they touch."""
    for box, group in boxes:
        for cell in touched_cells(box, grid):
            x, y = grid.box_of(*divmod(cell, grid.columns)).center
            edges[cell, group] = (x - box[0], y - box[1], box[2] - x, box[3] - y)
    clipped: npt.NDArray[np.float16] = np.clip(edges, -2.0, 2.0).astype(np.float16)
    return clipped


def jittered(box: Box, rng: np.random.Generator, amount: float) -> Box:
    """A box moved and resized at random: each edge by up to `amount` of the box's size."""
    width, height = box.x1 - box.x0, box.y1 - box.y0
    shift = rng.uniform(-amount, amount, 4)
    return clamped_box(
        box.x0 + shift[0] * width,
        box.y0 + shift[1] * height,
        box.x1 + shift[2] * width,
        box.y1 + shift[3] * height,
    )[0]


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A box of whole pixels of a picture, of any place and of 0.1 to 0.5 of each side.

    The logarithm of a side is uniform, and so is the place among those where it fits.
    """
    edges = []
    for whole in (width, height):
        side = max(1, round(whole * math.exp(rng.uniform(math.log(0.1), math.log(0.5)))))
        first = int(rng.integers(whole - side + 1))
        edges.append((first / whole, (first + side) / whole))
    (x0, x1), (y0, y1) = edges
    return Box(x0, y0, x1, y1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityShares:
    """Shares of the modalities in a world; together 1."""

    chest: float = 0.0
    head_ct: float = 0.0
    breast_ultrasound: float = 0.0

    def __post_init__(self) -> None:
        shares = dataclasses.astuple(self)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"Shares of modalities must sum to 1, not {shares}.")

    @property
    def named(self) -> dict[str, float]:
        """Shares above 0 by the name of the modality."""
        return {name: share for name, share in dataclasses.asdict(self).items() if share > 0}

    @property
    def labels(self) -> LabelNames:
        """What is labelled in the pictures of such a world."""
        return joined([labels_of(name) for name in self.named])

    def turn(self, index: int) -> tuple[str, int]:
        """Modality of the `index`-th phantom, and how many of that modality come before it."""
        names, shares = tuple(self.named), tuple(self.named.values())
        if len(names) == 1:
            return names[0], index
        places = np.arange(index + 1) * _GOLDEN % 1
        drawn = np.searchsorted(np.cumsum(shares[:-1]), places, side="right")
        return names[int(drawn[-1])], int((drawn[:-1] == drawn[-1]).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """How many phantoms, from which seed and split, with which crops.

    Attributes:
        crops_per_target: of every target of a fine question; of the whole phantom where `boxes`
            are random.
        boxes: `targets` crops what questions are about, `random` whatever the dice say, so that
            a zoom can be taught without a word of where to look.
        modalities: shares of chest radiographs, head CT slices and breast ultrasound images.
        again: question families that get a second turn beside the one that each has: of the
            phantoms, twice as many are made for one of them as for any other.
    """

    count: int = 5000
    seed: int = 0
    split: str = "train"
    crops_per_target: int = 2
    boxes: ZoomBoxes = "targets"
    shard: int = 125
    workers: int = 2
    modalities: ModalityShares = ModalityShares(chest=1.0)
    again: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # None at all: questions about images of one's own need no phantoms.
        for name, least in (("count", 0), ("crops_per_target", 0), ("shard", 1), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}.")
        known = [name for modality in self.modalities.named for name in FAMILIES_OF[modality]]
        if unknown := [name for name in self.again if name not in known]:
            raise ValueError(
                f"again names {unknown[0]!r}, which is no question family of these phantoms; use "
                f"some of {', '.join(known)}."
            )
        if len(set(self.again)) < len(self.again):
            raise ValueError("again names a question family twice, which gets but a second turn.")

    @property
    def name(self) -> str:
        """What the names of the world's files begin with."""
        kind = "" if self.boxes == "targets" else f"-{self.boxes}"
        if self._is_mixed:
            kind += "".join(f"-{name}{share:g}" for name, share in self.modalities.named.items())
        return f"{self.split}-{self.seed}{kind}"

    @property
    def _is_mixed(self) -> bool:
        """Whether there is anything but chest radiographs."""
        return tuple(self.modalities.named) != (CHEST,)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that decides what the shards hold; of chests, as before there was anything else."""
        settings = dataclasses.asdict(self)
        del settings["workers"]
        if self.again:
            # A list, as it is read from the file again.
            settings["again"] = list(self.again)
        else:
            del settings["again"]
        if not self._is_mixed:
            del settings["modalities"]
        return {"generator": GENERATOR_VERSION, **settings}


def balanced_case(config: WorldConfig, index: int) -> QuestionCase:
    """The `index`-th question of a world.

    In each modality families take turns, and answers inside a family.
    """
    modality, number = config.modalities.turn(index)
    families = FAMILIES_OF[modality]
    turns = [*families, *(name for name in config.again if name in families)]
    rounds, place = divmod(number, len(turns))
    name = turns[place]
    asked = rounds * turns.count(name) + turns[:place].count(name)
    answers = families[name].answers
    answer = answers[asked % len(answers)]
    return case_for(name, answer, seed_for(config.split, index, config.seed))


def build_case(
    ordered: QuestionCase,
    crops: int,
    boxes: ZoomBoxes = "targets",
    labels: LabelNames = CHEST_LABELS,
) -> Case:
    """Draws one phantom and its pictures (`crops` and `boxes` as in `WorldConfig`)."""
    phantom = ordered.phantom()
    rng = np.random.default_rng([ordered.phantom_seed, 7])
    pixels = to_view8(phantom)
    truth = phantom.truth
    view = seen_picture(pixels, FULL_IMAGE, truth, labels)
    targets: dict[Box, tuple[Picture, ...]] = {}
    if boxes == "random":
        # Drawn from the seed and the size alone: what the phantom shows has no part in it.
        dice = np.random.default_rng([ordered.phantom_seed, 17])
        for _ in range(crops):
            box = random_box(view.pixels.shape[1], view.pixels.shape[0], dice)
            targets[box] = (seen_picture(pixels, box.padded(CROP_PADDING), truth, labels),)
        return Case(truth=truth, view=view, crops=targets, asked=ordered.question, blind=True)
    questions = [ordered.question, *questions_for(truth, rng)]
    # The details are learned from crops alone, so their targets get more of them.
    wanted = {Box(*box): 1 for q in questions for box in q.target_boxes}
    wanted |= {Box(*box): crops for q in questions if q.kind == "fine" for box in q.target_boxes}
    for box, variants in wanted.items():
        targets[box] = tuple(
            seen_picture(pixels, jittered(box, rng, 0.15).padded(CROP_PADDING), truth, labels)
            for _ in range(variants)
        )
    return Case(truth=truth, view=view, crops=targets, asked=ordered.question)


def _question(record: dict[str, Any]) -> Question:
    """A question from plain JSON."""
    record["options"] = tuple(record["options"])
    record["target_boxes"] = tuple(tuple(box) for box in record["target_boxes"])
    return Question(**record)


def save_cases(path: Path, cases: list[Case]) -> None:
    """Writes cases to one `.npz` (plain arrays and JSON), whole or not at all."""
    pictures: list[Picture] = []
    records = []
    for case in cases:
        crops = []
        first = len(pictures)
        pictures.append(case.view)
        for box, variants in case.crops.items():
            crops.append({"box": box.as_tuple(), "pictures": [len(pictures), len(variants)]})
            pictures += variants
        records.append(
            {
                "truth": case.truth.to_json(masks=False) if case.truth else None,
                "asked": dataclasses.asdict(case.asked) if case.asked else None,
                "view": first,
                "crops": crops,
                "blind": case.blind,
            }
        )
    meta = {
        "cases": records,
        "shapes": [picture.pixels.shape for picture in pictures],
        "regions": [picture.region.as_tuple() for picture in pictures],
    }
    arrays = {
        "pixels": np.concatenate([picture.pixels.ravel() for picture in pictures]),
        "cover": np.concatenate([picture.cover for picture in pictures]),
        "attributes": np.concatenate([picture.attributes for picture in pictures]),
        "edges": np.concatenate([picture.edges for picture in pictures]),
        "meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
    }
    write_whole(path, lambda file: np.savez(file, **arrays), is_shared=True)  # type: ignore[arg-type]


def load_cases(path: Path) -> list[Case]:
    """Reads what `save_cases` wrote."""
    with np.load(path, allow_pickle=False) as data:
        pixels, cover = data["pixels"], data["cover"]
        attributes, edges = data["attributes"], data["edges"]
        meta = json.loads(data["meta"].tobytes())
    pictures = []
    at = cell = 0
    for (height, width), region in zip(meta["shapes"], meta["regions"], strict=True):
        cells = (height // TOKEN_SIZE) * (width // TOKEN_SIZE)
        pictures.append(
            Picture(
                pixels=pixels[at : at + height * width].reshape(height, width),
                region=Box(*region),
                cover=cover[cell : cell + cells],
                attributes=attributes[cell : cell + cells],
                edges=edges[cell : cell + cells],
            )
        )
        at, cell = at + height * width, cell + cells
    return [
        Case(
            truth=truth_from_json(record["truth"]) if record["truth"] else None,
            view=pictures[record["view"]],
            crops={
                Box(*crop["box"]): tuple(pictures[crop["pictures"][0] : sum(crop["pictures"])])
                for crop in record["crops"]
            },
            asked=_question(record["asked"]) if record["asked"] else None,
            blind=record.get("blind", False),
        )
        for record in meta["cases"]
    ]


def load_world(
    folder: Path, config: WorldConfig, report: Callable[[str], None] = lambda _: None
) -> list[Case]:
    """The phantoms of a configuration: built where shards are missing, then loaded.

    Raises:
        ValueError: as `check_world`.
    """
    claim_world(folder, config)
    paths = [shard_path(folder, config, first) for first in _starts(config)]
    missing = [
        (config, first, path)
        for first, path in zip(_starts(config), paths, strict=True)
        if not path.exists()
    ]
    if missing:
        context = multiprocessing.get_context("spawn")
        with context.Pool(config.workers) as pool:
            for done, _ in enumerate(pool.imap_unordered(_build_shard, missing), start=1):
                report(f"{config.split} phantoms: shard {done} of {len(missing)}")
    return [case for path in paths for case in load_cases(path)]


def check_world(folder: Path, config: WorldConfig) -> None:
    """Checks that the shards in a folder, if any, are those of a configuration.

    Raises:
        ValueError: they are of other settings or of another generator, or nothing tells.
    """
    path = _fingerprint_path(folder, config)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        wanted = config.fingerprint
        other = [
            f"{name}: {kept.get(name)} there, {wanted.get(name)} here"
            for name in {**wanted, **kept}
            if kept.get(name) != wanted.get(name)
        ]
        reason = "; ".join(other)
    else:
        shards = any(folder.glob(f"{config.name}-[0-9]*.npz"))
        reason = f"{path.name} is missing" if shards else ""
    if reason:
        raise ValueError(
            f"The folder {folder} holds phantoms of other or unknown settings ({reason}): delete "
            "it, or choose another folder."
        )


def claim_world(folder: Path, config: WorldConfig) -> None:
    """Makes a folder one for the shards of a configuration, beside those of other worlds.

    Raises:
        ValueError: as `check_world`.
    """
    check_world(folder, config)
    path = _fingerprint_path(folder, config)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config.fingerprint, indent=2) + "\n"
        write_whole(path, lambda file: file.write(text.encode()))


def _fingerprint_path(folder: Path, config: WorldConfig) -> Path:
    return folder / f"{config.name}.json"


def shard_path(folder: Path, config: WorldConfig, first: int) -> Path:
    """The file of the shard that begins with the phantom `first`."""
    return folder / f"{config.name}-{first:06d}.npz"


def _starts(config: WorldConfig) -> range:
    return range(0, config.count, config.shard)


def _build_shard(job: tuple[WorldConfig, int, Path]) -> None:
    config, first, path = job
    cv2.setNumThreads(1)
    stop = min(first + config.shard, config.count)
    labels = config.modalities.labels
    cases = [
        build_case(balanced_case(config, index), config.crops_per_target, config.boxes, labels)
        for index in range(first, stop)
    ]
    save_cases(path, cases)
