"""How many records have each length: exact, in one pass, in memory that grows with lengths only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_BLOCK: Final = 1 << 20
"""Records looked at at once; the tables of large datasets are mapped files."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Numbers of records by a whole number that each of them has."""

    counts: np.ndarray
    """(largest + 1,) int64: how many records have the value 0, 1, 2, ..."""

    @property
    def num_records(self) -> int:
        """All records."""
        return int(self.counts.sum())

    @property
    def total(self) -> int:
        """Sum of the values."""
        return int(self.counts @ np.arange(len(self.counts), dtype=np.int64))

    @property
    def lowest(self) -> int:
        """The least value; 0 without a record."""
        return int(np.argmax(self.counts > 0)) if len(self.counts) else 0

    @property
    def largest(self) -> int:
        """The largest value; 0 without a record."""
        return max(len(self.counts) - 1, 0)

    def quantile(self, share: float) -> int:
        """The least value that at least this share (0-1) of the records does not exceed."""
        if not len(self.counts):
            return 0
        cumulated = np.cumsum(self.counts)
        return int(np.searchsorted(cumulated, share * cumulated[-1]))


def tally(values: np.ndarray, good: np.ndarray) -> Tally:
    """Count values of records.

    Args:
        values: (n,) int, >= 0 where the record is good.
        good: (n,) int; negative for records that are left out.
    """
    counts = np.zeros(0, dtype=np.int64)
    for first, last in _blocks(len(values)):
        kept = np.asarray(values[first:last])[np.asarray(good[first:last]) >= 0]
        counts = _sum(counts, np.bincount(kept))
    return Tally(counts=counts)


def merged(tallies: Sequence[Tally]) -> Tally:
    """Of several datasets together."""
    counts = np.zeros(0, dtype=np.int64)
    for one in tallies:
        counts = _sum(counts, one.counts)
    return Tally(counts=counts)


def sum_of_first(lengths: np.ndarray, num_samples: int) -> int:
    """Sum over the first ``num_samples`` records, which begin again behind the last.

    Args:
        lengths: (n,) int; negative ones (bad records) count nothing.
        num_samples: may exceed n.
    """
    rounds, rest = divmod(num_samples, len(lengths))
    whole = _positive_sum(lengths, len(lengths)) if rounds else 0
    return rounds * whole + _positive_sum(lengths, rest)


def _positive_sum(lengths: np.ndarray, stop: int) -> int:
    found = 0
    for first, last in _blocks(stop):
        block = np.asarray(lengths[first:last])
        found += int(block[block > 0].sum(dtype=np.int64))
    return found


def shortest_and_longest(lengths: np.ndarray, stop: int) -> tuple[int, int] | None:
    """Records with the least and the largest length among the first ``stop``; None without one.

    Of several the first; negative lengths (bad records) are left out.
    """
    least: tuple[int, int] | None = None  # (length, record)
    most: tuple[int, int] | None = None
    for first, last in _blocks(stop):
        block = np.asarray(lengths[first:last])
        places = np.flatnonzero(block >= 0)
        if not len(places):
            continue
        low, high = (int(places[pick(block[places])]) for pick in (np.argmin, np.argmax))
        if least is None or block[low] < least[0]:
            least = int(block[low]), first + low
        if most is None or block[high] > most[0]:
            most = int(block[high]), first + high
    return (least[1], most[1]) if least and most else None


def _blocks(stop: int) -> Iterator[tuple[int, int]]:
    for first in range(0, stop, _BLOCK):
        yield first, min(first + _BLOCK, stop)


def _sum(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if len(left) < len(right):
        left, right = right, left
    result = left.astype(np.int64)
    result[: len(right)] += right
    return result
