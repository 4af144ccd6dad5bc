from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.tasks.seed import SEED
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_seed

REPLIES = ["B", "A. One", "The answer is C", "d", "", "B", "A", "(C)"]
"""Truths: B A C D A B A C; types 1 1 5 5 1 9 10 10."""
PRINTED = """\
Evaluating SEEDv1 ...
Acc@1: 0.375
length: 8
Accuracy for each data type:
Data type Scene Understanding: 66.67%
Data type Instances Counting: 0.00%
Data type Text Understanding: 100.00%
Data type Action Recognition: 50.00%
Total accuracy: 50.00%
Image accuracy: 50.00%
Video accuracy: 50.00%
"""
OFFICIAL = """\
Evaluating SEEDv1 ...
Acc@1: 0.375
length: 8
Accuracy for each data type:
Data type Scene Understanding: 66.67%
Data type Instances Counting: 100.00%
Data type Text Understanding: 100.00%
Data type Action Recognition: 100.00%
Total accuracy: 87.50%
Image accuracy: 83.33%
Video accuracy: 100.00%
"""


def test_prompts(tmp_path: Path) -> None:
    write_seed(tmp_path)
    questions = questions_of(SEED, tmp_path)
    assert [one.id for one in questions] == [str(number) for number in range(9001, 9009)]
    assert questions[0].prompt == (
        "What is shown in 0?\nA. One\nB. Two\nC. Three\nD. Four\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert questions[0].images[0].label == "data/SEED/SEED-Bench-image/000000.png"
    assert questions[0].images[0].open().size == (12, 8)
    assert SEED.generation.max_new_tokens == 100


def test_scripted_answers(tmp_path: Path) -> None:
    write_seed(tmp_path)
    questions = questions_of(SEED, tmp_path)
    answers = answered(questions, REPLIES)
    score = score_of(SEED, questions, answers)
    assert score.printed == PRINTED
    assert list(score.per_sample.values()) == [1, 1, 0, 0, 0, 1, 1, 0]
    assert score.notes == ("1 empty answers count as wrong",)
    assert score.metrics["Scene Understanding"] == 2 / 3 * 100
    assert score.metrics["Total accuracy"] == 50.0
    assert score_of(SEED, questions, answers, "official").printed == OFFICIAL


def test_the_order_of_answers_and_missing_types_do_not_matter(tmp_path: Path) -> None:
    write_seed(tmp_path)
    questions = questions_of(SEED, tmp_path)
    answers = answered(questions, REPLIES)
    assert score_of(SEED, questions[::-1], answers).printed == PRINTED
    score = score_of(SEED, questions[:2], answers)
    assert score.printed == (
        "Evaluating SEEDv1 ...\nAcc@1: 0.5\nlength: 8\nAccuracy for each data type:\n"
        "Data type Scene Understanding: 100.00%\n"
        "Total accuracy: 100.00%\nImage accuracy: 100.00%\n"
    )
    assert score.metrics["Video accuracy"] is None


def test_files_written_and_read(tmp_path: Path) -> None:
    write_seed(tmp_path)
    questions = questions_of(SEED, tmp_path)
    answers = answered(questions, REPLIES)
    files = export_of(SEED, questions, answers)
    assert list(files) == ["SEEDv1_240727004726.jsonl"]
    lines = files["SEEDv1_240727004726.jsonl"].splitlines()
    assert len(lines) == 8
    assert json.loads(lines[1]) == {
        "question_id": "9002",
        "question": questions[1].prompt,
        "prediction": "A. One",
        "answer": "A",
    }
    assert SEED.read_answers(write_files(tmp_path, files), questions) == answers


def test_unfit_files(tmp_path: Path) -> None:
    write_seed(tmp_path)
    questions = questions_of(SEED, tmp_path)
    other = write_files(tmp_path, {"a.jsonl": '{"question_id": 1, "prediction": "A"}'})
    with pytest.raises(DatasetError, match=r"a\.jsonl:1: question_id '1' is not in the data"):
        SEED.read_answers(other, questions)
    path = tmp_path / "data/SEED/SEED-Bench.json"
    labels = json.loads(path.read_text("utf-8"))
    labels["questions"][0]["question_type_id"] = 13
    path.write_text(json.dumps(labels), "utf-8")
    with pytest.raises(DatasetError, match="question 0: question_type_id 13 has no name"):
        questions_of(SEED, tmp_path)
    path.write_text(json.dumps({**labels, "questions": []}), "utf-8")
    with pytest.raises(DatasetError, match=r"seed\.jsonl:1: question 9001 is not in"):
        questions_of(SEED, tmp_path)
    path.write_text(json.dumps({**labels, "questions": [7]}), "utf-8")
    with pytest.raises(DatasetError, match="question 0: is no JSON object"):
        questions_of(SEED, tmp_path)
    path.write_text(json.dumps({**labels, "question_type": []}), "utf-8")
    with pytest.raises(DatasetError, match=r'"question_type" is no object'):
        questions_of(SEED, tmp_path)
    path.write_text("[]", "utf-8")
    with pytest.raises(DatasetError, match="is no JSON object"):
        questions_of(SEED, tmp_path)
