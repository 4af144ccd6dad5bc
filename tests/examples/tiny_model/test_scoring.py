"""Scores worked out by hand."""

import pytest

from examples.tiny_model.scoring import (
    box_hit,
    clean,
    exact_match,
    group_accuracies,
    iou,
    is_right,
    parse_boxes,
    same_number,
)


def test_clean_drops_case_spaces_and_the_full_stop() -> None:
    assert clean("  Top   LEFT.\n") == "top left"


@pytest.mark.parametrize(
    ("reply", "truth", "right"),
    [("Red", "red", True), ("red.", "red", True), ("", "red", False), ("red star", "red", False)],
)
def test_exact_match(reply: str, truth: str, right: bool) -> None:
    assert exact_match(reply, truth) is right


@pytest.mark.parametrize(
    ("reply", "truth", "right"),
    [("3", "3", True), ("There are 3.", "3", True), ("13", "3", False), ("", "3", False)],
)
def test_same_number(reply: str, truth: str, right: bool) -> None:
    assert same_number(reply, truth) is right


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # touching
        ((10, 10, 0, 0), (0, 0, 10, 10), 0.0),  # inside out
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
    ],
)
def test_iou(a: tuple[int, ...], b: tuple[int, ...], expected: float) -> None:
    assert iou(a, b) == pytest.approx(expected)  # type: ignore[arg-type]


def test_a_box_is_parsed_out_of_marked_text() -> None:
    text = "<ref>red star</ref><box>[[10, 20, 300, 1000]]</box>"
    assert parse_boxes(text) == [(10.0, 20.0, 300.0, 1000.0)]
    assert parse_boxes("<box>[[10, 20, 300]]</box>") == []
    assert parse_boxes("[1, 2, 3, 4] [5,6,7,8]") == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_a_box_hits_from_one_half_on() -> None:
    truth = "<box>[[0, 0, 100, 100]]</box>"
    assert box_hit("<box>[[0, 0, 100, 50]]</box>", truth)
    assert not box_hit("<box>[[0, 0, 100, 49]]</box>", truth)
    assert not box_hit("no box", truth)


def test_scorer_follows_the_skill() -> None:
    assert is_right("count", "3 shapes", "3")
    assert not is_right("color", "3 shapes", "3")


def test_groups_weigh_each_question_the_same() -> None:
    results = {"chart_value": (1, 4), "chart_count": (1, 1), "color": (1, 2)}
    assert group_accuracies(results) == {"color": 0.5, "charts": 0.4}
