"""``official`` where the originals' reading of an answer moves the score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.evaluation.metrics.boxes_iou import exact_iou, iou, read_box, read_ordered_box
from internvl_chat.evaluation.metrics.first_verdict import first_verdict
from internvl_chat.evaluation.metrics.mme import TaskCount
from internvl_chat.evaluation.metrics.tiny_lvlm import holds_truth, is_hit
from internvl_chat.evaluation.task import Question, Rules, ScoreInput
from internvl_chat.evaluation.tasks.mme import MME
from internvl_chat.evaluation.tasks.pope import POPE
from internvl_chat.evaluation.tasks.refcoco import REFCOCO
from tests.support.evaluation.asking import questions_of, score_of
from tests.support.evaluation.pope import write_pope


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", True),
        ("NO", False),
        ("no.", False),
        ("  **Yes**, there is no doubt", True),
        ("No, yes would be wrong", False),
        ("There is not.", False),
        ("There isn't one", False),
        ("There isn’t one", False),
        ("It's true", True),
        ("I know nothing", None),  # the original's MME reads "know" as no
        ("none", False),
        ("eyes", None),
        ("", None),
        ("是", None),  # MME's stored form is yes
    ],
)
def test_first_verdict(answer: str, verdict: bool | None) -> None:
    assert first_verdict(answer) is verdict


def test_pope(tmp_path: Path) -> None:
    """Answers of which the original makes a yes: empty ones, ``NO``, ``Not there.``"""
    write_pope(tmp_path, num_images=2)
    questions = questions_of(POPE, tmp_path)
    truth = {one.id: one.record["is_yes"] for one in questions}
    for answer, says in (("", None), ("NO", False), ("Not there.", False), ("Maybe", None)):
        answers = dict.fromkeys(truth, answer)
        strict = score_of(POPE, questions, answers, "official")
        assert strict.per_sample == {name: float(says is is_yes) for name, is_yes in truth.items()}
        loose = score_of(POPE, questions, answers, "2024")
        assert loose.per_sample == {name: float(is_yes) for name, is_yes in truth.items()}
    right = {name: "Yes" if is_yes else "No" for name, is_yes in truth.items()}
    for rules in POPE.rules:
        assert score_of(POPE, questions, right, rules).metrics["overall_f1"] == 100.0
    assert questions == questions_of(POPE, tmp_path, "official")


def mme(answers: list[str], rules: Rules) -> list[float]:
    questions = [
        Question(
            id=str(number),
            prompt="?",
            record={"task": "count", "image": "1.jpg", "text": "?", "truth": truth},
        )
        for number, truth in enumerate(("Yes", "No", "Yes", "No"))
    ]
    told = {str(number): text for number, text in enumerate(answers)}
    assert MME.score is not None
    score = MME.score(ScoreInput(questions=questions, answers=told, rules=rules))
    return [score.metrics["count"] or 0.0, *score.per_sample.values()]


def test_mme() -> None:
    answers = ["The answer is yes", "It is\tno", "  Yes", "Not known"]
    # The first and third begin with other characters, the second has a tab too many.
    assert mme(answers, "2024") == [pytest.approx(100 / 3), 0, 0, 0, 1]
    assert mme(answers, "official") == [200, 1, 1, 1, 1]
    assert mme(["是", "否", "True", "False"], "official")[0] == 200
    assert mme(["", "", "Yes", "Maybe"], "official") == [25, 0, 0, 1, 0]
    assert TaskCount.by_verdicts([("maybe", "yes")]).bad_truths == 1


@pytest.mark.parametrize(
    ("answer", "truth", "loose", "strict"),
    [
        ("the", "a", False, False),
        ("red car", "a", True, False),  # nothing is left of the truth: it is in every answer
        ("a red car", "a", True, True),
        ("1,000 red-hot irons", "red hot", False, True),  # a comma deletes all hyphens
        ("What? Red!", "what red", True, True),
        ("$5", "$5", False, True),
        ("cat", "concatenate", False, False),
        ("concatenate", "cat", False, False),
        ("Two dogs", "2", True, True),
        ("", "dog", False, False),
    ],
)
def test_tiny_lvlm(answer: str, truth: str, loose: bool, strict: bool) -> None:
    assert is_hit(answer, [truth]) is loose
    assert holds_truth(answer, [truth]) is strict


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("<box>[[100, 200, 300, 400]]</box>", (100, 100, 300, 200)),
        ("[300,400,100,200]", (100, 100, 300, 200)),  # corners the other way round
        ("[[0,0,1,2]]", (0, 0, 1, 1)),  # thousandths, however small
        ("[[0.1,0.2,0.3,0.4]]", (100, 100, 300, 200)),
        ("[[0.0, 0.0, 1.0, 1.0]]", (0, 0, 1000, 500)),
        ("[[1, 2, 3]]", (0, 0, 0, 0)),
        ("[[a,b,c,d]]", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_boxes(answer: str, box: tuple[float, ...]) -> None:
    assert read_ordered_box(answer, 1000, 500) == pytest.approx(box)


def test_refcoco() -> None:
    task = REFCOCO[1]
    question = Question(
        id="0",
        prompt="?",
        record={"split": "refcoco_val", "bbox": [10.0, 10.0, 30.0, 50.0], "hw": [1000, 1000]},
    )
    for answer, loose, strict in (
        ("[[10,10,30,50]]", 1, 1),
        ("[[30,50,10,10]]", 0, 1),
        ("[[10,10,30,20]]", 0, 0),
        ("no box", 0, 0),
    ):
        for rules, hit in (("2024", loose), ("official", strict)):
            score = score_of(task, [question], {"0": answer}, rules)  # type: ignore[arg-type]
            assert score.metrics == {"refcoco_val": hit}


numbers = st.integers(0, 1000)


@given(numbers, numbers, numbers, numbers, st.sampled_from([(640, 480), (1, 1), (333, 1000)]))
def test_the_overlap_is_the_originals_for_ordinary_boxes(
    x1: int, y1: int, x2: int, y2: int, size: tuple[int, int]
) -> None:
    answer = f"<box>[[{x1}, {y1}, {x2}, {y2}]]</box>"
    truth = [0.1 * size[0], 0.2 * size[1], 0.7 * size[0], 0.9 * size[1]]
    found = exact_iou(read_ordered_box(answer, *size), truth)
    assert 0 <= found <= 1
    if x1 < x2 and y1 < y2 and x1 + y1 + x2 + y2 >= 4:
        wanted = iou(read_box(answer, *size), np.array(truth, dtype=np.float32))
        assert found == pytest.approx(wanted, abs=1e-5)
