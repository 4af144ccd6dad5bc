from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.mme import TaskCount, reading, stored
from internvl_chat.evaluation.tasks.mme import MME, TASK_NAMES, StoredAnswer
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_mme

REFERENCE = Path(__file__).parents[2] / "fixtures" / "answer_files" / "mme"
ANSWERS = REFERENCE / "answers" / "InternVL-Chat-V1-2-Plus"
SHORT = "Answer the question using a single word or phrase."


def expected(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text("utf-8"))


@pytest.mark.parametrize(
    ("reply", "text", "label"),
    [
        ("No.", "no.", "no"),
        ("是", "yes", "yes"),
        ("不是", "no", "no"),
        ("True", "yes", "yes"),
        ("  Yes", "  yes", "other"),
        ("the answer is yes", "the answer is yes", "other"),
        ("Not sure", "not sure", "no"),
        ("Unknown", "unknown", "other"),
        ("y", "y", "other"),
        ("对的 Yes", " yes", "yes"),
        ("Y\nes", "yes", "yes"),
        ("否", "no", "no"),
        ("", "", "other"),
        ("It is false", "it is no", "other"),
    ],
)
def test_replies(reply: str, text: str, label: str) -> None:
    assert (stored(reply), reading(stored(reply))) == (text, label)


def test_the_reference_files_have_the_reference_scores() -> None:
    want = expected("expect.json")
    questions = questions_of(MME, REFERENCE / "work")
    answers = MME.read_answers([ANSWERS], questions)
    score = score_of(MME, questions, answers)
    assert dict(score.metrics) == want["values"]
    assert score.printed.splitlines() == want["printed"]
    assert score.notes == (
        "2 lines have not four fields: left out of the accuracy, wrong in accuracy+",
    )
    readings = {one.id: reading(answers[one.id]) for one in questions}
    left_out = set(readings) - set(want["readings"])
    assert left_out == {"text_translation/0", "text_translation/3"}
    assert {one: readings[one] for one in want["readings"]} == want["readings"]
    right = {one.id for one in questions if readings[one.id] == one.record["truth"].lower()}
    assert {one for one, value in score.per_sample.items() if value} == right - left_out
    assert set(score.per_sample.values()) == {0.0, 1.0}


def test_reference_files_one_by_one_and_written_again() -> None:
    questions = questions_of(MME, REFERENCE / "work")
    answers = MME.read_answers([ANSWERS / f"{task}.txt" for task in TASK_NAMES], questions)
    files = export_of(MME, questions, answers)
    assert len(files) == 14
    for name, content in files.items():
        assert content == (REFERENCE / "answers" / name).read_text("utf-8")


def test_lists_are_rebuilt_from_the_release(tmp_path: Path) -> None:
    given_lists = questions_of(MME, REFERENCE / "work")
    release = "data/mme/MME_Benchmark_release_version"
    (tmp_path / "data/mme").mkdir(parents=True)
    (tmp_path / release).symlink_to(REFERENCE / "work" / release)
    rebuilt = questions_of(MME, tmp_path)
    assert [(one.id, one.prompt, one.record) for one in rebuilt] == [
        (one.id, one.prompt, one.record) for one in given_lists
    ]


def test_prompts_and_settings() -> None:
    settings = expected("prompts.json")["settings"]
    assert MME.generation.settings() == settings
    assert MME.generation.settings(temperature=0.5)["temperature"] == 0.5
    for one in questions_of(MME, REFERENCE / "work"):
        lines = (ANSWERS / f"{one.record['task']}.txt").read_text("utf-8").split("\n")
        assert lines[int(one.id.split("/")[1])].split("\t")[1] == one.prompt


