"""Where the records of an annotation file start: a sidecar file, built in a stream and mapped.

Layout, little endian: 8 bytes of magic, three uint64 (records, jumps, 0), then
``starts`` (records + 1) int64: byte at which record i starts; the last is where the records end;
``jumps`` (jumps, 2) int64: from this record on, its line number is its own number plus that. Files
without blank lines have one of them.

Where a record ends is seen when it is read: at the end of its line, or before an array's comma.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from internvl_chat.data.json_array import ArrayScanner
from internvl_chat.errors import DatasetError

_MAGIC: Final = b"ICOFFS02"
_HEADER: Final = struct.Struct("<8s3Q")
_CHUNK_BYTES = 1 << 20
_BLANK: Final = b" \t\r\n"
_IS_BLANK: Final = np.isin(np.arange(256), np.frombuffer(_BLANK, dtype=np.uint8))
_NEWLINE: Final = 10
_RELEASE_AFTER = 1024
"""Look-ups after which the mapped pages are given back. A look-up brings in 64 KB at most, so a
process holds 64 MB of the sidecar at most, however large it is; the page cache keeps the rest."""


class Offsets:
    """A mapped sidecar.

    Raises:
        ValueError: the file is no complete sidecar.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as handle:
            if os.fstat(handle.fileno()).st_size < _HEADER.size:
                raise ValueError("shorter than its header")
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        magic, count, num_jumps, _ = _HEADER.unpack_from(self._map)
        size = _HEADER.size + 8 * (count + 1) + 16 * num_jumps
        if magic != _MAGIC or size != len(self._map):
            raise ValueError("not a complete sidecar")
        self._starts = np.frombuffer(self._map, "<i8", count + 1, _HEADER.size)
        jumps = np.frombuffer(self._map, "<i8", 2 * num_jumps, _HEADER.size + 8 * (count + 1))
        self._jump_records, self._jump_lines = jumps.reshape(-1, 2).T
        self._used = 0

    def __len__(self) -> int:
        return len(self._starts) - 1

    def span(self, index: int) -> tuple[int, int]:
        """Bytes from the start of a record to the start of the next.

        Raises:
            IndexError: there is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        self._use()
        return int(self._starts[index]), int(self._starts[index + 1])

    def starts(self, first: int, last: int) -> list[int]:
        """Starts of the records ``first .. last``, that of ``last`` included."""
        self._use((last - first) // 8192 + 1)
        return self._starts[first : last + 1].tolist()

    def line(self, index: int) -> int:
        """Line number, from 1, of a record."""
        if len(self._jump_records) == 1:
            return index + int(self._jump_lines[0])
        self._use(8)
        jump = int(np.searchsorted(self._jump_records, index, side="right")) - 1
        return index + int(self._jump_lines[jump])

    def _use(self, times: int = 1) -> None:
        self._used += times
        if self._used > _RELEASE_AFTER:
            self._used = 0
            self._map.madvise(mmap.MADV_DONTNEED)


class _Writer:
    """Appends records to a sidecar; memory does not grow with them."""

    def __init__(self, sidecar: BinaryIO, jumps: BinaryIO) -> None:
        self._sidecar, self._jumps = sidecar, jumps
        self._count, self._num_jumps, self._ahead = 0, 0, 0
        sidecar.write(bytes(_HEADER.size))

    def add(self, starts: np.ndarray, lines: np.ndarray) -> None:
        """Records that start at these bytes, in these lines (from 1)."""
        if not len(starts):
            return
        ahead = lines - np.arange(self._count, self._count + len(starts))
        changed = np.flatnonzero(np.diff(ahead, prepend=self._ahead))
        pairs = np.stack([changed + self._count, ahead[changed]], axis=1)
        self._jumps.write(pairs.astype("<i8").tobytes())
        self._num_jumps += len(changed)
        self._ahead = int(ahead[-1])
        self._count += len(starts)
        self._sidecar.write(starts.astype("<i8").tobytes())

    def finish(self, end: int) -> None:
        """``end``: the byte where the last record ends at the latest."""
        self._sidecar.write(struct.pack("<q", end))
        self._jumps.seek(0)
        while block := self._jumps.read(_CHUNK_BYTES):
            self._sidecar.write(block)
        self._sidecar.seek(0)
        self._sidecar.write(_HEADER.pack(_MAGIC, self._count, self._num_jumps, 0))


def build_offsets(source: int, partial: Path, *, is_array: bool, where: str) -> None:
    """Write the sidecar of an annotation file.

    Args:
        source: its file descriptor.
        partial: the sidecar.
        is_array: a JSON array, not a record a line.
        where: the annotation file's name, for messages.

    Raises:
        DatasetError: a JSON array that is none, or is not closed.
    """
    with open(partial, "wb") as sidecar, tempfile.TemporaryFile(dir=partial.parent) as jumps:
        writer = _Writer(sidecar, jumps)
        end = (_scan_array if is_array else _scan_lines)(source, writer, where)
        writer.finish(end)


def _chunks(source: int) -> Iterator[tuple[int, bytes]]:
    """(position, bytes), a byte-order mark left out; no chunk ends within an escape sequence."""
    position = 3 if os.pread(source, 3, 0) == b"\xef\xbb\xbf" else 0
    while chunk := os.pread(source, _CHUNK_BYTES, position):
        while chunk.endswith(b"\\") and (more := os.pread(source, 1, position + len(chunk))):
            chunk += more
        yield position, chunk
        position += len(chunk)


def _scan_lines(source: int, writer: _Writer, where: str) -> int:
    """Add the lines that are not blank; the file's size."""
    line, end, fresh = 1, 0, True  # fresh: the next byte begins a line
    for position, chunk in _chunks(source):
        data = np.frombuffer(chunk, dtype=np.uint8)
        begins = np.flatnonzero(data == _NEWLINE) + 1
        num_newlines = len(begins)
        next_fresh = bool(num_newlines) and begins[-1] == len(data)
        if next_fresh:
            begins = begins[:-1]
        lines = np.arange(line + 1, line + 1 + len(begins))
        if fresh:
            begins, lines = np.insert(begins, 0, 0), np.insert(lines, 0, line)
        doubtful = np.flatnonzero(_IS_BLANK[data[begins]])
        if len(doubtful):
            keep = np.ones(len(begins), dtype=bool)
            for number in doubtful.tolist():
                keep[number] = not _is_blank(source, position + int(begins[number]))
            begins, lines = begins[keep], lines[keep]
        writer.add(begins + position, lines)
        line += num_newlines
        fresh = next_fresh if num_newlines else False
        end = position + len(chunk)
    return end


def _is_blank(source: int, position: int) -> bool:
    """Whether the line that starts here holds white space only."""
    size = 64
    while text := os.pread(source, size, position):
        line, newline, _ = text.partition(b"\n")
        if line.strip(_BLANK):
            return False
        if newline:
            return True
        position, size = position + size, _CHUNK_BYTES
    return True


def _scan_array(source: int, writer: _Writer, where: str) -> int:
    """Add the elements of an array; the position of its closing bracket."""
    scanner = ArrayScanner()
    try:
        for position, chunk in _chunks(source):
            writer.add(*scanner.feed(chunk, position))
        return scanner.finish()
    except ValueError as err:
        raise DatasetError(
            f"a .json annotation must be an array of records, but {err}",
            where=f"{where}:{scanner.line}",
            fix="Name a file with one object a line .jsonl.",
        ) from err
