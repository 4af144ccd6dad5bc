"""The TSV benchmarks on invented rows: scripted answers, scores worked out by hand, files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import openpyxl
import pytest

from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.spreadsheets import write_xlsx
from internvl_chat.evaluation.task import RULES, DataRoot, ExportInput, Rules, Score
from internvl_chat.evaluation.tasks.tsv.by_path import task_of_tsv
from tests.support.evaluation.tsv import (
    SHAPES,
    WRITERS,
    ScriptedJudge,
    score_answers,
    write_table,
)

ANSWERS: dict[str, list[str]] = {
    "MathVista_MINI": [
        *("B", "(A)", "I cannot see it", "14", "14.0", "0", "1.5", "57%", "[2007, 2008]", "cat")
    ],
    "HallusionBench": [
        *("no", "yes", "Yes.", "No"),
        *("no", "no", "no", "no"),
        *("Yes", "yes", "I think so", "No-one"),
    ],
    "MMStar": ["A", "B", "C", "D", "A", "(B) square", "star", "x", "a", "b", "c", "D"],
    "OCRBench": [
        *("The centre of town", "BAZ!", "it says A b", "y", "12", "", "at 4 PM", "totally", "3.50"),
        *(r"\frac{a}{b}", "xxbxx", "the centre"),
    ],
    "MMMU_DEV_VAL": [
        *("A", "B.", "It is the treaty of Rome; B is wrong", "B", "B", "(B)", "3.429", "D"),
        *("A", "circle", "none", "D"),
    ],
    "RealWorldQA": ["A"] * 12,
    "MMVet": [*"0123456"],
    "LLaVABench": [*"012345"],
}
MARKS = {"0": "1.0", "1": "0.5", "2": "0.3", "3": "0.2", "4": "bad", "5": "0.7", "6": "0.9"}
REVIEWS = {"0": "8 6\nx", "1": "8, 7", "2": "10 5", "3": "9 8.5", "4": "7,3\n", "5": None}
EXTRACTED = {
    "I cannot see it": "B",
    "14.0": "14",
    "0": "0",
    "57%": "0.6",
    "[2007, 2008]": "[2007, 2008]",
}


def _reply(key: str, fields: Mapping[str, str], temperature: float) -> str | None:
    if key == "mmvet":
        return MARKS[fields["prediction"]]
    if key == "llava_bench":
        return REVIEWS[fields["answer_2"]]
    return EXTRACTED.get(fields["response"]) if key == "mathvista_extract" else None


@pytest.fixture(scope="module")
def lmu_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("LMUData")
    for write in WRITERS.values():
        write(folder)
    return folder


def _score(
    lmu_data: Path, name: str, rules: Rules = "2024", judge: ScriptedJudge | None = None
) -> Score:
    return score_answers(TASKS[name], lmu_data, ANSWERS[name], rules=rules, judge=judge)


# -- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", ["2024", "later"])
def test_mathvista_without_a_judge(lmu_data: Path, rules: Rules) -> None:
    score = _score(lmu_data, "MathVista_MINI", rules)
    assert score.printed == (
        "-  -------------------------  --  -  -  --------  -------\n"
        "0  Overall                    10  4  3   40       30\n"
        "1  geometry reasoning          2  2  1  100       50\n"
        "2  arithmetic reasoning        4  2  2   50       50\n"
        "3  geometry problem solving    2  2  1  100       50\n"
        "4  statistical reasoning       3  1  1   33.3333  33.3333\n"
        "5  figure question answering   5  1  1   20       20\n"
        "6  math word problem           3  1  1   33.3333  33.3333\n"
        "7  logical reasoning           3  0  0    0        0\n"
        "-  -------------------------  --  -  -  --------  -------"
    )
    assert [index for index, hit in score.per_sample.items() if hit] == ["0", "3", "6"]
    assert score.notes == ("no judge: 6 answers that are not prefetched count as wrong",)


def test_mathvista_with_a_judge(lmu_data: Path) -> None:
    judge = ScriptedJudge(_reply)
    score = _score(lmu_data, "MathVista_MINI", judge=judge)
    assert score.metrics["Overall|hit"] == 7
    assert score.metrics["Overall|acc"] == 70.0
    assert score.metrics["Overall|prefetch"] == 4
    assert score.added_columns["4"] == {"res": "14", "log": "Succeed"}
    assert score.added_columns["9"] == {"res": "", "log": "no reply of the judge"}
    cat = [one for one in judge.asked if one[1]["response"] == "cat"]
    assert [one[2] for one in cat] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert {one[3] for one in cat} == {128}
    assert cat[0][1]["question"] == "Hint: Please answer the question.\nQuestion: How much is it?"


def test_mathvista_official(lmu_data: Path) -> None:
    score = _score(lmu_data, "MathVista_MINI", "official")
    assert score.metrics["Overall|prefetch"] == 8
    assert [index for index, hit in score.per_sample.items() if not hit] == ["1", "2", "7"]


def test_hallusionbench(lmu_data: Path) -> None:
    score = _score(lmu_data, "HallusionBench")
    assert score.printed == (
        "-  -------  --------  --------  ---\n"
        "0  Overall   66.6667   33.3333   50\n"
        "1  VD        75        50        50\n"
        "2  VS        50         0        50\n"
        "3  VD_ocr    50         0         0\n"
        "4  VS_map    50         0        50\n"
        "5  VD_math  100       100       100\n"
        "-  -------  --------  --------  ---"
    )
    assert len(score.per_sample) == 12  # the row without image is none
    assert score.notes[-1] == "result = (66.6667 + 33.3333 + 50) / 3 = 50.0"


def test_hallusionbench_with_a_judge(lmu_data: Path) -> None:
    replies = {0.0: "Hard to say.", 0.5: None, 1.0: "Yes and no", 1.5: "Yes."}
    judge = ScriptedJudge(lambda key, fields, temperature: replies[temperature])
    score = _score(lmu_data, "HallusionBench", judge=judge)
    assert [one[0] for one in judge.asked] == ["yes_no"] * 4
    assert judge.asked[0][1] == {"question": "Is the statement right?", "prediction": "I think so"}
    assert score.added_columns["VS_map_1_0_1_0"] == {"extracted": "Yes", "score": True}
    assert "no judge" not in "".join(score.notes)


def test_mmstar(lmu_data: Path) -> None:
    score = _score(lmu_data, "MMStar")
    assert score.printed == (
        "-----------------------  ------------------\n"
        "split                    none\n"
        "Overall                  0.5833333333333334\n"
        "coarse perception        0.5\n"
        "fine-grained perception  0.5\n"
        "instance reasoning       0.5\n"
        "logical reasoning        0.5\n"
        "math                     0.5\n"
        "science & technology     1.0\n"
        "-----------------------  ------------------"
    )
    assert [int(index) for index, hit in score.per_sample.items() if hit] == [0, 1, 2, 3, 4, 5, 11]


def test_choices_with_a_judge(lmu_data: Path) -> None:
    replies = {"x": ["", "hm", "D"], "a": ["the circle"], "b": [None, "**B**"], "c": ["?"] * 3}

    def reply(key: str, fields: Mapping[str, str], temperature: float) -> str | None:
        assert (key, temperature) == ("choice_en", 0.0)
        assert fields["options"].startswith("There are several options: \nA. circle\nB. square\n")
        return replies[fields["prediction"]].pop(0)

    score = _score(lmu_data, "MMStar", judge=ScriptedJudge(reply))
    assert {index: score.per_sample[index] for index in ("7", "8", "9")} == dict.fromkeys(
        "789", 1.0
    )
    assert score.notes == ("1 answers that the judge could not read were drawn at random",)
    assert not any(replies.values())
    replies["c"] = ["?"] * 3
    replies |= {"x": ["D"], "a": ["A"], "b": ["B"]}
    official = _score(lmu_data, "MMStar", "official", ScriptedJudge(reply))
    assert official.per_sample["10"] == 0.0
    assert official.notes == ()


def test_the_judge_is_asked_in_the_questions_language(tmp_path: Path) -> None:
    rows = [{"question": text, "A": "红", "answer": "A"} for text in ("Which?", "哪个？")]
    write_table(tmp_path / "MMStar.tsv", rows)
    judge = ScriptedJudge(lambda key, fields, temperature: "A")
    score_answers(TASKS["MMStar"], tmp_path, ["?", "?"], judge=judge)
    assert [one[0] for one in judge.asked] == ["choice_en", "choice_cn"]


@pytest.mark.parametrize(
    ("rules", "total", "quoted"), [("2024", 9, 1.0), ("later", 9, 1.0), ("official", 8, 0.0)]
)
def test_ocrbench(lmu_data: Path, rules: Rules, total: int, quoted: float) -> None:
    score = _score(lmu_data, "OCRBench", rules)
    text = total - 3
    assert score.printed == (
        "{\n"
        f'    "Text Recognition": {text},\n'
        '    "Scene Text-centric VQA": 1,\n'
        '    "Doc-oriented VQA": 1,\n'
        '    "Key Information Extraction": 0,\n'
        '    "Handwritten Mathematical Expression Recognition": 1,\n'
        f'    "Final Score": {total},\n'
        f'    "Final Score Norm": {total / 10}\n'
        "}"
    )
    assert score.metrics["Final Score"] == total
    assert score.per_sample["10"] == quoted
    assert score.notes == ("1 answers are no list literal: taken as one text",)


@pytest.mark.parametrize("rules", ["2024", "later"])
def test_mmmu(lmu_data: Path, rules: Rules) -> None:
    score = _score(lmu_data, "MMMU_DEV_VAL", rules)
    assert score.printed == (
        "------------  ----------  ---\n"
        "split         validation  dev\n"
        "Overall       0.625       0.5\n"
        "Art           1.0         0.5\n"
        "Physics       0.25        0.5\n"
        "Art & Design  1.0         0.5\n"
        "Science       0.25        0.5\n"
        "------------  ----------  ---"
    )
    # 3: open, gold "B", read as a letter; 4: option A was None and became the gold letter
    wrong = [int(index) for index, hit in score.per_sample.items() if not hit]
    assert wrong == [2, 4, 6, 9, 10]


def test_mmmu_official(lmu_data: Path) -> None:
    score = _score(lmu_data, "MMMU_DEV_VAL", "official")
    wrong = [int(index) for index, hit in score.per_sample.items() if not hit]
    assert wrong == [4, 9, 10]


def test_realworldqa(lmu_data: Path) -> None:
    score = _score(lmu_data, "RealWorldQA")
    assert score.printed == "-------  ----\nsplit    none\nOverall  0.25\n-------  ----"
    assert score.notes == ()


def test_mmvet(lmu_data: Path) -> None:
    judge = ScriptedJudge(_reply)
    score = _score(lmu_data, "MMVet", judge=judge)
    assert score.printed == (
        "-  -------  -  --------\n"
        "0  rec      6   51.6667\n"
        "1  ocr      4   50\n"
        "2  know     2   55\n"
        "3  gen      2   55\n"
        "4  spat     0  nan\n"
        "5  math     2   50\n"
        "6  Overall  7   51.4286\n"
        "-  -------  -  --------"
    )
    assert score.metrics["fine/rec|tot"] == 6
    assert score.notes == (
        "1 answers got no mark from 0 to 1 in five tries: 0",
        "no row asks for spat",
    )
    bad = [one for one in judge.asked if one[1]["prediction"] == "4"]
    assert [one[2] for one in bad] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert bad[0][3] == 3
    assert bad[0][1]["ground_truth"] == "12<OR>twelve"
    later = ScriptedJudge(_reply)
    _score(lmu_data, "MMVet", "later", later)
    assert later.asked[0][3] == 2048
    official = _score(lmu_data, "MMVet", "official", ScriptedJudge(_reply))
    assert (official.metrics["rec|tot"], official.metrics["rec|acc"]) == (4, 52.5)


def test_llavabench(lmu_data: Path) -> None:
    judge = ScriptedJudge(_reply)
    score = _score(lmu_data, "LLaVABench", judge=judge)
    assert score.printed == (
        "-  -------  ----  ----  ----\n"
        "0  overall  64.1  34.2  53.3\n"
        "1  complex  44.4  20    45\n"
        "2  conv     85.3  72.5  85\n"
        "3  detail   33.3  10    30\n"
        "-  -------  ----  ----  ----"
    )
    assert score.notes == ("2 reviews hold no two marks: they enter the means as -1",)
    assert len(judge.asked) == 6
    key, fields, temperature, max_tokens = judge.asked[1]
    assert (key, temperature, max_tokens) == ("llava_bench", 0.2, 1024)
    assert fields == {
        "context": "A lake 1.\nA jetty.",
        "question": "What happens in 1?",
        "answer_1": "It is calm.",
        "answer_2": "1",
        "category": "detail",
    }


@pytest.mark.parametrize("name", ["MMVet", "LLaVABench"])
def test_judged_sets_without_a_judge(lmu_data: Path, name: str) -> None:
    score = _score(lmu_data, name)
    assert (score.metrics, score.printed, score.per_sample) == ({}, "", {})
    count = len(ANSWERS[name])
    assert score.notes == (f"no judge: {count} answers have no mark, none is scored",)


def test_option_columns_of_numbers(tmp_path: Path) -> None:
    rows = [{"question": "q", "A": "3.0", "B": "4", "answer": "A"} for _ in range(2)]
    rows[1] |= {"B": None}
    write_table(tmp_path / "RealWorldQA.tsv", rows)
    task = TASKS["RealWorldQA"]
    prompts = {
        rules: task.load(DataRoot(folder=tmp_path, lmu_data=tmp_path), rules)[0].prompt
        for rules in RULES
    }
    assert prompts["2024"].startswith("q\nA. 3.0\nB. 4.0\n")
    assert prompts["official"].startswith("q\nA. 3.0\nB. 4\n")
    # A comes back from xlsx as integers, B with a gap as floats
    assert score_answers(task, tmp_path, ["3", "it is 3"]).metrics == {"none|Overall": 1.0}
    official = score_answers(task, tmp_path, ["3", "it is 3"], rules="official")
    assert official.metrics == {"none|Overall": 0.0}


# -- any other file ------------------------------------------------------------------------------


def test_rotations_must_all_be_right(tmp_path: Path) -> None:
    path = tmp_path / "MMBench_mine.tsv"
    golds = {1: "A", 1_000_001: "B", 2: "C", 1_000_002: "D", 3: "A", 1_000_003: "B"}
    rows = [
        {"index": index, "question": "q", **SHAPES, "answer": gold, "category": "x"}
        for index, gold in golds.items()
    ]
    write_table(path, rows)
    task = task_of_tsv(path)
    answers = ["A", "B", "C", "A", "A", "hm"]
    score = score_answers(task, tmp_path, answers)
    assert list(score.per_sample.values()) == [1, 1, 0, 0, 0, 0]
    assert score.metrics == {"none|Overall": pytest.approx(1 / 3), "none|x": pytest.approx(1 / 3)}
    judge = ScriptedJudge(lambda key, fields, temperature: "B")
    assert score_answers(task, tmp_path, answers, judge=judge).metrics["none|x"] == pytest.approx(
        2 / 3
    )
    assert len(judge.asked) == 1
    judge = ScriptedJudge(lambda key, fields, temperature: "B")
    score_answers(task, tmp_path, ["A", "B", "hm", "A", "A", "B"], judge=judge)
    assert judge.asked == []  # the other rotation is wrong already


def test_other_yes_or_no_and_short_answers(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": gold, "category": "x"} for gold in ("yes", "No", "Yes")]
    write_table(tmp_path / "YN.tsv", rows)
    score = score_answers(task_of_tsv(tmp_path / "YN.tsv"), tmp_path, ["Yes", "no", "no"])
    assert list(score.per_sample.values()) == [0, 1, 0]  # the original compares with "Yes", "No"
    assert score.metrics["none|Overall"] == pytest.approx(100 / 3)
    official = score_answers(
        task_of_tsv(tmp_path / "YN.tsv"), tmp_path, ["Yes", "no", "no"], rules="official"
    )
    assert list(official.per_sample.values()) == [1, 1, 0]
    rows = [{"question": "q", "answer": gold} for gold in ("['a b', 'c']", "Two.", "x")]
    write_table(tmp_path / "VQA.tsv", rows)
    score = score_answers(task_of_tsv(tmp_path / "VQA.tsv"), tmp_path, ["A  B.", "two", ""])
    assert list(score.per_sample.values()) == [1, 1, 0]
    assert score.metrics == {"none|Overall": pytest.approx(2 / 3)}


def test_mmmus_test_set_is_for_the_server(tmp_path: Path) -> None:
    rows = [{"id": f"test_Art_{n}", "question": "q", **SHAPES} for n in range(2)]
    write_table(tmp_path / "MMMU_TEST.tsv", rows)
    task = task_of_tsv(tmp_path / "MMMU_TEST.tsv")
    assert task.score is None
    questions = task.load(DataRoot(folder=tmp_path, lmu_data=tmp_path), "2024")
    files = task.export(
        ExportInput(
            questions=questions,
            answers={"0": "The square", "1": "hm"},
            checkpoint="a/b",
            stamp="",
            rules="2024",
        )
    )
    content = json.loads(files["b_MMMU_TEST.json"])
    assert content == {"test_Art_0": "B", "test_Art_1": "hm"}


# -- files ---------------------------------------------------------------------------------------

SUFFIXES = {
    "MathVista_MINI": ["_gpt-4-turbo.xlsx", "_gpt-4-turbo_score.csv"],
    "HallusionBench": ["_auxmatch.xlsx", "_score.csv"],
    "MMStar": ["_gpt-4-turbo_result.xlsx", "_acc.csv"],
    "OCRBench": ["_score.json"],
    "MMMU_DEV_VAL": ["_gpt-4-turbo_result.xlsx", "_acc.csv"],
    "RealWorldQA": ["_gpt-4-turbo_result.xlsx", "_acc.csv"],
    "MMVet": ["_gpt-4-turbo.xlsx", "_gpt-4-turbo_score.csv", "_gpt-4-turbo_score_fine.csv"],
    "LLaVABench": ["_openai_result.xlsx", "_score.csv"],
}


def _judge(name: str) -> ScriptedJudge | None:
    return ScriptedJudge(_reply) if name in ("MathVista_MINI", "MMVet", "LLaVABench") else None


@pytest.mark.parametrize("name", list(WRITERS))
def test_files(lmu_data: Path, name: str, tmp_path: Path) -> None:
    """The tables hold the answers; a table that was judged is scored alike without the judge."""
    task = TASKS[name]
    questions = task.load(DataRoot(folder=lmu_data, lmu_data=lmu_data), "2024")
    answers = dict(zip((one.id for one in questions), ANSWERS[name], strict=True))
    score = _score(lmu_data, name, judge=_judge(name))
    files = task.export(
        ExportInput(
            questions=questions,
            answers=answers,
            checkpoint="pretrained/M",
            stamp="240727120000",
            rules="2024",
            score=score,
            judge_name="gpt-4-turbo",
        )
    )
    assert sorted(files) == sorted(
        [f"M_{name}.xlsx", *(f"M_{name}{one}" for one in SUFFIXES[name])]
    )
    for file, content in files.items():
        if not isinstance(content, bytes):
            continue
        (tmp_path / file).write_bytes(content)
        header = next(openpyxl.load_workbook(io.BytesIO(content)).active.values)
        assert header[: len(questions[0].record)] == tuple(questions[0].record)
        assert "image" not in header
        read = task.read_answers([tmp_path / file], questions)
        if file == f"M_{name}.xlsx":
            # what xlsx does: no text is nan, and a column of numbers comes back as numbers
            assert read == {key: answer or "nan" for key, answer in answers.items()}
        else:
            again = score_answers(task, lmu_data, read)
            assert again.per_sample == score.per_sample
            assert again.printed == score.printed


def test_contents_of_csv_and_json(lmu_data: Path) -> None:
    def export(name: str) -> Mapping[str, str | bytes]:
        questions = TASKS[name].load(DataRoot(folder=lmu_data, lmu_data=lmu_data), "2024")
        return TASKS[name].export(
            ExportInput(
                questions=questions,
                answers=dict(zip((one.id for one in questions), ANSWERS[name], strict=True)),
                checkpoint="M",
                stamp="",
                rules="2024",
                score=_score(lmu_data, name, judge=_judge(name)),
                judge_name="chatgpt-0125",
            )
        )

    assert export("RealWorldQA")["M_RealWorldQA_acc.csv"] == '"split","Overall"\n"none","0.25"\n'
    assert "M_RealWorldQA_openai_result.xlsx" in export("RealWorldQA")
    fine = export("MMVet")["M_MMVet_openai_score_fine.csv"]
    assert isinstance(fine, str)
    assert fine.split("\n")[:3] == [
        '"Category","tot","acc"',
        '"rec","6","51.66666666666667"',
        '"ocr","4","50.0"',
    ]
    result = export("OCRBench")["M_OCRBench_score.json"]
    assert isinstance(result, str)
    assert json.loads(result)["Final Score"] == 9


def test_a_table_of_numbers_passes_as_integers(lmu_data: Path, tmp_path: Path) -> None:
    """What the original's way through xlsx does to MathVista's ``14.0``."""
    rows = [{"index": n, "prediction": "14.0"} for n in (3, 4)]
    (tmp_path / "a.xlsx").write_bytes(write_xlsx(("index", "prediction"), rows))
    task = TASKS["MathVista_MINI"]
    questions = task.load(DataRoot(folder=lmu_data, lmu_data=lmu_data), "2024")
    assert task.read_answers([tmp_path / "a.xlsx"], questions) == {"3": "14", "4": "14"}


def test_tasks_are_registered() -> None:
    for name in WRITERS:
        task = TASKS[name]
        assert (task.suite, task.rules) == ("vlmevalkit", RULES)
        assert task.data[0].path == f"{name}.tsv"
        assert task.published


def test_rules_go_before_what_a_judged_table_says(tmp_path: Path, lmu_data: Path) -> None:
    rows = [
        {"index": 0, "prediction": "A", "hit": 0, "log": "x"},
        {"index": 7, "prediction": "hm", "hit": 1, "log": "x"},
    ]
    columns = ("index", "prediction", "hit", "log")
    (tmp_path / "a.xlsx").write_bytes(write_xlsx(columns, rows))
    task = TASKS["MMStar"]
    questions = task.load(DataRoot(folder=lmu_data, lmu_data=lmu_data), "2024")
    answers = dict.fromkeys((one.id for one in questions), "?")
    answers |= task.read_answers([tmp_path / "a.xlsx"], questions)
    score = score_answers(task, lmu_data, answers)
    assert [index for index, hit in score.per_sample.items() if hit] == ["0", "7"]
    assert score.notes[0].startswith("no judge: 10 answers")


def test_judges_by_rules() -> None:
    later = {name: TASKS[name].judge_under("later") for name in WRITERS}
    asked = ("MathVista_MINI", "HallusionBench", "MMStar", "MMMU_DEV_VAL", "RealWorldQA")
    assert later == {
        **dict.fromkeys(asked, "gpt-4o-mini"),
        **{"OCRBench": None, "MMVet": "gpt-4-turbo", "LLaVABench": "gpt-4-turbo"},
    }
    assert all(TASKS[name].judge_under(None) == TASKS[name].judge for name in WRITERS)
    assert TASKS["MMStar"].judge_under("official") == "chatgpt-0125"
