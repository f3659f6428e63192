"""The words of questions, taken apart."""

from __future__ import annotations

from training.phantoms import seed_for
from training.questions import FAMILIES_OF, case_for


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return "".join(c if c.isalnum() or c in "-'" else " " for c in text.lower()).split()


def vocabulary(modality: str) -> frozenset[str]:
    """All words that questions, options, answers and reasoning can contain, in lower case."""
    found: set[str] = set()
    for name, family in FAMILIES_OF[modality].items():
        for index, answer in enumerate(family.answers):
            for item in family.ask(case_for(name, answer, seed_for("demo", index)).truth()):
                parts = (*item.texts, *item.answers, *family.answers, item.before, item.after)
                found.update(words(" ".join(parts)))
    return frozenset(found)
