from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.metrics.tiny_lvlm import is_hit
from internvl_chat.evaluation.metrics.vqa_accuracy import normalize_words
from internvl_chat.evaluation.scoring import score_files
from internvl_chat.evaluation.task import DataRoot
from internvl_chat.evaluation.tasks.tiny_lvlm import GROUPS, TINY_LVLM
from tests.support.evaluation.asking import (
    answered,
    export_of,
    questions_of,
    score_of,
    write_files,
)
from tests.support.evaluation.choice import write_tiny_lvlm

REPLIES = [
    "The U.S.",  # us: 1
    "y",  # x: 0
    "no cat",  # no: 1
    "No.",  # yes: 0
    "",  # nothing is left of "the", and no word here: 0
    "a red-hot car",  # red hot: 1
    "We are OPEN now",  # open: 1
    "Red!",  # red: 1
    "10,000 people",  # 10000: 1
    "Yes, it is.",  # yes: 1
    "two dogs",  # 2: 1
]
PRINTED = """\
Evaluating updated_datasets ...
Visual_Knowledge_Acquisition: 0.5
Object_Hallucination: 0.5
Visual_Commonsense: 0.5
Visual_Perception: 1.0
Visual_Reasoning: 1.0
Overall: 3.5
"""


@pytest.mark.parametrize(
    ("answer", "truth", "hit"),
    [
        ("Yes, it is.", "yes", True),
        ("two dogs", "2", True),
        ("10,000 men", "10000", True),
        ("a red-hot car", "red hot", True),
        ("cat", "concatenate", False),
        ("no", "not", False),
        ("U.S.", "us", True),
        ("3.5", "3", True),
        ("the", "a", False),
        ("word", "a", True),  # nothing is left of the truth
    ],
)
def test_vectors(answer: str, truth: str, hit: bool) -> None:
    assert is_hit(answer, [truth]) is hit
    assert is_hit(answer, ["never there", truth]) is hit


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("a.b 3.5 5. .7 x.", "ab 3.5 5 .7 x"),
        ("One-two", "1 2"),
        ("a/b", "b"),
        ("x / y", "x y"),
        ("it-s", "it s"),
        ("it-s 1,000", "its 1000"),  # a comma in a number: every mark vanishes
        ("What's up?", "what's up"),
        ("dont", "don't"),
        ("\tThe\ncat ", "cat"),
        ("none", "0"),
        ("." * 33, "."),
    ],
)
def test_normalize(text: str, result: str) -> None:
    assert normalize_words(text) == result


def test_prompts(tmp_path: Path) -> None:
    write_tiny_lvlm(tmp_path)
    questions = questions_of(TINY_LVLM, tmp_path)
    assert [one.id for one in questions][:4] == [
        "Visual_Knowledge_Acquisition/0",
        "Visual_Knowledge_Acquisition/1",
        "Object_Hallucination/0",
        "Object_Hallucination/1",
    ]
    assert questions[0].prompt == ("Which word? Answer the question using a single word or phrase.")
    assert all(one.images[0].open().size == (12, 8) for one in questions)
    assert TINY_LVLM.generation.max_new_tokens == 30


def test_scripted_answers(tmp_path: Path) -> None:
    write_tiny_lvlm(tmp_path)
    questions = questions_of(TINY_LVLM, tmp_path)
    score = score_of(TINY_LVLM, questions, answered(questions, REPLIES))
    assert score.printed == PRINTED
    assert score.metrics["Overall"] == 3.5
    assert list(score.per_sample.values()) == [1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1]


def test_groups_are_printed_in_the_order_of_the_answer_file(tmp_path: Path) -> None:
    write_tiny_lvlm(tmp_path)
    root = DataRoot(folder=tmp_path, lmu_data=tmp_path)
    questions = questions_of(TINY_LVLM, tmp_path)
    (content,) = export_of(TINY_LVLM, questions, answered(questions, REPLIES)).values()
    first, *lines, last = PRINTED.splitlines()
    for records in (json.loads(content), json.loads(content)[::-1]):
        paths = write_files(tmp_path, {"a.json": json.dumps(records)})
        report, missing = score_files(TINY_LVLM, root, paths)
        assert report.scores["2024"].printed.splitlines() == [first, *lines, last]
        assert not missing
        assert report.scores["2024"].per_sample.keys() == {one.id for one in questions}
        lines.reverse()


def test_files_written_and_read(tmp_path: Path) -> None:
    write_tiny_lvlm(tmp_path)
    questions = questions_of(TINY_LVLM, tmp_path)
    answers = answered(questions, REPLIES)
    files = export_of(TINY_LVLM, questions, answers)
    assert list(files) == ["updated_datasets_240727004726.json"]
    records = json.loads(files["updated_datasets_240727004726.json"])
    assert records[6] == {
        "question": questions[6].prompt,
        "answer": "We are OPEN now",
        "gt_answers": ["open", "we are open"],
        "image_path": "data/tiny_lvlm/updated_datasets/Visual_Perception/a.png",
        "task_type": "Visual_Perception",
    }
    assert TINY_LVLM.read_answers(write_files(tmp_path, files), questions) == answers
    # Two questions are about the same image: their text tells them apart.
    mixed = write_files(tmp_path, {"mixed.json": json.dumps(records[::-1])})
    assert TINY_LVLM.read_answers(mixed, questions) == answers
    plain = [{**record, "question": record["question"].split("? ")[0] + "?"} for record in records]
    bare = write_files(tmp_path, {"bare.json": json.dumps(plain)})
    assert TINY_LVLM.read_answers(bare, questions) == answers
    twice = write_files(tmp_path, {"twice.json": json.dumps(records + records[:1])})
    with pytest.raises(DatasetError, match=r"twice\.json, record 11: fits no question, or one"):
        TINY_LVLM.read_answers(twice, questions)


def test_unfit_data(tmp_path: Path) -> None:
    write_tiny_lvlm(tmp_path)
    path = tmp_path / "data/tiny_lvlm/updated_datasets" / GROUPS[1] / "dataset.json"
    path.write_text("{}", "utf-8")
    with pytest.raises(DatasetError, match=r"Hallucination/dataset\.json: is no JSON list"):
        questions_of(TINY_LVLM, tmp_path)
    path.write_text('[{"question": "A?", "gt_answers": "b"}]', "utf-8")
    with pytest.raises(DatasetError, match=r"dataset\.json, record 0: has no \"image_path\""):
        questions_of(TINY_LVLM, tmp_path)
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        questions_of(TINY_LVLM, tmp_path)


@given(st.from_regex(r"[b-z]{2,8}( [b-z]{2,8}){0,3}", fullmatch=True))
def test_an_answer_holds_itself(text: str) -> None:
    assert is_hit(f"It is {text}, I think", [text])
    assert is_hit(text, [text.upper()])


@given(st.text(), st.text())
def test_any_text_is_read(answer: str, truth: str) -> None:
    assert is_hit(answer, [truth]) in (True, False)