@pytest.mark.parametrize("crash", expected("crashes.json"), ids=lambda crash: crash["what"])
def test_what_the_original_stops_at(crash: dict[str, Any], tmp_path: Path) -> None:
    write_mme(tmp_path)
    given_in = crash["input"]
    listed = tmp_path / f"eval/mme/Your_Results/{given_in['task']}.txt"
    rows = [line.split("\t") for line in listed.read_text("utf-8").splitlines()]
    if "gold" in given_in:
        rows = [[image, text, given_in["gold"]] for image, text, _ in rows]
    elif "reply" not in given_in:
        rows = rows[:-1]
    listed.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    questions = questions_of(MME, tmp_path)
    replies = {
        one.id: given_in.get("reply", one.record["truth"])
        if one.record["task"] == given_in["task"]
        else one.record["truth"]
        for one in questions
    }
    score = score_of(MME, questions, replies)
    value, note = {
        # "yes" to four questions, two of which want it
        "a reply with a carriage return: one line too many": (50.0, "4 answers hold a carriage"),
        "no reply of a task can be read": (0.0, ""),
        # three right; one of two images has both
        "an odd number of lines in a task": (150.0, "the last question of existence"),
        "a gold answer that is neither Yes nor No": (0.0, "truths of existence are neither"),
    }[crash["what"]]
    assert score.metrics["existence"] == value
    assert score.metrics["count"] == 200.0
    assert ("".join(score.notes)).startswith(note)
    assert bool(score.notes) == bool(note)
    files = write_files(tmp_path / "out", export_of(MME, questions, replies))
    again = MME.read_answers(files, questions)
    assert score_of(MME, questions, again).metrics == score.metrics


@pytest.mark.parametrize("layout", ["lists", "beside", "folders"])
def test_layouts(layout: Any, tmp_path: Path) -> None:
    write_mme(tmp_path, layout)
    questions = questions_of(MME, tmp_path)
    assert len(questions) == 30
    assert [one.id for one in questions[:5]] == [
        "existence/0",
        "existence/1",
        "existence/2",
        "existence/3",
        "count/0",
    ]
    assert questions[1].prompt == f"Is there a fork in the image? Please answer yes or no. {SHORT}"
    assert all(one.images[0].open().size == (12, 8) for one in questions)
    folder = "data/mme/MME_Benchmark_release_version/code_reasoning"
    inner = "images/" if layout == "folders" else ""
    assert questions[-1].images[0].label == f"{folder}/{inner}cod_0000.png"


PRINTED = """\
=========== Perception ===========
pos_0000.jpg\tIs there a kettle in the image? Please answer yes or no. {0}\tYes\tyes\tno

total score: 1525.0{1}

\t existence  score: 125.0
\t count  score: 50.0
\t position  score: 100.0
\t color  score: 200.0
\t posters  score: 50.0
\t celebrity  score: 200.0
\t scene  score: 200.0
\t landmark  score: 200.0
\t artwork  score: 200.0
\t OCR  score: 200.0


=========== Cognition ===========
total score: 600.0{1}

\t commonsense_reasoning  score: 200.0
\t numerical_calculation  score: 200.0
\t text_translation  score: 200.0
\t code_reasoning  score: 0.0
""".replace("{0}", SHORT).replace("{1}", " ")


def scripted(root: Path) -> tuple[Any, dict[str, str]]:
    """Answers whose scores stand in PRINTED."""
    questions = questions_of(MME, root)
    answers = {one.id: one.record["truth"] for one in questions}
    answers |= {"existence/2": "The kettle"}  # 3 of 4, 1 of 2 images: 75 + 50
    answers |= {"count/0": "Not at all", "count/1": "None."}  # 1 of 2, no image: 50 + 0
    answers |= {"position/0": "Yes\tNo", "position/1": "否"}  # 1 of 1, no image: 100 + 0
    answers |= {"posters/0": "Yes.", "posters/1": "true"}
    answers |= {"code_reasoning/0": "  Yes", "code_reasoning/1": ""}
    return questions, answers


