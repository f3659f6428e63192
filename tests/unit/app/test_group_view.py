"""A group as the page draws it."""

from __future__ import annotations

import json
from dataclasses import replace

from app.group_view import group_json
from engine.group import Group
from tests.factories import group


def test_votes_boxes_and_branches() -> None:
    tree = group()
    at = tree.members[3].shared_tokens

    page = group_json(tree)

    assert page["truth"] == "Spiculated"
    assert page["facts"]["question"] == "What is the margin of the nodule?"
    assert page["answers"] == [
        ["Spiculated", 3, True],
        ["Smooth", 2, False],
        ["Lobulated", 1, False],
    ]
    assert [m["answer"] for m in page["members"]] == [0, 1, 2, 0, 0, 1]
    assert [m["parent"] for m in page["members"]] == [None, None, None, 0, 2, 3]
    fork = page["members"][3]
    assert fork["boxes"] == [[0.22, 0.5, 0.5, 0.78]]
    assert fork["shared"] == at
    assert fork["branch"] == {"word": at, "before": 0.31, "nats": 0.96, "chance": 0.65}
    assert [d["children"] for d in fork["decisions"]] == [[5]]
    assert page["members"][1]["decisions"][0]["children"] == []
    assert page["members"][0]["branch"] is None
    assert len(json.dumps(page)) < 5000


def test_where_nobody_knows_the_answer_no_answer_is_right_or_wrong() -> None:
    members = tuple(replace(member, correct=None) for member in group().members)

    page = group_json(Group(members=members))

    assert [right for _, _, right in page["answers"]] == [None, None, None]
    assert page["truth"] == ""


def test_long_texts_are_cut() -> None:
    assert len(group_json(replace(group(), truth="x" * 10_000))["truth"]) == 400
