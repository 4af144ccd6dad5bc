"""MathVista: prefetched or extracted answers, checked by type.

Source: https://github.com/lupantech/MathVista, as VLMEvalKit carries it
(vlmeval/dataset/utils/mathvista.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.evaluation.metrics.can_infer import can_infer
from internvl_chat.evaluation.metrics.multiple_choice import LETTERS
from internvl_chat.evaluation.metrics.tables import ScoreTable

PREFETCHED = "Prefetch succeed"


@dataclass(frozen=True)
class MathItem:
    """One question."""

    question_type: str
    answer_type: str
    answer: Any
    """As the table holds it: text or number."""
    choices: tuple[Any, ...] = ()
    answer_option: str | None = None
    precision: int | None = None
    """Decimals of a float; looked at under ``official`` alone."""

    @property
    def options(self) -> dict[str, Any]:
        """Letter -> choice."""
        return dict(zip(LETTERS, self.choices, strict=False))


@dataclass(frozen=True)
class MathReading:
    """What an answer comes to."""

    extracted: str
    prefetched: bool
    hit: bool
    log: str


def check(item: MathItem, text: str, *, later: bool = False, official: bool = False) -> bool:
    """Whether an extracted answer is right.

    A text that is no number is wrong, ``14.0`` is no integer, lists are always wrong; ``official``
    reads ``14.0`` as 14, rounds floats to the precision that is asked, and compares lists.
    """
    if item.question_type == "multi_choice":
        found = can_infer(text, item.options, later=later)
        return found is not None and found == item.answer_option
    try:
        if item.answer_type == "integer":
            return _integer(text, official) == _integer(item.answer, official)
        if item.answer_type == "float":
            digits = item.precision if official else None
            return _float(text, digits) == _float(item.answer, digits)
    except (ValueError, OverflowError, TypeError):
        return False
    return official and _bare(text) == _bare(str(item.answer))


def _integer(value: Any, official: bool) -> int:
    return int(float(value)) if official else int(value)


def _float(value: Any, digits: int | None) -> float:
    return float(value) if digits is None else round(float(value), digits)


def _bare(text: str) -> str:
    return "".join(text.split())


def prefetch(
    item: MathItem, answer: str, *, later: bool = False, official: bool = False
) -> str | None:
    """What is taken without asking a judge: any letter, right or wrong; a number if it is right.

    A right 0 is not taken, except under ``official``.
    """
    if item.question_type == "multi_choice":
        return can_infer(answer, item.options, later=later)
    if not check(item, answer, later=later, official=official):
        return None
    if official:
        return answer.strip()
    number = int(answer) if item.answer_type == "integer" else float(answer)
    return str(number) if number else None


def skill_table(
    rows: Sequence[tuple[Sequence[str], str]], done: Sequence[MathReading]
) -> ScoreTable:
    """A row for all, then skills and tasks as they come up.

    Args:
        rows: skills and task of each question; a skill that is listed twice counts twice.
        done: how the answers were read.
    """
    counts: dict[str, list[int]] = {"Overall": [0, 0, 0]}
    for (skills, task), reading in zip(rows, done, strict=True):
        for name in ("Overall", *skills, task):
            count = counts.setdefault(name, [0, 0, 0])
            count[0] += 1
            count[1] += reading.prefetched
            count[2] += reading.hit
    records: list[Mapping[str, Any]] = [
        {
            "Task&Skill": name,
            "tot": total,
            "prefetch": prefetched,
            "hit": hits,
            "prefetch_rate": prefetched / total * 100 if total else None,
            "acc": hits / total * 100 if total else None,
        }
        for name, (total, prefetched, hits) in counts.items()
    ]
    return ScoreTable.of(records)