def test_scripted_answers(tmp_path: Path) -> None:
    write_mme(tmp_path)
    questions, answers = scripted(tmp_path)
    score = score_of(MME, questions, answers)
    assert score.printed == PRINTED
    assert score.metrics["Perception"] == 1525.0
    assert score.metrics["Cognition"] == 600.0
    wrong = {one for one, value in score.per_sample.items() if not value}
    assert wrong == {
        "existence/2",
        "count/0",
        "position/0",
        "posters/1",
        "code_reasoning/0",
        "code_reasoning/1",
    }


def test_files_written_and_read(tmp_path: Path) -> None:
    write_mme(tmp_path)
    questions, answers = scripted(tmp_path)
    files = export_of(MME, questions, answers)
    folder = "InternVL-Chat-V1-2-Plus"
    assert list(files) == [f"{folder}/{task}.txt" for task in TASK_NAMES]
    question = "Is there a {} in the image? Please answer yes or no. " + SHORT
    assert files[f"{folder}/posters.txt"] == (
        f"pos_0000.jpg\t{question.format('kettle')}\tYes\tyes.\n"
        f"pos_0000.jpg\t{question.format('fork')}\tNo\tyes\n"
    )
    write_files(tmp_path / "out", files)
    again = MME.read_answers([tmp_path / "out" / folder], questions)
    assert again == {one: stored(text) for one, text in answers.items()}
    assert score_of(MME, questions, again) == score_of(MME, questions, answers)
    assert export_of(MME, questions, again) == files


def test_a_stored_answer_is_not_processed_again(tmp_path: Path) -> None:
    write_mme(tmp_path)
    questions = questions_of(MME, tmp_path)
    raw = answered(questions, ["tr是的ue"] + ["tr的ue"] * 29)
    files = write_files(tmp_path, export_of(MME, questions, raw))
    again = MME.read_answers(files, questions)
    assert again["count/0"] == "true"
    assert score_of(MME, questions, again) == score_of(MME, questions, raw)
    assert score_of(MME, questions, again).metrics["count"] == 0.0
    copy = pickle.loads(pickle.dumps(again["count/0"]))
    assert isinstance(copy, StoredAnswer)
    assert copy.line == again["count/0"].line  # type: ignore[attr-defined]


def test_a_limited_run_scores_what_was_asked(tmp_path: Path) -> None:
    write_mme(tmp_path)
    questions = questions_of(MME, tmp_path)[:5]
    score = score_of(MME, questions, {one.id: one.record["truth"] for one in questions})
    assert dict(score.metrics) == {
        "Perception": 300.0,
        "existence": 200.0,
        "count": 100.0,
        "Cognition": 0,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("exi_0000.jpg\tAnother question\tYes\tyes", r"existence\.txt:1: fits no question"),
        ("no tabs here", r"existence\.txt:1: has no tab"),
    ],
)
def test_unfit_answer_files(line: str, message: str, tmp_path: Path) -> None:
    write_mme(tmp_path)
    path = tmp_path / "existence.txt"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        MME.read_answers([path], questions_of(MME, tmp_path))


def test_unfit_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="existence: holds no questions"):
        questions_of(MME, tmp_path)
    write_mme(tmp_path)
    path = tmp_path / "eval/mme/Your_Results/count.txt"
    path.write_text("a.jpg\tHow many?\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"count\.txt:1: 2 tab-separated fields, want 3"):
        questions_of(MME, tmp_path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DatasetError, match="is no UTF-8"):
        questions_of(MME, tmp_path)
    with pytest.raises(DatasetError, match="holds no answers"):
        MME.read_answers([tmp_path], [])


@given(st.lists(st.tuples(st.sampled_from(["Yes", "No"]), st.text(max_size=6)), max_size=12))
def test_bounds(rows: list[tuple[str, str]]) -> None:
    count = TaskCount.of([f"i\tq\t{truth}\t{stored(reply)}" for truth, reply in rows])
    assert 0 <= count.score <= 200
    whole = rows[: len(rows) // 2 * 2]
    perfect = TaskCount.of([f"i\tq\t{truth}\t{stored(truth)}" for truth, _ in whole])
    assert perfect.score == (200 if len(rows) > 1 else 0)
