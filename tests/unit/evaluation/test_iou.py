"""Boxes: read, matched and compared, worked out by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.evaluation.metrics.iou import (
    Box1000,
    BoxScore,
    best_sum,
    boxes_overlap,
    compare_boxes,
    iou,
    parse_boxes,
)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<ref>red star</ref><box>[[10, 20, 300, 1000]]</box>", [(10, 20, 300, 1000)]),
        ("<box>[[1, 2, 3, 4], [5,6,7,8]]</box>", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("<box>[[1, 2, 3]]</box>", []),
        ("[1, 2, 3, 4] [5,6,7,8]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[[9, 9, 9, 9]] <box>[[1, 2, 3, 4]]</box>", [(1, 2, 3, 4)]),
        ("<box>[[1, 2, 3, 4]]</box> and <box>[[0, 0, 9, 9]]</box>", [(1, 2, 3, 4), (0, 0, 9, 9)]),
        ("[0.1, 0.25, 0.5, 1]", [(100, 250, 500, 1000)]),
        ("[0, 0, 1, 1]", [(0, 0, 1, 1)]),
        ("[1.5, 2, 3, 4.]", [(1.5, 2, 3, 4)]),
        ("[-1, 2, 3, 4]", []),
        ("<box>[[0, 0, 100", []),
        ("no box", []),
        ("", []),
    ],
)
def test_boxes_are_read(text: str, boxes: list[Box1000]) -> None:
    assert parse_boxes(text) == boxes


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # touching
        ((10, 10, 0, 0), (0, 0, 10, 10), 0.0),  # inside out
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((5, 5, 5, 5), (5, 5, 5, 5), 0.0),  # empty
    ],
)
def test_iou(a: Box1000, b: Box1000, expected: float) -> None:
    assert iou(a, b) == pytest.approx(expected)


def test_boxes_are_the_same_from_one_half_on() -> None:
    assert boxes_overlap((0, 0, 100, 50), (0, 0, 100, 100))
    assert not boxes_overlap((0, 0, 100, 49), (0, 0, 100, 100))


LEFT, RIGHT, HALF = (0, 0, 100, 100), (500, 0, 600, 100), (0, 0, 100, 50)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ([LEFT], [LEFT], BoxScore(1.0, True)),
        ([HALF], [LEFT], BoxScore(0.5, True)),
        ([(0, 0, 100, 49)], [LEFT], BoxScore(0.49, False)),
        ([RIGHT, LEFT], [LEFT, RIGHT], BoxScore(1.0, True)),  # order does not matter
        ([LEFT, LEFT], [LEFT], BoxScore(0.5, False)),  # one too many
        ([LEFT], [LEFT, RIGHT], BoxScore(0.5, False)),  # one too few
        ([LEFT, LEFT], [LEFT, RIGHT], BoxScore(0.5, False)),  # one twice
        ([], [LEFT], BoxScore(0.0, False)),
        ([], [], BoxScore(0.0, False)),
    ],
)
def test_boxes_are_matched(answer: list[Box1000], truth: list[Box1000], expected: BoxScore) -> None:
    assert compare_boxes(answer, truth) == expected


def test_the_verdict_does_not_depend_on_the_best_pair() -> None:
    # The closest pair alone would leave the other two apart.
    first, second = (0, 0, 100, 100), (30, 0, 130, 100)
    near_both, near_first = (20, 0, 120, 100), (-20, 0, 80, 100)
    assert iou(near_both, second) > iou(near_both, first) > 0.5
    assert compare_boxes([near_both, near_first], [second, first]).all_hit


_WEIGHTS = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=width, max_size=width),
        min_size=1,
        max_size=4,
    )
)


@given(_WEIGHTS)
def test_the_best_matching_is_the_best_of_all(weights: list[list[float]]) -> None:
    wide = weights if len(weights) <= len(weights[0]) else list(zip(*weights, strict=True))
    orders = itertools.permutations(range(len(wide[0])), len(wide))
    best = max(sum(row[j] for row, j in zip(wide, order, strict=True)) for order in orders)
    assert best_sum(weights) == best


def test_nothing_to_match() -> None:
    assert best_sum([]) == best_sum([[]]) == 0.0


_SIDE = st.integers(0, 1000)
_BOX = st.tuples(_SIDE, _SIDE, _SIDE, _SIDE)


@given(st.lists(_BOX, max_size=4), st.lists(_BOX, min_size=1, max_size=4))
def test_scores_are_bounded_and_blind_to_order(given_boxes, wanted) -> None:  # type: ignore[no-untyped-def]
    score = compare_boxes(given_boxes, wanted)
    assert 0 <= score.mean_iou <= 1
    again = compare_boxes(given_boxes[::-1], wanted[::-1])
    assert again.all_hit == score.all_hit
    assert again.mean_iou == pytest.approx(score.mean_iou)
