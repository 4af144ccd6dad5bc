"""ANLS, average normalised Levenshtein similarity, of DocVQA and InfographicVQA.

Source: https://arxiv.org/abs/1905.13648 and the evaluation script of https://rrc.cvc.uab.es/?ch=17
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

THRESHOLD = 0.5
"""Similarity below it counts as none; itself it stays, other than in the paper."""


def levenshtein(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of a character that make one the other."""
    if first == second:
        return 0
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for number, wanted in enumerate(first, start=1):
        diagonal, row[0] = row[0], number
        for column, given in enumerate(second, start=1):
            replaced = diagonal + (wanted != given)
            diagonal = row[column]
            row[column] = min(replaced, diagonal + 1, row[column - 1] + 1)
    return row[-1]


def anls(
    golds: Sequence[str], prediction: str, *, lengths: Literal["written", "compared"] = "written"
) -> float:
    """Similarity of a prediction to the nearest of several right answers.

    Args:
        golds: any one is right.
        prediction: as generated.
        lengths: what the distance is divided by: the longer of both texts as ``written`` (the
            script, to which surplus white space makes an answer more alike) or as they are
            ``compared``, lower case with single spaces.

    Returns:
        0, or a number from 0.5 to 1.

    Raises:
        ValueError: there is no right answer.
    """
    if not golds:
        raise ValueError("no right answer to compare with")
    similarity = 1 - min(_distance(gold, prediction, lengths) for gold in golds)
    return 0.0 if similarity < THRESHOLD else similarity


def _distance(gold: str, prediction: str, lengths: str) -> float:
    wanted, given = _plain(gold), _plain(prediction)
    if lengths == "compared":
        length = max(len(wanted), len(given))
    else:
        length = max(len(gold.upper()), len(prediction.upper()))
    return levenshtein(wanted, given) / length if length else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
