"""POPE: answers read as yes or no, and what is counted of them.

Source: https://github.com/RUCAIBox/POPE (evaluate.py), as the InternVL evaluator carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def reads_as_yes(answer: str) -> bool:
    """Whether an answer means yes: everything does in which no word is ``No``, ``not`` or ``no``.

    Looks at what precedes the first full stop, commas deleted, split at single spaces; ``NO`` and
    ``Not`` are not among the words, and an empty answer is a yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


@dataclass(frozen=True)
class Counts:
    """Of one category; yes is positive."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, said_yes: Sequence[bool], is_yes: Sequence[bool]) -> Counts:
        """Count predictions against labels."""
        pairs = list(zip(said_yes, is_yes, strict=True))
        return cls(
            tp=pairs.count((True, True)),
            fp=pairs.count((True, False)),
            tn=pairs.count((False, False)),
            fn=pairs.count((False, True)),
        )

    @property
    def num(self) -> int:
        """Questions."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _share(self.tp + self.tn, self.num)

    @property
    def precision(self) -> float:
        """Of what was said to be there, how much is; 0 if nothing was said."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Of what is there, how much was said; 0 if nothing is."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are."""
        precision, recall = self.precision, self.recall
        total = precision + recall
        return 2 * precision * recall / total if total else 0.0

    @property
    def yes_ratio(self) -> float:
        """Share of answers that say yes."""
        return _share(self.tp + self.fp, self.num)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
