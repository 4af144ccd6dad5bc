"""What was counted so far, kept as it is counted, so that an interrupted count is continued.

A file of entries, one per chunk of records, in order: ``magic, first record, records, bytes of the
rest, CRC-32`` and then tokens and tiles (int32 each) and the rest as JSON. A kill leaves at most
one entry half written, at the end; it is recognised and dropped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import orjson

_MAGIC: Final = b"LEN1"
_HEADER: Final = struct.Struct("<4sQIII")


@dataclass
class CountedChunk:
    """Counts of the records from ``first`` on."""

    first: int
    tokens: np.ndarray
    """(n,) int32 ids after truncation; negative for bad records."""
    tiles: np.ndarray
    """(n,) int32 image tiles."""
    bad: list[tuple[int, str, str, str | None]] = field(default_factory=list)
    """(record, code, problem, fix)."""
    num_truncated: int = 0
    num_dropped: int = 0
    warnings: dict[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As an entry of the journal."""
        rest = orjson.dumps([self.bad, self.num_truncated, self.num_dropped, self.warnings])
        body = self.tokens.astype("<i4").tobytes() + self.tiles.astype("<i4").tobytes() + rest
        sizes = (self.first, len(self.tokens), len(rest))
        return _HEADER.pack(_MAGIC, *sizes, zlib.crc32(body)) + body


class LengthJournal:
    """The journal of one count; a context manager.

    Args:
        path: continued if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115 - closed in __exit__
        self.num_records = 0
        """Counted so far."""
        self._size = 0
        for chunk, end in self._entries():
            self.num_records, self._size = chunk.first + len(chunk.tokens), end
        self._file.truncate(self._size)

    def __enter__(self) -> LengthJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, chunk: CountedChunk) -> None:
        """Keep the next chunk's counts."""
        assert chunk.first == self.num_records, (chunk.first, self.num_records)
        self._file.write(chunk.to_bytes())
        self._file.flush()
        self._size = self._file.tell()
        self.num_records += len(chunk.tokens)

    def chunks(self) -> Iterator[CountedChunk]:
        """All that was kept, in order."""
        for chunk, _ in self._entries():
            yield chunk

    def _entries(self) -> Iterator[tuple[CountedChunk, int]]:
        """(chunk, position behind it) up to the first entry that is not whole."""
        position, expected, size = 0, 0, os.fstat(self._file.fileno()).st_size
        while position < size:
            self._file.seek(position)
            header = self._file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            magic, first, count, rest_bytes, checksum = _HEADER.unpack(header)
            num_bytes = 8 * count + rest_bytes
            if magic != _MAGIC or first != expected or position + num_bytes > size:
                return
            body = self._file.read(num_bytes)
            if len(body) < num_bytes or zlib.crc32(body) != checksum:
                return
            position, expected = self._file.tell(), first + count
            yield _chunk(first, count, body), position


def _chunk(first: int, count: int, body: bytes) -> CountedChunk:
    tokens, tiles = np.frombuffer(body, "<i4", 2 * count).reshape(2, count)
    bad, num_truncated, num_dropped, warnings = orjson.loads(body[8 * count :])
    return CountedChunk(
        first=first,
        tokens=tokens,
        tiles=tiles,
        bad=[_reason(entry) for entry in bad],
        num_truncated=num_truncated,
        num_dropped=num_dropped,
        warnings=warnings,
    )


def _reason(entry: list[Any]) -> tuple[int, str, str, str | None]:
    number, code, problem, fix = entry
    return number, code, problem, fix
