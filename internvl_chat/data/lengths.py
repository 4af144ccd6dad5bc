"""Exact token counts of every record, worked out once and cached.

Sampling and packing are decided on these, so they are what encoding gives, image tokens included,
and not guesses. Counting reads no image unless ids depend on its size and the record does not state
it (then the header only).
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from internvl_chat.config import MediaConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.bad_record import bad_if_unreadable
from internvl_chat.data.cache import cache_path, digest, locked, path_key, told
from internvl_chat.data.encode import Encoder
from internvl_chat.data.expand import ExpandedRecord, expand_record, needs_sizes
from internvl_chat.data.images import read_geometry
from internvl_chat.data.length_journal import CountedChunk, LengthJournal
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.processes import forked_map, usable_cores
from internvl_chat.data.record_json import MAX_RECORD_BYTES
from internvl_chat.data.schema import BadRecordError, Record, Size, parse_record
from internvl_chat.data.storage import resolve_path
from internvl_chat.data.video import choose_frames, open_video
from internvl_chat.errors import printable
from internvl_chat.files import written_aside

logger = logging.getLogger(__name__)

_ASSUMED_SIZE: Size = (1024, 768)
"""Of an image whose record does not state its size, where no image is to be read."""
BAD = -1
"""Length of a record that cannot be trained on."""
_CHUNK_RECORDS = 512
_PARALLEL_FROM = 4096
_FORMAT = 2  # of the cache; raise when counting or its layout changes


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Counts of one dataset's records."""

    tokens: np.ndarray
    """(n,) int32 ids after truncation; BAD for bad records."""
    tiles: np.ndarray
    """(n,) int32 image tiles."""
    bad: list[tuple[int, BadRecordError]]
    """(record, reason)."""
    num_truncated: int
    num_dropped_leading_answers: int
    warnings: dict[str, int]


@dataclass(frozen=True)
class RecordCounter:
    """What counting one dataset needs."""

    spec: DatasetSpec
    file: AnnotationFile
    encoder: Encoder
    media: MediaConfig

    def chunk(self, first: int) -> CountedChunk:
        """Count ``_CHUNK_RECORDS`` records, or as many as there are."""
        last = min(first + _CHUNK_RECORDS, len(self.file))
        tokens = np.full(last - first, BAD, dtype=np.int32)
        chunk = CountedChunk(first, tokens, np.zeros_like(tokens))
        warnings: Counter[str] = Counter()
        places, rendered, tiles, wheres = [], [], [], []
        records = self.file.read_range(first, last, most=MAX_RECORD_BYTES + 1)
        for number, (raw, where) in enumerate(records, first):
            try:
                with bad_if_unreadable(where):
                    record = parse_record(raw, where=where)
                    expanded = self._expand(record, where)
                    one = self.encoder.render(expanded.turns, system=record.system, where=where)
            except BadRecordError as err:
                chunk.bad.append(_reason(number, err))
                continue
            chunk.num_dropped += record.dropped_leading_answer
            warnings.update(expanded.warnings)
            places.append(number)
            rendered.append(one)
            tiles.append(expanded.num_tiles)
            wheres.append(where)
        for number, counts, found in zip(
            places, tiles, self.encoder.lengths(rendered, tiles, wheres), strict=True
        ):
            if isinstance(found, BadRecordError):
                chunk.bad.append(_reason(number, found))
                continue
            chunk.tokens[number - first], truncated = found
            chunk.tiles[number - first] = sum(counts)
            chunk.num_truncated += truncated
        chunk.warnings = dict(warnings)
        return chunk

    def _expand(self, record: Record, where: str) -> ExpandedRecord:
        num_frames = self._num_frames(record, where) if record.video else 0
        sizes: tuple[Size, ...] | None = None
        if needs_sizes(record, self.spec, self.media.images):
            sizes = record.sizes or tuple(self._size(path, where) for path in record.images)
        return expand_record(
            record, self.spec, self.media.images, sizes=sizes, num_frames=num_frames, where=where
        )

    def _size(self, path: str, where: str) -> Size:
        full = resolve_path(self.spec.root, path, where=where, strict=self.media.strict_root)
        return read_geometry(
            full,
            where=where,
            max_pixels=self.media.max_image_pixels,
            decode=self.media.images.decode,
        ).size

    def _num_frames(self, record: Record, where: str) -> int:
        assert record.video is not None
        full = resolve_path(
            self.spec.root, record.video, where=where, strict=self.media.strict_root
        )
        frames = choose_frames(
            open_video(
                full,
                where=where,
                max_pixels=self.media.max_image_pixels,
                backend=self.media.video_backend,
            ),
            clip=record.clip,
            min_num_frame=self.media.min_num_frame,
            max_num_frame=self.media.max_num_frame,
            rng=None,
            where=where,
        )
        return len(frames)


class FilelessCounter(RecordCounter):
    """The same from the records alone, for an estimate: no image or video is looked at.

    Images without a stated size are taken for photographs, and videos for as many frames as a run
    takes at most.
    """

    def _size(self, path: str, where: str) -> Size:
        return _ASSUMED_SIZE

    def _num_frames(self, record: Record, where: str) -> int:
        return self.media.max_num_frame


