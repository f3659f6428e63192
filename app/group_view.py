"""A saved group as the page draws it: the tree, the votes, and every member in one row.

Plain JSON and small: what a member wrote is folded by `app.view` once it is opened.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from app.view import MAX_TEXT, start_facts
from engine.group import ForkDecision, Group, Member

Json = dict[str, Any]


def group_json(group: Group) -> Json:
    """The group for the page.

    Returns:
        `facts` (as of a run), `truth`, `answers` and `members`. An answer is
        `[text, votes, right or null]`, the one with most votes first. A member has `parent` and
        `shared` (words that it shares with it), `words` in all, `boxes`, `answer` (an index
        into `answers`), `correct`, the `branch` that made it (null for one from the question),
        and its own `decisions`, each with the `children` that came of it.
    """
    votes = Counter(_answer(member) for member in group.members)
    # Equal counts keep the order in which the answers came.
    ranked = [text for text, _ in votes.most_common()]
    return {
        "facts": start_facts(group.started),
        "truth": group.truth[:MAX_TEXT],
        "answers": [[text, votes[text], _verdict(group, text)] for text in ranked],
        "members": [
            {
                "parent": member.parent,
                "shared": member.shared_tokens,
                "words": len(member.trace.tokens),
                "boxes": [[round(edge, 4) for edge in box] for box in member.boxes],
                "answer": ranked.index(_answer(member)),
                "correct": member.correct,
                "branch": _decision(group.decision_of(number)),
                "decisions": [
                    {
                        **(_decision(decision) or {}),
                        "children": list(group.children(number, decision.token_index)),
                    }
                    for decision in member.decisions
                ],
            }
            for number, member in enumerate(group.members)
        ],
    }


def _answer(member: Member) -> str:
    return member.answer[:MAX_TEXT]


def _verdict(group: Group, text: str) -> bool | None:
    """Whether an answer is right; None where nobody knows it."""
    found = {m.correct for m in group.members if _answer(m) == text and m.correct is not None}
    return None if not found else True in found


def _decision(decision: ForkDecision | None) -> Json | None:
    if decision is None:
        return None
    return {
        "word": decision.token_index,
        "before": round(decision.baseline_nats, 3),
        "nats": round(decision.coordinates_nats, 3),
        "chance": round(decision.probability, 4),
    }
