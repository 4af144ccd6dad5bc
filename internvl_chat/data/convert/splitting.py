"""Records in two halves, so that no image (or scan, or patient) is in both."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.convert.files import (
    Progress,
    decode,
    encode,
    is_array,
    no_progress,
    read_lines,
    record_file,
    refuse_existing,
)
from internvl_chat.data.convert.meta_entry import add_to_meta, meta_entry
from internvl_chat.data.convert.sources import AnnotationSource, annotation_sources, is_meta
from internvl_chat.data.json2jsonl import iterate_array
from internvl_chat.data.same_media import Groups
from internvl_chat.data.storage import open_file
from internvl_chat.errors import ConfigError, DatasetError

HALVES = ("train", "val")
# What says how to read, not how often to learn.
_OF_VAL = ("box_format", "max_dynamic_patch", "max_samples")


@dataclass
class SplitReport:
    """How many records went where."""

    metas: list[str]
    counts: dict[str, dict[str, int]]
    """Dataset -> half -> records."""
    num_groups: int
    """Different images (or values of the field) by which the records were told apart."""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return dataclasses.asdict(self)

    def as_text(self) -> str:
        """For people."""
        lines = [
            f"{name}: {counts['train']} train, {counts['val']} val"
            for name, counts in self.counts.items()
        ]
        return "\n".join([*lines, f"{self.num_groups} groups; {', '.join(self.metas)}"])


def split_records(
    source: Path,
    folder: Path | None,
    *,
    share: float,
    seed: int,
    by: str,
    root: Path | None = None,
    progress: Progress = no_progress,
) -> SplitReport:
    """Cut a JSONL file, or every dataset of a meta JSON, into ``train`` and ``val``.

    Lines are copied to the byte. The same seed gives the same halves, whatever the records' order.
    Memory: 8 bytes a record, and an entry for each image of a record that has several.

    Args:
        source: a meta JSON, or records as JSONL or ``.json`` array.
        folder: for the new files; beside the source by default.
        share: of the records that ``val`` gets as nearly as groups allow, or if 1 or more their
            number.
        by: ``image`` (by its path), ``content`` (by the file's bytes), ``record``, or a field of
            the records.
        root: of a JSONL file's images, its own folder by default.

    Raises:
        ConfigError: a new file exists, the share is none, or a record lacks the field.
        DatasetError: a line is no record, or a half would be empty.
    """
    if not share > 0:
        raise ConfigError(f"{share} is no share", where="--val", fix="Give 0.1, or 500 records.")
    sources = annotation_sources(source, root)
    folder = folder or source.parent
    stem = source.stem
    metas = [
        folder / f"{stem}.{half}.{'json' if is_meta(source) else 'meta.json'}" for half in HALVES
    ]
    outputs = {
        (one.name, half): folder / f"{one.file_name}.{half}.jsonl"
        for one in sources
        for half in HALVES
    }
    refuse_existing(*metas, *outputs.values())
    keys = _group_keys(sources, by, seed, progress)
    limit = _limit(keys, share)
    start, counts = 0, {}
    for one in sources:
        files = [outputs[one.name, half] for half in HALVES]
        counts[one.name], num_records = _write(one, files, keys[start:], limit)
        start += num_records
    for half, meta in zip(HALVES, metas, strict=True):
        for one in sources:
            length = counts[one.name][half]
            if length:
                options = {k: v for k, v in one.options.items() if half == "train" or k in _OF_VAL}
                output = outputs[one.name, half]
                add_to_meta(meta, one.name, meta_entry(Path(one.root), output, length, **options))
    return SplitReport([str(meta) for meta in metas], counts, len(np.unique(keys)))


def _lines(
    source: AnnotationSource, progress: Progress = no_progress
) -> Iterator[tuple[bytes, str]]:
    if is_array(source.annotation):
        for number, record in enumerate(iterate_array(source.annotation), start=1):
            yield encode(record), f"{source.annotation}, element {number}"
    else:
        yield from read_lines(source.annotation, progress)


def _group_keys(
    sources: Sequence[AnnotationSource], by: str, seed: int, progress: Progress
) -> np.ndarray:
    """(n,) uint64: equal for records that must not be parted, in random order otherwise."""
    groups = Groups()
    firsts: list[np.ndarray] = []
    salt = str(seed).encode()[:64]
    for source in sources:
        numbers = array("Q")
        for line, where in _lines(source, progress):
            names = _names(decode(line, where), by, source, where)
            numbers.append(groups.join([_digest(salt, name) for name in names]))
        firsts.append(np.array(numbers, dtype=np.uint64))
    keys = np.concatenate(firsts) if firsts else np.zeros(0, np.uint64)
    return groups.settle(keys)


def _names(record: Mapping[str, Any], by: str, source: AnnotationSource, where: str) -> list[bytes]:
    """What a record must not share with one of the other half."""
    if by not in ("image", "content", "record"):
        if record.get(by) is None:
            raise ConfigError(f"has no field {by!r}", where=where, fix="Name another with --by.")
        return [encode({"by": record[by]})]
    value = record.get("image", record.get("images")) or record.get("video") or []
    paths = [value] if isinstance(value, str) else value
    named = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    if by == "record" or not paths or not named:
        # Without media equal conversations go together.
        shown = record.get("conversations", record.get("messages"))
        return [encode({"by": shown, "media": paths} if by == "record" else {"by": shown})]
    full = [_full_path(source.root, path) for path in paths]
    if by == "content":
        return [_content(path, where) for path in full]
    return [path.encode("utf-8", "surrogatepass") for path in full]


def _full_path(root: str, path: str) -> str:
    try:
        return os.path.realpath(os.path.join(root, path))
    except ValueError:  # what no file can be called
        return path


def _content(path: str, where: str) -> bytes:
    try:
        digest = hashlib.blake2b(digest_size=16)
        with open_file(path, where=where) as file:  # a named pipe would be waited for
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.digest()
    except (BadRecordError, OSError) as err:
        told = err.problem if isinstance(err, BadRecordError) else err.strerror
        raise DatasetError(f"{path} cannot be read ({told})", where=where) from err


def _digest(salt: bytes, name: bytes) -> int:
    digest = hashlib.blake2b(name, digest_size=8, key=salt).digest()
    return int.from_bytes(digest, "little")


def _limit(keys: np.ndarray, share: float) -> int:
    """Groups up to this one are ``val``: digests are random, so this draws whole groups.

    Raises:
        DatasetError: there are fewer than two groups.
    """
    groups, sizes = np.unique(keys, return_counts=True)
    if len(groups) < 2:
        raise DatasetError(
            f"{len(keys)} records of {len(groups)} group cannot be parted",
            fix="Choose what must not be in both halves with --by.",
        )
    wanted = share * len(keys) if share < 1 else min(share, len(keys))
    sums = np.cumsum(sizes)
    # At least one group on each side.
    best = int(np.argmin(np.abs(sums[:-1] - wanted)))
    return int(groups[best])


def _write(
    source: AnnotationSource, files: Sequence[Path], keys: np.ndarray, limit: int
) -> tuple[dict[str, int], int]:
    with ExitStack() as stack:
        train, val = (stack.enter_context(record_file(path)) for path in files)
        number = 0
        for line, _ in _lines(source):
            (val if int(keys[number]) <= limit else train).write_raw(line)
            number += 1
        counts = {"train": train.num_records, "val": val.num_records}
    for path, count in zip(files, counts.values(), strict=True):
        if not count:
            path.unlink()  # an annotation without records is an error to everyone
    return counts, number
