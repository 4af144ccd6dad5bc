from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.llava_bench import (
    GradeSummary,
    printed_summary,
    read_grades,
    read_grades_leniently,
    summarise,
)
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.task import (
    DataRoot,
    ExportInput,
    Judge,
    Question,
    Rules,
    Score,
    ScoreInput,
)
from tests.support.evaluation.open_ended import LLAVA, ScriptedJudge, write_lines, write_llava_bench

TASK = TASKS["llava-bench"]
ANSWERS = {"0": "Winter.", "1": "A lake.", "2": "He flies a kite.", "3": "Blue"}
PRINTED = """\
llava_bench_results_review
all [5.25, 3.75] 71.4
all 71.4 52.5 37.5
llava_bench_complex [8.0, 9.0] 112.5
llava_bench_complex 112.5 80.0 90.0
llava_bench_conv [9.0, 6.5] 72.2
llava_bench_conv 72.2 90.0 65.0
llava_bench_detail [-5.0, -7.0] 140.0
llava_bench_detail 140.0 -50.0 -70.0
=================================
"""


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    write_llava_bench(tmp_path)
    return TASK.load(DataRoot(folder=tmp_path, lmu_data=tmp_path), "2024")


def judge_of(*replies: list[str | None]) -> ScriptedJudge:
    return ScriptedJudge({one[2]: said for one, said in zip(LLAVA, replies, strict=True)})


def score(
    questions: list[Question],
    judge: Judge | None = None,
    answers: dict[str, str] = ANSWERS,
    rules: Rules = "2024",
) -> Score:
    assert TASK.score is not None
    return TASK.score(ScoreInput(questions=questions, answers=answers, rules=rules, judge=judge))


def export(questions: list[Question], result: Score | None) -> dict[str, str]:
    given = ExportInput(
        questions=questions,
        answers=ANSWERS,
        checkpoint="pretrained/InternVL-Chat-V1-2-Plus",
        stamp="1",
        rules="2024",
        score=result,
    )
    return {name: str(content) for name, content in TASK.export(given).items()}


# -- grades ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("review", "grades", "leniently"),
    [
        ("8 7\nBoth are fine.", (8, 7), (8, 7)),
        ("8,7", (8, 7), (8, 7)),
        ("8.5 7", (8.5, 7), (8.5, 7)),
        ("8, 7", (-1, -1), (8, 7)),
        ("8  7", (-1, -1), (8, 7)),
        ("8 7 ", (-1, -1), (8, 7)),
        ("8 7.\n", (8, 7), None),
        ("8/10 7/10", (-1, -1), None),
        ("Scores: 8 7", (-1, -1), None),
        ("8", (-1, -1), None),
        ("", (-1, -1), None),
    ],
)
def test_grades(
    review: str, grades: tuple[float, float], leniently: tuple[float, float] | None
) -> None:
    assert read_grades(review) == grades
    assert read_grades_leniently(review) == leniently


def test_the_summary_of_the_original() -> None:
    grades = {"llava_bench_conv": [(9.0, 7.0), (9.0, 6.0), (8.9, 7.55)]}
    assert printed_summary(summarise(grades), "llava_bench_results_review") == (
        "llava_bench_results_review\n"
        "all [8.967, 6.85] 76.4\n"
        "all 76.4 89.7 68.5\n"
        "llava_bench_conv [8.967, 6.85] 76.4\n"
        "llava_bench_conv 76.4 89.7 68.5\n"
        "=================================\n"
    )


def test_a_mean_of_nought_divides_nothing() -> None:
    assert str(GradeSummary.of([(1, 5), (-1, -1)]).relative) == "nan"
    assert summarise({"llava_bench_conv": []}) == {}


pairs = st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1)


@given(pairs)
def test_means_lie_between_the_grades_and_have_no_order(pairs: list[tuple[int, int]]) -> None:
    summary = GradeSummary.of(pairs)
    assert 1 <= summary.means[0] <= 10
    assert summary == GradeSummary.of(pairs[::-1])
    assert GradeSummary.of([(one, one) for one, _ in pairs]).relative == 100


# -- the task -------------------------------------------------------------------------------------


def test_prompts_and_references(questions: list[Question]) -> None:
    assert [one.prompt for one in questions] == [
        f"{text} Please give a detailed answer." for _, _, text in LLAVA
    ]
    assert questions[2].record == {
        "question_id": 2,
        "question": "Why is the boy glad?",
        "category": "complex",
        "context": "A boy.\nHe has a kite.",
        "reference": "Reference 2.",
        "reference_id": "x2",
    }
    assert questions[2].images[0].open().getpixel((0, 0))[0] < 20


def test_score_worked_out_by_hand(questions: list[Question]) -> None:
    judge = judge_of(["9 7\nGood."], ["-5 -7"], ["8 9"], ["9,6"])
    result = score(questions, judge)
    assert result.printed == PRINTED
    assert result.per_sample == {"0": 7, "1": -7, "2": 9, "3": 6}
    assert result.metrics["all"] == 71.4
    assert result.metrics["all/reference"] == 52.5
    assert result.metrics["all/model"] == 37.5
    assert judge.asked[0] == (
        "llava_bench",
        {
            "context": "A lake with a jetty.",
            "question": "Which season is it?",
            "answer_1": "Reference 0.",
            "answer_2": "Winter.",
            "category": "conv",
        },
        0.2,
        1024,
    )
    assert len(judge.asked) == 4


