"""Boxes in answers: read, matched to the true ones, compared by intersection over union.

For text that holds boxes as training writes them, 0-1000 of width and height. RefCOCO's rule, which
compares a single box in pixels, is its task's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Box1000 = tuple[float, float, float, float]
"""x1, y1, x2, y2 from 0 to 1000."""
IOU_THRESHOLD = 0.5
"""From which on two boxes count as the same."""

_NUMBER = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_LIST = re.compile(r"<box>(.*?)</box>", re.DOTALL)


def parse_boxes(text: str) -> list[Box1000]:
    """Boxes of a text in reading order.

    Where the text has ``<box>`` lists, the boxes in them; else every ``[x1, y1, x2, y2]``. Four
    numbers up to 1 of which one has a decimal point are shares of the side and are multiplied by
    1000. A list that is cut off counts for nothing.

    >>> parse_boxes("<ref>red star</ref><box>[[100, 200, 300, 400]]</box>")
    [(100.0, 200.0, 300.0, 400.0)]
    >>> parse_boxes("[0.1, 0.2, 0.5, 1]")
    [(100.0, 200.0, 500.0, 1000.0)]
    """
    parts = _LIST.findall(text) if "<box>" in text else [text]
    return [_box(numbers) for part in parts for numbers in _BOX.findall(part)]


def _box(numbers: Sequence[str]) -> Box1000:
    x1, y1, x2, y2 = (float(number) for number in numbers)
    if max(x1, y1, x2, y2) <= 1 and any("." in number for number in numbers):
        x1, y1, x2, y2 = (1000 * value for value in (x1, y1, x2, y2))
    return x1, y1, x2, y2


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


@dataclass(frozen=True)
class BoxScore:
    """What the boxes of one answer are worth."""

    mean_iou: float
    """Of the best one-to-one matching, over the larger of the two numbers of boxes."""
    all_hit: bool
    """As many boxes as there are true ones, and a one-to-one matching in which every pair
    overlaps by :data:`IOU_THRESHOLD` or more."""


def compare_boxes(given: Sequence[Box1000], wanted: Sequence[Box1000]) -> BoxScore:
    """Match boxes one to one, in whatever order they stand.

    Args:
        given: the answer's; missing and surplus ones count as an overlap of 0.
        wanted: the true ones; without any the score is 0.
    """
    overlaps = [[iou(a, b) for b in wanted] for a in given]
    hits = [[float(value >= IOU_THRESHOLD) for value in row] for row in overlaps]
    return BoxScore(
        mean_iou=best_sum(overlaps) / max(len(given), len(wanted), 1),
        all_hit=0 < len(given) == len(wanted) and best_sum(hits) == len(wanted),
    )


def best_sum(weights: Sequence[Sequence[float]]) -> float:
    """Largest sum of weights over matchings of rows to columns, each at most once.

    Args:
        weights: (rows, columns), none negative; may be empty.

    The Hungarian method with potentials, O(rows² · columns):
    https://cp-algorithms.com/graph/hungarian-algorithm.html
    """
    if not weights or not weights[0]:
        return 0.0
    if len(weights) > len(weights[0]):
        weights = list(zip(*weights, strict=True))
    rows, columns = len(weights), len(weights[0])
    of_row, of_column = [0.0] * (rows + 1), [0.0] * (columns + 1)  # potentials
    row_at = [0] * (columns + 1)  # row that a column is matched to, from 1; column 0 is a start
    for row in range(1, rows + 1):
        row_at[0], column = row, 0
        least, come_from = [float("inf")] * (columns + 1), [0] * (columns + 1)
        done = [False] * (columns + 1)
        while row_at[column]:
            done[column] = True
            here, step, best = row_at[column], float("inf"), 0
            for j in range(1, columns + 1):
                if done[j]:
                    continue
                slack = -weights[here - 1][j - 1] - of_row[here] - of_column[j]
                if slack < least[j]:
                    least[j], come_from[j] = slack, column
                if least[j] < step:
                    step, best = least[j], j
            for j in range(columns + 1):
                if done[j]:
                    of_row[row_at[j]] += step
                    of_column[j] -= step
                else:
                    least[j] -= step
            column = best
        while column:
            row_at[column] = row_at[come_from[column]]
            column = come_from[column]
    return sum(weights[row_at[j] - 1][j - 1] for j in range(1, columns + 1) if row_at[j])
