"""Scores worked out by hand."""

import pytest

from examples.tiny_model.scoring import boxes_hit, group_accuracies, is_right, same_number


@pytest.mark.parametrize(
    ("reply", "truth", "right"),
    [("3", "3", True), ("There are 3.", "3", True), ("13", "3", False), ("", "3", False)],
)
def test_same_number(reply: str, truth: str, right: bool) -> None:
    assert same_number(reply, truth) is right


def test_a_boxes_hits_from_one_half_on() -> None:
    truth = "<box>[[0, 0, 100, 100]]</box>"
    assert boxes_hit("<box>[[0, 0, 100, 50]]</box>", truth)
    assert not boxes_hit("<box>[[0, 0, 100, 49]]</box>", truth)
    assert not boxes_hit("no box", truth)


def test_scorer_follows_the_skill() -> None:
    assert is_right("count", "3 shapes", "3")
    assert not is_right("color", "3 shapes", "3")


def test_groups_weigh_each_question_the_same() -> None:
    results = {"chart_value": (1, 4), "chart_count": (1, 1), "color": (1, 2)}
    assert group_accuracies(results) == {"color": 0.5, "charts": 0.4}
