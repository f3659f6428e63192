"""Forms in which a box that is asked for is written.

Qwen2.5-VL's pretraining asks for boxes in plain words and answers in JSON; so does ours. Where that
was all, the numbers of a tool call began as the heart's box, whatever the thought before it had
named: what had been learned was to look at the question right before the brace. A second group of
forms writes the box as an argument of a function, behind a thought that names what it is of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.prompt import THINK_CLOSE, THINK_OPEN


@dataclass(frozen=True, slots=True)
class PlaceForm:
    """How a box is asked for and written.

    Attributes:
        words: what stands before the answer, with `{name}` where the structure or finding stands.
            No question about zones has such words: "Where is the nodule?" is answered with a zone.
        function: that the box is an argument of; empty: of none.
    """

    words: str
    function: str = ""

    def before(self, name: str) -> str:
        """What stands before the answer and is not learned."""
        return self.words.format(name=name)

    def answer(self, box: str) -> str:
        """What is to be written: a list of coordinates in its form."""
        boxed = f'{{"bbox_2d": {box}}}'
        if self.function:
            return f'{{"name": "{self.function}", "arguments": {boxed}}}'
        return f" {boxed}"


BARE: Final = PlaceForm("Box of the {name}?")
# None of these functions is the zoom, and none of them is called: no `<tool_call>` stands around.
# The question names the function, or its name would have to be guessed.
CALLED: Final = tuple(
    PlaceForm(f"{asked} Use {function}. {THINK_OPEN}{thought}{THINK_CLOSE}\n", function)
    for function in ("mark_region_tool", "image_measure_tool", "region_copy_tool")
    for asked, thought in (
        ("Mark it.", "The {name} has to be marked."),
        ("Box of the {name}?", "The {name} is asked for."),
        ("Go on.", "The next is the {name}, and its box is needed."),
        ("Which box?", "A look at the {name} is needed."),
    )
)


def drawn_form(called: float, rng: np.random.Generator) -> PlaceForm:
    """A form, one of `CALLED` with the probability `called`.

    Args:
        called: 0 to 1; at 0 nothing is drawn.
        rng: chooses.
    """
    if called and rng.random() < called:
        return CALLED[int(rng.integers(len(CALLED)))]
    return BARE
