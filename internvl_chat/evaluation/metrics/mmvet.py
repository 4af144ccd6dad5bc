"""MM-Vet: a judge's marks from 0 to 1, averaged by capability.

Source: https://github.com/yuweihao/MM-Vet, as VLMEvalKit carries it
(vlmeval/dataset/utils/mmvet.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from internvl_chat.evaluation.metrics.tables import ScoreTable

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def read_mark(reply: str) -> float | None:
    """A number from 0 to 1; None for any other reply."""
    try:
        mark = float(reply)
    except ValueError:
        return None
    return mark if 0 <= mark <= 1 else None


def mark_tables(
    categories: Sequence[str], marks: Sequence[float], *, official: bool
) -> tuple[ScoreTable, ScoreTable]:
    """Means in percent by capability, and by exact combination of them; both end in ``Overall``.

    The original counts under one key the combination and its only capability, so that a row with a
    single capability counts twice; ``official`` keeps them apart.

    Args:
        categories: of the rows, as ``ocr,math``.
        marks: of the rows.
    """
    by_capability: dict[str, list[float]] = {name: [] for name in CAPABILITIES}
    by_combination: dict[str, list[float]] = {}
    for category, mark in zip(categories, marks, strict=True):
        for name in CAPABILITIES:
            if name in category:
                by_capability[name].append(mark)
        combination = category.replace(",", "_")
        own = by_combination.setdefault(combination, [])
        if combination in by_capability and not official:
            by_combination[combination] = by_capability[combination]
            by_capability[combination].append(mark)
        else:
            own.append(mark)
    overall = {"Overall": list(marks)}
    return _means(by_capability | overall), _means(by_combination | overall)


def _means(groups: Mapping[str, Sequence[float]]) -> ScoreTable:
    records: list[dict[str, Any]] = [
        {
            "Category": name,
            "tot": len(marks),
            "acc": sum(marks) / len(marks) * 100 if marks else None,
        }
        for name, marks in groups.items()
    ]
    return ScoreTable.of(records)
