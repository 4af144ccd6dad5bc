"""Answer files of either kind under all rules."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.prompts import describe_prompts
from internvl_chat.evaluation.scoring import as_text, score_answers, score_files
from internvl_chat.evaluation.task import DataRoot, Rules, Score
from internvl_chat.evaluation.tasks.pope import POPE
from tests.support.evaluation.scripted import SUMS, write_sums
from tests.support.training import ROOT

REFERENCE = ROOT / "tests/fixtures/answer_files/pope"


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    write_sums(tmp_path)
    return DataRoot(folder=tmp_path, lmu_data=tmp_path)


RIGHT = {
    f"{key}/{n}": str(2 * n + extra) for key, extra in (("easy", 0), ("hard", 10)) for n in range(3)
}


def ours(path: Path, answers: dict[str, str]) -> Path:
    lines = [{"id": k, "prompt": "?", "answer": v, "tokens": 1} for k, v in answers.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("state", ["2024", "later"])
def test_pope_is_the_originals(state: str) -> None:
    wanted = json.loads((REFERENCE / f"expect_{state}.json").read_text())
    root = DataRoot(folder=REFERENCE / "work", lmu_data=REFERENCE)
    report, missing = score_files(POPE, root, [REFERENCE / wanted["answers"]])
    assert missing == []
    score = report.as_dict()["rules"][state]
    assert wanted["values"].items() <= score["metrics"].items()
    blocks = "\n".join(wanted["printed"])
    printed, _, overall = score["printed"].partition("Overall")
    for block in printed.split("Category: ")[1:]:  # the original's order is a directory listing's
        assert f"Category: {block.strip()}" in blocks
    assert not overall or f"Overall{overall}".strip() in blocks


@pytest.mark.parametrize("state", ["2024", "later"])
def test_popes_prompts_are_the_originals(state: Rules) -> None:
    wanted = json.loads((REFERENCE / f"prompts_{state}.json").read_text())
    root = DataRoot(folder=REFERENCE / "work", lmu_data=REFERENCE)
    rows = describe_prompts(POPE, root, state, None)
    assert [row["prompt"] for row in rows] == wanted["questions"]
    assert rows[0]["settings"] == wanted["settings"]
    assert len(describe_prompts(POPE, root, state, 3)) == 3


def test_both_kinds_of_files_give_the_same(root: DataRoot) -> None:
    original = root.folder / "sums.json"
    original.write_text(json.dumps(RIGHT))
    own = ours(root.folder / "answers.jsonl", RIGHT)
    first, second = (score_files(SUMS, root, [path])[0].as_dict() for path in (original, own))
    assert first == second
    assert first["n"] == 6
    assert score_files(SUMS, root, [root.folder])[0].as_dict() == first  # the folder stands for it


def test_the_shape_for_programs(root: DataRoot) -> None:
    wrong = {**RIGHT, "easy/1": "2."}
    report, _ = score_files(SUMS, root, [ours(root.folder / "a.jsonl", wrong)])
    told = report.as_dict()
    hits = dict.fromkeys(RIGHT, 1.0)
    strict = {
        "metrics": {"accuracy": 5 / 6},
        "printed": f"accuracy {5 / 6}\n",
        "per_sample": {**hits, "easy/1": 0.0},
    }
    assert told == {
        "task": "sums",
        "n": 6,
        "rules": {
            "2024": strict,
            "later": strict,
            "official": {
                "metrics": {"accuracy": 1.0},
                "printed": "accuracy 1.0\n",
                "per_sample": hits,
            },
        },
        "disagree": ["easy/1"],
        "judge": None,
        "notes": [],
    }
    text = as_text(report, "official")
    assert text.splitlines() == [
        "accuracy 1.0",
        "metric    2024      later     official",
        "accuracy  0.833333  0.833333  1",
        "1 samples differ between the rules: easy/1",
    ]
    only, _ = score_files(SUMS, root, [root.folder / "a.jsonl"], rules="official")
    assert list(only.as_dict()["rules"]) == ["official"]


def test_rules_that_are_not_declared_mean_the_first(root: DataRoot) -> None:
    calls: list[str] = []

    def counted(given: Any) -> Score:
        calls.append(given.rules)
        return Score(metrics={}, printed="", per_sample={})

    report = score_answers(replace(SUMS, rules=("2024",), score=counted), root, RIGHT)
    assert calls == ["2024"]
    assert list(report.scores) == ["2024", "later", "official"]


def test_one_set_of_rules_is_shown_once(root: DataRoot) -> None:
    """What is printed says it: a table of one column would say it again."""
    for printed, shown in (("accuracy 1.0\n", ["accuracy 1.0"]), ("", 2)):
        score = Score(metrics={"accuracy": 1.0}, printed=printed, per_sample={})
        task = replace(SUMS, rules=("2024",), score=partial(_always, score))
        lines = as_text(score_answers(task, root, RIGHT), "2024").splitlines()
        assert lines == shown if printed else len(lines) == shown


def _always(score: Score, given: Any) -> Score:
    return score


def test_answers_that_are_missing_are_told_and_count_as_empty(root: DataRoot) -> None:
    some = {name: text for name, text in RIGHT.items() if name != "hard/2"}
    report, missing = score_files(SUMS, root, [ours(root.folder / "a.jsonl", some)])
    assert missing == ["hard/2"]
    assert report.n == 6
    tsv = replace(SUMS, suite="vlmevalkit")  # there such rows do not count
    report, missing = score_files(tsv, root, [root.folder / "a.jsonl"])
    assert (report.n, missing) == (5, ["hard/2"])


def test_an_error_entry_is_a_missing_answer(root: DataRoot) -> None:
    path = ours(root.folder / "a.jsonl", RIGHT)
    lines = path.read_text().splitlines()
    lines[0] = json.dumps({"id": "easy/0", "prompt": "?", "error": "no such file"})
    path.write_text("\n".join(lines) + "\n")
    assert score_files(SUMS, root, [path])[1] == ["easy/0"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON"),
        ('{"q9": "1"}', "answers question 'q9', which sums has not"),
        ("{}", "empty"),
    ],
)
def test_unfit_files(root: DataRoot, content: str, told: str) -> None:
    path = root.folder / "x.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        score_files(SUMS, root, [path])
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_breaks_off(root: DataRoot) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        score_files(SUMS, root, [root.folder / "no.json"])
    path = ours(root.folder / "a.jsonl", RIGHT)
    with path.open("ab") as file:
        file.write(b'{"id": "\xff\n')
    with pytest.raises(ConfigError, match=r"a.jsonl:7: is no line of answers"):
        score_files(SUMS, root, [path])


def test_numbers_that_json_does_not_know_are_null(root: DataRoot) -> None:
    odd = Score(metrics={"a": float("nan"), "b": None}, printed="", per_sample={})
    report = score_answers(replace(SUMS, score=lambda given: odd), root, RIGHT)
    assert report.as_dict()["rules"]["2024"]["metrics"] == {"a": None, "b": None}
    assert json.dumps(report.as_dict(), allow_nan=False)
    assert "b       -" in as_text(report, "2024")


def test_a_task_that_only_its_server_scores(root: DataRoot) -> None:
    report = score_answers(replace(SUMS, score=None), root, RIGHT)
    assert report.as_dict()["rules"]["2024"]["metrics"] == {}
    assert as_text(report, "2024") == "note: Sums is scored by its server: submit the file"
