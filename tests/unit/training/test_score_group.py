"""`score-group`: the documented example, and files that are not of the documented form."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.cli import main
from training.config import ConfigError
from training.score_group import read_group, score, score_file

DOCUMENT = Path(__file__).parents[3] / "docs" / "medvr.md"


def test_the_worked_example_of_the_documentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    given, printed = blocks[0], blocks[1]
    (tmp_path / "group.json").write_text(given, encoding="utf-8")
    assert main(["score-group", str(tmp_path / "group.json")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(printed)


def test_lists_of_entropies_are_averaged_over_the_opening() -> None:
    one = {"correct": True, "baseline_entropy": [0.5, 1.5, 9.0], "tool_entropies": [[1.0, 3.0]]}
    group = read_group({"trajectories": [one], "branching": {"opening": 2}})
    assert score(group)["trajectories"][0]["branch_probabilities"] == [0.7]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ([], "one object"),
        ({"trajectories": []}, "list of 1"),
        ({"trajectories": [{}]}, r"trajectories\[0\].correct"),
        ({"trajectories": [{"correct": 1}]}, r"trajectories\[0\].correct"),
        ({"trajectories": [{"correct": True, "well_formed": "yes"}]}, "well_formed"),
        ({"trajectories": [{"correct": True, "box": []}]}, "Unknown key 'trajectories"),
        ({"trajectories": [{"correct": True, "boxes": [[0, 0, 1]]}]}, "four numbers"),
        ({"trajectories": [{"correct": True, "boxes": [[0, 0, 0, 1]]}]}, "empty"),
        ({"trajectories": [{"correct": True, "boxes": [[0, 0, 2, 1]]}]}, "outside"),
        ({"trajectories": [{"correct": True, "boxes": [[0, 0, True, 1]]}]}, "four numbers"),
        ({"trajectories": [{"correct": True, "tool_entropies": [1]}]}, "baseline_entropy"),
        ({"trajectories": [{"correct": True, "baseline_entropy": -1}]}, "nats"),
        ({"trajectories": [{"correct": True, "baseline_entropy": []}]}, "nats"),
        ({"trajectories": [{"correct": True}], "branching": "best"}, "medvr, literal, arpo"),
        ({"trajectories": [{"correct": True}], "branching": 0.5}, "one of medvr, literal, arpo"),
        ({"trajectories": [{"correct": True}], "branching": {"gama": 1}}, "branching.gamma"),
        (
            {"trajectories": [{"correct": True}], "reward": {"consensus": {"eta": 7}}},
            r"^reward\.consensus\.eta must lie",
        ),
        (
            {"trajectories": [{"correct": True}] * 5, "reward": {"consensus": {"grid": 4096}}},
            "room for 4 trajectories, not 5",
        ),
        ({"trajectories": [{"correct": True}], "branching": {"least_rise": 1e7}}, "least_rise"),
        ({"trajectories": [{"correct": True}], "branching": {"opening": 10**7}}, "opening"),
        ({"trajectories": [{"correct": True, "\x1b[31m": 1}]}, r"\[0\]\.\\x1b\[31m'"),
        ({"trajectories": [{"correct": True}], "x" * 10**5: 1}, "^.{0,200}$"),
        ({"trajectories": [{"correct": True}], "branching": "x" * 10**5}, "^.{0,200}$"),
        (
            {"trajectories": [{"correct": True}], "reward": {"consensus": {"grid": 10**400}}},
            "^.{0,300}$",
        ),
        ({"trajectories": [{"correct": True}], "rewards": {}}, "Unknown key 'rewards'"),
        ({"trajectories": [{"correct": True}], "reward": []}, "'reward' must be an object"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(raw: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_group(raw)


def test_a_penalty_of_nothing_is_a_plain_zero() -> None:
    one = {"correct": True, "well_formed": False}
    group = read_group({"trajectories": [one], "reward": {"format_penalty": 0}})
    assert str(score(group)["trajectories"][0]["reward"]["format"]) == "0.0"


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "group.json"
    path.write_text('{"trajectories": [{"correct": true}]}', encoding="utf-8-sig")
    assert json.loads(score_file(path))["voters"] == 0


def test_a_file_that_never_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 32 MB"):
        score_file(Path("/dev/zero"))


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\x00"])
def test_what_is_no_json_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "group.json").write_text(content, encoding="utf-8")
    assert main(["score-group", str(tmp_path / "group.json")]) == 2
    said = capsys.readouterr().err
    assert said == "group.json is not valid JSON.\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"trajectories":[{"correct":true,"correct":false}]}', "'correct' is there twice"),
        ('{"trajectories":[{"correct":true,"boxes":[[0,0,1,HUGE]]}]}', "four numbers"),
        ('{"trajectories":[{"correct":true,"baseline_entropy":HUGE}]}', "an entropy in nats"),
        ('{"trajectories":[{"correct":true,"baseline_entropy":[1e308,1e308]}]}', "an entropy"),
        ('{"reward":{"accuracy":1e308},"trajectories":[{"correct":true}]}', "0 to 1e+06"),
        ('{"reward":{"accuracy":HUGE},"trajectories":[{"correct":true}]}', "'reward.accuracy'"),
        ('{"branching":{"gamma":1e300},"trajectories":[{"correct":true}]}', "0 to 1e+06"),
    ],
)
def test_numbers_beyond_all_use_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    text = content.replace("HUGE", "9" * 400)
    (tmp_path / "group.json").write_text(text, encoding="utf-8")
    assert main(["score-group", str(tmp_path / "group.json")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_missing_file_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score-group", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.startswith("Cannot read none.json:")
