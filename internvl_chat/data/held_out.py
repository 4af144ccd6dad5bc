"""Which records of the training data are held out (``--val_split``), and what they are taken from.

By source record, before ``repeat_time``: what is held out is never trained on. The choice depends
on the seed and on what the records show, not on the order of datasets, ranks, workers or packing;
records that show the same image (by its path, under one root) are on one side, in all datasets.
The list that a run leaves of them is written and read here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from internvl_chat.config import HeldOutConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.same_media import Groups, MediaOfRecords
from internvl_chat.errors import DatasetError, printable
from internvl_chat.files import written_aside

HELD_OUT: Final = "held_out.jsonl"
"""In OUTPUT_DIR: a line for each record that is held out."""


@dataclass(frozen=True)
class RecordPart:
    """Some of a dataset's records: all, those that are held out, or all but these."""

    num_records: int
    """Of the dataset."""
    held_out: np.ndarray
    """(k,) int64 record numbers, ascending."""
    is_held_out: bool = False

    @classmethod
    def whole(cls, num_records: int) -> RecordPart:
        """Of a dataset of which nothing is held out."""
        return cls(num_records, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.held_out) if self.is_held_out else self.num_records - len(self.held_out)

    def record(self, place: int) -> int:
        """Number in the dataset of the part's record ``place``."""
        if self.is_held_out:
            return int(self.held_out[place])
        # As much further on as records are held out before it.
        return place + int(np.searchsorted(self._trained_before, place, side="right"))

    @cached_property
    def _trained_before(self) -> np.ndarray:
        """(k,) How many records of the part stand before each held-out one."""
        return self.held_out - np.arange(len(self.held_out))

    def of(self, values: np.ndarray) -> np.ndarray:
        """Values by record of the dataset -> by record of the part."""
        if self.is_held_out:
            return np.asarray(values[self.held_out])
        return np.delete(values, self.held_out) if len(self.held_out) else values


def draw_held_out(
    datasets: Sequence[tuple[str, MediaOfRecords]], config: HeldOutConfig
) -> list[np.ndarray]:
    """Choose what is held out of each dataset.

    Whole groups of records that show the same are drawn, as many as come to the share without
    exceeding it; where each is larger, the smallest one, if that is at most half of the dataset.
    A group that one dataset gives is held out of all others with its root, too.

    Args:
        datasets: (root, what the records show) of each.
        config: share and seed.

    Returns:
        (k,) int64 record numbers of each dataset, ascending; none where it has too few.
    """
    roots = [os.path.abspath(root or ".") for root, _ in datasets]
    unions = {root: Groups() for root in roots}
    for root, (_, media) in zip(roots, datasets, strict=True):
        for pair in media.links.tolist():
            unions[root].join(pair)
    settled = [
        unions[root].settle(media.firsts) for root, (_, media) in zip(roots, datasets, strict=True)
    ]
    given: dict[str, list[np.ndarray]] = {root: [] for root in roots}
    for root, groups in zip(roots, settled, strict=True):
        given[root].append(_draw_groups(groups, config))
    return [
        np.flatnonzero(np.isin(groups, np.concatenate(given[root])))
        for root, groups in zip(roots, settled, strict=True)
    ]


def _draw_groups(groups: np.ndarray, config: HeldOutConfig) -> np.ndarray:
    """The groups that a dataset gives; (n,) uint64 group of each record goes in."""
    wanted = config.num_wanted(len(groups))
    names, sizes = np.unique(groups, return_counts=True)
    order = np.argsort(_shuffled(names, config.split_seed), kind="stable")
    names, sizes = names[order], sizes[order]
    sums = np.cumsum(sizes)
    end = int(np.searchsorted(sums, wanted, side="right"))  # groups that fit in a row
    taken = list(range(end))
    left = wanted - (int(sums[end - 1]) if end else 0)
    while left and len(fitting := np.flatnonzero(sizes[end:] <= left)):
        taken.append(end + int(fitting[0]))
        left -= int(sizes[taken[-1]])
        end = taken[-1] + 1
    if wanted and not taken:
        smallest = int(np.argmin(sizes))
        taken = [smallest] if 2 * sizes[smallest] <= len(groups) else []
    return names[taken]


def _shuffled(names: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in an order of the seed's: splitmix64, https://prng.di.unimi.it/splitmix64.c."""
    start = np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    with np.errstate(over="ignore"):
        mixed = names + start
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class HeldOutRecord:
    """One record that is held out."""

    dataset: str
    file: str
    line: int
    """From 1; several records of an array may begin on one."""
    record: int
    """Number in the file, from 0."""
    digest: str
    """Of its bytes: tells whether it is still what stands there."""

    @classmethod
    def of(cls, dataset: str, file: AnnotationFile, number: int) -> HeldOutRecord:
        """That of a dataset's file."""
        return cls(dataset, file.path, file.line(number), number, _digest(file, number))

    def is_in(self, file: AnnotationFile) -> bool:
        """Whether a file holds it in the same place."""
        return self.record < len(file) and _digest(file, self.record) == self.digest


def _digest(file: AnnotationFile, number: int) -> str:
    return hashlib.sha256(file.read(number)[0].strip()).hexdigest()[:16]


def write_held_out(output_dir: Path, records: Sequence[HeldOutRecord]) -> None:
    """Write ``held_out.jsonl``; without any, take one away that a run before has left."""
    path = output_dir / HELD_OUT
    if not records:
        if _is_of_a_run(path):
            path.unlink()
        return
    with written_aside(path) as partial, open(partial, "wb") as file:
        for one in records:
            values = asdict(one).items()
            entry = {name: printable(v) if isinstance(v, str) else v for name, v in values}
            file.write(orjson.dumps(entry) + b"\n")


def read_held_out(path: Path) -> list[HeldOutRecord]:
    """What :func:`write_held_out` has written.

    Raises:
        DatasetError: the file cannot be read, or is none of a run's.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as err:
        raise DatasetError(f"cannot be read: {err.strerror}", where=str(path)) from err
    found = [_record_of(line) for line in lines]
    records = [one for one in found if one is not None]
    if not records or len(records) < len(found):
        raise DatasetError(
            f"does not name a record by {', '.join(_NAMES)}",
            where=f"{path}:{found.index(None) + 1 if None in found else 1}",
            fix=f"Give the {HELD_OUT} that a run with --val_split has left.",
        )
    return records


_NAMES: Final = tuple(one.name for one in fields(HeldOutRecord))


def _record_of(line: bytes) -> HeldOutRecord | None:
    """A record of the list; None for a line that is not of it."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or tuple(entry) != _NAMES:
        return None
    record = HeldOutRecord(**entry)
    is_number = isinstance(record.record, int) and record.record >= 0
    return record if is_number and isinstance(record.dataset, str) else None


def _is_of_a_run(path: Path) -> bool:
    """Whether a file is as :func:`write_held_out` writes it, and none of the user's."""
    try:
        with open(path, "rb") as file:
            return _record_of(file.readline()) is not None
    except OSError:
        return False
