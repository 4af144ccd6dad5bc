"""``data check`` from end to end: meta, annotation files, records in parallel, duplicates."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from internvl_chat.config import DataConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.check.cleaning import Cleaner
from internvl_chat.data.check.duplicates import HashRuns, dataset_and_record
from internvl_chat.data.check.findings import CheckedCounts, Finding, finding
from internvl_chat.data.check.records import (
    BAD_RECORD,
    NO_HASH,
    OK,
    WARNED,
    ChunkFindings,
    RecordChecker,
)
from internvl_chat.data.encode import Encoder, marks_of
from internvl_chat.data.encodings import UTF8
from internvl_chat.data.meta import DatasetSpec, read_meta
from internvl_chat.data.mixture import open_annotation
from internvl_chat.data.processes import forked_map, usable_cores
from internvl_chat.errors import DatasetError
from internvl_chat.model.templates import find_template

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told (dataset, records done, records of all datasets so far known)."""

_CHUNK_RECORDS: Final = 1024
_DECODED_CHUNK: Final = 32
_PARALLEL_FROM: Final = 4096
_DECODED_PARALLEL_FROM: Final = 128


@dataclass
class CheckedDataset:
    """A dataset whose annotation file could be opened."""

    spec: DatasetSpec
    file: AnnotationFile
    counts: CheckedCounts
    states: np.ndarray
    """(n,) uint8 state of each record, on disk."""


