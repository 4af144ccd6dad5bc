"""GQA: accuracy, whole and by kind of question, and how far answers are distributed as they should.

Source: https://arxiv.org/abs/1902.09506 and the evaluation script of https://cs.stanford.edu/people/
dorarad/gqa/evaluate.html
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Kind = TypeVar("Kind", str, int)

UNCOUNTED_STEPS = ("exist", "query: name", "choose name")
"""An operation with one of these in its text is no reasoning step."""


@dataclass(frozen=True, kw_only=True)
class GqaAnswer:
    """A question of the balanced set with its answer."""

    gold: str
    prediction: str
    structural_type: str
    """``query`` is an open question, all others are binary."""
    semantic_type: str
    num_steps: int
    num_words: int
    group: str | None
    """Questions whose answers are one distribution."""

    @property
    def is_right(self) -> bool:
        """Equal strings."""
        return self.prediction == self.gold


@dataclass(frozen=True, kw_only=True)
class GqaReport:
    """Accuracies in percent; means of nothing are 0, as the script has them."""

    binary: float
    open: float
    accuracy: float
    distribution: float
    """Lower is better."""
    by_structural_type: Mapping[str, tuple[float, int]]
    """Accuracy and number of questions, sorted by name; the other tables likewise."""
    by_semantic_type: Mapping[str, tuple[float, int]]
    by_num_steps: Mapping[int, tuple[float, int]]
    by_num_words: Mapping[int, tuple[float, int]]

    @classmethod
    def of(cls, answers: Sequence[GqaAnswer]) -> GqaReport:
        """Count answers."""
        opens = [one for one in answers if one.structural_type == "query"]
        others = [one for one in answers if one.structural_type != "query"]
        return cls(
            binary=_percent(others),
            open=_percent(opens),
            accuracy=_percent(answers),
            distribution=chi_square(answers) / 100,
            by_structural_type=_table([(one.structural_type, one) for one in answers]),
            by_semantic_type=_table([(one.semantic_type, one) for one in answers]),
            by_num_steps=_table([(one.num_steps, one) for one in answers]),
            by_num_words=_table([(one.num_words, one) for one in answers]),
        )


def clean_prediction(answer: str) -> str:
    """Without full stops at the end, lower case; white space stays.

    >>> clean_prediction("Yes..")
    'yes'
    """
    return answer.rstrip(".").lower()


def count_steps(operations: Sequence[Mapping[str, str]]) -> int:
    """Reasoning steps among a question's operations, the final query not counted."""
    texts = [f"{one['operation']}: {one['argument']}" for one in operations]
    return sum(not any(part in text for part in UNCOUNTED_STEPS) for text in texts)


def chi_square(answers: Sequence[GqaAnswer]) -> float:
    """Of predicted against gold answers by group, weighted by its questions; 0 without a group."""
    golds: dict[str, Counter[str]] = defaultdict(Counter)
    predictions: dict[str, Counter[str]] = defaultdict(Counter)
    for one in answers:
        if one.group is not None:
            golds[one.group][one.gold] += 1
            predictions[one.group][one.prediction] += 1
    total, num = 0.0, 0
    for group, wanted in golds.items():
        score = 0.0
        for answer, expected in wanted.items():
            score += float(predictions[group][answer] - expected) ** 2 / expected
        total += score * wanted.total()
        num += wanted.total()
    return total / num if num else 0.0


def _percent(answers: Sequence[GqaAnswer]) -> float:
    return sum(one.is_right for one in answers) / len(answers) * 100 if answers else 0.0


def _table(rows: Sequence[tuple[Kind, GqaAnswer]]) -> dict[Kind, tuple[float, int]]:
    parts: dict[Kind, list[GqaAnswer]] = defaultdict(list)
    for name, answer in rows:
        parts[name].append(answer)
    return {name: (_percent(parts[name]), len(parts[name])) for name in sorted(parts)}
