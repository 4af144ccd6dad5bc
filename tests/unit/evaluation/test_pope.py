from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.pope import reads_as_yes
from internvl_chat.evaluation.task import Rules
from internvl_chat.evaluation.tasks.pope import POPE
from tests.support.evaluation.asking import answered, export_of, questions_of, score_of
from tests.support.evaluation.pope import write_pope

REFERENCE = Path(__file__).parents[2] / "fixtures" / "answer_files" / "pope"
WRITTEN = {
    "2024": REFERENCE / "answers_2024/pope_240727123000.json",
    "later": REFERENCE / "answers_later/pretrained_InternVL-Chat-V1-2-Plus/pope_240727123000.json",
}
BOTH: tuple[Rules, ...] = ("2024", "later")


def expected(name: str, rules: Rules) -> Any:
    return json.loads((REFERENCE / f"{name}_{rules}.json").read_text("utf-8"))


def in_the_guides_order(printed: list[str]) -> list[str]:
    """Without the lines that name files; the original's order is the directory listing's."""
    lines = [one for one in printed if not one.startswith(("Results saved to ", "python "))]
    starts = [number for number, one in enumerate(lines) if one.startswith("Category: ")]
    blocks = {lines[start].split()[1].strip(","): lines[start : start + 10] for start in starts}
    ordered = [line for name in ("random", "popular", "adversarial") for line in blocks[name]]
    return lines[: starts[0]] + ordered + lines[starts[-1] + 10 :]


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("It is not. Yes", False),
        ("Yes. No", True),
        ("NO", True),
        ("Not", True),
        ("", True),
        ("nothing", True),
        ("I see,no", True),
        ("yes\nno", True),
    ],
)
def test_an_answer_is_yes_unless_it_denies(answer: str, is_yes: bool) -> None:
    assert reads_as_yes(answer) is is_yes


@pytest.mark.parametrize("rules", BOTH)
def test_the_reference_files_have_the_reference_scores(rules: Rules) -> None:
    want = expected("expect", rules)
    questions = questions_of(POPE, REFERENCE / "work", rules)
    answers = POPE.read_answers([WRITTEN[rules]], questions)
    score = score_of(POPE, questions, answers, rules)
    assert {name: score.metrics[name] for name in want["values"]} == want["values"]
    assert score.printed.splitlines() == in_the_guides_order(want["printed"])
    assert {one: reads_as_yes(answers[one]) for one in want["readings"]} == {
        one: reading == "yes" for one, reading in want["readings"].items()
    }
    right = [one.id for one in questions if reads_as_yes(answers[one.id]) == one.record["is_yes"]]
    assert [one for one, value in score.per_sample.items() if value] == [
        one for one in score.per_sample if one in right
    ]


@pytest.mark.parametrize("rules", BOTH)
def test_prompts_and_settings_of_the_reference(rules: Rules) -> None:
    want = expected("prompts", rules)
    questions = questions_of(POPE, REFERENCE / "work", rules)
    assert [one.prompt for one in questions] == want["questions"]
    assert POPE.generation.settings() == want["settings"]


@pytest.mark.parametrize("rules", BOTH)
def test_written_answers_are_the_reference_files(rules: Rules) -> None:
    questions = questions_of(POPE, REFERENCE / "work", rules)
    answers = POPE.read_answers([WRITTEN[rules]], questions)
    ((name, content),) = export_of(POPE, questions, answers, rules).items()
    assert name == "pope_240727004726.json"
    original = {one["question_id"]: one for one in json.loads(WRITTEN[rules].read_text("utf-8"))}
    written = {one["question_id"]: one for one in json.loads(content)}
    assert written == original
    assert [list(one) for one in written.values()] == [list(original[key]) for key in written]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"22": "No"}', r"a\.json: is no JSON list"),
        ('["No"]', r"a\.json, record 0: is no JSON object"),
        ('[{"question_id": 22}]', r'a\.json, record 0: has no "text"'),
    ],
)
def test_unfit_answer_files(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, "utf-8")
    with pytest.raises(DatasetError, match=message):
        POPE.read_answers([path], questions_of(POPE, REFERENCE / "work"))


@pytest.mark.parametrize("reply", ["No", "Yes", ""])
def test_a_reply_to_everything_divides_nothing_by_zero(tmp_path: Path, reply: str) -> None:
    write_pope(tmp_path)
    questions = questions_of(POPE, tmp_path)
    score = score_of(POPE, questions, answered(questions, [reply] * len(questions)))
    assert score.metrics["random/accuracy"] == 0.5
    if reply == "No":
        assert score.metrics["random/precision"] == score.metrics["random/f1"] == 0.0
        assert "Precision: 0.0" in score.printed.splitlines()
    else:
        assert score.metrics["random/recall"] == 1.0


def test_a_question_without_a_label_says_where(tmp_path: Path) -> None:
    write_pope(tmp_path)
    labels = tmp_path / "data/pope/coco/coco_pope_popular.json"
    labels.write_text("".join(labels.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    with pytest.raises(DatasetError, match=r"llava_pope_test\.jsonl:11.*question 4 of popular"):
        questions_of(POPE, tmp_path)
