from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.mmmu import (
    DISCIPLINES,
    SUBJECTS,
    choice_by_toolbox,
    read_values,
    short_answer_is_right,
    subject_of,
    table_of,
)
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.task import DataRoot, ExportInput, Question, Rules, Score, ScoreInput
from internvl_chat.evaluation.tasks.mmmu_data import parse_options, parse_reference
from tests.support.evaluation.mmmu import ANSWERS, WRITERS, shade_of, write_mmmu

VALIDATION = TASKS["mmmu-val"]
LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def root_of(folder: Path) -> DataRoot:
    return DataRoot(folder=folder, lmu_data=folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("mmmu")
    write_mmmu(folder, split="validation")
    return VALIDATION.load(root_of(folder), "2024")


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    return {f"validation_{name}": text for name, text in ANSWERS.items()}


def score(questions: list[Question], answers: dict[str, str], rules: Rules = "2024") -> Score:
    assert VALIDATION.score is not None
    return VALIDATION.score(ScoreInput(questions=questions, answers=answers, rules=rules))


# -- short answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("1.06", "The value is 1.06", True),
        ("1.06", "1.064", True),
        (["24/7", "3.429"], "3.43", True),
        ("C", "c", True),
        ("C", "vitamin c", True),
        ("C", "abc", False),
        ("Transformation", "bacterial transformation", True),
        ("12.97", "12.970 kJ", True),
        ("5", "15", False),
        ("12", "12.0", True),
        ("1,200", "It costs 1200", True),
        ("yes", "", False),
        ("", "anything", True),
        ("nan", "nan", False),
    ],
)
def test_short_answers(gold: str | list[str], answer: str, is_right: bool) -> None:
    assert short_answer_is_right(gold, answer) is is_right


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        ("The answer is 24/7", {24.0, 7.0, "24/7"}),
        ("So the result is $1,234.56", {"$1,234.56", 1234.0, 234.56}),
        ("12 and 13\nfinal 15", {15.0}),
        ("answer: c", {"answer: c"}),
        ("B", {" b", "b "}),
        ("x = 3.14159", {3.14}),
        ("x = 3\nthus 4", {4.0}),
        ("1e3", {1000.0, 3.0}),
        ("-.5.", {-0.5}),
        ("", {""}),
        ("it is .", {"it is"}),
    ],
)
def test_values_of_a_short_answer(answer: str, values: set[str | float]) -> None:
    assert set(read_values(answer)) == values


def test_the_shortest_tail_is_the_key_phrase_and_an_empty_one_gives_way() -> None:
    assert read_values("so the final answer is red") == ["red"]
    # "so " leaves nothing, "is " comes later and is taken whatever its length
    assert read_values("this is the one, so ") == ["the one, so"]


@given(st.text(alphabet="abc 12.,=-\nis so", max_size=30))
def test_a_text_is_right_about_itself(text: str) -> None:
    word = "".join(text.lower().split()).strip(".") or "x"
    if not any(mark in word for mark in (",", "=")):
        assert short_answer_is_right(word, word)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(B)", "B"),
        ("B.", "B"),
        ("Answer: B", "B"),
        ("A or B", "B"),
        ("(A) or B", "A"),
        ("b", ""),
        ("Dog", ""),
        ("I think that it is a dog", "B"),
        ("no such thing is to be seen", ""),
        ("", ""),
    ],
)
def test_choice_of_the_toolbox(answer: str, letter: str) -> None:
    assert choice_by_toolbox(answer, {"A": "cat", "B": "Dog"}) == letter


# -- tables ---------------------------------------------------------------------------------------


def test_the_published_table_is_reproduced_from_its_counts() -> None:
    published = {"Art": 20, "Art_Theory": 19, "Design": 21, "Music": 5}
    table = table_of({name: [True] * n + [False] * (30 - n) for name, n in published.items()})
    assert str({name: table[name] for name in ["Overall-Art and Design", *published]}) == (
        "{'Overall-Art and Design': {'num': 120, 'acc': 0.542}, 'Art': {'num': 30, 'acc': 0.667}, "
        "'Art_Theory': {'num': 30, 'acc': 0.633}, 'Design': {'num': 30, 'acc': 0.7}, "
        "'Music': {'num': 30, 'acc': 0.167}}"
    )


