"""The metrics of own data, one answer at a time, worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.evaluation.metrics.own import (
    OWN_METRICS,
    VALUES,
    Compared,
    OwnMetric,
    confusion,
    options_in,
    read_grade,
    score_each,
    value_of_all,
)

QUESTION = "What is it?\nA. cat\nB. big dog\nAnswer with the option's letter."


def values(
    metric: OwnMetric, answer: str, *references: str, question: str = QUESTION
) -> Mapping[str, float]:
    one = Compared(question=question, references=references, answer=answer)
    return score_each(metric, [one], None)[0]


@pytest.mark.parametrize(
    ("metric", "answer", "references", "expected"),
    [
        ("exact", "Red.", ["green", "red"], 1),
        ("exact", "red star", ["red"], 0),
        ("relaxed", "95", ["100"], 1),  # 5 % of the truth, not of the answer
        ("relaxed", "94.9", ["100"], 0),
        ("relaxed", "5%", ["0.05"], 1),
        ("relaxed", "Blue", ["blue"], 1),
        ("relaxed", "7", ["3", "7"], 1),
        ("anls", "0.38", ["0.28"], 0.75),
        ("anls", "hello  world", ["Hello World"], 1),
        ("anls", "axyz", ["abcd"], 0),
        ("vqa", "The  two dogs.", ["2 dogs"], 1),
        ("vqa", "c", ["a", "b", "b", "c", "c", "c", "d", "d", "d", "d"], 0.9),
        ("choice", "(B)", ["B"], 1),
        ("choice", "The answer is B", ["B. big dog"], 1),
        ("choice", "a big dog", ["B"], 1),
        ("choice", "b", ["B"], 1),
        ("choice", "A cat or a big dog", ["B"], 0),
        ("choice", "", ["B"], 0),
        ("iou", "<box>[[0, 0, 100, 50]]</box>", ["<box>[[0, 0, 100, 100]]</box>"], 1),
        ("iou", "somewhere", ["<box>[[0, 0, 100, 100]]</box>"], 0),
        ("bleu", "the cat sat on the mat", ["the cat sat on the mat"], 100),
        ("rouge", "the cat", ["the cat sat"], 0.8),
    ],
)
def test_first_value(
    metric: OwnMetric, answer: str, references: list[str], expected: float
) -> None:
    found = values(metric, answer, *references)
    assert found[VALUES[metric][0]] == pytest.approx(expected)


def test_metrics_that_do_not_apply_give_no_value() -> None:
    assert values("iou", "<box>[[0, 0, 100, 50]]</box>", "here") == {}
    assert values("choice", "A", "neither of them") == {}
    assert values("judge", "A", "B") == {}


def test_a_mean_counts_the_questions_to_which_a_metric_applies() -> None:
    samples = [Compared(question="", references=("a",), answer="a")] * 3
    each = [{"iou": 1.0}, {}, {"iou": 0.5}]
    assert value_of_all("iou", samples, each, tokenize="") == 0.75
    assert value_of_all("iou", samples[:1], [{}], tokenize="") is None
    assert value_of_all("bleu", [], [], tokenize="13a") is None


@pytest.mark.parametrize("line", ["A. cat", "A) cat", "(A) cat", "A: cat", "  A.  cat ", "A、cat"])
def test_options_are_lines_with_a_letter(line: str) -> None:
    assert options_in(f"What?\n{line}\nB. dog") == {"A": "cat", "B": "dog"}
    assert options_in("A cat sat.\nWhat is B?") == {}


def test_without_listed_options_any_letter_is_one() -> None:
    assert values("choice", "C.", "C", question="Which panel?") == {"choice": 1.0}


def compared(*pairs: tuple[str, str]) -> list[Compared]:
    return [Compared(question=QUESTION, references=(t,), answer=a) for t, a in pairs]


def test_exact_answers_stand_under_their_truth() -> None:
    samples = compared(("Red", "red."), ("red", "Blue"), ("blue", "blue"))
    table = confusion("exact", samples)
    assert table is not None
    assert (table.truths, table.answers) == (("red", "blue"), ("red", "blue"))
    assert table.counts == ((1, 1), (0, 1))
    assert confusion("exact", compared(("a", "a"), ("b", "b"))) is None  # free text


def test_choices_stand_under_their_letter() -> None:
    table = confusion("choice", compared(("A", "A."), ("A", "big dog"), ("B", "hm")))
    assert table is not None
    assert table.lines() == [
        "truth \\ answer  A  B  (no letter)",
        "A               1  1            0",
        "B               0  0            1",
    ]


class _Judge:
    """Says what it is told to, a reply a request."""

    name = "scripted"

    def __init__(self, *replies: str | None) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, dict[str, str], float]] = []

    def ask(
        self, key: str, fields: Mapping[str, str], *, temperature: float, max_tokens: int
    ) -> str | None:
        self.asked.append((key, dict(fields), temperature))
        return self.replies.pop(0)


def test_a_judge_grades_and_is_asked_again_after_nonsense() -> None:
    judge = _Judge("0.8", "well", "1.0")
    samples = compared(("t", "a"), ("t", "b"))
    assert score_each("judge", samples, judge) == [{"judge": 0.8}, {"judge": 1.0}]
    key, fields, _ = judge.asked[0]
    assert (key, fields["ground_truth"], fields["prediction"]) == ("mmvet", "t", "a")
    assert [temperature for *_, temperature in judge.asked] == [0.0, 0.0, 0.5]


def test_a_judge_that_never_grades_leaves_no_value() -> None:
    assert score_each("judge", compared(("t", "a")), _Judge("no", None, "none")) == [{}]


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.7", 0.7),
        ("1", 1.0),
        ("1.0", 1.0),
        ("Score: 0.", 0.0),
        ("0", 0.0),
        ("10", None),
        ("2.5", None),
        ("1.5", None),
        ("", None),
        ("good", None),
    ],
)
def test_a_grade_goes_from_0_to_1(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


_TEXT = st.text(st.sampled_from("ab ABy1.5%[],<>\n"), max_size=12)


@pytest.mark.parametrize("metric", [name for name in OWN_METRICS if name != "judge"])
@given(answer=_TEXT, truth=_TEXT.filter(str.strip))
def test_scores_are_bounded_and_the_truth_is_right(
    metric: OwnMetric, answer: str, truth: str
) -> None:
    most = 100 if metric == "bleu" else 1
    assert all(0 <= value <= most for value in values(metric, answer, truth).values())
    if metric in ("exact", "relaxed", "anls", "vqa", "choice"):
        assert all(value == 1 for value in values(metric, truth, truth.strip()).values())
