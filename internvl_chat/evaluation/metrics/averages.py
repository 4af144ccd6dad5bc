"""Means as the originals take them."""

from __future__ import annotations

from collections.abc import Iterable


def mean_in_order(values: Iterable[float]) -> float:
    """Their mean, added one after the other in double precision; 0 of nothing.

    Not ``sum``: from Python 3.12 it compensates rounding, and 0.7118800000000035 would be 0.71188.
    """
    total, number = 0.0, 0
    for value in values:
        total += value
        number += 1
    return total / number if number else 0.0
