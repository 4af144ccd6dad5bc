"""Right or wrong, whatever the dataset: equal text, or every box by its overlap. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from examples.tiny_model.scoring import Box1000, boxes_overlap, exact_match, parse_boxes

_BOX_LIST = re.compile(r"<box>(.*?)</box>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One held-out question and what the model said."""

    dataset: str
    identity: str
    images: tuple[str, ...]
    """Paths of the images, in order; empty for text only."""
    question: str
    """Without the ``<image>`` tags."""
    truth: str
    answer: str

    @property
    def is_right(self) -> bool:
        """See :func:`is_right`."""
        return is_right(self.answer, self.truth)


def boxes_in(text: str) -> list[Box1000]:
    """Boxes of every ``<box>`` list, on the 0-1000 scale, in reading order."""
    return [box for inner in _BOX_LIST.findall(text) for box in parse_boxes(inner)]


def is_right(answer: str, truth: str) -> bool:
    """Boxes: as many as in the truth, each with IoU >= 0.5; else equal text.

    Case, white space and a full stop at the end are not looked at.
    """
    wanted = boxes_in(truth)
    if wanted:
        given = boxes_in(answer)
        return len(given) == len(wanted) and all(
            boxes_overlap(a, b) for a, b in zip(given, wanted, strict=True)
        )
    return exact_match(answer, truth)


def accuracy_by_dataset(replies: Iterable[Reply]) -> dict[str, float]:
    """Share of right replies (0 to 1) of each dataset, in order of first appearance."""
    right: dict[str, list[bool]] = {}
    for reply in replies:
        right.setdefault(reply.dataset, []).append(reply.is_right)
    return {name: sum(flags) / len(flags) for name, flags in right.items()}
