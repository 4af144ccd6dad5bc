r"""Where questions come from: a file, a pipe or standard input, as the lines of training data.

A line ends at ``\n`` only (``\r\n`` is fine), so that what else separates lines for some programs
(U+2028, U+0085, a form feed) may be part of a text. Byte-order marks are dropped; UTF-16 and UTF-32
are read as UTF-8.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from internvl_chat.data.encodings import BOM, UTF8, encoding_of
from internvl_chat.errors import ConfigError

BLANK: Final = b" \t\r\n"
"""What a line may consist of that asks nothing."""


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """Lines to be asked."""

    shown: str
    """What messages call it."""
    lines: Iterable[bytes]
    """UTF-8 where they can be; all at hand if the source is a file, else as they come."""
    num_questions: int | None
    """Lines that are not blank; None where that is not known ahead."""
    status: os.stat_result | None
    """Of the file behind it, to be told from others; None where there is none."""

    @property
    def known_lines(self) -> Sequence[bytes]:
        """The lines that are at hand before the first is asked."""
        return self.lines if isinstance(self.lines, Sequence) else ()


def open_questions(name: str, *, option: str = "--batch") -> QuestionSource:
    """Open a file of questions, or ``-`` for standard input.

    Args:
        name: as it was given.
        option: with which it was given; messages name it.

    Raises:
        ConfigError: it cannot be read, or is one JSON array.
    """
    if name == "-":
        source = standard_input(f"{option} -")
        return _source("standard input", read_lines(source), _status_of(source))
    try:
        file = open(name, "rb")  # noqa: SIM115 - a pipe is read while it is answered
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return _source(name, read_lines(file), status)
        with file:
            lines = list(read_lines(file))
    except (OSError, ValueError) as err:  # a NUL in the name is a ValueError
        reason = (err.strerror if isinstance(err, OSError) else None) or err
        raise ConfigError(f"{name} cannot be read: {reason}", where=option) from err
    _refuse_other_layouts(name, lines, option)
    return _source(name, lines, status)


def _source(shown: str, lines: Iterable[bytes], status: os.stat_result | None) -> QuestionSource:
    known = sum(bool(line.strip(BLANK)) for line in lines) if isinstance(lines, list) else None
    return QuestionSource(shown=shown, lines=lines, num_questions=known, status=status)


def _status_of(source: BinaryIO) -> os.stat_result | None:
    with contextlib.suppress(OSError, ValueError):  # no file but an object that can be read
        return os.fstat(source.fileno())
    return None


def standard_input(where: str) -> BinaryIO:
    """Standard input as bytes.

    Raises:
        ConfigError: the process was started without one.
    """
    if sys.stdin is None:
        raise ConfigError("standard input is closed, nothing can be read from it", where=where)
    return sys.stdin.buffer


def read_lines(source: BinaryIO) -> Iterator[bytes]:
    r"""The lines of a text, without their ends, as UTF-8.

    A line that its own encoding does not hold is handed over as it is: a bad line, not the end.

    Args:
        source: read line by line, so that an answer may come before the next question is written;
            UTF-16 and UTF-32 are read whole.
    """
    first = source.readline()
    encoding = encoding_of(first[:4])
    if encoding != UTF8:
        yield from _wide_lines(first + source.read(), encoding)
        return
    for line in itertools.chain([first] if first else [], source):  # files may have been joined
        yield line.removeprefix(BOM).rstrip(b"\r\n")


def _wide_lines(raw: bytes, encoding: str) -> Iterator[bytes]:
    """The lines of a text whose units are 2 or 4 bytes."""
    newline = "\n".encode(encoding)
    start = found = 0
    while (found := raw.find(newline, found)) >= 0:
        if found % len(newline):  # halves of two characters
            found += 1
            continue
        yield _as_utf8(raw[start:found], encoding).removeprefix(BOM)
        start = found = found + len(newline)
    if start < len(raw):
        yield _as_utf8(raw[start:], encoding).removeprefix(BOM)


def _as_utf8(raw: bytes, encoding: str) -> bytes:
    try:
        text = raw.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        return raw
    return text.rstrip("\r\n").encode(UTF8, "surrogatepass")


def _refuse_other_layouts(name: str, lines: Sequence[bytes], option: str) -> None:
    r"""Raise ConfigError for a file in which no line is a question, though it holds some.

    That is one JSON array, one object over several lines, or lines that end in ``\r`` alone.
    """
    filled = [line for line in lines if line.strip(BLANK)]
    if not filled or filled[0].lstrip(BLANK)[:1] not in (b"[", b"{"):
        return
    whole = _json_of(b"\n".join(lines))
    if isinstance(whole, list) and whole and all(isinstance(record, dict) for record in whole):
        target = Path(name).with_suffix(".jsonl")
        fix = f"internvl-chat json2jsonl {name} makes {target}."
        if target == Path(name):
            target = target.with_suffix(".lines.jsonl")
            fix = f"internvl-chat json2jsonl {name} {target} makes {target}."
        problem = f"{name} is one JSON array, want one question a line"
    elif isinstance(whole, dict) and len(filled) > 1:
        problem = f"{name} is one JSON object over {len(filled)} lines, want one question a line"
        fix = "Write it on one line."
    elif len(filled) == 1 and any(map(_is_object, filled[0].split(b"\r")[:-1])):
        problem = rf"the lines of {name} end in \r alone, want \n"
        fix = rf"tr '\r' '\n' < {name} > NEW_FILE makes them so."
    else:
        return
    raise ConfigError(problem, where=option, fix=fix)


def _json_of(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _is_object(raw: bytes) -> bool:
    return isinstance(_json_of(raw), dict)
