"""Exact token counts of every record, worked out once and cached.

Sampling and packing are decided on these, so they are what encoding gives, image tokens included,
and not guesses. Counting reads no image unless ids depend on its size and the record does not state
it (then the header only).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import orjson

from internvl_chat.config import MediaConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.cache import build_once, cache_dir, digest
from internvl_chat.data.encode import Encoder
from internvl_chat.data.expand import ExpandedRecord, expand_record, needs_sizes
from internvl_chat.data.images import open_image, resolve_path
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.schema import BadRecordError, Record, Size, parse_record
from internvl_chat.data.video import choose_frames, open_video

logger = logging.getLogger(__name__)

BAD = -1
"""Length of a record that cannot be trained on."""
_CHUNK_RECORDS = 512
_PARALLEL_FROM = 4096
_MAX_PROCESSES = 32
_FORMAT = 1  # of the cache; raise when counting or its layout changes


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


@dataclass
class _Chunk:
    """Counts of the records from ``first`` on."""

    first: int
    tokens: list[int]
    tiles: list[int]
    bad: list[tuple[int, str, str, str | None]] = field(default_factory=list)
    num_truncated: int = 0
    num_dropped: int = 0
    warnings: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Counter:
    """What counting one dataset needs."""

    spec: DatasetSpec
    file: AnnotationFile
    encoder: Encoder
    media: MediaConfig

    def chunk(self, first: int) -> _Chunk:
        last = min(first + _CHUNK_RECORDS, len(self.file))
        chunk = _Chunk(first, [BAD] * (last - first), [0] * (last - first))
        places, rendered, tiles, wheres = [], [], [], []
        for number in range(first, last):
            raw, where = self.file.read(number)
            try:
                record = parse_record(raw, where=where)
                expanded = self._expand(record, where)
                one = self.encoder.render(expanded.turns, system=record.system, where=where)
            except BadRecordError as err:
                chunk.bad.append((number, err.code, err.problem, err.fix))
                continue
            chunk.num_dropped += record.dropped_leading_answer
            chunk.warnings.update(expanded.warnings)
            places.append(number)
            rendered.append(one)
            tiles.append(expanded.num_tiles)
            wheres.append(where)
        for number, counts, found in zip(
            places, tiles, self.encoder.lengths(rendered, tiles, wheres), strict=True
        ):
            if isinstance(found, BadRecordError):
                chunk.bad.append((number, found.code, found.problem, found.fix))
                continue
            chunk.tokens[number - first], truncated = found
            chunk.tiles[number - first] = sum(counts)
            chunk.num_truncated += truncated
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
        with open_image(
            full, where=where, path=full, max_pixels=self.media.max_image_pixels
        ) as image:
            return image.size

    def _num_frames(self, record: Record, where: str) -> int:
        assert record.video is not None
        full = resolve_path(
            self.spec.root, record.video, where=where, strict=self.media.strict_root
        )
        frames = choose_frames(
            open_video(full, where=where, max_pixels=self.media.max_image_pixels),
            clip=record.clip,
            min_num_frame=self.media.min_num_frame,
            max_num_frame=self.media.max_num_frame,
            rng=None,
            where=where,
        )
        return len(frames)


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

    Processes that ask at once (ranks, jobs) count once: the others wait. Works before any process
    group or device exists.

    Args:
        spec, file: the dataset.
        encoder: template, tokenizer and limits.
        media: how files are read.
        is_main: whether to show progress.
        num_processes: how many count; by default as many as there are cores, at most 32, and one
            for small files.
    """
    key = digest(
        _FORMAT,
        file.identity,
        encoder.tokens.fingerprint(),
        asdict(encoder.config),
        asdict(encoder.template),
        asdict(media),
        [os.path.abspath(spec.root or "."), spec.box_format, spec.max_dynamic_patch],
    )
    path = cache_dir() / f"{Path(file.path).stem}-{key}.lengths.npy"
    report = path.with_suffix(".json")

    def build(partial: Path) -> None:
        table, summary = _count(_Counter(spec, file, encoder, media), is_main, num_processes)
        report.write_bytes(orjson.dumps(summary))  # before the table, whose presence means done
        with open(partial, "wb") as handle:
            np.save(handle, table)

    build_once(path, build)
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
    counter: _Counter, is_main: bool, num_processes: int | None
) -> tuple[np.ndarray, dict[str, object]]:
    """((2, n) int32 tokens and tiles, what else to keep)."""
    total = len(counter.file)
    table = np.zeros((2, total), dtype=np.int32)
    bad: list[tuple[int, str, str, str | None]] = []
    warnings: Counter[str] = Counter()
    truncated = dropped = 0
    for chunk in _shown(_chunks(counter, total, num_processes), counter.spec.name, total, is_main):
        table[:, chunk.first : chunk.first + len(chunk.tokens)] = chunk.tokens, chunk.tiles
        bad += chunk.bad
        warnings.update(chunk.warnings)
        truncated += chunk.num_truncated
        dropped += chunk.num_dropped
    summary: dict[str, object] = {
        "bad": sorted(bad),
        "warnings": dict(warnings.most_common(100)),
        "num_truncated": truncated,
        "num_dropped": dropped,
    }
    return table, summary


def _chunks(counter: _Counter, total: int, num_processes: int | None) -> Iterator[_Chunk]:
    if num_processes is None:
        cores = len(os.sched_getaffinity(0))
        num_processes = min(cores, _MAX_PROCESSES) if total >= _PARALLEL_FROM else 1
    firsts = range(0, total, _CHUNK_RECORDS)
    if num_processes <= 1:
        yield from map(counter.chunk, firsts)
        return
    # Forked: the children share the tokenizer and the maps; they use neither threads nor devices.
    with ProcessPoolExecutor(
        min(num_processes, len(firsts)),
        mp_context=multiprocessing.get_context("fork"),
        initializer=_adopt,
        initargs=(counter,),
    ) as pool:
        yield from pool.map(_adopted_chunk, firsts)


_adopted: _Counter | None = None


def _adopt(counter: _Counter) -> None:
    global _adopted
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of this child: the processes are parallel
    _adopted = counter


def _adopted_chunk(first: int) -> _Chunk:
    assert _adopted is not None, "the pool's initializer has run"
    return _adopted.chunk(first)


def _shown(chunks: Iterable[_Chunk], name: str, total: int, is_main: bool) -> Iterator[_Chunk]:
    """Pass chunks on, with a progress bar where there is enough to wait for."""
    if not is_main or total < _PARALLEL_FROM:
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import Progress

    logger.info("counting the tokens of %d records of %s", total, name)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"tokens of {name}", total=total)
        for chunk in chunks:
            progress.update(task, advance=len(chunk.tokens))
            yield chunk
