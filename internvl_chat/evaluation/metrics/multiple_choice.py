"""Multiple choice as VLMEvalKit scores it: readings, hits, the table of means.

Source: https://github.com/open-compass/VLMEvalKit (vlmeval/dataset/utils/multiple_choice.py).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.evaluation.metrics.can_infer import NONE_FITS, can_infer
from internvl_chat.evaluation.metrics.letters import LETTERS
from internvl_chat.evaluation.metrics.tables import ScoreTable, mean

OTHER_ANSWERS = "Other Answers"
JUDGE_TRIES = 3
CIRCLE = 10**6
"""Rotations of a question have indices that are equal modulo this."""
ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
SPLIT_ORDER = ("none", "validation", "dev", "test")
"""The original's order is that of a hash table."""


@dataclass(frozen=True)
class ChoiceItem:
    """One question with its answer."""

    id: str
    question: str
    options: Mapping[str, Any]
    """Letter -> option."""
    gold: str | None
    answer: str
    accepted: tuple[str, ...] = ()
    """Right answers where no options were given (MMMU, ``official`` alone): A is any of them."""


@dataclass(frozen=True)
class ChoiceReading:
    """How an answer was read."""

    letter: str
    hit: float
    log: str

    @classmethod
    def of(cls, item: ChoiceItem, letter: str, log: str) -> ChoiceReading:
        """A hit if the letter is the right one."""
        return cls(letter, float(letter == item.gold), log)


def options_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a row has, by letter."""
    return {letter: row[letter] for letter in LETTERS if row.get(letter) is not None}


def render_options(options: Mapping[str, Any]) -> str:
    """Options as a judge is shown them."""
    lines = [f"{letter}. {option}\n" for letter, option in options.items()]
    return "There are several options: \n" + "".join(lines)


def infer(item: ChoiceItem, *, later: bool) -> str | None:
    """By rules: a letter, ``Z``, or None."""
    if item.accepted:
        lowered = item.answer.lower()
        return "A" if any(text.lower() in lowered for text in item.accepted) else None
    return can_infer(item.answer, item.options, later=later)


def draw(item: ChoiceItem) -> str:
    """One of the options and ``Z``, where a judge could not be understood.

    The generator is seeded by the id; the original's is not seeded.
    """
    return random.Random(item.id).choice([*item.options, NONE_FITS])


def is_lost(items: Sequence[ChoiceItem], letters: Sequence[str | None]) -> bool:
    """Whether a rotation of a question was read by rules and is wrong: no judge is asked then."""
    return any(one and one != item.gold for one, item in zip(letters, items, strict=True))


def accuracy_table(rows: Sequence[Mapping[str, Any]], hits: Sequence[float]) -> ScoreTable:
    """A row per split, a column per ability: ``Overall``, l2-categories, categories.

    Args:
        rows: with ``split``, ``l2-category`` and ``category`` where there are such columns, which
            are found whatever their case.
        hits: of the rows.
    """
    lowered = [{name.lower(): cell for name, cell in row.items()} for row in rows]
    has_splits = any("split" in row for row in lowered)
    cells = [row.get("split") if has_splits else "none" for row in lowered]
    splits = ["nan" if cell is None else str(cell) for cell in cells]
    records = []
    for split in _sorted_splits(set(splits)):
        inside = [n for n, one in enumerate(splits) if one == split and one != "nan"]
        record: dict[str, Any] = {"split": split, "Overall": mean([hits[n] for n in inside])}
        for group in ("l2-category", "category"):
            for name in _sorted_names(row.get(group) for row in lowered):
                chosen = [hits[n] for n in inside if lowered[n].get(group) == name]
                record[ABBREVIATIONS.get(str(name), str(name))] = mean(chosen)
        records.append(record)
    return ScoreTable.of(records)


def _sorted_splits(splits: set[str]) -> list[str]:
    known = {name: number for number, name in enumerate(SPLIT_ORDER)}
    return sorted(splits, key=lambda name: (known.get(name, len(known)), name))


def _sorted_names(cells: Any) -> list[Any]:
    names = {cell for cell in cells if cell is not None}
    texts = any(isinstance(name, str) for name in names)
    return sorted(names, key=str if texts else None)
