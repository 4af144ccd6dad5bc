"""Which records are shown."""

from __future__ import annotations

import numpy as np
import pytest

from internvl_chat.data.report import sampling
from internvl_chat.data.report.sampling import choose_samples, equal_shares


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ([2, 100, 100], 9, [2, 4, 3]),
        ([5, 5], 100, [5, 5]),
        ([0, 3], 2, [0, 2]),
        ([10, 10, 10], 2, [1, 1, 0]),
        ([0, 0], 5, [0, 0]),
        ([], 5, []),
    ],
)
def test_equal_shares(sizes: list[int], total: int, shares: list[int]) -> None:
    assert equal_shares(sizes, total) == shares


def test_spread_over_datasets_and_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = [rng.integers(10, 5000, 3000), np.array([7, -1, 9]), rng.integers(10, 90, 500)]
    lengths[0][[17, 2000]] = 1, 9000
    lengths[0][5] = -1
    chosen = choose_samples(lengths, [3000, 3, 500], num_samples=62, seed=3)
    assert len(set(chosen)) == 62
    by_dataset = [sorted(r for d, r in chosen if d == number) for number in range(3)]
    assert [len(records) for records in by_dataset] == [30, 2, 30]
    assert by_dataset[1] == [0, 2]  # the bad one is not chosen
    assert {17, 2000} <= set(by_dataset[0])
    # One of each thirtieth of the records by length.
    ranks = np.argsort(np.argsort(np.where(lengths[0] < 0, 10**6, lengths[0])))
    assert sorted((ranks[by_dataset[0]] * 30 // 2999).tolist()) == list(range(30))
    assert [d for d, _ in chosen] != sorted(d for d, _ in chosen)
    assert choose_samples(lengths, [3000, 3, 500], num_samples=62, seed=3) == chosen
    assert choose_samples(lengths, [3000, 3, 500], num_samples=62, seed=4) != chosen


def test_only_records_that_an_epoch_takes() -> None:
    lengths = [np.arange(1, 101)]
    chosen = choose_samples(lengths, [10], num_samples=50, seed=0)
    assert sorted(record for _, record in chosen) == list(range(10))


def test_large_datasets_are_not_sorted_but_keep_their_extremes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "_CANDIDATES", 50)
    lengths = np.full(10_000, 100)
    lengths[[4321, 8765]] = 1, 999
    chosen = choose_samples([lengths], [10_000], num_samples=5, seed=1)
    assert {(0, 4321), (0, 8765)} <= set(chosen)
    assert len(chosen) == 5


def test_nothing_to_choose() -> None:
    assert choose_samples([np.array([-1])], [1], num_samples=5, seed=0) == []
    assert choose_samples([np.array([4, 5])], [2], num_samples=0, seed=0) == []
    assert choose_samples([np.array([4, 5])], [2], num_samples=1, seed=0) in ([(0, 0)], [(0, 1)])
