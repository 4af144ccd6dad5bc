from __future__ import annotations

import io
import re
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.letters import read_letter
from internvl_chat.evaluation.metrics.mmbench import base_of, circular_verdicts, share
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.task import (
    DataRoot,
    ExportInput,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from tests.support.evaluation.mmbench import ANSWERS, COLUMNS, WRITERS, write_table

DEV = TASKS["mmbench-dev-en"]
CCBENCH = TASKS["ccbench-dev"]
LETTER_EN = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"


def load(task: TaskSpec, folder: Path, rules: Rules = "2024") -> list[Question]:
    if not (folder / task.data[0].path).exists():
        WRITERS[task.id](folder)
    return task.load(DataRoot(folder=folder, lmu_data=folder), rules)


def score(
    task: TaskSpec, questions: list[Question], answers: dict[str, str], rules: Rules
) -> Score:
    assert task.score is not None
    return task.score(ScoreInput(questions=questions, answers=answers, rules=rules))


def export(task: TaskSpec, questions: list[Question]) -> tuple[str, bytes]:
    given = ExportInput(
        questions=questions, answers=ANSWERS, checkpoint="", stamp="240727123000", rules="2024"
    )
    [(name, content)] = task.export(given).items()
    assert isinstance(content, bytes)
    return name, content


def cells(content: bytes) -> list[tuple[object, ...]]:
    sheet = openpyxl.load_workbook(io.BytesIO(content)).worksheets[0]
    return list(sheet.iter_rows(values_only=True))


# -- circular accuracy ----------------------------------------------------------------------------


def test_rotations_fall_together() -> None:
    assert circular_verdicts([("12", True), ("1000012", False), ("13", True)]) == {
        "12": False,
        "13": True,
    }
    assert [base_of(one) for one in ("3000007", "7", "a7")] == ["7", "7", "a7"]
    assert share([]) is None


@given(st.lists(st.tuples(st.integers(0, 4_000_005).map(str), st.booleans())))
def test_circular_accuracy_is_at_most_that_of_rows_and_has_no_order(
    rows: list[tuple[str, bool]],
) -> None:
    verdicts = circular_verdicts(rows)
    assert circular_verdicts(rows[::-1]) == verdicts
    assert sum(verdicts.values()) <= sum(is_right for _, is_right in rows)
    assert all(circular_verdicts((one, True) for one, _ in rows).values())


# -- questions ------------------------------------------------------------------------------------


def test_prompts_hold_what_pandas_reads(tmp_path: Path) -> None:
    prompts = {one.id: one.prompt for one in load(DEV, tmp_path)}
    assert prompts["12"] == f"What is on the plate?\nA. soup\nB. cake\n{LETTER_EN}"
    # Column D holds two numbers and gaps only: decimal.
    assert prompts["13"] == f"Look left.\nHow many forks?\nA. 1\nB. 2\nC. 3\n{LETTER_EN}"
    assert prompts["14"] == f'Who says "hello"?\nA. man\nB. woman\nD. 1.0\n{LETTER_EN}'
    assert prompts["1000014"] == f'Who says "hello"?\nB. man\nC. woman\nD. 1.0\n{LETTER_EN}'
    assert prompts["15"] == f"Which room?\nA. kitchen\nB. bath\nC. attic\nD. 2.0\n{LETTER_EN}"


def test_official_prompts_hold_the_text(tmp_path: Path) -> None:
    prompts = {one.id: one.prompt for one in load(DEV, tmp_path, "official")}
    assert prompts["12"] == f"What is on the plate?\nA. soup\nB. cake\n{LETTER_EN}"
    assert prompts["14"] == f'Who says "hello"?\nA. man\nB. woman\nC. None\nD. 1\n{LETTER_EN}'


@pytest.mark.parametrize("name", ["mmbench-dev-cn", "mmbench-test-cn", "ccbench-dev"])
def test_chinese_files_ask_in_chinese(name: str, tmp_path: Path) -> None:
    assert load(TASKS[name], tmp_path)[0].prompt.endswith(f"\nB. cake\n{LETTER_CN}")


def test_images_and_the_image_of_another_row(tmp_path: Path) -> None:
    questions = load(DEV, tmp_path)
    shades = [one.images[0].open().getpixel((0, 0)) for one in questions[:3]]
    assert shades == [(0, 0, 0), (0, 0, 0), (2, 0, 0)]
    assert questions[0].images[0].label == f"{tmp_path / DEV.data[0].path}, index 12"


def test_an_image_that_is_none(tmp_path: Path) -> None:
    WRITERS["mmbench-dev-en"](tmp_path)
    path = tmp_path / DEV.data[0].path
    path.write_text(re.sub(r"\t12\tdrawn", "\tno image\tdrawn", path.read_text("utf-8")), "utf-8")
    image = load(DEV, tmp_path)[1].images[0]
    with pytest.raises(Exception, match="index 1000012"):
        image.open()


# -- scores ---------------------------------------------------------------------------------------


def test_score_worked_out_by_hand(tmp_path: Path) -> None:
    # 12 and 1000012 are right; of 13 the lower-case b is wrong; 14's C is read as a letter and is
    # right, but its copy has no answer; "Answer: A" begins with an A, which is right by luck.
    result = score(DEV, load(DEV, tmp_path), ANSWERS, "2024")
    assert result.metrics == {
        "accuracy": 0.5,
        "row_accuracy": 6 / 8,
        "category/image_scene": 0.5,
        "category/object_localization": 0.5,
        "l2-category/coarse_perception": 0.5,
        "l2-category/finegrained_perception (instance-level)": 0.5,
    }
    assert result.printed == "mmbench-dev-en: 50.0\n"
    assert result.notes == (
        "Scored here; the published number is the server's.",
        "1 empty answers, at which the original stops: wrong.",
    )
    assert {one for one, value in result.per_sample.items() if value} == {"12", "1000012", "15"}


def test_officially_a_letter_is_read_as_people_do(tmp_path: Path) -> None:
    result = score(DEV, load(DEV, tmp_path, "official"), ANSWERS, "official")
    assert result.metrics["accuracy"] == 0.75  # 13's b counts; 14's copy has no answer
    assert result.printed == "mmbench-dev-en: 75.0\n"


@pytest.mark.parametrize("rules", ["2024", "official"])
def test_perfect_answers(rules: Rules, tmp_path: Path) -> None:
    questions = load(DEV, tmp_path, rules)
    perfect = {one.id: str(one.record["row"]["answer"]) for one in questions}
    result = score(DEV, questions, perfect, rules)
    assert set(result.metrics.values()) == {1.0}
    assert result.printed == "mmbench-dev-en: 100.0\n"


def test_without_answers_there_is_a_file_for_the_server(tmp_path: Path) -> None:
    task = TASKS["mmbench-test-en"]
    result = score(task, load(task, tmp_path), ANSWERS, "2024")
    assert result.metrics == {"accuracy": None}
    assert result.printed == ""
    assert result.notes == ("The data has no answers: hand the xlsx file to the MMBench server.",)


# -- files ----------------------------------------------------------------------------------------


def test_the_server_s_columns(tmp_path: Path) -> None:
    name, content = export(DEV, load(DEV, tmp_path))
    assert name == "mmbench_dev_20230712_240727123000.xlsx"
    rows = cells(content)
    assert len(rows) == 9
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (12, "What is on the plate?", "soup", "cake", None, None, "B", "B", "dev")
    assert rows[4] == (1000013, "How many forks?", "3", "1", "2", None, "A", "A", "dev")
    assert rows[6] == (14, 'Who says "hello"?', "man", "woman", None, 1, "C", "C", "dev")
    assert rows[7][6] is None


def test_the_server_s_columns_of_test_and_ccbench(tmp_path: Path) -> None:
    name, content = export(TASKS["mmbench-test-en"], load(TASKS["mmbench-test-en"], tmp_path))
    assert name == "mmbench_test_en_20231003_240727123000.xlsx"
    assert cells(content)[0] == ("index", "question", "A", "B", "C", "D", "prediction", "split")
    name, content = export(CCBENCH, load(CCBENCH, tmp_path))
    assert name == "ccbench_dev_cn_240727123000.xlsx"
    assert cells(content)[0] == ("index", "question", "A", "B", "C", "D", "answer", "prediction")


def test_columns_that_are_not_there_are_not_dropped(tmp_path: Path) -> None:
    kept = [one for one in COLUMNS if one not in ("source", "comment", "hint")]
    write_table(tmp_path, "mmbench_dev_20230712", has_answers=True, columns=kept)
    content = export(DEV, load(DEV, tmp_path))[1]
    assert cells(content)[0][6] == "prediction"


@pytest.mark.parametrize("name", list(WRITERS))
def test_files_and_back(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    questions = load(task, tmp_path)
    file, content = export(task, questions)
    (tmp_path / file).write_bytes(content)
    read = task.read_answers([tmp_path / file], questions)
    assert read == {
        one.id: read_letter(ANSWERS[one.id], one.record["options"]) for one in questions
    }
    assert score(task, questions, read, "2024") == score(task, questions, ANSWERS, "2024")


def test_answers_that_a_sheet_takes_amiss(tmp_path: Path) -> None:
    questions = load(DEV, tmp_path)
    odd = {**ANSWERS, "12": "=1+1", "13": "a bell \x07 rings", "14": "5", "15": "None"}
    given = ExportInput(questions=questions, answers=odd, checkpoint="", stamp="1", rules="2024")
    [(name, content)] = DEV.export(given).items()
    assert isinstance(content, bytes)
    (tmp_path / name).write_bytes(content)
    read = DEV.read_answers([tmp_path / name], questions)
    assert [read[one] for one in ("12", "13", "14", "15")] == ["=1+1", "a bell  rings", "5", "None"]


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", ["2024", "official"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "dev_20230712.tsv: is"),
        ("index\tquestion\timage\n", "dev_20230712.tsv: has no rows"),
        ("index\tquestion\n1\tWhat?\n", "has no column image. Its columns are index, question"),
        ("index\tquestion\timage\n1\ta\tx\n1\tb\ty\n", "1 rows have the index of another"),
        ("index\tquestion\timage\n1\ta\tx\n2\tb\ty\tz\tz\n", "dev_20230712.tsv"),
    ],
)
def test_malformed_tables(text: str, message: str, rules: Rules, tmp_path: Path) -> None:
    path = tmp_path / DEV.data[0].path
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    with pytest.raises(DatasetError, match=message):
        load(DEV, tmp_path, rules)


def test_answer_files_that_are_none(tmp_path: Path) -> None:
    questions = load(DEV, tmp_path)
    path = tmp_path / "answers.xlsx"
    path.write_bytes(b"no sheet")
    with pytest.raises(DatasetError, match=r"answers\.xlsx: is no xlsx \(File"):
        DEV.read_answers([path], questions)
    workbook = openpyxl.Workbook()
    workbook.active.append(["index", "answer"])
    workbook.save(path)
    with pytest.raises(DatasetError, match=r"answers\.xlsx: has no column prediction"):
        DEV.read_answers([path], questions)
