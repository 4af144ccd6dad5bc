"""A box read from an answer, and how far two boxes overlap, in float32 as torch counts it.

Source: ``eval/refcoco/evaluate_grounding.py`` of InternVL; its ``box_iou`` is torchvision's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BOX = re.compile(r"\[*\[(.*?),(.*?),(.*?),(.*?)\]\]*")
_FRACTIONS_BELOW = 4
"""Four numbers with a smaller sum are shares of width and height; others are thousandths."""


def read_box(answer: str, width: float, height: float) -> NDArray[np.float32]:
    """(4,) x1, y1, x2, y2 in pixels of the first box in an answer; zeros without one.

    Corners are neither clamped nor put in order.

    Args:
        answer: ``<box>[[x1, y1, x2, y2]]</box>``, with or without the tags and outer brackets.
        width, height: of the image, in pixels.
    """
    match = _BOX.search(answer)
    try:
        numbers = [float(group) for group in match.groups()] if match else [0.0] * 4
    except ValueError:
        numbers = [0.0] * 4
    with np.errstate(over="ignore", invalid="ignore"):
        box = np.array(numbers, dtype=np.float32)
        if box.sum() >= _FRACTIONS_BELOW:
            box /= np.float32(1000)
        return box * np.array([width, height, width, height], dtype=np.float32)


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Intersection over union of two (4,) boxes x1, y1, x2, y2; nan for two empty ones."""
    one, other = first.astype(np.float32), second.astype(np.float32)
    with np.errstate(all="ignore"):
        sides = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0)
        inter = sides[0] * sides[1]
        return float(inter / (_area(one) + _area(other) - inter))


def _area(box: NDArray[np.float32]) -> np.float32:
    return np.float32((box[2] - box[0]) * (box[3] - box[1]))


def read_ordered_box(answer: str, width: float, height: float) -> tuple[float, float, float, float]:
    """The first box in an answer as it is meant, x1 <= x2, y1 <= y2, in pixels; else zeros.

    Numbers without a decimal point are thousandths however small they are; numbers with one that
    do not exceed 1 are shares.

    Args:
        answer: as :func:`read_box` takes it.
        width, height: of the image, in pixels.
    """
    match = _BOX.search(answer)
    try:
        x1, y1, x2, y2 = (float(group) for group in match.groups()) if match else [0.0] * 4
    except ValueError:
        return 0.0, 0.0, 0.0, 0.0
    is_share = match is not None and "." in match[0] and max(x1, y1, x2, y2) <= 1
    unit = 1.0 if is_share else 1000.0
    xs = sorted((x1 * width / unit, x2 * width / unit))
    ys = sorted((y1 * height / unit, y2 * height / unit))
    return xs[0], ys[0], xs[1], ys[1]


def exact_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2 in double precision; 0 for empty ones."""
    sides = [min(first[2 + n], second[2 + n]) - max(first[n], second[n]) for n in range(2)]
    inter = max(sides[0], 0.0) * max(sides[1], 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    union = areas - inter
    return inter / union if union > 0 and math.isfinite(union) else 0.0
