"""Whether a reply is right: equal text, numbers, boxes by their overlap; by skill. Pure."""

import re
from collections.abc import Callable

Box1000 = tuple[float, float, float, float]
"""x1, y1, x2, y2 from 0 to 1000."""

_BOX = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")
_INTEGER = re.compile(r"-?\d+")
IOU_THRESHOLD = 0.5


def clean(text: str) -> str:
    """Case folded, single spaces, no full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".")


def exact_match(reply: str, truth: str) -> bool:
    """Same words, whatever the case."""
    return clean(reply) == clean(truth)


def same_number(reply: str, truth: str) -> bool:
    """The first whole number in the reply is that of the truth."""
    numbers = [_INTEGER.search(text) for text in (reply, truth)]
    return all(numbers) and int(numbers[0].group()) == int(numbers[1].group())  # type: ignore[union-attr]


def parse_boxes(text: str) -> list[Box1000]:
    """Every ``[x1, y1, x2, y2]`` of a text, in reading order.

    >>> parse_boxes("<ref>red star</ref><box>[[100, 200, 300, 400]]</box>")
    [(100.0, 200.0, 300.0, 400.0)]
    """
    boxes = []
    for numbers in _BOX.findall(text):
        x1, y1, x2, y2 = (float(number) for number in numbers)
        boxes.append((x1, y1, x2, y2))
    return boxes


def iou(a: Box1000, b: Box1000) -> float:
    """Intersection over union; 0 if either box is empty or turned inside out.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [(x2 - x1) * (y2 - y1) if x2 > x1 and y2 > y1 else 0.0 for x1, y1, x2, y2 in (a, b)]
    if width <= 0 or height <= 0 or min(areas) <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)


def boxes_overlap(one: Box1000, other: Box1000) -> bool:
    """Whether two boxes count as the same."""
    return iou(one, other) >= IOU_THRESHOLD


def box_hit(reply: str, truth: str) -> bool:
    """The first box of the reply overlaps the first true one by IoU 0.5 or more."""
    return any(map(boxes_overlap, parse_boxes(reply)[:1], parse_boxes(truth)[:1]))


Scorer = Callable[[str, str], bool]
SCORERS: dict[str, Scorer] = {
    "box": box_hit,
    **dict.fromkeys(
        ("count", "chart_value", "chart_count", "pair_count", "word_length", "digit"), same_number
    ),
}
"""Scorer by skill; exact match for a skill not listed."""

GROUPS: dict[str, tuple[str, ...]] = {
    "color": ("color",),
    "kind": ("kind",),
    "count": ("count",),
    "charts": ("chart_value", "chart_count", "chart_extreme", "chart_compare", "chart_order"),
    "reading": ("read_word", "read_number", "read_code", "read_all"),
    "boxes": ("box",),
    "position": ("position", "relation"),
    "size": ("size",),
    "pairs": ("pair_count", "pair_kind", "pair_color", "pair_more", "pair_which"),
    "text": ("text_sum", "text_next", "text_spell", "text_fact", "text_story"),
}
"""Headline figures: the mean over the skills' questions, each question counting once."""
TARGETS = {
    "color": 0.95,
    "kind": 0.95,
    "count": 0.90,
    "charts": 0.80,
    "reading": 0.80,
    "boxes": 0.70,
}
"""What the shipped model must reach on held-out questions."""


def is_right(skill: str, reply: str, truth: str) -> bool:
    """Score one reply."""
    return SCORERS.get(skill, exact_match)(reply, truth)


def group_accuracies(results: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Accuracy of each group that was asked.

    Args:
        results: skill to (right, asked).
    """
    accuracies = {}
    for group, skills in GROUPS.items():
        counts = [results[skill] for skill in skills if skill in results]
        asked = sum(n for _, n in counts)
        if asked:
            accuracies[group] = sum(right for right, _ in counts) / asked
    return accuracies
