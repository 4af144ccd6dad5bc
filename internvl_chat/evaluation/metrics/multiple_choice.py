"""Multiple choice as VLMEvalKit scores it: readings, hits, the table of means.

Source: https://github.com/open-compass/VLMEvalKit (vlmeval/dataset/utils/multiple_choice.py).
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.evaluation.metrics.can_infer import NONE_FITS, can_infer, infer_text
from internvl_chat.evaluation.metrics.tables import ScoreTable, mean

LETTERS = string.ascii_uppercase
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
    is_open: bool = False
    """No options were given; A is the right answer, B any other (MMMU, ``official`` alone)."""


@dataclass(frozen=True)
class ChoiceReading:
    """How an answer was read."""

    letter: str
    hit: float
    log: str


AskChoice = Callable[[str, str, str], str | None]
"""(question, options, answer) -> a judge's reply, None where none could be had."""


def options_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a row has, by letter."""
    return {letter: row[letter] for letter in LETTERS if row.get(letter) is not None}


def render_options(options: Mapping[str, Any]) -> str:
    """Options as a judge is shown them."""
    lines = [f"{letter}. {option}\n" for letter, option in options.items()]
    return "There are several options: \n" + "".join(lines)


def infer(item: ChoiceItem, *, later: bool) -> str | None:
    """By rules: a letter, ``Z``, or None."""
    if item.is_open:
        return infer_text(item.answer, {"A": item.options["A"]})
    return can_infer(item.answer, item.options, later=later)


def read_choice(
    item: ChoiceItem, *, later: bool, ask: AskChoice | None = None, guess: bool = True
) -> ChoiceReading:
    """Read one answer by rules, then by a judge.

    Args:
        item: the question with its answer.
        later: today's rules.
        ask: a judge; without one, what the rules cannot read is ``Z``.
        guess: after three replies that cannot be read, draw one of the options and ``Z``; the
            generator is seeded by the id (the original's is not seeded).
    """
    letter = infer(item, later=later)
    log = "read by rules"
    if letter is None and ask is None:
        letter, log = NONE_FITS, "not read by rules, no judge"
    elif letter is None and ask is not None:
        letter, log = _ask(item, ask, later=later, guess=guess)
    return ChoiceReading(str(letter), float(letter == item.gold), log)


def _ask(item: ChoiceItem, ask: AskChoice, *, later: bool, guess: bool) -> tuple[str, str]:
    options = render_options(item.options)
    for _ in range(JUDGE_TRIES):
        reply = ask(item.question, options, item.answer)
        if reply is not None and (letter := can_infer(reply, item.options, later=later)):
            return letter, f"judge: {reply}"
    if not guess:
        return NONE_FITS, "not read by the judge"
    drawn = random.Random(item.id).choice([*item.options, NONE_FITS])
    return drawn, "not read by the judge, drawn at random"


def read_circle(
    items: Sequence[ChoiceItem], *, later: bool, ask: AskChoice | None = None, guess: bool = True
) -> list[ChoiceReading]:
    """Rotations of one question: a hit for each if all are right, else for none.

    A rotation that the rules read and that is wrong ends the group before a judge is asked.
    """
    by_rules = [infer(item, later=later) for item in items]
    wrong = any(one and one != item.gold for one, item in zip(by_rules, items, strict=True))
    readings = [
        read_choice(item, later=later, ask=None if wrong else ask, guess=guess) for item in items
    ]
    hit = float(all(one.hit for one in readings))
    return [ChoiceReading(one.letter, hit, one.log) for one in readings]


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
