"""The zoom call: reading what a model wrote, and holding its coordinates well-formed.

A call is Hermes's JSON between tags. It is parsed as JSON and nothing else; whatever is wrong
with it becomes a sentence that is returned to the model. What its numbers count is the business of
`engine.coordinates`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from engine.coordinates import CoordinateFrame, CoordinateKind
from engine.geometry import Box, BoxError
from engine.prompt import ZOOM_TOOL_NAME
from engine.vocabulary import Vocabulary

MOST_CHARACTERS: Final = 4000
LEAST_SIDE_PX: Final = 28
MOST_EXTREME_BOX: Final = 100
_SEPARATOR: Final = ", "
_AT_COORDINATES: Final = re.compile(r'"bbox_2d"\s*:\s*\[\s*$')
_COORDINATE_TOKEN: Final = re.compile(r"^[0-9, ]+$")


class ToolCallError(ValueError):
    """A call that cannot be carried out; the message is written for the model."""


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """The image as the model sees it and as it is displayed, in pixels.

    Attributes:
        coordinates: what the model counts places in.
    """

    seen_width: int
    seen_height: int
    source_width: int
    source_height: int
    coordinates: CoordinateKind = "pixels"

    @property
    def frame(self) -> CoordinateFrame:
        """What the coordinates of a call lie in."""
        return CoordinateFrame.of(self.coordinates, self.seen_width, self.seen_height)

    @property
    def least_sides(self) -> tuple[int, int]:
        """Least width and height of a box, in coordinates.

        At least `LEAST_SIDE_PX` source pixels, or the whole side of a smaller image.
        """
        frame = self.frame
        return (
            _least_side(frame.width, self.source_width),
            _least_side(frame.height, self.source_height),
        )


def _least_side(side: int, source: int) -> int:
    return max(1, math.ceil(min(LEAST_SIDE_PX, source) * side / source))


def opens_coordinates(text: str) -> bool:
    """Whether what comes next in a call that has begun with `text` is its first coordinate."""
    return _AT_COORDINATES.search(text) is not None


def parse_zoom_call(text: str, sizes: ImageSizes) -> tuple[Box, bool]:
    """The box that a call names, and whether it had to be cut at the image edge.

    Args:
        text: what stands between the tool-call tags.
        sizes: the image that the coordinates refer to.

    Raises:
        ToolCallError: on anything that cannot be carried out.
    """
    arguments = _arguments(_json_object(text))
    x0, y0, x1, y1 = _numbers(arguments.get("bbox_2d"))
    if x0 >= x1 or y0 >= y1:
        raise ToolCallError("bbox_2d must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2.")
    try:
        box, clamped = sizes.frame.to_box(x0, y0, x1, y1)
    except BoxError as error:
        raise ToolCallError("bbox_2d lies outside the image.") from error
    _check_sides(box, sizes)
    return box, clamped


def _json_object(text: str) -> dict[str, Any]:
    if len(text) > MOST_CHARACTERS:
        raise ToolCallError("The tool call is too long.")
    try:
        raw = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ToolCallError("The tool call is not valid JSON.") from error
    if not isinstance(raw, dict):
        raise ToolCallError("The tool call must be one JSON object.")
    return raw


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON.")


def _arguments(call: dict[str, Any]) -> dict[str, Any]:
    if call.get("name") != ZOOM_TOOL_NAME:
        raise ToolCallError(f"The only tool is {ZOOM_TOOL_NAME}.")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = _json_object(arguments)
    if not isinstance(arguments, dict):
        raise ToolCallError("The tool call lacks its arguments.")
    return arguments


def _numbers(values: object) -> tuple[float, float, float, float]:
    if not isinstance(values, list) or len(values) != 4:
        raise ToolCallError("bbox_2d must be a list of four numbers.")
    numbers: list[float] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ToolCallError("bbox_2d must be a list of four numbers.")
        try:
            number = float(value)
        except OverflowError as error:
            raise ToolCallError("bbox_2d holds a number that is too large.") from error
        if not math.isfinite(number):
            raise ToolCallError("bbox_2d holds a number that is too large.")
        numbers.append(number)
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _check_sides(box: Box, sizes: ImageSizes) -> None:
    x0, y0, x1, y1 = box.to_pixels(sizes.source_width, sizes.source_height)
    width, height = x1 - x0, y1 - y0
    slack = 1e-6
    if width + slack < min(LEAST_SIDE_PX, sizes.source_width) or height + slack < min(
        LEAST_SIDE_PX, sizes.source_height
    ):
        raise ToolCallError(
            f"The region is too small: every side must cover {LEAST_SIDE_PX} pixels of the "
            "original image."
        )
    if max(width, height) > MOST_EXTREME_BOX * min(width, height) + slack:
        raise ToolCallError("The region is too narrow: choose one that is closer to a square.")


@dataclass(frozen=True, slots=True)
class OpenCoordinate:
    """A coordinate that is being written.

    Attributes:
        digits: what there is of it, or of the separator behind it.
        low: its lowest value.
        high: its highest value.
        last: whether it is the fourth.
    """

    digits: str
    low: int
    high: int
    last: bool

    def can_become(self, digits: str) -> bool:
        """Whether digits are, or begin, a number that is allowed."""
        return _is_number(digits) and _can_become(int(digits), self.low, self.high)


@dataclass(frozen=True, slots=True)
class CoordinateGrammar:
    """The strings `x0, y0, x1, y1` that name a box which can be cut, piece by piece.

    Attributes:
        sizes: the image; x1 - x0 and y1 - y0 are at least `sizes.least_sides`, and neither side
            is more than `MOST_EXTREME_BOX` times the other in pixels of the original.
    """

    sizes: ImageSizes

    def viable(self, text: str) -> bool:
        """Whether `text` can be continued to (or is) an allowed list of coordinates."""
        opened = self.opened(text)
        if opened is None:
            return False
        if opened.digits.endswith(",") and not opened.last:
            # Half of a separator: the number before it must be whole.
            whole = opened.digits[:-1]
            return _is_number(whole) and opened.low <= int(whole) <= opened.high
        return opened.digits == "" or opened.can_become(opened.digits)

    def opened(self, text: str) -> OpenCoordinate | None:
        """The coordinate that a list breaks off in; None where one before it is not allowed."""
        *before, digits = text.split(_SEPARATOR)
        numbers: list[int] = []
        for part in before:
            bounds = self._bounds(numbers)
            if bounds is None or not _is_number(part) or not bounds[0] <= int(part) <= bounds[1]:
                return None
            numbers.append(int(part))
        bounds = self._bounds(numbers)
        return None if bounds is None else OpenCoordinate(digits, *bounds, last=len(numbers) == 3)

    def complete(self, text: str) -> bool:
        """Whether `text` is an allowed list of coordinates."""
        parts = text.split(_SEPARATOR)
        if len(parts) != 4 or not self.viable(text) or not _is_number(parts[3]):
            return False
        bounds = self._bounds([int(part) for part in parts[:3]])
        return bounds is not None and bounds[0] <= int(parts[3]) <= bounds[1]

    def _bounds(self, before: list[int]) -> tuple[int, int] | None:
        """Lowest and highest value of the coordinate that follows `before`."""
        least_width, least_height = self.sizes.least_sides
        frame = self.sizes.frame
        if len(before) > 3:
            return None
        if len(before) == 0:
            return 0, frame.width - least_width
        if len(before) == 1:
            return 0, frame.height - least_height
        # Pixels of the original are coordinates times a fraction of whole numbers, so that no
        # rounding decides.
        across = self.sizes.source_width * frame.height
        down = self.sizes.source_height * frame.width
        if len(before) == 2:
            room = frame.height - before[1]
            widest = MOST_EXTREME_BOX * room * down // across
            return before[0] + least_width, min(frame.width, before[0] + widest)
        width = before[2] - before[0]
        lowest = -(-width * across // (MOST_EXTREME_BOX * down))
        highest = MOST_EXTREME_BOX * width * across // down
        return (
            before[1] + max(least_height, lowest),
            min(frame.height, before[1] + highest),
        )


def _is_number(text: str) -> bool:
    """Whether a text is a whole number as JSON writes it (no leading zero)."""
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")


def _can_become(value: int, low: int, high: int) -> bool:
    """Whether a number that starts with the digits of `value` can lie in `[low, high]`."""
    if value == 0:
        return low <= 0 <= high
    scale = 1
    while value * scale <= high:
        if value * scale + scale - 1 >= low:
            return True
        scale *= 10
    return False


class CoordinateWriter:
    """Restricts the tokens of one branch while it writes the coordinates of a call.

    Attributes:
        text: the coordinates written so far.
        done: whether the model has ended the list.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: CoordinateGrammar) -> None:
        self._grammar = grammar
        self._pieces, self._ends = coordinate_tokens(vocabulary)
        self.text = ""
        self.done = False

    @property
    def ends(self) -> Collection[int]:
        """Tokens that end the list and are not themselves written."""
        return self._ends

    def allowed(self) -> list[int]:
        """Ids that may be drawn next; never empty until `done`."""
        opened = self._grammar.opened(self.text)
        if opened is None:
            return []
        # Hundreds of pieces may be whole numbers: the list before them is read once.
        ids = [
            token_id
            for token_id, piece in self._pieces.items()
            if (
                opened.can_become(opened.digits + piece)
                if piece.isdigit()
                else self._grammar.viable(self.text + piece)
            )
        ]
        if self._grammar.complete(self.text):
            ids += self._ends
        return ids

    def accept(self, token_id: int) -> bool:
        """Takes a drawn token; False when it ended the list and is not itself written."""
        if token_id in self._pieces:
            self.text += self._pieces[token_id]
            return True
        self.done = True
        return False


def coordinate_tokens(vocabulary: Vocabulary) -> tuple[dict[int, str], list[int]]:
    """Tokens that can be part of a list of coordinates, and tokens that can end it."""
    return vocabulary.remembered("coordinates", _find_coordinate_tokens)


def _find_coordinate_tokens(vocabulary: Vocabulary) -> tuple[dict[int, str], list[int]]:
    pieces: dict[int, str] = {}
    ends: list[int] = []
    for token_id in range(len(vocabulary.tokenizer)):
        if vocabulary.is_added(token_id):
            continue
        text = vocabulary.bytes_of(token_id)
        if text.startswith(b"]"):
            ends.append(token_id)
        elif text.isascii() and _COORDINATE_TOKEN.match(text.decode()):
            pieces[token_id] = text.decode()
    return pieces, ends
