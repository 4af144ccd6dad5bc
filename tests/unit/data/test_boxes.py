from __future__ import annotations

import pytest

from internvl_chat.data.boxes import (
    pad_to_square,
    pixel_to_1000,
    thousand_to_unit,
    unit_to_1000,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat [0.1, 0.25, 0.5, 1.0].", "a cat <box>[[100, 250, 500, 1000]]</box>."),
        ("[0.1,0.2,0.3,0.4]", "<box>[[100, 200, 300, 400]]</box>"),
        (
            "[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]",
            "<box>[[100, 200, 300, 400], [500, 600, 700, 800]]</box>",
        ),
        (
            "[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]",
            "<box>[[100, 200, 300, 400]]</box>, <box>[[500, 600, 700, 800]]</box>",
        ),
        ("位于[0.1, 0.2, 0.3, 0.4]处", "位于<box>[[100, 200, 300, 400]]</box>处"),
        ("man[0.1, 0.2, 0.3, 0.4]", "man<box>[[100, 200, 300, 400]]</box>"),
        ("[0.0, 0.0, 1.0, 1.0]", "<box>[[0, 0, 1000, 1000]]</box>"),
        ("[0.1236, 0.2, 0.3, 0.4]", "<box>[[124, 200, 300, 400]]</box>"),
    ],
)
def test_unit_to_1000(text: str, expected: str) -> None:
    assert unit_to_1000(text).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "[0.5]",
        "[0, 1, 1, 0]",
        "[0.1, 0.2, 0.3]",
        "[0.1, 0.2, 0.3, 0.4, 0.5]",
        "see [1, 2, 3, 4] and [12]",
        "[0.1, 0.2, 0.3, 1.2]",
        "[-0.1, 0.2, 0.3, 0.4]",
        r"$x \in \left[0.1, 0.2, 0.3, 0.4\right]$",
        "v2[0.1, 0.2, 0.3, 0.4]",
        "rows][0.1, 0.2, 0.3, 0.4]",
        "[2024-01-02]",
        "[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6]]",
        "<box>[[100, 200, 300, 400]]</box>",
        "(0.1, 0.2, 0.3, 0.4)",
    ],
)
def test_what_is_no_unit_box_stays(text: str) -> None:
    assert unit_to_1000(text).text == text


def test_corners_out_of_order_are_reported() -> None:
    converted = unit_to_1000("[0.5, 0.2, 0.3, 0.4]")
    assert converted.text == "<box>[[500, 200, 300, 400]]</box>"
    assert len(converted.problems) == 1
    assert "want x1 < x2 and y1 < y2" in converted.problems[0]


def test_pixels() -> None:
    assert pixel_to_1000("[64, 48, 320, 240]", (640, 480)).text == (
        "<box>[[100, 100, 500, 500]]</box>"
    )
    assert pixel_to_1000("[64, 48, 641, 240]", (640, 480)).text == "[64, 48, 641, 240]"
    assert pixel_to_1000("[1, 2]", (640, 480)).text == "[1, 2]"


def test_back_to_units() -> None:
    text = (
        "a <ref>cat</ref><box>[[100, 250, 500, 1000]]</box> and "
        "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>"
    )
    assert thousand_to_unit(text).text == (
        "a <ref>cat</ref>[0.100, 0.250, 0.500, 1.000] and "
        "[[0.001, 0.002, 0.003, 0.004], [0.005, 0.006, 0.007, 0.008]]"
    )
    assert thousand_to_unit("<box>[[1, 2, 3, 4000]]</box>").text == "<box>[[1, 2, 3, 4000]]</box>"


def test_there_and_back_is_the_identity() -> None:
    for value in range(0, 1000):
        text = f"<box>[[{value}, 0, {value + 1}, 1000]]</box>"
        assert unit_to_1000(thousand_to_unit(text).text).text == text


def test_padding_moves_boxes() -> None:
    # 200 x 100 becomes 200 x 200 with 50 rows above.
    assert pad_to_square((0.0, 0.0, 1.0, 1.0), (200, 100)) == (0.0, 0.25, 1.0, 0.75)
    assert pad_to_square((0.5, 0.5, 1.0, 1.0), (100, 200)) == (0.5, 0.5, 0.75, 1.0)
    converted = unit_to_1000("[0.0, 0.0, 1.0, 1.0]", pad_size=(200, 100))
    assert converted.text == "<box>[[0, 250, 1000, 750]]</box>"