def sampled_lengths(counter: RecordCounter, *, most_chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and tiles of records spread over a dataset, bad ones left out.

    Args:
        counter: of the dataset.
        most_chunks: runs of neighbouring records that are counted at most, each of 512.

    Returns:
        Two arrays (n,); of all records where there are no more.
    """
    last = max(len(counter.file) - _CHUNK_RECORDS, 0)
    all_chunks = -(-len(counter.file) // _CHUNK_RECORDS)
    if all_chunks <= most_chunks:
        starts = [number * _CHUNK_RECORDS for number in range(all_chunks)]
    else:
        starts = np.linspace(0, last, most_chunks, dtype=np.int64).tolist()
    chunks = [counter.chunk(first) for first in starts]
    tokens = np.concatenate([chunk.tokens for chunk in chunks])
    tiles = np.concatenate([chunk.tiles for chunk in chunks])
    return tokens[tokens >= 0], tiles[tokens >= 0]


def _media_key(spec: DatasetSpec, media: MediaConfig) -> dict[str, Any]:
    """What of the settings decides counts; pixels alone (colours, the decoder) do not."""
    values = asdict(media)
    images = values["images"]
    del images["normalize_type"]
    del images["decode"]["rgba_background_color"], images["decode"]["image_backend"]
    if not images["dynamic_image_size"] and spec.box_format == "keep":
        values["images"] = None  # one tile each, whatever their size
    return values


def _reason(number: int, err: BadRecordError) -> tuple[int, str, str, str | None]:
    """As the journal keeps it: paths in it may hold bytes that are no UTF-8."""
    return number, err.code, printable(err.problem), err.fix


def token_lengths(
    spec: DatasetSpec,
    file: AnnotationFile,
    encoder: Encoder,
    media: MediaConfig,
    *,
    is_main: bool = True,
    num_processes: int | None = None,
) -> Lengths:
    """Counts of every record of a dataset, from the cache if they were made before.

    Processes that ask at once (ranks, jobs) count once: the others wait. A count that was
    interrupted is continued. Works before any process group or device exists.

    Args:
        spec, file: the dataset.
        encoder: template, tokenizer and limits.
        media: how files are read.
        is_main: whether to show progress.
        num_processes: how many count; by default as many as there are cores, at most 32, and one
            for small files.

    Raises:
        DatasetError: the file changed meanwhile, the cache has no room, or a process died.
    """
    key = digest(
        _FORMAT,
        file.identity,
        encoder.tokens.fingerprint(),
        asdict(encoder.config),
        asdict(encoder.template),
        _media_key(spec, media),
        [path_key(os.path.abspath(spec.root or ".")), spec.box_format, spec.max_dynamic_patch],
        *([] if len(file) == file.num_in_file else [len(file)]),  # only so many are counted
    )
    path = cache_path(file.path, key, ".lengths.npy")
    report = path.with_suffix(".json")
    if not path.exists():
        with locked(path) as alone:
            if not path.exists():
                counter = RecordCounter(spec, file, encoder, media)
                ending = ".part" if alone else f".{os.getpid()}.part"
                journal = path.with_suffix(ending)
                with told(journal):
                    _count(counter, journal, path, report, is_main, num_processes)
    table = np.load(path, mmap_mode="r")
    summary = orjson.loads(report.read_bytes())
    return Lengths(
        tokens=table[0],
        tiles=table[1],
        bad=[
            (number, BadRecordError(code, problem, where=file.where(number), fix=fix))
            for number, code, problem, fix in summary["bad"]
        ],
        num_truncated=summary["num_truncated"],
        num_dropped_leading_answers=summary["num_dropped"],
        warnings=summary["warnings"],
    )


def _count(
    counter: RecordCounter,
    journal_path: Path,
    path: Path,
    report: Path,
    is_main: bool,
    num_processes: int | None,
) -> None:
    """Count what the journal does not hold yet, then write its sum to ``path`` and ``report``."""
    total = len(counter.file)
    if num_processes is None:
        num_processes = usable_cores() if total >= _PARALLEL_FROM else 1
    with LengthJournal(journal_path) as journal:
        first = journal.num_records
        if first:
            logger.info("%s: going on behind %d counted records", counter.spec.name, first)
        chunks = forked_map(
            counter.chunk, range(first, total, _CHUNK_RECORDS), num_processes=num_processes
        )
        for chunk in _shown(chunks, counter.spec.name, first, total, is_main):
            journal.append(chunk)
        with written_aside(path) as partial:
            summary = _write_table(journal, partial, total)
            with written_aside(report) as partial_report:  # before the table: that means done
                partial_report.write_bytes(orjson.dumps(summary))
    journal_path.unlink(missing_ok=True)


def _write_table(journal: LengthJournal, path: Path, total: int) -> dict[str, object]:
    """Write (2, n) int32 tokens and tiles; what else is to be kept."""
    table = np.lib.format.open_memmap(path, "w+", dtype=np.int32, shape=(2, total))
    bad: list[tuple[int, str, str, str | None]] = []
    warnings: Counter[str] = Counter()
    truncated = dropped = 0
    for chunk in journal.chunks():
        table[:, chunk.first : chunk.first + len(chunk.tokens)] = chunk.tokens, chunk.tiles
        bad += chunk.bad
        warnings.update(chunk.warnings)
        truncated += chunk.num_truncated
        dropped += chunk.num_dropped
    table.flush()
    return {
        "bad": sorted(bad),
        "warnings": dict(warnings.most_common(100)),
        "num_truncated": truncated,
        "num_dropped": dropped,
    }


def _shown(
    chunks: Iterable[CountedChunk], name: str, first: int, total: int, is_main: bool
) -> Iterator[CountedChunk]:
    """Pass chunks on, with a progress bar where there is enough to wait for."""
    if not is_main or total - first < _PARALLEL_FROM:
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import Progress

    logger.info("counting the tokens of %d records of %s", total - first, name)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"tokens of {name}", total=total, completed=first)
        for chunk in chunks:
            progress.update(task, advance=len(chunk.tokens))
            yield chunk
