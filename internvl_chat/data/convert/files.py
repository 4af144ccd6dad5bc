"""Files of records, read and written a record at a time."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from internvl_chat.data.json2jsonl import iterate_array
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.files import written_aside

Row = dict[str, Any]
Progress = Callable[[int, int], None]
"""Told now and then how much of how much (bytes or items) is done."""

_TELL_EVERY = 256
_BLANK = b" \t\r\n"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def no_progress(done: int, total: int) -> None:
    """For callers that do not show any."""


def refuse_existing(*paths: Path) -> None:
    """Nothing of the user's is overwritten.

    Raises:
        ConfigError: one of the paths exists.
    """
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigError(
                "exists and is not overwritten", where=str(path), fix="Name a new one."
            )


def require_file(path: Path) -> None:
    """Find a missing input before anything is written.

    Raises:
        ConfigError: it is no file that can be read.
    """
    if path.is_dir():
        raise ConfigError("is a directory, want a file", where=str(path))
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="Check the path.")
    if not os.access(path, os.R_OK):
        raise ConfigError("cannot be read: permission denied", where=str(path))


def is_array(path: Path) -> bool:
    """Whether a file begins with ``[``, whatever it is called."""
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    return start.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)[:1] == b"["


def read_lines(path: Path, progress: Progress = no_progress) -> Iterator[tuple[bytes, str]]:
    """The non-blank lines of a JSONL file and where they stand, as ``file:line``.

    A byte-order mark is left out, a file in UTF-16 is read.
    """
    total = path.stat().st_size
    with open(path, "rb") as file:
        mark = file.read(2)
        file.seek(0)
        lines = _utf16_lines(path) if mark in _UTF16 else file
        done = 0
        for number, line in enumerate(lines, start=1):
            done += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if number % _TELL_EVERY == 0:
                progress(min(done, total), total)
            stripped = line.strip(_BLANK)
            if stripped:
                yield stripped, f"{path}:{number}"
    progress(total, total)


def _utf16_lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, encoding="utf-16", newline="\n") as file:
            for line in file:
                yield line.encode("utf-8", "surrogatepass")
    except UnicodeError as err:
        raise DatasetError(f"begins as UTF-16 and is none ({err})", where=str(path)) from err


def read_records(
    path: Path, progress: Progress = no_progress
) -> Iterator[tuple[Row | DatasetError, str]]:
    """The objects of a JSONL file or a JSON array, and where each stands.

    Yields:
        The object, or in its place what is wrong with the line, and ``file:line`` (in an array:
        ``file, element n``).

    Raises:
        DatasetError: an array is damaged: what follows cannot be told apart.
    """
    if is_array(path):
        for number, element in enumerate(iterate_array(path), start=1):
            yield element, f"{path}, element {number}"
        return
    for line, where in read_lines(path, progress):
        try:
            yield decode(line, where), where
        except DatasetError as err:
            yield err, where


def decode(line: bytes, where: str) -> Row:
    """One JSON object.

    Raises:
        DatasetError: it is none, or not UTF-8.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = decode_exactly(line, where)  # half of a surrogate pair; or says what is wrong
    if not isinstance(value, dict):
        raise DatasetError(f"is no object but {type(value).__name__}", where=where)
    return value


def decode_exactly(line: bytes, where: str) -> Any:
    """JSON with integers of any length, as Python reads it.

    Raises:
        DatasetError: it is none, or not UTF-8.
    """

    def refuse(constant: str) -> None:
        raise DatasetError(f"{constant} is no JSON", where=where, fix="Write null.")

    try:
        return json.loads(line.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as err:
        raise DatasetError(f"is not UTF-8 ({err.reason})", where=where) from err
    except (ValueError, RecursionError) as err:  # integers of thousands of digits; deep nesting
        raise DatasetError(f"is no JSON that can be read ({err})", where=where) from err


def encode(record: Mapping[str, Any]) -> bytes:
    """One JSON object on a line, without the line's end.

    Raises:
        DatasetError: it is nested too deeply.
    """
    try:
        return orjson.dumps(record)
    except TypeError:  # an integer beyond 64 bits, half of a surrogate pair, deep nesting
        pass
    try:
        return json.dumps(record).encode()
    except RecursionError as err:
        raise DatasetError("a record is nested too deeply to be written") from err


class RecordFile:
    """Writes records as lines, or as an array where the file is called ``.json``."""

    def __init__(self, file: BinaryIO, is_array: bool) -> None:
        self._file = file
        self._is_array = is_array
        self.num_records = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        self.write_raw(encode(record))

    def write_raw(self, line: bytes) -> None:
        """Add a record that is JSON already."""
        if self._is_array:
            self._file.write(b",\n" if self.num_records else b"[\n")
            self._file.write(line)
        else:
            self._file.write(line + b"\n")
        self.num_records += 1

    def close(self) -> None:
        """Write the array's end."""
        if self._is_array:
            self._file.write(b"\n]\n" if self.num_records else b"[]\n")


@contextmanager
def record_file(path: Path) -> Iterator[RecordFile]:
    """A new file of records that is complete or absent.

    Raises:
        ConfigError: ``path`` exists.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as staging, open(staging, "wb") as file:
        records = RecordFile(file, path.suffix == ".json")
        yield records
        records.close()
