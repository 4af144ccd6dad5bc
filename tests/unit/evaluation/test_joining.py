from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import (
    OpenQuestions,
    answers_by_id,
    identity,
    json_lines,
    read_records,
)
from internvl_chat.evaluation.task import Question


def question(number: int, text: str) -> Question:
    return Question(id=str(number), prompt=f"{text} Be brief.", record={"text": text})


QUESTIONS = [question(0, "What?"), question(1, "Where? "), question(2, "What?")]


def test_identity() -> None:
    assert identity({"id": 7, "index": 5, "question_id": "q"}, 0, "a.json:1") == "q"
    assert identity({"id": 7, "index": 5}, 0, "a.json:1") == "5"
    assert identity({"id": 7}, 0, "a.json:1") == "7"
    assert identity({"text": "a"}, 3, "a.json:1") == "3"
    assert identity({"id": None}, 3, "a.json:1") == "3"
    with pytest.raises(DatasetError, match=r'a\.json:1: "id" is \[1\], want a text or a number'):
        identity({"id": [1]}, 3, "a.json:1")


def test_records_go_to_the_questions_they_repeat() -> None:
    waiting = OpenQuestions(QUESTIONS, lambda one: "image")
    assert waiting.take("image", "a:1", text="Where? Be brief.") == "1"
    assert waiting.take("image", "a:2", text="What?") == "0"
    assert waiting.take("image", "a:3") == "2"
    with pytest.raises(DatasetError, match=r"^a:4: fits no question, or one that has its answer"):
        waiting.take("image", "a:4")
    with pytest.raises(DatasetError, match=r"'other', 'Who\?'"):
        waiting.take("other", "a:5", text="Who?")


def test_a_question_within_another_does_not_take_its_answer() -> None:
    waiting = OpenQuestions([question(0, "How many?"), question(1, "How many? Of cups?")], bool)
    assert waiting.take(True, "a:1", text="How many? Of cups? Be brief.") == "1"
    assert waiting.take(True, "a:2", text="How many? Be brief.") == "0"


def test_answers_by_id() -> None:
    rows = [({"id": 1, "said": 5}, "a:1"), ({"id": "0", "said": "x"}, "a:2")]
    answers = answers_by_id(rows, QUESTIONS, id_field="id", answer_field="said")
    assert answers == {"1": "5", "0": "x"}
    with pytest.raises(DatasetError, match='a:1: has no "text"'):
        answers_by_id(rows, QUESTIONS, id_field="id", answer_field="text")
    with pytest.raises(DatasetError, match="a:9: id '9' is not in the data"):
        answers_by_id([({"id": 9}, "a:9")], QUESTIONS, id_field="id", answer_field="said")


def test_lists_of_records(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, 2]', "utf-8")
    with pytest.raises(DatasetError, match=r"a\.json, record 1: is no JSON object"):
        read_records(path)
    path.write_text('[{"a": 1}]', "utf-8")
    assert read_records(path) == [({"a": 1}, f"{path}, record 0")]
    assert json_lines([{"a": 1}, {"b": "é"}]) == '{"a": 1}\n{"b": "\\u00e9"}\n'