def test_disciplines_part_the_subjects() -> None:
    assert sorted(one for members in DISCIPLINES.values() for one in members) == list(SUBJECTS)
    assert subject_of("validation_Architecture_and_Engineering_12") == SUBJECTS[2]


verdicts = st.dictionaries(st.sampled_from(SUBJECTS), st.lists(st.booleans(), max_size=5))


@given(verdicts)
def test_accuracies_are_shares_and_order_is_nothing(verdicts: dict[str, list[bool]]) -> None:
    table = table_of(verdicts)
    assert all(0 <= row["acc"] <= 1 for row in table.values())
    assert table["Overall"]["num"] == sum(map(len, verdicts.values()))
    turned = {name: verdicts[name][::-1] for name in reversed(verdicts)}
    assert str(table_of(turned)) == str(table)
    perfect = table_of({name: [True] * len(one) for name, one in verdicts.items()})
    assert {row["acc"] for row in perfect.values() if row["num"]} <= {1.0}


# -- the task -------------------------------------------------------------------------------------


def test_prompts(questions: list[Question]) -> None:
    by_id = {one.id: one.prompt for one in questions}
    assert list(by_id)[:2] == ["validation_Accounting_1", "validation_Accounting_2"]
    assert by_id["validation_Accounting_2"] == (
        f"Which row of <image 1>?\nA. one\nB. two\nC. 3\n{LETTER}"
    )
    assert by_id["validation_Accounting_4"] == f"Profit over loss?\n{SHORT}"
    assert by_id["validation_Art_2"] == (
        f"What is painted in <image 1>?\nA. cat\nB. Dog\nC. a\nD. None of these\n{LETTER}"
    )
    assert by_id["validation_Sociology_1"] == f"Which group?\nA. men\nB. women's\n{LETTER}"


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_all_layouts_hold_the_same(form: str, questions: list[Question], tmp_path: Path) -> None:
    write_mmmu(tmp_path, split="validation", form=form)
    write_mmmu(tmp_path, split="test", form=form)  # another split beside it is left alone
    found = VALIDATION.load(root_of(tmp_path), "2024")
    assert [(one.id, one.prompt, one.record) for one in found] == [
        (one.id, one.prompt, one.record) for one in questions
    ]
    by_id = {one.id: one for one in found}
    assert len(by_id["validation_Art_1"].images) == 3
    for name, row in (("Art_1", 0), ("Accounting_4", 3)):
        for number, image in enumerate(by_id[f"validation_{name}"].images, start=1):
            assert image.open().getpixel((0, 0)) == (shade_of(row, number), 0, 0)


def test_score_worked_out_by_hand(questions: list[Question], answers: dict[str, str]) -> None:
    result = score(questions, answers)
    assert {one for one, value in result.per_sample.items() if value} == {
        "validation_Accounting_1",
        "validation_Accounting_3",
        "validation_Accounting_4",
        "validation_Art_1",
        "validation_Art_2",
        "validation_Math_3",
    }
    present = ("Accounting", "Art", "Math", "Sociology")
    lines = ["Evaluating MMMU_validation ...", "Evaluating ..."]
    for subject in SUBJECTS:
        lines.append(f"Evaluating: {subject}")
        lines += [] if subject in present else [f"Skipping {subject} for not found"]
    lines.append(
        "{'Overall-Art and Design': {'num': 3, 'acc': 0.667}, 'Art': {'num': 3, 'acc': 0.667}, "
        "'Overall-Business': {'num': 4, 'acc': 0.75}, 'Accounting': {'num': 4, 'acc': 0.75}, "
        "'Overall-Science': {'num': 3, 'acc': 0.333}, 'Math': {'num': 3, 'acc': 0.333}, "
        "'Overall-Health and Medicine': {'num': 0, 'acc': 0}, "
        "'Overall-Humanities and Social Science': {'num': 2, 'acc': 0.0}, "
        "'Sociology': {'num': 2, 'acc': 0.0}, "
        "'Overall-Tech and Engineering': {'num': 0, 'acc': 0}, "
        "'Overall': {'num': 12, 'acc': 0.5}}"
    )
    assert result.printed == "\n".join(lines) + "\n"
    assert result.metrics["Overall"] == 0.5
    assert result.metrics["Overall-Business"] == 0.75
    assert result.metrics["Overall-Tech and Engineering"] is None
    assert result.notes == ("1 empty answers to choices, at which the original stops: wrong.",)


