from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.mvbench import is_match, names_truth, truth_of
from internvl_chat.evaluation.tasks.mvbench import MVBENCH, MVBENCH_TASKS
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_mvbench

TITLES = """Action Sequence, Action Prediction, Action Antonym, Fine-grained Action,
Unexpected Action, Object Existence, Object Interaction, Object Shuffle, Moving Direction,
Action Localization, Scene Transition, Action Count, Moving Count, Moving Attribute, State Change,
Fine-grained Pose, Character Order, Egocentric Navigation, Episodic Reasoning,
Counterfactual Inference"""


@pytest.mark.parametrize(
    ("reply", "truth", "match"),
    [
        ("A", "(A) Opened.", True),
        ("A.", "(A) Opened.", True),
        ("(A) Opened", "(A) Opened.", True),
        ("a man", "(A) Opened.", True),
        ("", "(C) x", True),
        (")", "(B) x", True),
        ("B) foo", "(B) x", True),
        ("(A)x", "(A) x", True),
        ("Answer: (A) x", "(A) x", True),
        ("(B)", "(A) x", False),
        ("Opened", "(A) Opened", False),
        ("The", "(A) x", False),
    ],
)
def test_vectors(reply: str, truth: str, match: bool) -> None:
    assert is_match(reply, truth) is match


def test_truths() -> None:
    assert truth_of(["No", "Yes", "No"], "No") == "(C) No"
    assert truth_of(["No", "Yes"], "Maybe") == "(@) Maybe"


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        ("B", True),
        ("(B) Took it.", True),
        ("Answer: B", True),
        ("took it.", True),
        ("", False),
        ("A man took something", False),
        (")", False),
    ],
)
def test_official_rule(reply: str, match: bool) -> None:
    assert names_truth(reply, ["Ate it.", "Took it."], "(B) Took it.") is match


def test_the_twenty_tasks() -> None:
    assert [task.title for task in MVBENCH_TASKS] == TITLES.replace("\n", " ").split(", ")
    assert {task.stem for task in MVBENCH_TASKS if task.is_bounded} == {
        "action_sequence",
        "action_prediction",
        "object_interaction",
        "action_localization",
        "episodic_reasoning",
    }
    assert [task.stem for task in MVBENCH_TASKS if task.is_frames] == ["episodic_reasoning"]
    assert len(MVBENCH.data) == 20 + 11


def test_questions(tmp_path: Path) -> None:
    write_mvbench(tmp_path)
    questions = questions_of(MVBENCH, tmp_path)
    assert len(questions) == 21
    assert [one.id for one in questions[:3]] == [
        "action_sequence/0",
        "action_sequence/1",
        "action_prediction/0",
    ]
    first = questions[0]
    lines = first.prompt.split("\n")
    assert lines[:16] == [f"Frame{number}: <image>" for number in range(1, 17)]
    assert "\n".join(lines[16:]) == (
        "Carefully watch the video and pay attention to the cause and sequence of events, the "
        "detail and movement of objects, and the action and pose of persons. Based on your "
        "observations, select the best option that accurately addresses the question.\n\n"
        "Question: What happened in action_sequence?\nOptions:\n(A) Ate the sandwich.\n"
        "(B) Took the book.\n(C) Closed the door.\nOnly give the best option."
    )
    assert first.images == ()
    assert first.video is not None
    assert first.video.path == str(
        tmp_path / "data/MVBench/video/star/Charades_v1_480" / "clip.mp4"
    )
    assert (first.video.num_segments, first.video.bounds) == (16, (0.5, 1.5))
    assert first.video.frames_per_second is None
    by_id = {one.id: one.video for one in questions}
    episode, scene = by_id["episodic_reasoning/0"], by_id["scene_transition/0"]
    assert episode is not None
    assert scene is not None
    assert (episode.frames_per_second, episode.bounds) == (3.0, (0.5, 1.5))
    assert Path(episode.path, "00012.jpg").is_file()
    assert scene.bounds is None
    assert questions[1].record["truth"] == "(C) No"
    assert MVBENCH.generation.max_new_tokens == 1000
    assert MVBENCH.original_beams == 1


