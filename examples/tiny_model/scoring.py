"""Whether a reply is right: equal text, numbers, boxes by their overlap; by skill. Pure."""

import re
from collections.abc import Callable

from internvl_chat.evaluation.metrics.iou import compare_boxes, parse_boxes
from internvl_chat.evaluation.metrics.text import exact_match

_INTEGER = re.compile(r"-?\d+")


def same_number(reply: str, truth: str) -> bool:
    """The first whole number in the reply is that of the truth."""
    numbers = [_INTEGER.search(text) for text in (reply, truth)]
    return all(numbers) and int(numbers[0].group()) == int(numbers[1].group())  # type: ignore[union-attr]


def boxes_hit(reply: str, truth: str) -> bool:
    """As many boxes as in the truth, each over one of them with IoU 0.5 or more."""
    return compare_boxes(parse_boxes(reply), parse_boxes(truth)).all_hit


Scorer = Callable[[str, str], bool]
SCORERS: dict[str, Scorer] = {
    "box": boxes_hit,
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