def test_the_evaluators_own_references_go_before_the_data_s(
    questions: list[Question], answers: dict[str, str], tmp_path: Path
) -> None:
    write_mmmu(tmp_path, split="validation")
    root = DataRoot(folder=tmp_path, lmu_data=tmp_path)
    path = tmp_path / "eval/mmmu/answer_dict_val.json"
    path.parent.mkdir(parents=True)
    references = {
        "validation_Math_2": {"question_type": "short-answer", "ground_truth": ["14", "15"]},
        "validation_Art_3": {"question_type": "multiple-choice", "ground_truth": "b"},
    }
    path.write_text(json.dumps(references), "utf-8")
    found = VALIDATION.load(root, "2024")
    assert [one.prompt for one in found] == [one.prompt for one in questions]
    own, given = score(questions, answers).per_sample, score(found, answers).per_sample
    assert {one for one in own if own[one] != given[one]} == set(references)
    assert set(given.values()) == {0.0, 1.0}
    path.write_text('{"validation_Math_2": {"ground-truth": "15"}}', "utf-8")
    with pytest.raises(DatasetError, match=r"val\.json, validation_Math_2: has no \"ground_truth"):
        VALIDATION.load(root, "2024")
    path.write_text('{"validation_Math_2": "15"}', "utf-8")
    with pytest.raises(DatasetError, match=r"answer_dict_val\.json: is no JSON object of objects"):
        VALIDATION.load(root, "2024")


def test_official_choices_are_the_toolbox_s(
    questions: list[Question], answers: dict[str, str]
) -> None:
    result = score(questions, answers, "official")
    assert {one for one, value in result.per_sample.items() if value} == {
        "validation_Accounting_1",
        "validation_Accounting_2",
        "validation_Accounting_3",
        "validation_Accounting_4",
        "validation_Art_1",
        "validation_Math_3",
        "validation_Sociology_1",
    }
    assert result.metrics["Overall"] == 0.583


def test_perfect_answers_score_one(questions: list[Question]) -> None:
    perfect = {}
    for one in questions:
        gold = parse_reference(one.record["answer"])
        perfect[one.id] = gold if isinstance(gold, str) else gold[0]
    for rules in VALIDATION.rules:
        assert score(questions, perfect, rules).metrics["Overall"] == 1.0


