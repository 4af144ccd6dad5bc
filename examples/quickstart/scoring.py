"""Right or wrong, whatever the dataset: equal text, or every box by its overlap. Pure.

The metrics are the package's (``internvl_chat.evaluation.metrics``), imported when an answer is
there to be scored: importing the package takes torch and seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass


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


def is_right(answer: str, truth: str) -> bool:
    """Boxes: as many as in the truth, matched one to one with IoU >= 0.5; else equal text.

    Case, white space and a full stop at the end are not looked at.
    """
    from internvl_chat.evaluation.metrics.iou import compare_boxes, parse_boxes
    from internvl_chat.evaluation.metrics.text import exact_match

    wanted = parse_boxes(truth)
    if wanted:
        return compare_boxes(parse_boxes(answer), wanted).all_hit
    return exact_match(answer, truth)


def accuracy_by_dataset(replies: Iterable[Reply]) -> dict[str, float]:
    """Share of right replies (0 to 1) of each dataset, in order of first appearance."""
    right: dict[str, list[bool]] = {}
    for reply in replies:
        right.setdefault(reply.dataset, []).append(reply.is_right)
    return {name: sum(flags) / len(flags) for name, flags in right.items()}
