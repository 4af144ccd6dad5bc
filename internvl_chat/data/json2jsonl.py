"""A JSON array of records -> JSONL, a record at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import orjson

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.files import written_aside

_BLOCK_CHARACTERS = 1 << 20
_SPACE = " \t\r\n"


def convert(source: Path, target: Path) -> int:
    """Write each element of a JSON array as a line; read back and compared before it gets its name.

    Memory does not grow with the file: LLaVA-style annotations are gigabytes.

    Args:
        source: a JSON file whose value is an array of objects.
        target: a new file.

    Returns:
        Number of records.

    Raises:
        ConfigError: ``target`` exists, or ``source`` cannot be read.
        DatasetError: ``source`` is no array of objects.
    """
    if target.exists():
        raise ConfigError(
            "exists and is not overwritten", where=str(target), fix="Name a new file."
        )
    next(iterate_array(source), None)  # no folder is made for what is no array
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with written_aside(target) as staging:
        with open(staging, "wb") as lines:
            for record in iterate_array(source):
                lines.write(_line(record))
                count += 1
        _compare(source, staging, str(target))
    return count


def _line(record: object) -> bytes:
    try:
        return orjson.dumps(record) + b"\n"
    except TypeError:  # an integer beyond 64 bits, or half of a surrogate pair
        return json.dumps(record).encode() + b"\n"


def _compare(source: Path, staging: Path, target: str) -> None:
    with open(staging, encoding="utf-8", newline="\n") as lines:
        for number, (record, line) in enumerate(
            zip(iterate_array(source), lines, strict=True), start=1
        ):
            if json.loads(line) != record:
                raise DatasetError("not written as it was read", where=f"{target}:{number}")


def iterate_array(path: Path) -> Iterator[dict[str, object]]:
    """The objects of a JSON array, in order.

    Raises:
        ConfigError: the file cannot be read.
        DatasetError: it is no array of objects; names the element.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _elements(_Window(file), path)
    except OSError as err:
        raise ConfigError(f"cannot be read: {err.strerror}", where=str(path)) from err
    except UnicodeDecodeError as err:
        raise DatasetError(f"is no UTF-8 ({err.reason})", where=str(path)) from err


class _Window:
    """The part of a file between what was read and what was used."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.text = ""
        self.at = 0

    def more(self) -> bool:
        """Read another block; ``False`` at the end of the file."""
        block = self._file.read(max(_BLOCK_CHARACTERS, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def next_character(self) -> str:
        """The next one that is no white space, not yet used; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""


def _elements(window: _Window, path: Path) -> Iterator[dict[str, object]]:
    if window.next_character() != "[":
        raise DatasetError(
            "is no JSON array",
            where=str(path),
            fix="A file with an object a line is JSONL already: rename it.",
        )
    window.at += 1
    number = 0

    def refuse(constant: str) -> None:
        raise DatasetError(f"{constant} is no JSON", where=f"{path}, element {number}")

    decoder = json.JSONDecoder(parse_constant=refuse)
    while window.next_character() != "]":
        if number:
            _expect_comma(window, path, number)
        number += 1
        yield _object(decoder, window, path, number)
    window.at += 1
    if window.next_character():
        raise DatasetError("text follows the array", where=str(path))


def _expect_comma(window: _Window, path: Path, number: int) -> None:
    if window.next_character() != ",":
        raise DatasetError(
            f"no comma and no end of the array after element {number}",
            where=str(path),
            fix="The file is cut short or damaged.",
        )
    window.at += 1
    window.next_character()


def _object(
    decoder: json.JSONDecoder, window: _Window, path: Path, number: int
) -> dict[str, object]:
    where = f"{path}, element {number}"
    window.next_character()
    while True:
        try:
            value, end = decoder.raw_decode(window.text, window.at)
            break
        except json.JSONDecodeError as err:
            # Half an element looks like a damaged one: read on before believing it.
            if not window.more():
                raise DatasetError(f"is no JSON ({err.msg})", where=where) from err
        except (ValueError, RecursionError) as err:  # digits by the thousand; deep nesting
            raise DatasetError(f"is no JSON that can be read ({err})", where=where) from err
    if not isinstance(value, dict):
        raise DatasetError(f"is no object but {type(value).__name__}", where=where)
    window.at = end
    return value