def test_files_and_back(questions: list[Question], answers: dict[str, str], tmp_path: Path) -> None:
    given = ExportInput(
        questions=questions, answers=answers, checkpoint="a/b", stamp="240727123000", rules="2024"
    )
    files = VALIDATION.export(given)
    assert list(files) == [
        "MMMU_validation_240727123000.json",
        "MMMU_validation_240727123000.jsonl",
    ]
    stored = json.loads(files["MMMU_validation_240727123000.json"])
    assert files["MMMU_validation_240727123000.json"] == json.dumps(stored, indent=4)
    assert list(stored) == [one.id for one in questions]
    assert stored["validation_Accounting_2"] == "(C)"
    assert stored["validation_Accounting_3"] == "The value is 1.06"
    assert stored["validation_Art_2"] == "D"
    assert stored["validation_Sociology_1"] == "A"
    first = str(files["MMMU_validation_240727123000.jsonl"]).split("\n")[0]
    assert json.loads(first) == {
        "question": questions[0].prompt,
        "answer": "B",
        "gt_answers": "B",
        "data_id": "validation_Accounting_1",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_text(str(content), "utf-8")
        read = VALIDATION.read_answers([path], questions)
        assert read == stored
        assert score(questions, read).printed == score(questions, answers).printed


def test_dev_is_scored_and_prints_nothing(tmp_path: Path, answers: dict[str, str]) -> None:
    WRITERS["mmmu-dev"](tmp_path)
    task = TASKS["mmmu-dev"]
    questions = task.load(root_of(tmp_path), "2024")
    assert task.score is not None
    result = task.score(
        ScoreInput(
            questions=questions,
            answers={f"dev_{name}": text for name, text in ANSWERS.items()},
            rules="2024",
        )
    )
    assert result.printed == ""
    assert result.metrics["Overall"] == 0.5
    assert result.notes[-1] == "The original scores the validation split alone."


def test_test_goes_to_the_server(tmp_path: Path) -> None:
    WRITERS["mmmu-test"](tmp_path)
    task = TASKS["mmmu-test"]
    assert task.score is None
    questions = task.load(root_of(tmp_path), "2024")
    answers = {f"test_{name}": text for name, text in ANSWERS.items()}
    files = task.export(
        ExportInput(questions=questions, answers=answers, checkpoint="", stamp="1", rules="2024")
    )
    assert list(files) == ["MMMU_test_1.json", "MMMU_test_1.jsonl"]


# -- mistakes -------------------------------------------------------------------------------------


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"data/MMMU: has no file of the validation split\. Put"):
        VALIDATION.load(root_of(tmp_path), "2024")


def test_a_damaged_table(tmp_path: Path) -> None:
    WRITERS["mmmu-val"](tmp_path)
    path = tmp_path / "data/MMMU/Art/validation-00000-of-00001.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DatasetError, match=r"Art/validation-00000-of-00001.parquet: cannot be re"):
        VALIDATION.load(root_of(tmp_path), "2024")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_type": "essay"}, r"Art/validation.jsonl:1: question_type is 'essay'. Want mul"),
        ({"options": "__import__('os')"}, r"jsonl:1: \"options\" is \"__import__\('os'\)\". Want"),
        ({"options": "7"}, r'"options" is 7. Want a list of texts'),
        ({"options": str(["x"] * 27)}, r"27 options, 26 letters. Leave out some"),
        ({"image_1": 7}, r'"image_1" is 7. Name an image file, or say null'),
    ],
)
def test_malformed_rows(change: dict[str, object], message: str, tmp_path: Path) -> None:
    record = {
        "id": "validation_Art_1",
        "question": "What?",
        "options": "[]",
        "answer": "x",
        "question_type": "open",
    }
    folder = tmp_path / "data/MMMU/Art"
    folder.mkdir(parents=True)
    (folder / "validation.jsonl").write_text(json.dumps(record | change), "utf-8")
    with pytest.raises(DatasetError, match=message):
        VALIDATION.load(root_of(tmp_path), "2024")


def test_ids_of_no_subject_are_named() -> None:
    question = Question(
        id="mine",
        prompt="?",
        record={"options": {}, "question_type": "open", "answer": "x", "reference": "x"},
    )
    result = score([question], {"mine": "x"})
    assert result.metrics["Overall"] is None
    assert result.notes == ("Not counted, for their ids name no subject of MMMU: .",)


def test_answer_files_that_are_none(tmp_path: Path, questions: list[Question]) -> None:
    path = tmp_path / "answers.json"
    path.write_text("[]", "utf-8")
    with pytest.raises(DatasetError, match=r"is no JSON object. Want \{id: answer\}"):
        VALIDATION.read_answers([path], questions)


def test_literals() -> None:
    assert parse_options({"options": [" a", 2]}, "x:1") == ["a", "2"]
    assert parse_options({"options": None}, "x:1") == []
    assert parse_reference("['24/7', '3.429']") == ["24/7", "3.429"]
    assert parse_reference("[0, 1)") == "[0, 1)"
    assert parse_reference(5) == "5"
