"""Scores worked out by hand."""

import pytest

from examples.quickstart.scoring import (
    Reply,
    accuracy_by_dataset,
    is_right,
)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("7", "7", True),
        (" 7. ", "7", True),
        ("Red  Star", "red star", True),
        ("TOUR\n12", "TOUR 12", True),
        ("17", "7", False),
        ("7 7", "7", False),
        ("", "7", False),
        ("seven", "7", False),
    ],
)
def test_words_are_equal_but_for_case_space_and_stop(answer: str, truth: str, right: bool) -> None:
    assert is_right(answer, truth) is right


def test_a_box_is_right_from_half_overlap() -> None:
    truth = "<ref>red star</ref><box>[[0, 0, 100, 100]]</box>"
    assert is_right("<box>[[0, 0, 100, 50]]</box>", truth)  # exactly 0.5
    assert not is_right("<box>[[0, 0, 100, 49]]</box>", truth)
    assert not is_right("red star", truth)
    assert not is_right("<box>[[0, 0, 100, 100], [0, 0, 100, 100]]</box>", truth)
    assert not is_right("<box>[[0, 0, 100", truth)


def test_boxes_may_come_in_any_order() -> None:
    truth = "<box>[[0, 0, 100, 100], [500, 0, 600, 100]]</box>"
    assert is_right("<box>[[500, 0, 600, 100]]</box> <box>[[0, 0, 100, 100]]</box>", truth)
    assert not is_right("<box>[[0, 0, 100, 100], [0, 0, 100, 100]]</box>", truth)


def test_accuracy_is_the_share_of_right_replies() -> None:
    def reply(dataset: str, answer: str) -> Reply:
        return Reply(
            dataset=dataset, identity="", images=(), question="?", truth="1", answer=answer
        )

    replies = [reply("b", "1"), reply("a", "2"), reply("b", "1"), reply("b", "3")]
    assert accuracy_by_dataset(replies) == {"b": 2 / 3, "a": 0.0}
    assert list(accuracy_by_dataset(replies)) == ["b", "a"]
