"""Counting lengths in one pass."""

from __future__ import annotations

import numpy as np
import pytest

from internvl_chat.data.report import tallies
from internvl_chat.data.report.tallies import merged, shortest_and_longest, sum_of_first, tally

LENGTHS = np.array([5, -1, 3, 5, 8, -1, 0], dtype=np.int32)


@pytest.fixture(params=[1, 3, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every result is that of one block."""
    monkeypatch.setattr(tallies, "_BLOCK", request.param)
    return int(request.param)


@pytest.mark.usefixtures("block")
def test_good_records_are_counted_by_value() -> None:
    found = tally(LENGTHS, LENGTHS)
    assert found.counts.tolist() == [1, 0, 0, 1, 0, 2, 0, 0, 1]
    assert (found.num_records, found.total, found.lowest, found.largest) == (5, 21, 0, 8)
    assert [found.quantile(share) for share in (0, 0.2, 0.5, 0.8, 0.81, 1)] == [0, 0, 5, 5, 8, 8]
    tiles = tally(np.array([1, 7, 2, 1, 1, 7, 0]), LENGTHS)
    assert tiles.counts.tolist() == [1, 3, 1]


def test_nothing_good() -> None:
    found = tally(np.array([-1, -1]), np.array([-1, -1]))
    assert (found.num_records, found.total, found.lowest, found.largest) == (0, 0, 0, 0)
    assert found.quantile(0.5) == 0
    assert merged([found, found]).num_records == 0


def test_datasets_together() -> None:
    long, short = tally(LENGTHS, LENGTHS), tally(np.array([1, 3]), np.array([1, 3]))
    assert merged([short, long]).counts.tolist() == [1, 1, 0, 2, 0, 2, 0, 0, 1]
    assert short.counts.tolist() == [0, 1, 0, 1]  # not changed


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("num_samples", "total"), [(0, 0), (3, 8), (7, 21), (9, 26), (14, 42)])
def test_sum_over_an_epoch(num_samples: int, total: int) -> None:
    assert sum_of_first(LENGTHS, num_samples) == total


@pytest.mark.usefixtures("block")
def test_extremes() -> None:
    assert shortest_and_longest(LENGTHS, 7) == (6, 4)
    assert shortest_and_longest(LENGTHS, 4) == (2, 0)  # of equal ones the first
    assert shortest_and_longest(LENGTHS[1:2], 1) is None
    assert shortest_and_longest(LENGTHS, 0) is None
