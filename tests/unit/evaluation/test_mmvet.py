from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.task import DataRoot, ExportInput, Judge, Question, Score, ScoreInput
from internvl_chat.evaluation.tasks.mmvet import read_grade
from tests.support.evaluation.open_ended import MMVET, ScriptedJudge, write_mmvet

TASK = TASKS["mmvet"]
ANSWERS = {"0": "Three.", "1": "An apple", "2": "13", "3": "Nobody did"}


def load(folder: Path, *, has_references: bool) -> list[Question]:
    write_mmvet(folder, has_references=has_references)
    return TASK.load(DataRoot(folder=folder, lmu_data=folder), "2024")


def score(questions: list[Question], judge: Judge | None) -> Score:
    assert TASK.score is not None
    return TASK.score(ScoreInput(questions=questions, answers=ANSWERS, rules="2024", judge=judge))


def judge_of(*replies: list[str | None]) -> ScriptedJudge:
    return ScriptedJudge({one[0]: said for one, said in zip(MMVET, replies, strict=True)})


def test_the_prompt_ends_in_a_space(tmp_path: Path) -> None:
    questions = load(tmp_path, has_references=False)
    assert [one.prompt for one in questions] == [f"{text} " for text, _, _ in MMVET]
    assert questions[3].images[0].open().getpixel((0, 0)) == (3, 0, 0)
    assert questions[0].images[0].label == str(tmp_path / "data/mm-vet/images/v1_0.png")


def test_total_worked_out_by_hand(tmp_path: Path) -> None:
    judge = judge_of(["1.0"], ["0.5 \n"], ["zero", "2", "0.1"], [None])
    result = score(load(tmp_path, has_references=True), judge)
    assert result.per_sample == {"0": 1.0, "1": 0.5, "2": 0.1, "3": 0.0}
    assert result.printed == "runs: [40.0]\n"
    assert result.metrics == {
        "rec": 25.0,
        "ocr": pytest.approx(55.0),
        "know": 0.0,
        "gen": 0.0,
        "spat": None,
        "math": pytest.approx(55.0),
        "total": pytest.approx(40.0),
    }
    assert result.notes == (
        "Judged by scripted; the published number is GPT-4-0613's.",
        "1 without a grade, counted as 0.0: 3.",
    )
    asked = [one for one in judge.asked if one[1]["question"] == MMVET[2][0]]
    assert [(key, temperature, tokens) for key, _, temperature, tokens in asked] == [
        ("mmvet", 0.0, 3),
        ("mmvet", 0.5, 3),
        ("mmvet", 1.0, 3),
    ]
    assert asked[0][1] == {
        "question": "What is the sum?",
        "ground_truth": "12",
        "prediction": "13",
    }
    assert max(temperature for _, _, temperature, _ in judge.asked) == 2.0


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("0.3", 0.3), ("1", 1.0), (" 0.7 ok", 0.7), ("1.5", None), ("nan", None), ("", None)],
)
def test_grades(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


def test_without_a_judge_there_is_a_file_for_the_server(tmp_path: Path) -> None:
    result = score(load(tmp_path, has_references=True), None)
    assert (result.metrics, result.printed, result.per_sample) == ({"total": None}, "", {})
    assert result.notes == ("No judge: hand the json file to the MM-Vet server.",)


def test_a_judge_without_references(tmp_path: Path) -> None:
    result = score(load(tmp_path, has_references=False), judge_of(["1"], ["1"], ["1"], ["1"]))
    assert result.metrics == {"total": None}
    assert result.notes == (
        "The judge needs the references of data/mm-vet/mm-vet.json: put the release's file there.",
    )


def test_a_judge_that_never_replies(tmp_path: Path) -> None:
    result = score(load(tmp_path, has_references=True), judge_of([None], [None], [None], [None]))
    assert result.metrics == {"total": None}
    assert result.notes == ("scripted graded nothing: hand the json file to the MM-Vet server.",)


def test_the_file_and_back(tmp_path: Path) -> None:
    questions = load(tmp_path, has_references=False)
    [(name, content)] = TASK.export(
        ExportInput(questions=questions, answers=ANSWERS, checkpoint="", stamp="1", rules="2024")
    ).items()
    assert name == "mmvet_1.json"
    assert content == ('{"v1_0": "Three.", "v1_1": "An apple", "v1_2": "13", "v1_3": "Nobody did"}')
    (tmp_path / name).write_text(str(content), "utf-8")
    assert TASK.read_answers([tmp_path / name], questions) == ANSWERS
    (tmp_path / name).write_text(json.dumps([1]), "utf-8")
    with pytest.raises(DatasetError, match=r'is no JSON object. Want \{"v1_0": "answer", ...\}'):
        TASK.read_answers([tmp_path / name], questions)
