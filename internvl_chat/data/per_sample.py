"""Values of records, looked up by sample: repeated records take no room of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

BLOCK = 1 << 20
"""Samples that are looked at together where all are gone through."""


class PerSample:
    """What is known of every record, as an array over the samples of a mixture.

    Args:
        per_record: (records,) values by dataset, all of one type; an array that is mapped from a
            file stays there if it is the only one.
        num_samples: of each dataset. More than it has records: they come again.
    """

    def __init__(self, per_record: Sequence[np.ndarray], num_samples: Sequence[int]) -> None:
        kept = [
            values[:count] for values, count in zip(per_record, num_samples, strict=True)
        ]  # of a dataset that is taken in part, only that part
        self._values = np.asarray(kept[0]) if len(kept) == 1 else np.concatenate(kept)
        sizes = np.array([len(values) for values in kept], dtype=np.int64)
        self._sizes = sizes
        self._ends = np.cumsum(num_samples)
        self._repeats = bool((self._ends != np.cumsum(sizes)).any())
        self._first_samples = self._ends - np.asarray(num_samples)
        self._first_values = np.cumsum(sizes) - sizes
        self.dtype = self._values.dtype

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, which: int) -> Any: ...
    @overload
    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray: ...
    def __getitem__(self, which: int | slice | np.ndarray) -> Any:
        """One value, or an array of them, by sample."""
        if not self._repeats:
            return self._values[which]
        if isinstance(which, slice):
            which = np.arange(*which.indices(len(self)))
        if isinstance(which, np.ndarray):
            return self._looked_up(np.flatnonzero(which) if which.dtype == bool else which)
        if not 0 <= which < len(self):
            raise IndexError(f"sample {which} of {len(self)}")
        return self._looked_up(np.array([which]))[0]

    def _looked_up(self, samples: np.ndarray) -> np.ndarray:
        found = np.empty(len(samples), dtype=self.dtype)
        for first in range(0, len(samples), BLOCK):
            block = samples[first : first + BLOCK].astype(np.int64)
            dataset = np.searchsorted(self._ends, block, side="right")
            block -= self._first_samples[dataset]
            block %= self._sizes[dataset]
            block += self._first_values[dataset]
            found[first : first + BLOCK] = self._values[block]
        return found

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first sample, values) in pieces of bounded size, over all samples."""
        for first in range(0, len(self), BLOCK):
            yield first, self[first : first + BLOCK]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype)

    def __iter__(self) -> Iterator[Any]:
        for _, values in self.blocks():
            yield from values

    def tolist(self) -> list[Any]:
        """All values, as plain numbers."""
        return self[:].tolist()


Values = np.ndarray | PerSample
