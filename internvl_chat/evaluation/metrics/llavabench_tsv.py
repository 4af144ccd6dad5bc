"""LLaVA-Bench as VLMEvalKit scores it: a judge marks GPT-4's answer and ours.

Source: https://github.com/haotian-liu/LLaVA, as VLMEvalKit carries it
(vlmeval/dataset/utils/llavabench.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from internvl_chat.evaluation.metrics.llava_bench import UNREADABLE, read_grades
from internvl_chat.evaluation.metrics.tables import ScoreTable, mean

CATEGORIES = ("complex", "conv", "detail")
"""In the guide's order; the original's is that of a hash table."""
NO_MARKS = UNREADABLE


def read_marks(review: str | None) -> tuple[float, float]:
    """The two marks of a review's first line, -1 and -1 if they do not stand there.

    Commas become spaces and single spaces divide, so that ``8, 7`` is not read; the original lets
    -1 into the means.
    """
    marks = read_grades(review or "")
    return marks if all(map(math.isfinite, marks)) else NO_MARKS


def marks_table(
    categories: Sequence[str | None], marks: Sequence[tuple[float, float]], *, official: bool
) -> ScoreTable:
    """Relative score and both means, times ten, overall and by category, to one decimal.

    Args:
        categories: of the rows.
        marks: GPT-4's and ours; under ``official`` rows without marks are left out.
    """
    known = {name for name in categories if name is not None}
    order = [*(name for name in CATEGORIES if name in known), *sorted(known - {*CATEGORIES})]
    records: list[dict[str, Any]] = []
    for split in ("overall", *order):
        inside = [
            pair
            for name, pair in zip(categories, marks, strict=True)
            if split in ("overall", name) and not (official and pair == NO_MARKS)
        ]
        theirs, ours = mean([pair[0] for pair in inside]), mean([pair[1] for pair in inside])
        relative = None if ours is None or not theirs else ours / theirs * 100
        records.append(
            {
                "split": split,
                "Relative Score (main)": _rounded(relative),
                "VLM Score": _rounded(None if ours is None else ours * 10),
                "GPT4 Score": _rounded(None if theirs is None else theirs * 10),
            }
        )
    return ScoreTable.of(records)


def _rounded(value: float | None) -> float | None:
    import numpy as np

    return None if value is None else float(np.round(value, 1))
