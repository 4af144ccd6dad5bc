"""The guide's printed results, character by character, from the counts that its numbers imply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.task import Question, Score, ScoreInput

MME_COUNTS = {
    # task: lines, right ones, images with two right ones
    "existence": (60, 58, 28),
    "count": (60, 51, 21),
    "position": (60, 55, 26),
    "color": (60, 56, 26),
    "posters": (294, 279, 132),
    "celebrity": (340, 313, 144),
    "scene": (400, 342, 143),
    "landmark": (400, 352, 152),
    "artwork": (400, 291, 91),
    "OCR": (40, 28, 8),
    "commonsense_reasoning": (140, 118, 50),
    "numerical_calculation": (40, 31, 11),
    "text_translation": (40, 38, 18),
    "code_reasoning": (40, 24, 5),
}
MME_TEXT = """\
=========== Perception ===========
total score: 1614.0419167667067\x20

\t existence  score: 190.0
\t count  score: 155.0
\t position  score: 178.33333333333331
\t color  score: 180.0
\t posters  score: 184.69387755102042
\t celebrity  score: 176.76470588235293
\t scene  score: 157.0
\t landmark  score: 164.0
\t artwork  score: 118.25
\t OCR  score: 110.0


=========== Cognition ===========
total score: 558.2142857142858\x20

