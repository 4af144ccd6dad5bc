"""MMBench and CCBench: circular accuracy. A question counts if all of its rotations are right.

Source: https://arxiv.org/abs/2307.06281, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ROTATION = 1_000_000
"""Copies of a question with rotated options: index = base + k * ROTATION."""


def base_of(index: str) -> str:
    """The index of the question whose rotation a row is; itself if it is no number."""
    try:
        return str(int(index) % ROTATION)
    except ValueError:
        return index


def circular_verdicts(rows: Iterable[tuple[str, bool]]) -> dict[str, bool]:
    """Whether every rotation of a question is right, by its base index, in order of appearance.

    Args:
        rows: (index, whether the answer is right).
    """
    verdicts: dict[str, bool] = {}
    for index, is_right in rows:
        base = base_of(index)
        verdicts[base] = verdicts.get(base, True) and is_right
    return verdicts


def share(verdicts: Sequence[bool]) -> float | None:
    """Of what is true; None of nothing."""
    return sum(verdicts) / len(verdicts) if verdicts else None
