"""Equal hashes among any number of records, in memory that does not grow with them.

Hashes are collected in sorted runs on disk; runs are then merged range by range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

_RUN_ROWS: Final = 1 << 17
_ROW: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])
_DATASET_SHIFT: Final = 40
"""A place is (dataset, record) in one number: up to 2**40 records a dataset."""


def place_of(dataset: int, record: int) -> int:
    """One number for a record; ascending in the order of datasets and records."""
    return dataset << _DATASET_SHIFT | record


def dataset_and_record(place: int) -> tuple[int, int]:
    """The inverse of :func:`place_of`."""
    return place >> _DATASET_SHIFT, place & ((1 << _DATASET_SHIFT) - 1)


class HashRuns:
    """128-bit hashes and their places, sorted in files of a folder.

    Args:
        folder: an empty directory for temporary files.
        run_rows: rows that are held in memory; the peak is a few times 24 bytes of each.
    """

    def __init__(self, folder: Path, *, run_rows: int = _RUN_ROWS) -> None:
        self._folder, self._run_rows = folder, run_rows
        self._parts: list[np.ndarray] = []
        self._num_held = self._num_rows = 0
        self._runs: list[Path] = []

    def add(self, hashes: Sequence[bytes], *, dataset: int, first: int, missing: bytes) -> None:
        """Add the hashes of consecutive records.

        Args:
            hashes: of 16 bytes each.
            dataset, first: of the first one.
            missing: stands for a record without a hash.
        """
        table = np.frombuffer(b"".join(hashes), dtype="<u8").reshape(-1, 2)
        rows = np.empty(len(table), dtype=_ROW)
        rows["high"], rows["low"] = table[:, 0], table[:, 1]
        rows["place"] = place_of(dataset, first) + np.arange(len(table), dtype=np.uint64)
        absent = np.frombuffer(missing, dtype="<u8")
        rows = rows[(rows["high"] != absent[0]) | (rows["low"] != absent[1])]
        self._parts.append(rows)
        self._num_held += len(rows)
        if self._num_held >= self._run_rows:
            self._write_run()

    def _write_run(self) -> None:
        if not self._num_held:
            return
        rows = np.concatenate(self._parts)
        path = self._folder / f"run{len(self._runs)}"
        rows[np.argsort(rows["high"], kind="stable")].tofile(path)
        self._runs.append(path)
        self._num_rows += len(rows)
        self._parts, self._num_held = [], 0

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """(place, place of the first record with the same hash) of every later one.

        In the order of places.
        """
        self._write_run()
        found = self._folder / "found"
        with open(found, "wb") as handle:
            for pairs in self._ranges():
                pairs.tofile(handle)
        if found.stat().st_size == 0:
            return
        table = np.memmap(found, dtype="<u8", mode="r").reshape(-1, 2)
        order = np.argsort(table[:, 0], kind="stable")
        for begin in range(0, len(order), self._run_rows):
            yield from table[order[begin : begin + self._run_rows]].tolist()

    def _ranges(self) -> Iterator[np.ndarray]:
        """(n, 2) pairs of each range of hashes."""
        if not self._runs:
            return
        num_ranges = -(-self._num_rows // self._run_rows)
        bounds = np.linspace(0, 2.0**64, num_ranges, endpoint=False).astype(np.uint64)[1:]
        cuts = [_cuts(path, bounds) for path in self._runs]
        for number in range(num_ranges):
            # Read and not mapped: mapped pages would count as this process's memory.
            parts = [
                np.fromfile(
                    path,
                    dtype=_ROW,
                    count=cut[number + 1] - cut[number],
                    offset=cut[number] * _ROW.itemsize,
                )
                for path, cut in zip(self._runs, cuts, strict=True)
            ]
            yield _pairs(np.concatenate(parts))


def _cuts(path: Path, bounds: np.ndarray) -> list[int]:
    """Where a sorted run is to be cut so that each piece holds one range of hashes."""
    run = np.memmap(path, dtype=_ROW, mode="r")
    return [0, *np.searchsorted(run["high"], bounds).tolist(), len(run)]


def _pairs(rows: np.ndarray) -> np.ndarray:
    """(n, 2) later place and first place of rows with equal hashes."""
    rows = rows[np.lexsort((rows["place"], rows["low"], rows["high"]))]
    same = np.zeros(len(rows), dtype=bool)
    same[1:] = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    # The first row of each group, carried along it.
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
    return np.stack([rows["place"][same], rows["place"][starts[same]]], axis=1)