def scripted(root: Path) -> tuple[list, dict[str, str]]:
    """An empty answer and an article, right in 2024; a text, right officially; a wrong C."""
    questions = questions_of(MVBENCH, root)
    replies = ["B", "C.", "", "A man", "Took the book.", "C", *["(B) Took the book."] * 15]
    return questions, answered(questions, replies)


def test_scripted_answers(tmp_path: Path) -> None:
    write_mvbench(tmp_path)
    questions, answers = scripted(tmp_path)
    score = score_of(MVBENCH, questions, answers)
    values = dict.fromkeys(TITLES.replace("\n", " ").split(", "), 100.0)
    wrong = {"Action Antonym": 0.0, "Fine-grained Action": 0.0, "Unexpected Action": 0.0}
    values |= {**wrong, "Avg": 85.71428571428571}
    assert score.printed == f"Evaluating MVBench ...\n{values}\n"
    assert score.printed.startswith(
        "Evaluating MVBench ...\n{'Action Sequence': 100.0, 'Action Prediction': 100.0, "
        "'Action Antonym': 0.0, 'Fine-grained Action': 0.0, "
    )
    assert dict(score.metrics) == values
    assert score.notes == ("1 empty answers count as right, as the original counts them",)
    official = score_of(MVBENCH, questions, answers, "official")
    differ = {one for one, value in score.per_sample.items() if value != official.per_sample[one]}
    assert differ == {"action_prediction/0", "fine_grained_action/0"}
    assert official.metrics["Avg"] == 18 / 21 * 100
    assert official.notes == ("1 empty answers count as wrong",)


def test_floats_are_the_originals() -> None:
    # 109 and 58 of 200, as the guide prints them
    assert [109 / 200 * 100, 58 / 200 * 100] == [54.50000000000001, 28.999999999999996]


def test_files_written_and_read(tmp_path: Path) -> None:
    write_mvbench(tmp_path)
    questions, answers = scripted(tmp_path)
    files = export_of(MVBENCH, questions, answers)
    assert list(files) == [
        "MVBench_240727004726.json",
        "MVBench_240727004726_result_final.json",
    ]
    record = json.loads(files["MVBench_240727004726.json"])[1]
    assert record["question"] == questions[1].prompt
    assert {name: record[name] for name in ("pred", "gt", "task_type")} == {
        "pred": "C.",
        "gt": "(C) No",
        "task_type": "Action Sequence",
    }
    final = json.loads(files["MVBench_240727004726_result_final.json"])
    assert final["Avg"] == 85.71428571428571
    paths = write_files(tmp_path, files)
    assert MVBENCH.read_answers(paths, questions) == answers
    short = {**record, "question": "Question: What came last?\nOptions:\n(A) No\n(B) Yes\n(C) No"}
    paths = write_files(tmp_path, {"a.json": json.dumps([short])})
    assert MVBENCH.read_answers(paths, questions) == {questions[1].id: "C."}
    other = write_files(tmp_path, {"b.json": json.dumps([{**record, "gt": "(A) No"}])})
    with pytest.raises(DatasetError, match=r"b\.json, record 0: fits no question"):
        MVBENCH.read_answers(other, questions)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"start": 0.5', '"begin": 0.5', r"record 0: has no \"start\""),
        ('"start": 0.5', '"start": "a"', r"record 0: start and end are 'a', 1.5, want seconds"),
        ('"candidates"', '"choices"', r"record 0: has no \"candidates\""),
    ],
)
def test_unfit_data(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_mvbench(tmp_path)
    path = tmp_path / "data/MVBench/json/action_sequence.json"
    path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    with pytest.raises(DatasetError, match=message):
        questions_of(MVBENCH, tmp_path)


@given(st.integers(0, 4), st.text(max_size=10))
def test_the_right_letter_matches(number: int, text: str) -> None:
    letter = chr(ord("A") + number)
    truth = f"({letter}) {text}"
    for reply in (letter, letter.lower(), f"({letter})", f"{letter}.", f"Answer: {letter}", truth):
        assert is_match(reply, truth)