class DataCheck:
    """A check of the datasets of a meta JSON.

    Args:
        config: what training would be told.
        tokenizer: with the image tokens added; None leaves out what needs token counts.
        decode: open images and videos.
        num_processes: that check records; by default one a core, and one for small files.
        progress: is told how far it is.
        cleaner: takes what is mended and left out; None mends nothing.

    Attributes:
        datasets: those that could be opened, once :meth:`findings` is through.
        summary: what the cleaner wrote.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        tokenizer: Any = None,
        decode: bool = False,
        num_processes: int | None = None,
        progress: Progress | None = None,
        cleaner: Cleaner | None = None,
    ) -> None:
        self.cleaner = cleaner
        self.config, self.decode = config, decode
        self.encoder = None if tokenizer is None else Encoder(tokenizer, config.encode)
        self.marks = marks_of(find_template(config.encode.conv_style))
        self.num_processes, self.progress = num_processes, progress
        self.datasets: list[CheckedDataset] = []
        self.num_errors = self.num_warnings = 0
        self.summary = ""

    def findings(self) -> Iterator[Finding]:
        """Everything that is wrong: the meta, then each dataset's records, then duplicates."""
        with tempfile.TemporaryDirectory(prefix="internvl_chat-check-") as folder:
            for one in self._findings(Path(folder)):
                self.num_errors += one.severity == "error"
                self.num_warnings += one.severity == "warning"
                yield one

    def checker(self, number: int) -> RecordChecker:
        """What checks the records of an opened dataset."""
        dataset = self.datasets[number]
        return RecordChecker(
            dataset.spec,
            dataset.file,
            dataset=number,
            media=self.config.media,
            marks=self.marks,
            encoder=self.encoder,
            decode=self.decode,
            mending=self.cleaner is not None,
        )

    def _findings(self, folder: Path) -> Iterator[Finding]:
        meta = read_meta(self.config.meta_path)
        for one in (*meta.problems, *meta.warnings):
            named = one.where.removeprefix(f"{self.config.meta_path}:")
            line = int(named) if named.isdecimal() else None
            told = finding(
                one.code,
                one.named_problem,
                one.mend,
                dataset=one.dataset,
                file=self.config.meta_path,
                line=line,
            )
            self._note(told)
            yield told
        for spec in meta.specs:
            if self.cleaner is None:  # the copy has all records
                spec = spec.limited(self.config.max_samples)
            yield from self._open(spec, folder)
        for name in ("records", "ids"):
            (folder / name).mkdir()
        records, ids = HashRuns(folder / "records"), HashRuns(folder / "ids")
        if self.cleaner is not None:
            for dataset in self.datasets:
                self.cleaner.open(dataset.spec, dataset.file, folder)
        for number in range(len(self.datasets)):
            yield from self._records(number, records, ids)
        yield from self._duplicates(records, "DUPLICATE_RECORD", "the same record as")
        yield from self._duplicates(ids, "DUPLICATE_ID", "the same id as")
        for dataset in self.datasets:
            dataset.counts.num_ok = int((dataset.states == OK).sum())
            dataset.counts.num_warned = int((dataset.states == WARNED).sum())
            dataset.counts.num_bad = int((dataset.states == BAD_RECORD).sum())
        if self.cleaner is not None:
            self.summary = self.cleaner.write()

    def _note(self, one: Finding) -> None:
        """Tell the cleaner about what is no record's."""
        if self.cleaner is not None:
            left = one.code in ("ANNOTATION", "META_FILE")
            self.cleaner.note(one, "left out" if left else "changed", one.message)

    def _open(self, spec: DatasetSpec, folder: Path) -> Iterator[Finding]:
        """Open the annotation file; what is wrong with it as a whole."""
        try:
            file = open_annotation(
                spec if self.cleaner is None else replace(spec, max_samples=None)
            )
        except DatasetError as err:
            named = (err.where or "").removeprefix(f"{spec.annotation}:")
            told = finding(
                "ANNOTATION",
                err.problem,
                err.fix,
                dataset=spec.name,
                file=spec.annotation,
                line=int(named) if named.isdecimal() else None,
            )
            self._note(told)
            yield told
            return
        if file.encoding != UTF8:
            message = f"the annotation file is in {file.encoding.upper()}"
            told = finding("UTF16", message, dataset=spec.name, file=spec.annotation)
            self._note(told)
            yield told
        total = file.num_in_file
        if spec.length is not None and spec.length != total:
            message = f"length says {spec.length}, {spec.annotation} holds {total} records"
            told = finding(
                "LENGTH_MISMATCH",
                message,
                f'Write "length": {total}, or download the file again if it was cut.',
                dataset=spec.name,
                file=self.config.meta_path,
            )
            self._note(told)
            yield told
        repeat_problem = spec.repeat_problem(min(len(file), spec.max_samples or len(file)))
        if repeat_problem is not None:
            told = finding(
                "META_ENTRY",
                repeat_problem,
                "Correct repeat_time.",
                dataset=spec.name,
                file=self.config.meta_path,
            )
            self._note(told)
            yield told
        has_encoder = self.encoder is not None
        counts = CheckedCounts.before(spec.name, len(file), counts_tokens=has_encoder)
        path = folder / f"states{len(self.datasets)}"
        states = np.memmap(path, dtype=np.uint8, mode="w+", shape=(len(file),))
        self.datasets.append(CheckedDataset(spec, file, counts, states))

    def _records(self, number: int, records: HashRuns, ids: HashRuns) -> Iterator[Finding]:
        dataset = self.datasets[number]
        file, counts = dataset.file, dataset.counts
        done, total = sum(len(one.file) for one in self.datasets[:number]), self._total()
        for chunk in self._chunks(number):
            size = len(chunk.states)
            dataset.states[chunk.first : chunk.first + size] = np.frombuffer(chunk.states, np.uint8)
            counts.num_images += chunk.media_count
            if counts.num_tokens is not None:
                counts.num_tokens += chunk.num_tokens
            place = {"dataset": number, "first": chunk.first, "missing": NO_HASH}
            records.add(chunk.record_hashes, **place)  # type: ignore[arg-type]
            ids.add(chunk.id_hashes, **place)  # type: ignore[arg-type]
            for record, (code, message, mend) in chunk.findings:
                yield finding(
                    code,
                    message,
                    mend,
                    dataset=dataset.spec.name,
                    file=file.path,
                    line=file.line(record),
                )
            if self.cleaner is not None:
                self.cleaner.chunk(number, chunk)
            done += size
            if self.progress is not None:
                self.progress(dataset.spec.name, done, total)

    def _total(self) -> int:
        return sum(len(one.file) for one in self.datasets)

    def _chunks(self, number: int) -> Iterator[ChunkFindings]:
        """Chunks in the records' order, checked by as many processes as there are cores."""
        total = len(self.datasets[number].file)
        size = _DECODED_CHUNK if self.decode else _CHUNK_RECORDS
        spans = [(first, min(first + size, total)) for first in range(0, total, size)]
        num_processes = self.num_processes
        if num_processes is None:
            enough = _DECODED_PARALLEL_FROM if self.decode else _PARALLEL_FROM
            num_processes = usable_cores() if total >= enough else 1
        work = self.checker(number).span
        yield from forked_map(work, spans, num_processes=min(num_processes, len(spans)))

    def _duplicates(self, runs: HashRuns, code: str, what: str) -> Iterator[Finding]:
        for place, first in runs.duplicates():
            dataset, record = dataset_and_record(place)
            other, other_record = dataset_and_record(first)
            checked, earlier = self.datasets[dataset], self.datasets[other]
            state = max(int(checked.states[record]), WARNED)
            checked.states[record] = state
            if self.cleaner is not None and code == "DUPLICATE_RECORD":
                message = f"{what} {earlier.file.where(other_record)}"
                self.cleaner.duplicate(dataset, record, (other, other_record), message)
            yield finding(
                code,
                f"{what} {earlier.file.where(other_record)}",
                dataset=checked.spec.name,
                file=checked.file.path,
                line=checked.file.line(record),
            )
