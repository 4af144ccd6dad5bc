"""Yes or no, and HallusionBench's three accuracies.

Source: https://github.com/open-compass/VLMEvalKit (vlmeval/dataset/utils/yorn.py) and
https://github.com/tianyi-lab/HallusionBench.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from internvl_chat.evaluation.metrics.tables import ScoreTable
from internvl_chat.evaluation.metrics.vqa_accuracy import (
    MOST_PERIODS,
    strip_periods,
    strip_punctuation,
)

YesNo = Literal["Yes", "No", "Unknown"]
_PERIOD_LATER = re.compile(r"(?<!\d)\.(?!\d)")
SPLIT_ORDER = (
    *("VD", "VS"),
    *("VD_ocr", "VS_chart", "VD_figure", "VS_map", "VD_illusion"),
    *("VS_table", "VD_math", "VS_ocr", "VD_video"),
)
"""The guide's; the original's is that of a hash table."""


def without_punctuation(text: str, *, later: bool = False) -> str:
    """Delete or blank punctuation as the VQA normaliser does, periods last.

    ``later``: those after a digit stay, too.
    """
    left = strip_punctuation(text)
    return _PERIOD_LATER.sub("", left, count=MOST_PERIODS) if later else strip_periods(left)


def read_yes_no(answer: str, *, later: bool = False) -> YesNo:
    """``Yes`` or ``No`` if one of the words is there and the other is not."""
    words = without_punctuation(answer.lower(), later=later).split()
    if ("yes" in words) == ("no" in words):
        return "Unknown"
    return "Yes" if "yes" in words else "No"


def read_verdict(reply: str, *, later: bool = False) -> YesNo | None:
    """A judge's reply by the same rule; None where it says neither."""
    read = read_yes_no(reply, later=later)
    return None if read == "Unknown" else read


@dataclass(frozen=True)
class YesNoItem:
    """One question that was answered."""

    index: str
    category: str | None
    l2_category: str | None
    right: bool

    @property
    def parts(self) -> tuple[str, str, str] | None:
        """Set, figure and question, from the index; None where it does not hold them."""
        parts = self.index.split("_")
        return (parts[3], parts[4], parts[5]) if len(parts) > 5 else None


def hallusion_table(items: Sequence[YesNoItem]) -> ScoreTable:
    """A row for all, each category, each l2-category: shares of right answers, figures, questions.

    A figure (question) is right if all answers of its group are: l2-category, set, and figure
    (question). An item whose index does not say them counts among the answers alone.
    """
    records = [{"split": "Overall", **_rates(items)}]
    for names in (
        [one.category for one in items],
        [one.l2_category for one in items],
    ):
        known = {name for name in names if name is not None}
        for split in sorted(known, key=_split_key):
            inside = [one for one, name in zip(items, names, strict=True) if name == split]
            records.append({"split": split, **_rates(inside)})
    return ScoreTable.of(records)


def _split_key(name: str) -> tuple[int, str]:
    return (SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER), name)


def _rates(items: Sequence[YesNoItem]) -> Mapping[str, Any]:
    figures: dict[str, list[bool]] = defaultdict(list)
    questions: dict[str, list[bool]] = defaultdict(list)
    for one in items:
        if one.parts is not None:
            group = "nan" if one.l2_category is None else one.l2_category
            number, figure, question = one.parts
            figures[f"{group}_{number}_{figure}"].append(one.right)
            questions[f"{group}_{number}_{question}"].append(one.right)
    return {
        "aAcc": _percent([one.right for one in items]),
        "fAcc": _percent([all(group) for group in figures.values()]),
        "qAcc": _percent([all(group) for group in questions.values()]),
    }


def _percent(rights: Sequence[bool]) -> float | None:
    return sum(rights) / len(rights) * 100 if rights else None


def rating_table(items: Sequence[YesNoItem]) -> ScoreTable:
    """Of other yes-or-no sets: percent right overall, by l2-category, by category; one row."""
    record: dict[str, Any] = {"split": "none", "Overall": _percent([one.right for one in items])}
    for names in ([one.l2_category for one in items], [one.category for one in items]):
        for name in sorted({name for name in names if name is not None}):
            inside = [one.right for one, own in zip(items, names, strict=True) if own == name]
            record[name] = _percent(inside)
    return ScoreTable.of([record])
