"""Annotation files, read record by record without holding the text.

A ``.jsonl`` file is memory-mapped; where its records start is worked out once, cached beside other
derived files, and mapped too. A rank's own memory therefore does not grow with the file: pages are
the kernel's, shared by all ranks and workers. A ``.json`` array is indexed the same way.
"""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from internvl_chat.data.cache import build_once, cache_dir, digest, file_identity
from internvl_chat.errors import DatasetError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 26
_BLANK = b" \t\r\n"
_FORMAT = 1  # of the sidecar; raise when its layout changes


class AnnotationFile:
    """Records of one annotation file by number.

    Args:
        path: ``.jsonl`` (a record a line; blank lines are skipped) or ``.json`` (an array).

    Raises:
        DatasetError: the file is missing, holds no record, or is a ``.json`` that is no array.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self._open()

    def _open(self) -> None:
        try:
            self._text = _map(self.path)
            sidecar = cache_dir() / f"{Path(self.path).stem}-{self.identity}.offsets.npy"
        except OSError as err:
            raise DatasetError(f"cannot be read: {err.strerror}", where=self.path) from err
        build_once(sidecar, self._build)
        # (3, n): start and end byte of each record, and its line number (1 based).
        self._table = np.load(sidecar, mmap_mode="r")
        if self._table.shape[1] == 0:
            raise DatasetError(
                "holds no record", where=self.path, fix="Write one JSON object a line."
            )

    @property
    def identity(self) -> str:
        """Digest of path, size and modification time: changes when the file does."""
        return digest(_FORMAT, *file_identity(self.path))

    def _build(self, partial: Path) -> None:
        if self.path.endswith(".json"):
            table = _index_array(self._text, self.path)
        else:
            table = _index_lines(self._text)
        with open(partial, "wb") as handle:
            np.save(handle, table)

    def __len__(self) -> int:
        return self._table.shape[1]

    def read(self, index: int) -> tuple[bytes, str]:
        """The bytes of record ``index`` (0 based) and where they stand, as ``file:line``."""
        start, end, line = self._table[:, index]
        return self._text[start:end], f"{self.path}:{line}"

    def where(self, index: int) -> str:
        """``file:line`` of record ``index``."""
        return f"{self.path}:{self._table[2, index]}"

    def line(self, index: int) -> int:
        """Line number, from 1, of record ``index``."""
        return int(self._table[2, index])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # maps do not travel to spawned workers: reopen there

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()


def _map(path: str) -> mmap.mmap | bytes:
    with open(path, "rb") as handle:
        if os.fstat(handle.fileno()).st_size == 0:
            return b""  # an empty file cannot be mapped
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _index_lines(text: mmap.mmap | bytes) -> np.ndarray:
    """(3, n) int64 of the non-blank lines, a byte-order mark left out."""
    found = [np.zeros(0, dtype=np.int64)]
    for begin in range(0, len(text), _CHUNK_BYTES):
        chunk = np.frombuffer(text[begin : begin + _CHUNK_BYTES], dtype=np.uint8)
        found.append(np.flatnonzero(chunk == 10) + begin)
    ends = np.concatenate(found)
    if len(text) and (len(ends) == 0 or ends[-1] != len(text) - 1):
        ends = np.append(ends, len(text))  # the last line has no newline
    starts = np.empty_like(ends)
    starts[:1] = 3 if text[:3] == b"\xef\xbb\xbf" else 0
    starts[1:] = ends[:-1] + 1
    lines = np.arange(1, len(ends) + 1, dtype=np.int64)
    keep = np.ones(len(ends), dtype=bool)
    for index in np.flatnonzero(ends - starts < 16):  # no record is that short
        keep[index] = bool(text[starts[index] : ends[index]].strip(_BLANK))
    return np.stack([starts[keep], ends[keep], lines[keep]])


def _index_array(text: mmap.mmap | bytes, path: str) -> np.ndarray:
    """(3, n) int64 of the elements of a JSON array; the text is held while this runs."""
    raw = bytes(text)
    try:
        elements = msgspec.json.decode(raw.removeprefix(b"\xef\xbb\xbf"), type=list[msgspec.Raw])
    except msgspec.DecodeError as err:
        raise DatasetError(
            f"a .json annotation must be an array of records ({err})",
            where=path,
            fix="Name a file with one object a line .jsonl.",
        ) from err
    table = np.zeros((3, len(elements)), dtype=np.int64)
    position, line = 0, 1
    for number, element in enumerate(elements):
        record = bytes(element)
        start = raw.index(record, position)  # at most a comma and white space further on
        line += raw.count(b"\n", position, start)
        table[:, number] = start, start + len(record), line
        line += record.count(b"\n")
        position = start + len(record)
    return table
