from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.task import Rules
from internvl_chat.evaluation.tasks.mmvp import MMVP
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_mmvp

REPLIES = ["A", "Shut", "day", "(b)", "B", "Answer: A", "A", "Answer: B"]
"""Truths: A B, A B, B A, A B. Read as A B, A another text, B A, A A; or as they are meant."""


@pytest.mark.parametrize("column", ["lndex", "Index"])
def test_prompts(column: str, tmp_path: Path) -> None:
    write_mmvp(tmp_path, column)
    questions = questions_of(MMVP, tmp_path)
    assert [one.id for one in questions] == list("12345678")
    assert questions[4].prompt == (
        'Does it say "stop"?\nA. Yes\nB. No\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert questions[4].record["truth"] == "B"
    assert questions[4].images[0].label == "data/MMVP/MMVP Images/5.jpg"
    assert questions[4].images[0].open().size == (12, 8)
    assert MMVP.generation.max_new_tokens == 100


@pytest.mark.parametrize(
    ("rules", "values", "printed"),
    [
        ("2024", [1, 1, 0, 0, 1, 1, 0, 0], "Evaluating MMVP ...\nThe accuracy is 0.5\n"),
        ("official", [1] * 8, "Evaluating MMVP ...\nThe accuracy is 1.0\n"),
    ],
)
def test_scripted_answers(rules: Rules, values: list[float], printed: str, tmp_path: Path) -> None:
    write_mmvp(tmp_path)
    questions = questions_of(MMVP, tmp_path)
    score = score_of(MMVP, questions, answered(questions, REPLIES), rules)
    assert list(score.per_sample.values()) == values
    assert score.printed == printed


def test_a_question_without_partner(tmp_path: Path) -> None:
    write_mmvp(tmp_path)
    questions = questions_of(MMVP, tmp_path)[:3]
    score = score_of(MMVP, questions, {"1": "A", "2": "B", "3": ""})
    assert score.metrics == {"accuracy": 1.0}
    assert score.per_sample == {"1": 1, "2": 1, "3": 0}
    assert score.notes == (
        "1 empty answers count as wrong",
        "question 3 has no partner and is left out",
    )
    assert score_of(MMVP, questions[:1], {"1": "A"}).metrics == {"accuracy": None}


def test_three_options_are_cut_as_the_original_cuts_them(tmp_path: Path) -> None:
    write_mmvp(tmp_path)
    path = tmp_path / "data/MMVP/Questions.csv"
    path.write_text(path.read_text("utf-8").replace("(b) Shut", "(b) Shut (b) Ajar", 1), "utf-8")
    options = questions_of(MMVP, tmp_path)[0].record["options"]
    assert options == {"A": "Open", "B": "Shut", "C": "Ajar"}


def test_files_written_and_read(tmp_path: Path) -> None:
    write_mmvp(tmp_path)
    questions = questions_of(MMVP, tmp_path)
    answers = answered(questions, REPLIES)
    files = export_of(MMVP, questions, answers)
    assert list(files) == ["MMVP_240727004726.jsonl"]
    lines = files["MMVP_240727004726.jsonl"].splitlines()
    assert json.loads(lines[1]) == {
        "question": questions[1].prompt,
        "answer": "B",
        "gt_answers": "B",
        "data_id": "2",
    }
    again = MMVP.read_answers(write_files(tmp_path, files), questions)
    assert list(again.values()) == ["A", "B", "A", "(b)", "B", "A", "A", "A"]
    assert score_of(MMVP, questions, again) == score_of(MMVP, questions, answers)
    assert export_of(MMVP, questions, again) == files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Options", "Choices", r"Questions\.csv:2: has no \"Options\""),
        ("lndex", "number", r"Questions\.csv:2: has no \"Index\""),
        (",(a)\r\n", ",A\r\n", r"Questions\.csv:2: \"Correct Answer\" is 'A', want \(a\) or \(b\)"),
        (",(a)\r\n", "\r\n", r"Questions\.csv:2: has not the header's 4 cells"),
    ],
)
def test_unfit_data(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_mmvp(tmp_path)
    path = tmp_path / "data/MMVP/Questions.csv"
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(DatasetError, match=message):
        questions_of(MMVP, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match="is empty"):
        questions_of(MMVP, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(texts=st.lists(st.sampled_from(["A", "B", "", "?"]), min_size=8, max_size=8))
def test_bounds(texts: list[str], tmp_path: Path) -> None:
    if not (tmp_path / "data").exists():
        write_mmvp(tmp_path)
    questions = questions_of(MMVP, tmp_path)
    score = score_of(MMVP, questions, answered(questions, texts))
    assert score.metrics["accuracy"] == sum(score.per_sample.values()) / 8
    right = {one.id: one.record["truth"] for one in questions}
    assert score_of(MMVP, questions, right).metrics == {"accuracy": 1.0}