\t commonsense_reasoning  score: 155.71428571428572
\t numerical_calculation  score: 132.5
\t text_translation  score: 185.0
\t code_reasoning  score: 85.0
"""
POPE_COUNTS = {
    # category: TP, FP, TN, FN
    "random": (1230, 18, 1392, 270),
    "popular": (1230, 42, 1458, 270),
    "adversarial": (1230, 77, 1423, 270),
}
POPE_TEXT = """\
Evaluating pope ...
Category: random, # samples: 2910
TP\tFP\tTN\tFN\t
1230\t18\t1392\t270
Accuracy: 0.9010309278350516
Precision: 0.9855769230769231
Recall: 0.82
F1 score: 0.8951965065502183
Yes ratio: 0.4288659793814433
0.895, 0.901, 0.986, 0.820, 0.429
====================================
Category: popular, # samples: 3000
TP\tFP\tTN\tFN\t
1230\t42\t1458\t270
Accuracy: 0.896
Precision: 0.9669811320754716
Recall: 0.82
F1 score: 0.8874458874458875
Yes ratio: 0.424
0.887, 0.896, 0.967, 0.820, 0.424
====================================
Category: adversarial, # samples: 3000
TP\tFP\tTN\tFN\t
1230\t77\t1423\t270
Accuracy: 0.8843333333333333
Precision: 0.9410864575363428
Recall: 0.82
F1 score: 0.8763804773779836
Yes ratio: 0.43566666666666665
0.876, 0.884, 0.941, 0.820, 0.436
====================================
"""
SEED_COUNTS = {
    # type: right answers, questions; in the order of their numbers
    "Scene Understanding": (2534, 3158),
    "Instance Identity": (1463, 1831),
    "Instance Location": (3624, 4649),
    "Instance Attributes": (698, 978),
    "Instances Counting": (1768, 2447),
    "Spatial Relation": (414, 657),
    "Instance Interaction": (75, 97),
    "Visual Reasoning": (263, 331),
    "Text Understanding": (41, 86),
    "Action Recognition": (741, 1509),
    "Action Prediction": (512, 1225),
    "Procedure Understanding": (538, 1023),
}
SEED_TEXT = """\
Data type Scene Understanding: 80.24%
Data type Instance Identity: 79.90%
Data type Instance Location: 77.95%
Data type Instance Attributes: 71.37%
Data type Instances Counting: 72.25%
Data type Spatial Relation: 63.01%
Data type Instance Interaction: 77.32%
Data type Visual Reasoning: 79.46%
Data type Text Understanding: 47.67%
Data type Action Recognition: 49.11%
Data type Action Prediction: 41.80%
Data type Procedure Understanding: 52.59%
Total accuracy: 70.43%
Image accuracy: 76.44%
Video accuracy: 47.67%
"""
MVBENCH_VALUES = {
    "Action Sequence": 54.50000000000001,
    "Action Prediction": 54.0,
    "Action Antonym": 48.5,
    "Fine-grained Action": 39.0,
    "Unexpected Action": 79.0,
    "Object Existence": 48.5,
    "Object Interaction": 62.5,
    "Object Shuffle": 39.5,
    "Moving Direction": 35.5,
    "Action Localization": 32.5,
    "Scene Transition": 88.0,
    "Action Count": 42.0,
    "Moving Count": 38.0,
    "Moving Attribute": 60.5,
    "State Change": 47.0,
    "Fine-grained Pose": 53.5,
    "Character Order": 68.5,
    "Egocentric Navigation": 28.999999999999996,
    "Episodic Reasoning": 63.5,
    "Counterfactual Inference": 36.0,
    "Avg": 50.975,
}
Rows = Iterator[tuple[dict[str, Any], str]]
"""What scoring needs of a question, and its answer."""


def mme() -> Rows:
    for task, (lines, right, pairs) in MME_COUNTS.items():
        for number in range(lines // 2):
            says = ("Yes", "No") if number < pairs else ("Yes", "Yes")
            if number >= right - pairs:
                says = ("No", "Yes")
            for truth, said in zip(("Yes", "No"), says, strict=True):
                image = f"{number:04d}.jpg"
                yield {"task": task, "image": image, "text": "?", "truth": truth}, said


def pope() -> Rows:
    for category, (tp, fp, tn, fn) in POPE_COUNTS.items():
        for num, is_yes, said in ((tp, True, "Yes"), (fp, False, "Yes"), (tn, False, "No")):
            yield from [({"category": category, "is_yes": is_yes}, said)] * num
        yield from [({"category": category, "is_yes": True}, "No, there is none.")] * fn


def seed() -> Rows:
    names = {name: number for number, name in enumerate(SEED_COUNTS, start=1)}
    common = {"answer": "A", "truth": "A", "type_names": names, "num_labels": 19242}
    for name, (right, num) in SEED_COUNTS.items():
        record = {**common, "type_id": names[name]}
        yield from [(record, "A")] * right + [(record, "B. two")] * (num - right)


def mvbench() -> Rows:
    for name, percent in MVBENCH_VALUES.items():
        record = {"task": name, "candidates": ["x", "y"], "truth": "(A) x"}
        right = 0 if name == "Avg" else round(2 * percent)
        rows = [(record, "(A) x")] * right + [(record, "(B)")] * (200 - right)
        yield from rows if name != "Avg" else []


def scored(task: str, rows: Rows) -> Score:
    questions, answers = [], {}
    for number, (record, answer) in enumerate(rows):
        questions.append(Question(id=str(number), prompt="?", record=record))
        answers[str(number)] = answer
    score = TASKS[task].score
    assert score is not None
    return score(ScoreInput(questions=questions, answers=answers, rules="2024"))


@pytest.mark.parametrize(
    ("task", "rows", "text"),
    [
        ("mme", mme(), MME_TEXT),
        ("pope", pope(), POPE_TEXT),
        (
            "seed",
            seed(),
            "Evaluating SEEDv1 ...\nAcc@1: 0.7042965927408148\nlength: 19242\n"
            f"Accuracy for each data type:\n{SEED_TEXT}",
        ),
        ("mvbench", mvbench(), f"Evaluating MVBench ...\n{MVBENCH_VALUES}\n"),
    ],
)
def test_the_guides_text(task: str, rows: Rows, text: str) -> None:
    assert scored(task, rows).printed == text


@pytest.mark.parametrize(
    ("task", "record", "metric"),
    [
        ("mvbench", {"task": "State Change", "candidates": ["x"], "truth": "(A) x"}, "Avg"),
        ("pope", {"category": "random", "is_yes": True}, "random/accuracy"),
    ],
)
def test_no_answer_is_wrong_where_an_empty_one_is_right(
    task: str, record: Mapping[str, Any], metric: str
) -> None:
    score = TASKS[task].score
    assert score is not None
    question = Question(id="7", prompt="?", record=record)
    given = ScoreInput(questions=[question], answers={"7": ""}, rules="2024")
    empty, missing = score(given), score(replace(given, unanswered=frozenset({"7"})))
    assert (empty.per_sample, missing.per_sample) == ({"7": 1.0}, {"7": 0.0})
    assert empty.metrics[metric]
    assert missing.metrics[metric] == 0.0
