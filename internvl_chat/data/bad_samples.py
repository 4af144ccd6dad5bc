"""What happens to records that cannot be trained on: one place, one policy.

They are skipped, written to ``bad_samples.jsonl`` with file, line and reason, counted per dataset,
and once they are more than ``max_bad_ratio`` of what was seen the run stops. The counters live in
memory shared with the DataLoader's workers.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import DatasetError, printable

logger = logging.getLogger(__name__)

JOURNAL = "bad_samples.jsonl"
EARLIER_JOURNAL = "bad_samples.earlier.jsonl"
_SEEN_FLOOR = 1000  # below this many records a ratio says little
_MOST_FREQUENT = 10
_ENTRY_KEYS = {"dataset", "file", "line", "code", "reason"}


def set_journal_aside(output_dir: Path) -> None:
    """Give way to the journal of a run that begins anew: what has been mended is not bad any more.

    Args:
        output_dir: of both; the former journal stays there as ``EARLIER_JOURNAL``.
    """
    with contextlib.suppress(FileNotFoundError):
        (output_dir / JOURNAL).replace(output_dir / EARLIER_JOURNAL)


class BadRatioError(DatasetError):
    """More records are bad than ``max_bad_ratio`` allows."""

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        # A DataLoader rebuilds a worker's exception from one string that holds its traceback; the
        # user wants the last line of it, which is the message.
        marker = f"{type(self).__name__}: "
        if problem.startswith("Caught ") and marker in problem:
            problem = problem.rsplit(marker, 1)[1].strip()
        super().__init__(problem, where=where, fix=fix)


class BadSamples:
    """Journal and limit of bad records.

    Args:
        num_records: records of all datasets, numbered through.
        max_bad_ratio: share of bad ones that is tolerated.
        path: the journal; None keeps none.
        datasets: names, for the counts.
    """

    def __init__(
        self,
        *,
        num_records: int,
        max_bad_ratio: float = 0.01,
        path: str | os.PathLike[str] | None = None,
        datasets: Iterable[str] = (),
    ) -> None:
        self.num_records, self.max_bad_ratio = num_records, max_bad_ratio
        self.path = None if path is None else Path(path)
        self.datasets = tuple(datasets)
        self._counts = multiprocessing.Array("q", max(len(self.datasets), 1))
        self._seen = multiprocessing.Value("q", 0)
        self._marks = multiprocessing.RawArray("B", num_records)
        self._known = self._read_journal()
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def _read_journal(self) -> set[tuple[str, int]]:
        """(file, line) of what an earlier run into the same directory wrote."""
        return {(entry["file"], entry["line"]) for entry in self._entries()}

    def _entries(self) -> Iterator[dict[str, Any]]:
        """The journal so far, whoever wrote it."""
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # a line that a crash cut short
            if isinstance(entry, dict) and entry.keys() >= _ENTRY_KEYS:
                yield entry

    def journalled(self) -> dict[str, int]:
        """Distinct records of the journal per dataset: every worker's and rank's, of earlier
        runs into the same directory too."""
        distinct = {(entry["dataset"], entry["file"], entry["line"]) for entry in self._entries()}
        return dict(sorted(Counter(dataset for dataset, _, _ in distinct).items()))

    @property
    def counts(self) -> dict[str, int]:
        """Distinct bad records per dataset, over this rank's workers."""
        return dict(zip(self.datasets, self._counts[:], strict=False))

    @property
    def total(self) -> int:
        """Distinct bad records, over this rank's workers."""
        return sum(self._counts[:])

    def seen(self, count: int = 1) -> None:
        """Note that good records were read."""
        with self._seen.get_lock():
            self._seen.value += count

    def add_counted(
        self, dataset_id: int, errors: Iterable[tuple[int, int, BadRecordError]], *, journal: bool
    ) -> None:
        """Take over what was found while tokens were counted: (record, line, reason) each."""
        entries = [(line, err) for record, line, err in errors if self._mark(dataset_id, record)]
        for _, err in entries:
            self._note(err)
        if journal:
            self._write(dataset_id, entries)

    def add(self, dataset_id: int, record: int, line: int, err: BadRecordError) -> None:
        """Journal a bad record met while loading; one already known is passed over.

        Args:
            dataset_id: of ``datasets``.
            record: number over all datasets.
            line: in the annotation file.

        Raises:
            BadRatioError: that makes too many.
        """
        if not self._mark(dataset_id, record):
            return
        logger.warning("skipping a bad record: %s", err)
        self._write(dataset_id, [(line, err)])
        self._note(err)
        self.check(max(self._seen.value + self.total, _SEEN_FLOOR))

    def _mark(self, dataset_id: int, record: int) -> bool:
        """Count a record once, over workers and epochs; whether it is new."""
        with self._counts.get_lock():
            if self._marks[record]:
                return False
            self._marks[record] = 1
            self._counts[dataset_id] += 1
            return True

    def check(self, num_seen: int | None = None) -> None:
        """Stop if too many are bad among ``num_seen`` (default: all) records.

        Raises:
            BadRatioError: with the ten most frequent reasons.
        """
        base = min(self.num_records, self.num_records if num_seen is None else num_seen)
        if self.total <= self.max_bad_ratio * base:
            return
        self._note_journal()
        reasons = "; ".join(
            f"{count} x {code} (e.g. {self._examples[code]})"
            for code, count in self._reasons.most_common(_MOST_FREQUENT)
        )
        raise BadRatioError(
            f"{self.total} of {base} records are bad, more than --max_bad_ratio "
            f"{self.max_bad_ratio:g} allows. Most frequent reasons: {reasons}",
            where=str(self.path) if self.path else None,
            fix="Mend the data or raise --max_bad_ratio.",
        )

    def _note(self, err: BadRecordError) -> None:
        self._reasons[err.code] += 1
        self._examples.setdefault(err.code, " ".join(str(err).split()))

    def _note_journal(self) -> None:
        """Take the reasons from the journal, which other workers write to as well."""
        entries = list(self._entries())
        if not entries:
            return
        self._reasons = Counter(entry["code"] for entry in entries)
        for entry in entries:
            told = f"{entry['file']}:{entry['line']}: {entry['reason']}"
            self._examples.setdefault(entry["code"], told)

    def _write(self, dataset_id: int, entries: list[tuple[int, BadRecordError]]) -> None:
        if self.path is None:
            return
        name = self.datasets[dataset_id] if self.datasets else str(dataset_id)
        lines = []
        for line, err in entries:
            file = printable(_file_of(err, line))
            if (file, line) in self._known:
                continue
            self._known.add((file, line))
            entry = {
                "dataset": name,
                "file": file,
                "line": line,
                "code": err.code,
                "reason": printable(err.problem),
            }
            lines.append(orjson.dumps(entry) + b"\n")
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write in append mode: lines of several workers and ranks do not mix.
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, b"".join(lines))
        finally:
            os.close(handle)


def _file_of(err: BadRecordError, line: int) -> str:
    return (err.where or "").removesuffix(f":{line}")
