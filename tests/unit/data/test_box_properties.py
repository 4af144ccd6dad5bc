"""Rules of boxes in text that hold whatever the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.data.boxes import Converted, box_element, convert_boxes, tagged_boxes

words = st.text(st.characters(exclude_characters="[]<>", exclude_categories=["Cs"]), max_size=12)
thousandth = st.integers(0, 1000)
box = st.tuples(thousandth, thousandth, thousandth, thousandth)
element = st.lists(box, min_size=1, max_size=3).map(
    lambda boxes: f"<box>[{', '.join(str(list(one)) for one in boxes)}]</box>"
)
referred = st.builds(lambda name, boxes: f"<ref>{name}</ref>{boxes}", words, element)
tagged_text = st.lists(words | referred | element, max_size=6).map("".join)
debris = st.sampled_from(
    [
        *("[", "]", "<box>", "</box>", "[0.1, 0.2, 0.3, 0.4]", "[1, 2, 3, 4]", "[0.5]", "\\left"),
        *("[[", "]]", ", ", "[0.1, 0.2, 0.3, 1.2]", "[10, 20, 30, 40]", "[1, 2]", "7", "_"),
    ]
)
any_text = st.lists(words | referred | element | debris, max_size=10).map("".join)
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


def canonical(text: str) -> str:
    """The same boxes with a blank after each comma and two brackets."""
    return convert_boxes(text, "1000", "1000").text


@settings(max_examples=300, deadline=None)
@given(text=any_text, size=sizes, target=st.sampled_from(["unit", "pixel"]))
def test_from_1000_and_back_is_the_identity(text: str, size: tuple[int, int], target: str) -> None:
    there = convert_boxes(text, "1000", target, size=size)  # type: ignore[arg-type]
    if there.num_boxes:
        back = convert_boxes(there.text, target, "1000", size=size)  # type: ignore[arg-type]
        assert back.text == canonical(text)
    else:
        assert there.text == text


@settings(max_examples=200, deadline=None)
@given(boxes=st.lists(box, min_size=1, max_size=4), word=words)
def test_boxes_of_one_list_are_converted_and_come_back(
    boxes: list[tuple[int, int, int, int]], word: str
) -> None:
    text = f"{word} <box>[{', '.join(str(list(one)) for one in boxes)}]</box> {word}"
    there = convert_boxes(text, "1000", "unit")
    assert there.num_boxes == len(boxes)
    assert "<box>" not in there.text
    assert convert_boxes(there.text, "unit", "1000").text == text


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_units_are_converted_once_and_for_all(text: str) -> None:
    once = convert_boxes(text, "unit", "1000")
    assert convert_boxes(once.text, "unit", "1000").text == once.text
    # no list is merged with another, none is taken apart
    assert len(re.findall(r"<box>", once.text)) - text.count("<box>") <= once.num_boxes


@settings(max_examples=200, deadline=None)
@given(text=any_text, size=sizes)
def test_text_without_boxes_is_left_alone(text: str, size: tuple[int, int]) -> None:
    plain = text.replace("[", "(").replace("]", ")")
    for source in ("unit", "1000", "pixel"):
        for target in ("unit", "1000", "pixel"):
            got = convert_boxes(plain, source, target, size=size)  # type: ignore[arg-type]
            assert got == Converted(plain)


def test_a_box_that_is_never_closed_costs_no_second_look() -> None:
    text = "<box>[" * 100_000
    assert convert_boxes(text, "1000", "unit").text == text  # quadratic: hours


@pytest.mark.parametrize(
    ("text", "target", "left"),
    [
        ("<box>[[1, 2, 3, 4], [5, 6]]</box>", "unit", "no list of boxes of four numbers"),
        ("<box>[[1, 2, 3, 1001]]</box>", "unit", "is out of range"),
        ("<box>[[1.5, 2, 3, 4]]</box>", "unit", "has numbers that are not whole"),
        ("<box>[[1, 2, 3, 4]]</box><box>[[1, 2, 3, 4]]</box>", "unit", "would not read back"),
        ("7<box>[[1, 2, 3, 4]]</box>", "unit", "would not read back"),
        ("[0.1, 0.2, 0.3, 0.4] <box>[[1, 2, 3, 4]]</box>", "unit", "would not read back"),
    ],
)
def test_what_would_not_come_back_is_left_and_told(text: str, target: str, left: str) -> None:
    converted = convert_boxes(text, "1000", target)  # type: ignore[arg-type]
    assert converted.text == text
    assert any(left in told for told in converted.unconverted)


@pytest.mark.parametrize(
    ("text", "source", "told"),
    [
        ("[1, 0, 1, 1]", "unit", "[1, 0, 1, 1] has no decimal point"),
        ("[0.1, 0.2, 0.3, 1.2]", "unit", "[0.1, 0.2, 0.3, 1.2] is out of range"),
        ("v2[0.1, 0.2, 0.3, 0.4]", "unit", "reads as an interval or a subscript"),
        ("<box>[[1, 2, 3, 4]]</box>", "unit", "is a <box> already"),
        ("[1, 2, 3, 400]", "pixel", "[1, 2, 3, 400] is out of range"),
        ("[1, 2, 3, 4]", "1000", "[1, 2, 3, 4] stands in no <box>"),
    ],
)
def test_what_looks_like_boxes_is_told(text: str, source: str, told: str) -> None:
    target = "unit" if source == "1000" else "1000"
    converted = convert_boxes(text, source, target, size=(100, 100))  # type: ignore[arg-type]
    assert converted.text == text
    assert len(converted.unconverted) == 1
    assert told in converted.unconverted[0]


def test_pixels() -> None:
    text = "a <box>[[100, 250, 500, 1000]]</box>"
    there = convert_boxes(text, "1000", "pixel", size=(640, 480))
    assert there.text == "a [64, 120, 320, 480]"
    assert convert_boxes("[64, 120, 320, 480]", "pixel", "unit", size=(640, 480)).text == (
        "[0.100, 0.250, 0.500, 1.000]"
    )
    assert convert_boxes("[0.1, 0.25, 0.5, 1.0]", "unit", "pixel", size=(640, 480)).text == (
        "[64, 120, 320, 480]"
    )
    small = convert_boxes("<box>[[1, 2, 3, 4]]</box>", "1000", "pixel", size=(3, 3))
    assert small.text == "[0.003, 0.006, 0.009, 0.012]"


def test_corners_out_of_order_are_converted_and_told() -> None:
    converted = convert_boxes("<box>[[500, 200, 300, 400]]</box>", "1000", "unit")
    assert converted.text == "[0.500, 0.200, 0.300, 0.400]"
    assert "want x1 < x2 and y1 < y2" in converted.problems[0]


@given(boxes=st.lists(box, min_size=1, max_size=4))
def test_elements_are_read_as_they_are_written(boxes: list[tuple[int, int, int, int]]) -> None:
    unit = [(a / 1000, b / 1000, c / 1000, d / 1000) for a, b, c, d in boxes]
    assert tagged_boxes(f"x {box_element(unit)}") == [unit]
