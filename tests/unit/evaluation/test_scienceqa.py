from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.letters import read_letter_later
from internvl_chat.evaluation.task import Rules
from internvl_chat.evaluation.tasks.scienceqa import SCIENCEQA
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_scienceqa

LETTER = "Answer with the option's letter from the given choices directly."
REPLIES = ["rock", "(B) the dog", "C. tea", "the answer is A", "", "Answer: B"]
"""B; another text (2024) or B; C; "the answer is A", A; nothing; A (the first letter) or B."""


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B)", "B"),
        ("(A) cat", "A"),
        ("Dog", "B"),
        ("Z. foo", "Z"),
        ("x.", "x"),
        ("( A", "( A"),
        ("(A", "(A"),  # on which the original stops
        ("(", "("),
        ("", ""),
    ],
)
def test_the_later_rule(answer: str, letter: str) -> None:
    assert read_letter_later(answer, {"A": "cat", "B": "Dog"}) == letter


def test_prompts(tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    questions = questions_of(SCIENCEQA, tmp_path)
    assert [one.id for one in questions] == ["0", "1", "2", "3", "4", "5"]
    assert questions[0].prompt == (
        f"Look at the image.\nWhich is a solid?\nA. milk\nB. rock\n{LETTER}"
    )
    assert questions[1].prompt == f"Which animal barks?\nA. cat\nB. Dog\nC. cow\n{LETTER}"
    assert questions[3].prompt == (
        f"Metals shine.\nWood does not.\nWhich is a metal? \nA. iron\nB. wood\n{LETTER}"
    )
    assert questions[0].images[0].label == "data/scienceqa/images/test/5/image.png"
    assert questions[0].images[0].open().size == (12, 8)
    assert SCIENCEQA.generation.max_new_tokens == 100


def test_later_prompts_are_stripped(tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    path = tmp_path / "data/scienceqa/scienceqa_test_img.jsonl"
    path.write_text(path.read_text("utf-8").replace("Which flies", "  Which flies"), "utf-8")
    prompts = [questions_of(SCIENCEQA, tmp_path, rules)[5].prompt for rules in SCIENCEQA.rules]
    assert [prompt[:8] for prompt in prompts] == ["  Which ", "Which fl", "  Which "]


@pytest.mark.parametrize(
    ("rules", "values", "printed"),
    [
        ("2024", [1, 0, 1, 0, 0, 0], "Acc@1: 0.3333333333333333\n"),
        ("later", [1, 1, 1, 0, 0, 0], "Acc@1: 0.5\n"),
        ("official", [1, 1, 1, 1, 0, 1], "Acc@1: 0.8333333333333334\n"),
    ],
)
def test_scripted_answers(rules: Rules, values: list[float], printed: str, tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    questions = questions_of(SCIENCEQA, tmp_path, rules)
    score = score_of(SCIENCEQA, questions, answered(questions, REPLIES), rules)
    assert list(score.per_sample.values()) == values
    assert score.printed == f"Evaluating sqa_test ...\n{printed}"
    assert score.metrics == {"accuracy": sum(values) / 6}
    assert score.notes == ("1 empty answers count as wrong",)


def test_the_right_letters_score_1(tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    for rules in SCIENCEQA.rules:
        questions = questions_of(SCIENCEQA, tmp_path, rules)
        letters = {one.id: one.record["truth"] for one in questions}
        assert score_of(SCIENCEQA, questions, letters, rules).metrics == {"accuracy": 1.0}
    assert score_of(SCIENCEQA, [], {}).metrics == {"accuracy": None}


def test_files_written_and_read(tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    questions = questions_of(SCIENCEQA, tmp_path)
    answers = answered(questions, REPLIES)
    files = export_of(SCIENCEQA, questions, answers)
    assert list(files) == ["sqa_test_240727004726.jsonl"]
    records = [json.loads(line) for line in files["sqa_test_240727004726.jsonl"].splitlines()]
    assert [record["answer"] for record in records] == [
        "B",
        "(B) the dog",
        "C",
        "the answer is A",
        "",
        "A",
    ]
    assert records[0] == {
        "question": questions[0].prompt,
        "answer": "B",
        "gt_answers": "B",
        "image_path": "data/scienceqa/images/test/5/image.png",
    }
    again = SCIENCEQA.read_answers(write_files(tmp_path, files), questions)
    assert score_of(SCIENCEQA, questions, again) == score_of(SCIENCEQA, questions, answers)
    assert export_of(SCIENCEQA, questions, again) == files


def test_later_files_hold_the_whole_answer(tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    questions = questions_of(SCIENCEQA, tmp_path, "later")
    answers = answered(questions, REPLIES)
    files = export_of(SCIENCEQA, questions, answers, "later")
    assert SCIENCEQA.read_answers(write_files(tmp_path, files), questions) == answers
    record = json.loads(next(iter(files.values())).splitlines()[1])
    assert (record["answer"], record["answer_orig"]) == ("B", "(B) the dog")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"answer": 1', '"answer": 7', r"jsonl:1: \"answer\" is 7, want .* 0 to 1"),
        ('["milk", "rock"]', '"milk"', r"jsonl:1: \"choices\" is 'milk', want a list"),
        ('"question"', '"text"', r"jsonl:1: has no \"question\""),
    ],
)
def test_unfit_data(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    path = tmp_path / "data/scienceqa/scienceqa_test_img.jsonl"
    path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    with pytest.raises(DatasetError, match=message):
        questions_of(SCIENCEQA, tmp_path)


def test_unfit_answer_files(tmp_path: Path) -> None:
    write_scienceqa(tmp_path)
    questions = questions_of(SCIENCEQA, tmp_path)
    record = {"question": "Which is a solid?", "answer": "A", "image_path": "data/x/image.png"}
    path = write_files(tmp_path, {"a.jsonl": json.dumps(record)})
    with pytest.raises(DatasetError, match=r"a\.jsonl:1: fits no question"):
        SCIENCEQA.read_answers(path, questions)
