"""Which records are shown: all datasets, short and long ones, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import numpy as np

from internvl_chat.data.report.tallies import shortest_and_longest

_CANDIDATES: Final = 1 << 16
"""Records of a dataset among which is chosen: larger ones are not sorted by length."""


def choose_samples(
    lengths: Sequence[np.ndarray], num_used: Sequence[int], *, num_samples: int, seed: int
) -> list[tuple[int, int]]:
    """Choose records to look at.

    Datasets get equal shares, what a small one has not goes to the others. Within a dataset the
    records are spread evenly over the order by length; shortest and longest are among them from
    two on.

    Args:
        lengths: (n,) int per dataset; negative for bad records, which are not chosen.
        num_used: how many records of each dataset, from the first on, an epoch takes.
        num_samples: how many; fewer if there are not so many.
        seed: the same choice for the same seed and data.

    Returns:
        (dataset, record) pairs in a shuffled order.
    """
    pools = [
        _pool(one, used, random.Random(f"{seed}:{number}:pool"))
        for number, (one, used) in enumerate(zip(lengths, num_used, strict=True))
    ]
    shares = equal_shares([len(pool) for pool in pools], num_samples)
    chosen = [
        (number, record)
        for number, (pool, share) in enumerate(zip(pools, shares, strict=True))
        for record in _spread(pool, share, random.Random(f"{seed}:{number}:spread"))
    ]
    random.Random(f"{seed}:order").shuffle(chosen)
    return chosen


def equal_shares(sizes: Sequence[int], total: int) -> list[int]:
    """Share ``total`` out equally, nobody more than its size; first ones get what is left over.

    >>> equal_shares([2, 100, 100], 9)
    [2, 4, 3]
    """
    shares = [0] * len(sizes)
    left, waiting = min(total, sum(sizes)), len(sizes)
    # Small ones first; of equal ones the later first, which a division without rest leaves less.
    for number in sorted(range(len(sizes)), key=lambda number: (sizes[number], -number)):
        shares[number] = min(sizes[number], left // waiting)
        left -= shares[number]
        waiting -= 1
    return shares


def _pool(lengths: np.ndarray, used: int, rng: random.Random) -> list[int]:
    """Good records of a dataset by ascending length; of a large one a part, with its extremes."""
    stop = min(used, len(lengths))
    ends = shortest_and_longest(lengths, stop)
    if ends is None:
        return []
    if stop <= _CANDIDATES:
        records = np.arange(stop)
    else:
        drawn = rng.sample(range(stop), _CANDIDATES)
        records = np.array(sorted({*drawn, *ends}))
    values = np.asarray(lengths[records])
    records, values = records[values >= 0], values[values >= 0]
    return [int(record) for record in records[np.argsort(values, kind="stable")]]


def _spread(pool: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """One record of each of ``count`` equal stretches; of the first and last the outermost."""
    picked = []
    for number in range(count):
        low = number * len(pool) // count
        high = (number + 1) * len(pool) // count - 1
        place = rng.randint(low, high)
        if count > 1 and number in (0, count - 1):
            place = low if number == 0 else high
        picked.append(pool[place])
    return picked
