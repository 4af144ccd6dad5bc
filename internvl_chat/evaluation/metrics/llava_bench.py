"""LLaVA-Bench in the wild: grades of two assistants, read from reviews and averaged.

Source: https://github.com/haotian-liu/LLaVA (eval_gpt_review_bench.py, summarize_gpt_review.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Grades = tuple[float, float]
"""Of the reference's answer and of the model's, 1-10."""
UNREADABLE: Grades = (-1, -1)
"""What the original notes where a review has no two numbers, and averages in."""

_PAIR = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[,;/]?\s+(\d+(?:\.\d+)?)\s*|\s*(\d+)\s*,\s*(\d+)\s*")


def read_grades(review: str) -> Grades:
    """Two numbers on the first line, a space or a comma between them; ``8, 7`` is unreadable."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return UNREADABLE
    try:
        return float(parts[0]), float(parts[1])
    except ValueError:
        return UNREADABLE


def read_grades_leniently(review: str) -> Grades | None:
    """Two numbers on the first line, however they are set apart; None if there are none."""
    match = _PAIR.fullmatch(review.strip().split("\n")[0])
    if match is None:
        return None
    first, second = (float(group) for group in match.groups() if group is not None)
    return first, second


@dataclass(frozen=True)
class GradeSummary:
    """Of one category."""

    means: Grades
    """Rounded to 3 decimals."""

    @classmethod
    def of(cls, grades: Sequence[Grades]) -> GradeSummary:
        """Average the grades of at least one review."""
        first, second = (sum(column) / len(grades) for column in zip(*grades, strict=True))
        return cls((round(first, 3), round(second, 3)))

    @property
    def relative(self) -> float:
        """The model's in percent of the reference's; nan where that is 0."""
        reference, model = self.means
        return round(model / reference * 100, 1) if reference else math.nan

    @property
    def percents(self) -> Grades:
        """Reference and model, of 100."""
        return round(self.means[0] * 10, 1), round(self.means[1] * 10, 1)


def summarise(grades: Mapping[str, Sequence[Grades]]) -> dict[str, GradeSummary]:
    """``all`` and each category, sorted by name; nothing of nothing."""
    everything = [pair for pairs in grades.values() for pair in pairs]
    groups = {**grades, "all": everything}
    return {name: GradeSummary.of(groups[name]) for name in sorted(groups) if groups[name]}


def printed_summary(summaries: Mapping[str, GradeSummary], name: str) -> str:
    """As the original prints it.

    Args:
        summaries: of :func:`summarise`.
        name: of the review file, without its ending.
    """
    lines = [name]
    for group, summary in summaries.items():
        reference, model = summary.percents
        lines.append(f"{group} {list(summary.means)} {summary.relative}")
        lines.append(f"{group} {summary.relative} {reference} {model}")
    return "\n".join([*lines, "=" * 33]) + "\n"
