"""A task's folder: claimed by one run, resumed from parts, merged in the data's order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.results import Answered, TaskFolder, append, read_lines
from internvl_chat.evaluation.task import Question

CARD: dict[str, Any] = {"stamp": "1", "fingerprint": {"num_beams": 1, "questions": "ab"}}
QUESTIONS = [Question(id=str(n), prompt=f"q{n}") for n in range(3)]


def answered(number: int, text: str | None = "yes", **changes: Any) -> Answered:
    values: dict[str, Any] = {
        "id": str(number),
        "prompt": f"q{number}",
        "answer": text,
        "tokens": 2,
        "error": "" if text is not None else "no such file",
        "seconds": 0.5,
        "batch_size": 2,
        "rank": 0,
    }
    return Answered(**(values | changes))


def write_part(folder: TaskFolder, *lines: Answered, rank: int = 0) -> None:
    with folder.part(rank) as file:
        append(file, lines)


@pytest.fixture
def folder(tmp_path: Path) -> TaskFolder:
    found = TaskFolder(tmp_path / "pope")
    found.claim(CARD)
    found.release()
    return found


def test_parts_are_merged_in_the_datas_order(folder: TaskFolder) -> None:
    write_part(folder, answered(2), answered(0, "Möwe"))
    write_part(folder, answered(1), rank=1)
    assert [line["id"] for line in folder.merge(QUESTIONS)] == ["0", "1", "2"]
    assert (folder.path / "answers.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"id": "0", "prompt": "q0", "answer": "Möwe", "tokens": 2}',
        '{"id": "1", "prompt": "q1", "answer": "yes", "tokens": 2}',
        '{"id": "2", "prompt": "q2", "answer": "yes", "tokens": 2}',
    ]
    timing = json.loads((folder.path / "timing.jsonl").read_text().splitlines()[0])
    assert timing == {"id": "0", "seconds": 0.5, "batch_size": 2, "rank": 0}
    assert not (folder.path / "parts").exists()


def test_a_line_that_was_cut_short_is_asked_again(folder: TaskFolder) -> None:
    write_part(folder, answered(0))
    part = next((folder.path / "parts").iterdir())
    with part.open("a") as file:
        file.write('{"id": "1", "prompt": "q1", "ans')
    assert set(folder.answered()) == {"0"}
    write_part(folder, answered(1))  # in a file of its own
    assert set(folder.answered()) == {"0", "1"}
    assert len(folder.merge(QUESTIONS)) == 2


def test_a_broken_line_in_the_middle_is_told(folder: TaskFolder) -> None:
    path = folder.path / "answers.jsonl"
    path.write_bytes(b'{"id": "0", "prompt": "", "answer": ""}\n\xff\xfe\n')
    with pytest.raises(ConfigError, match=r"answers.jsonl:2: is no line of answers"):
        read_lines(path)


def test_what_could_not_be_asked_is_asked_again_and_an_answer_stays(folder: TaskFolder) -> None:
    write_part(folder, answered(0, None), answered(1))
    assert set(folder.answered()) == {"1"}
    lines = folder.merge(QUESTIONS)
    assert lines[0]["error"] == "no such file"
    folder.claim(CARD)
    write_part(folder, answered(0, "now"))
    assert [line["answer"] for line in folder.merge(QUESTIONS)] == ["now", "yes"]
    timings = read_lines(folder.path / "timing.jsonl")
    assert [line["seconds"] for line in timings] == [0.5, 0.5]


def test_merging_again_changes_nothing(folder: TaskFolder) -> None:
    write_part(folder, answered(0), answered(2))
    folder.merge(QUESTIONS)
    before = (folder.path / "answers.jsonl").read_bytes()
    folder.claim(CARD)
    folder.merge(QUESTIONS)
    assert (folder.path / "answers.jsonl").read_bytes() == before


def test_another_run_is_refused_with_what_differs(folder: TaskFolder) -> None:
    other = {"stamp": "2", "fingerprint": {"num_beams": 5, "questions": "ab", "seed": 1}}
    with pytest.raises(ConfigError) as caught:
        folder.claim(other)
    text = str(caught.value)
    assert "num_beams is 1 there, 5 here; seed is absent there, 1 here" in text
    assert "--out-dir" in text
    assert caught.value.exit_code == 2


def test_the_same_run_keeps_its_first_stamp(folder: TaskFolder) -> None:
    assert folder.claim({**CARD, "stamp": "2"})["stamp"] == "1"


def test_answers_of_unknown_origin_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"no run.json that says of what"):
        TaskFolder(tmp_path).claim(CARD)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        TaskFolder(tmp_path).claim(CARD)


def test_two_runs_do_not_write_to_one_folder(folder: TaskFolder) -> None:
    folder.claim(CARD)
    other = TaskFolder(folder.path)
    with pytest.raises(ConfigError, match="another process is writing to it"):
        other.claim(CARD)
    folder.release()
    other.claim(CARD)
    other.release()