def test_what_cannot_be_read_is_asked_again_and_averaged_in(questions: list[Question]) -> None:
    judge = judge_of(["9 7"], ["8, 7"], ["fine", "8 9"], [None])
    result = score(questions, judge)
    assert result.per_sample == {"0": 7, "1": -1, "2": 9, "3": -1}
    assert result.printed.split("\n")[1] == "all [3.75, 3.5] 93.3"  # (9-1+8-1)/4, (7-1+9-1)/4
    temperatures = [one[2] for one in judge.asked if one[1]["question"] == LLAVA[1][2]]
    assert temperatures == [0.2, 0.4, 0.6]
    assert result.notes == (
        "Judged by scripted; the original's judge is GPT-4-0613.",
        "1 without a review: 3.",
        "2 reviews do not begin with two numbers, averaged in as -1, -1: 1, 3.",
    )


def test_officially_a_comma_is_read_and_the_unreadable_left_out(questions: list[Question]) -> None:
    judge = judge_of(["9 7"], ["8, 7"], ["fine"], [None])
    result = score(questions, judge, rules="official")
    assert result.per_sample == {"0": 7, "1": 7}
    assert result.printed.split("\n")[1] == "all [8.5, 7.0] 82.4"
    assert result.notes[-1] == "2 reviews do not begin with two numbers, left out: 2, 3."


@pytest.mark.parametrize(
    ("judge", "note"),
    [
        (None, "No judge: no review. The answers are written, their grades are missing."),
        (
            judge_of([None], [None], [None], [None]),
            "scripted: no review. The answers are written, their grades are missing.",
        ),
    ],
)
def test_without_reviews(questions: list[Question], judge: Judge | None, note: str) -> None:
    result = score(questions, judge)
    assert (result.metrics, result.printed, result.per_sample) == ({"all": None}, "", {})
    assert result.notes == (note,)
    assert list(export(questions, result)) == ["llava_bench_results.jsonl"]


# -- files ----------------------------------------------------------------------------------------


def test_files_and_back(questions: list[Question], tmp_path: Path) -> None:
    judge = judge_of(["9 7\nGood."], ["-5 -7"], ["8 9"], ["9,6"])
    files = export(questions, score(questions, judge))
    assert list(files) == ["llava_bench_results.jsonl", "llava_bench_results_review.jsonl"]
    assert json.loads(files["llava_bench_results.jsonl"].split("\n")[0]) == {
        "question_id": 0,
        "text": "Winter.",
        "model_id": "pretrained_InternVL-Chat-V1-2-Plus",
        "metadata": {},
    }
    reviews = [json.loads(line) for line in files["llava_bench_results_review.jsonl"].splitlines()]
    assert reviews[0] == {
        "id": 1,
        "question_id": 0,
        "answer1_id": "x0",
        "answer2_id": 0,
        "category": "llava_bench_conv",
        "content": "9 7\nGood.",
        "tuple": [9.0, 7.0],
    }
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.write_text(files[path.name], "utf-8")
    assert TASK.read_answers(paths[:1], questions) == ANSWERS
    for chosen in (paths[1:], paths, paths[::-1]):
        read = TASK.read_answers(chosen, questions)
        assert score(questions, answers=read).printed == PRINTED
    # What was read as reviews is written as reviews again.
    again = TASK.export(
        ExportInput(questions=questions, answers=read, checkpoint="", stamp="1", rules="2024")
    )
    assert list(again) == ["llava_bench_results_review.jsonl"]
    written = [json.loads(line) for line in str(again[paths[1].name]).splitlines()]
    assert written == reviews


def test_reviews_keep_their_tuple_and_officially_are_read_anew(
    questions: list[Question], tmp_path: Path
) -> None:
    path = tmp_path / "review.jsonl"
    write_lines(
        path,
        (
            {"question_id": number, "content": "8, 6\nWell.", "tuple": [-1, -1]}
            for number in range(4)
        ),
    )
    read = TASK.read_answers([path], questions)
    assert score(questions, answers=read).printed.split("\n")[1] == "all [-1.0, -1.0] 100.0"
    official = score(questions, answers=read, rules="official")
    assert official.printed.split("\n")[1] == "all [8.0, 6.0] 75.0"


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        (
            "answers_gpt4.jsonl",
            [{"question_id": 0, "text": "x"}],
            r"questions.jsonl:2: question 2, answers_gpt4.jsonl has 1 lines. Take both files",
        ),
        (
            "questions.jsonl",
            [{"question_id": 0, "image": "001.jpg", "category": "chat", "text": "?"}],
            r"questions.jsonl:1: category is 'chat'. Want conv, detail, complex",
        ),
        ("context.jsonl", [{"image": "001.jpg"}], r'context.jsonl:1: has no "caption"'),
    ],
)
def test_malformed_data(
    name: str, records: list[dict[str, object]], message: str, tmp_path: Path
) -> None:
    write_llava_bench(tmp_path)
    write_lines(tmp_path / "data/llava-bench-in-the-wild" / name, records)
    with pytest.raises(DatasetError, match=message):
        TASK.load(DataRoot(folder=tmp_path, lmu_data=tmp_path), "2024")


def test_a_review_without_two_numbers(questions: list[Question], tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    write_lines(path, [{"question_id": 0, "tuple": [1, "2"]}])
    with pytest.raises(DatasetError, match=r"review.jsonl:1: \"tuple\" is \[1, '2'\]. Want two"):
        TASK.read_answers([path], questions)
