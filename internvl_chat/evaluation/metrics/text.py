"""Equal texts, and which truth was answered how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

OTHER = "(other)"
"""Stands for all labels that have no row or column of their own."""
_FULL_STOPS = ".。"
_LABEL_WIDTH = 18


def clean(text: str) -> str:
    """Case folded, white space collapsed to single spaces, full stops at the end dropped.

    Nothing else: punctuation inside, articles and number words stay, so ``The cat`` is not ``cat``
    and ``seven`` not ``7``.

    >>> clean("  Top   LEFT.\\n")
    'top left'
    """
    return " ".join(text.casefold().split()).rstrip(_FULL_STOPS).rstrip()


def exact_match(answer: str, truth: str) -> bool:
    """Whether two texts are equal once both are :func:`clean`."""
    return clean(answer) == clean(truth)


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often each truth was answered with what: the most frequent of both."""

    truths: tuple[str, ...]
    """Labels of the rows, most frequent first; :data:`OTHER` last if there are more."""
    answers: tuple[str, ...]
    """Labels of the columns: those of the rows, then answers that are no such truth."""
    counts: tuple[tuple[int, ...], ...]
    """[row][column]; they sum to the number of questions."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]], *, most: int = 10) -> Confusion:
        """Count (truth, answer) pairs.

        Args:
            pairs: labels that are equal where the answer is right.
            most: rows, and columns for answers that are no truth of a row. Ties go to the label
                that comes first in the alphabet, so the order of the pairs does not matter.
        """
        truths = _frequent([truth for truth, _ in pairs], most)
        others = [answer for _, answer in pairs if answer not in truths]
        answers = truths + _frequent(others, most)
        cells = Counter((_or_other(t, truths), _or_other(a, answers)) for t, a in pairs)
        rows = tuple(truths) + (OTHER,) * any(truth == OTHER for truth, _ in cells)
        columns = tuple(answers) + (OTHER,) * any(answer == OTHER for _, answer in cells)
        counts = tuple(tuple(cells[row, column] for column in columns) for row in rows)
        return cls(truths=rows, answers=columns, counts=counts)

    def lines(self) -> list[str]:
        """The table as text, truths down and answers across."""
        head = ["truth \\ answer", *map(_short, self.answers)]
        body = [
            [_short(truth), *map(str, row)]
            for truth, row in zip(self.truths, self.counts, strict=True)
        ]
        return table_lines([head, *body])


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells under each other: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _frequent(labels: Sequence[str], most: int) -> list[str]:
    counts = Counter(labels)
    return sorted(counts, key=lambda label: (-counts[label], label))[:most]


def _or_other(label: str, known: Sequence[str]) -> str:
    return label if label in known else OTHER


def _short(label: str) -> str:
    shown = " ".join(label.split()) or "(empty)"
    return shown if len(shown) <= _LABEL_WIDTH else f"{shown[: _LABEL_WIDTH - 1]}…"
