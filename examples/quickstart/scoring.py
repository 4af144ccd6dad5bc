"""Right or wrong: exact words, and boxes by their overlap. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # x1, y1, x2, y2

MIN_IOU = 0.5
_BOX_LIST = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_FOUR = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One held-out question and what the model said."""

    dataset: str
    identity: str
    images: tuple[str, ...]
    """Paths of the pictures, in order; empty for text only."""
    question: str
    """Without the ``<image>`` tags."""
    truth: str
    answer: str

    @property
    def is_right(self) -> bool:
        """See :func:`is_right`."""
        return is_right(self.answer, self.truth)


def boxes_in(text: str) -> list[Box]:
    """Boxes of every ``<box>`` list, on the 0-1000 scale, in reading order.

    >>> boxes_in("<ref>red star</ref><box>[[100, 200, 300, 400]]</box>")
    [(100.0, 200.0, 300.0, 400.0)]
    """
    boxes = []
    for inner in _BOX_LIST.findall(text):
        for numbers in _FOUR.findall(inner):
            x1, y1, x2, y2 = (float(number) for number in numbers)
            boxes.append((x1, y1, x2, y2))
    return boxes


def intersection_over_union(one: Box, other: Box) -> float:
    """Shared area over joint area; 0 if either box is empty or turned inside out."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def is_right(answer: str, truth: str) -> bool:
    """Boxes: as many as in the truth, each with IoU >= 0.5; else equal words.

    Case, white space and a full stop at the end are not looked at.
    """
    wanted = boxes_in(truth)
    if wanted:
        given = boxes_in(answer)
        return len(given) == len(wanted) and all(
            intersection_over_union(a, b) >= MIN_IOU for a, b in zip(given, wanted, strict=True)
        )
    return _plain(answer) == _plain(truth)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def accuracy_by_dataset(replies: Iterable[Reply]) -> dict[str, float]:
    """Share of right replies (0 to 1) of each dataset, in order of first appearance."""
    right: dict[str, list[bool]] = {}
    for reply in replies:
        right.setdefault(reply.dataset, []).append(reply.is_right)
    return {name: sum(flags) / len(flags) for name, flags in right.items()}
