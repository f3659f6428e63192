"""Reading an answer out of what the model wrote.

Order (methods notes, 6.9): the last `<answer>`, then a box as mathematics models write it,
then "the answer is", then a leading letter, then an option that is named, not denied, and no
other. What none of these can read is invalid; there is no credit for similar strings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from engine.prompt import ANSWER_CLOSE, ANSWER_OPEN, option_letter

_TAGGED: Final = re.compile(
    re.escape(ANSWER_OPEN) + r"((?:(?!<answer>).)*?)" + re.escape(ANSWER_CLOSE), re.DOTALL
)
_BOXED: Final = re.compile(r"\\boxed\{([^{}]*)\}")
_SAID: Final = re.compile(r"(?:final answer|answer)(?:\s+is|\s*:)\s*:?\s*([^\n]+)", re.IGNORECASE)
_LETTER: Final = re.compile(r"^\W*([A-Za-z])\W*$", re.DOTALL)
_LETTER_AND_TEXT: Final = re.compile(r"^\W*([A-Z])(?:\s*[.):,\]]+\s*|\s+-\s+)(\S.*)$", re.DOTALL)
_LETTER_SPACE_TEXT: Final = re.compile(r"^\W*([A-Z])\s+(\S.*)$", re.DOTALL)
# Generous: a denial that is no denial costs an answer, one that is missed makes it wrong.
_DENIAL: Final = re.compile(
    r"\b(?:no|not|non|none|nor|neither|never|nothing|without|cannot|absen(?:t|ce)|negative"
    r"|denie[ds]|lack(?:s|ing)?|free of|exclude[sd]?|rule[sd]? out|unlikely|rather than"
    r"|instead of)\b|n['’]t\b"
)
# No comma and no colon: a denial reaches over "no nodule, effusion or fracture", "nodule: none".
_CLAUSE_END: Final = re.compile(r"[.;!](?:\s|$)|\b(?:but|however)\b")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read.

    Attributes:
        text: the option's text when one was chosen, else what the model wrote.
        option: index of the chosen option; None for an open or an invalid answer.
        valid: whether an answer could be read.
    """

    text: str
    option: int | None
    valid: bool


def read_answer(text: str, options: tuple[str, ...]) -> Reading:
    """Reads the answer out of everything that the model wrote.

    >>> read_answer("<answer>b</answer>", ("left", "right"))
    Reading(text='right', option=1, valid=True)
    """
    found = answer_content(text)
    if not options:
        return Reading(found or "", None, bool(found))
    content = text.strip() if found is None else found
    option = _option_in(content, options)
    if option is None:
        return Reading(found or "", None, False)
    return Reading(options[option], option, True)


def answer_content(text: str) -> str | None:
    """The stripped content of the last answer, or None when none was marked as one."""
    for pattern in (_TAGGED, _BOXED, _SAID):
        matches = pattern.findall(text)
        if matches:
            return str(matches[-1]).strip()
    return None


def _option_in(content: str, options: tuple[str, ...]) -> int | None:
    plain = _plain(content)
    exact = [index for index, option in enumerate(options) if _plain(option) == plain]
    if len(exact) == 1:
        return exact[0]
    letters = {option_letter(index): index for index in range(len(options))}
    alone = _LETTER.match(content)
    if alone:
        return letters.get(alone.group(1).upper())
    marked = _LETTER_AND_TEXT.match(content)
    if marked and marked.group(1) in letters:
        return letters[marked.group(1)]
    spaced = _LETTER_SPACE_TEXT.match(content)
    if spaced and spaced.group(1) in letters:
        index = letters[spaced.group(1)]
        if _plain(spaced.group(2)) == _plain(options[index]):
            return index
    return _only_named(plain, options)


def _only_named(content: str, options: tuple[str, ...]) -> int | None:
    """The one option that is named, if it is not denied.

    An option inside a longer named one does not count. One that is denied does: what else is
    named beside it may be denied as well, in words that are not known here.
    """
    named: list[tuple[int, str]] = []
    for index, option in enumerate(options):
        words = _plain(option)
        if words and re.search(_whole(words), content):
            named.append((index, words))
    longest = [
        (index, words)
        for index, words in named
        if not any(words != other and words in other for _, other in named)
    ]
    if len(longest) != 1 or _is_denied(content, longest[0][1]):
        return None
    return longest[0][0]


def _is_denied(content: str, option: str) -> bool:
    """Whether a clause that names an option holds a denial that is no part of the option."""
    if _DENIAL.search(option):
        return False
    for found in re.finditer(_whole(option), content):
        before = _CLAUSE_END.split(content[: found.start()])[-1]
        after = _CLAUSE_END.split(content[found.end() :])[0]
        if _DENIAL.search(before) or _DENIAL.search(after):
            return True
    return False


def _whole(words: str) -> str:
    """A pattern of words that are no part of longer ones."""
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def _plain(text: str) -> str:
    """Case-folded, single-spaced, without punctuation around it."""
    return re.sub(r"\s+", " ", text).strip().strip(".,;:!?\"'()[]").strip().casefold()
