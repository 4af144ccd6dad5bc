"""Annotation files, read record by record without holding the text.

Where the records start is worked out once, cached beside other derived files, and mapped
(:mod:`internvl_chat.data.offsets`). The text is read from the file record by record: a rank's own
memory does not grow with the file, the kernel's page cache is shared by all ranks and workers, and
a file that is cut short or changed under a running job is an error and no crash.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.data.cache import build_once, cache_path, digest, path_key
from internvl_chat.data.encodings import UTF8, encoding_of, recode
from internvl_chat.data.file_version import FileVersion
from internvl_chat.data.offsets import Offsets, build_offsets
from internvl_chat.errors import DatasetError

logger = logging.getLogger(__name__)

_BLANK = b" \t\r\n"
_FORMAT = 2  # of the sidecar; raise when its layout changes
_READ_BYTES = 1 << 24  # of records that are read together
_TELL_FROM_BYTES = 1 << 28  # smaller files are indexed before one could read that they are


class AnnotationFile:
    """Records of one annotation file by number.

    Args:
        path: ``.jsonl`` (a record a line; blank lines are skipped) or ``.json`` (an array), in
            UTF-8, or in UTF-16 or -32 (read by way of a copy in the cache).
        first: how many records count, from the file's beginning; None takes all. The others are
            found, but never read.

    Raises:
        DatasetError: the file is missing, holds no record, is a ``.json`` that is no array, or
            changed since this object, sent from another process, was made.
    """

    def __init__(self, path: str | os.PathLike[str], *, first: int | None = None) -> None:
        self.path = os.fspath(path)
        self._first = first
        self._open()

    def _open(self) -> None:
        try:
            self._handle = _OpenFile(self.path)
            self._version = FileVersion.of(self._handle.number)
            self.encoding = encoding_of(os.pread(self._handle.number, 4, 0))
        except (OSError, ValueError) as err:  # ValueError: a NUL in the name
            problem = getattr(err, "strerror", None) or err
            raise DatasetError(f"cannot be read: {problem}", where=self.path) from err
        self._text, self._text_version = self._handle, self._version
        if self.encoding != UTF8:
            self._text = self._recoded()
            self._text_version = FileVersion.of(self._text.number)
        sidecar = cache_path(self.path, self.identity, ".offsets")
        self._offsets = self._mapped(sidecar)
        if len(self._offsets) == 0:
            raise DatasetError(
                "holds no record", where=self.path, fix="Write one JSON object a line."
            )

    @property
    def identity(self) -> str:
        """Digest of path, size, modification time and samples of the content, when opened."""
        return digest(_FORMAT, path_key(os.path.realpath(self.path)), self._version)

    @property
    def is_array(self) -> bool:
        """Whether it is a JSON array, by its name."""
        return self.path.endswith(".json")

    def _mapped(self, sidecar: Path) -> Offsets:
        """The sidecar, built if it is not there, or not whole."""
        build_once(sidecar, self._build)
        try:
            return Offsets(sidecar)
        except ValueError as err:
            logger.warning("%s is damaged (%s) and made anew", sidecar, err)
        sidecar.unlink(missing_ok=True)
        build_once(sidecar, self._build)
        return Offsets(sidecar)

    def _build(self, partial: Path) -> None:
        if self._version.size >= _TELL_FROM_BYTES:
            logger.info("indexing %s (%.1f GB)", self.path, self._version.size / 1e9)
        build_offsets(self._text.number, partial, is_array=self.is_array, where=self.path)
        if not self._version.is_of(self._handle.number):
            raise self._changed()

    def _recoded(self) -> _OpenFile:
        """A copy of the text in UTF-8, made once."""

        def build(partial: Path) -> None:
            logger.warning(
                "%s is in %s; reading it by way of a copy in the cache. UTF-8 needs none: "
                "iconv -f %s -t UTF-8",
                *(self.path, self.encoding.upper(), self.encoding.upper()),
            )
            try:
                with open(self.path, "rb") as source, open(partial, "wb") as target:
                    recode(source, target, self.encoding)
            except UnicodeDecodeError as err:
                raise DatasetError(
                    f"begins as {self.encoding.upper()}, but is not valid: {err.reason}",
                    where=self.path,
                    fix="Save it again as UTF-8.",
                ) from err

        path = cache_path(self.path, self.identity, ".utf8")
        build_once(path, build)
        return _OpenFile(str(path))

    def __len__(self) -> int:
        return self.num_in_file if self._first is None else min(self._first, self.num_in_file)

    @property
    def num_in_file(self) -> int:
        """All records of the file, those behind the first ones included."""
        return len(self._offsets)

    def read(self, index: int, *, most: int | None = None) -> tuple[bytes, str]:
        """The bytes of record ``index`` (0 based) and where they stand, as ``file:line``.

        Args:
            index: of the record.
            most: bytes that are read of it; by default all.

        Raises:
            DatasetError: the file changed since it was opened.
            IndexError: there is no such record.
        """
        if index >= len(self):
            raise IndexError(f"record {index} of {len(self)}")
        start, stop = self._offsets.span(index)
        stop = stop if most is None else min(stop, start + most)
        return self._trimmed(self._bytes(start, stop), index), self.where(index)

    def read_range(
        self, first: int, last: int, *, most: int | None = None
    ) -> Iterator[tuple[bytes, str]]:
        """As :meth:`read` for the records ``first .. last - 1``, many read at once."""
        starts = self._offsets.starts(first, last)
        begin = 0
        while begin < last - first:
            # Together as much as is cheap to hold; a longer record alone.
            end = int(np.searchsorted(starts, starts[begin] + _READ_BYTES, side="right")) - 1
            end = min(max(end, begin + 1), last - first)
            if end == begin + 1:
                yield self.read(first + begin, most=most)
            else:
                text = self._bytes(int(starts[begin]), int(starts[end]))
                for number in range(begin, end):
                    raw = text[starts[number] - starts[begin] : starts[number + 1] - starts[begin]]
                    yield self._trimmed(raw, first + number), self.where(first + number)
            begin = end

    def _bytes(self, start: int, stop: int) -> bytes:
        raw = os.pread(self._text.number, stop - start, start)
        while len(raw) < stop - start and (
            more := os.pread(self._text.number, stop - start - len(raw), start + len(raw))
        ):
            raw += more
        if not self._text_version.is_of(self._text.number) or len(raw) < stop - start:
            self._check_change()
        return raw

    def _trimmed(self, raw: bytes, index: int) -> bytes:
        """A record without what stands between it and the next."""
        if not self.is_array:
            return raw.partition(b"\n")[0]
        if index + 1 < self.num_in_file:
            raw = raw.rstrip(_BLANK).removesuffix(b",")
        return raw.rstrip(_BLANK)

    def _check_change(self) -> None:
        """The file was touched: go on if its records are where they were."""
        if not self._text_version.begins(self._text.number):
            raise self._changed()
        logger.warning(
            "%s was touched or appended to while in use; going on with the %d records it had",
            *(self.path, self.num_in_file),
        )
        now = FileVersion.of(self._text.number)
        # Compare with what it looks like now, but only the part that it had.
        self._text_version = FileVersion(now.size, now.modified_ns, now.spots)

    def _changed(self) -> DatasetError:
        return DatasetError(
            f"changed while it was in use (it had {self._version.size} bytes, it has "
            f"{os.fstat(self._handle.number).st_size})",
            where=self.path,
            fix="Leave the file alone while a job reads it; write a new one beside it and rename. "
            "Start the job again.",
        )

    def where(self, index: int) -> str:
        """``file:line`` of record ``index``."""
        return f"{self.path}:{self._offsets.line(index)}"

    def line(self, index: int) -> int:
        """Line number, from 1, of record ``index``."""
        return self._offsets.line(index)

    def __getstate__(self) -> dict[str, Any]:
        # Maps do not travel: they are opened anew there.
        return {"path": self.path, "version": self._version, "first": self._first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self._first = state["path"], state["first"]
        self._open()
        if self._version != state["version"]:
            raise self._changed()


class _OpenFile:
    """A file descriptor for ``os.pread``, which no two readers disturb; closed when it goes."""

    def __init__(self, path: str) -> None:
        # O_NONBLOCK: a named pipe, which is refused next, would wait for its writer.
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
