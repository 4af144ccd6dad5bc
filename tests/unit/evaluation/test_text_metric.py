"""Equal texts and confusion tables, worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.evaluation.metrics.text import OTHER, Confusion, clean, exact_match, table_lines


def test_clean_drops_case_spaces_and_the_full_stop() -> None:
    assert clean("  Top   LEFT.\n") == "top left"
    assert clean("ten .") == "ten"
    assert clean("三只猫。") == "三只猫"


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("Red", "red", True),
        ("red.", "red", True),
        (" 7. ", "7", True),
        ("Red  Star", "red star", True),
        ("TOUR\n12", "TOUR 12", True),
        ("STRASSE", "straße", True),
        ("", "red", False),
        ("red star", "red", False),
        ("17", "7", False),
        ("7 7", "7", False),
        ("seven", "7", False),
        ("50%", "50", False),
        ("the cat", "cat", False),
        ("", "", True),
    ],
)
def test_exact_match(answer: str, truth: str, right: bool) -> None:
    assert exact_match(answer, truth) is right


def test_confusion_counts_the_most_frequent() -> None:
    pairs = [("7", "7"), ("7", "7"), ("7", "1"), ("1", "1"), ("1", "x"), ("9", "y"), ("9", "")]
    table = Confusion.of(pairs, most=2)
    assert table.truths == ("7", "1", OTHER)
    assert table.answers == ("7", "1", "", "x", OTHER)
    assert table.counts == ((2, 1, 0, 0, 0), (0, 1, 0, 1, 0), (0, 0, 1, 0, 1))
    assert table.lines() == [
        "truth \\ answer  7  1  (empty)  x  (other)",
        "7               2  1        0  0        0",
        "1               0  1        0  1        0",
        "(other)         0  0        1  0        1",
    ]


def test_confusion_shortens_labels_and_breaks_no_line() -> None:
    long = "a long answer\nthat goes on"
    assert Confusion.of([(long, long)]).lines() == [
        "truth \\ answer      a long answer tha…",
        "a long answer tha…                   1",
    ]


_LABELS = st.sampled_from(["a", "b", "c", "d", ""])


@given(st.lists(st.tuples(_LABELS, _LABELS), min_size=1), st.randoms(use_true_random=False))
def test_confusion_counts_each_question_once_in_any_order(pairs, random) -> None:  # type: ignore[no-untyped-def]
    table = Confusion.of(pairs, most=2)
    assert sum(map(sum, table.counts)) == len(pairs)
    mixed = list(pairs)
    random.shuffle(mixed)
    assert Confusion.of(mixed, most=2) == table


def test_a_table_has_its_first_column_on_the_left() -> None:
    assert table_lines([["", "n"], ["all", "12"]]) == ["      n", "all  12"]
