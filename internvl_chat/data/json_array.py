"""The elements of a JSON array, found in a stream without decoding them.

Chunk by chunk, on the positions of quotes, brackets and commas only: what lies within quotes is
passed over, and the commas at depth 1 part the elements. Whether an element is valid JSON is seen
when it is read.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_QUOTE, _BACKSLASH, _COMMA, _OPEN, _CLOSE, _NEWLINE = (ord(c) for c in '"\\,[]\n')
_BLANK: Final = np.isin(np.arange(256), np.frombuffer(b" \t\r\n", dtype=np.uint8))
_TELLING: Final = bytes(byte in b'"\\,[]{}' for byte in range(256))  # for bytes.translate
_STEPS: Final = np.zeros(256, dtype=np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1


class ArrayScanner:
    """Finds where elements start; fed with consecutive chunks, none ending in a backslash."""

    def __init__(self) -> None:
        self.line = 1
        """Of what was fed last, or of what is wrong."""
        self._depth = 0
        self._in_string = False
        self._awaiting = False  # a comma or the opening bracket was the last thing seen
        self._num_elements = 0
        self._end = -1

    def feed(self, chunk: bytes, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Look through the next chunk.

        Args:
            chunk: bytes of the file.
            position: of its first byte in the file.

        Returns:
            Where elements start in the file, and in which line (from 1).

        Raises:
            ValueError: it is no array; ``line`` says where.
        """
        data = np.frombuffer(chunk, dtype=np.uint8)
        begin = 0
        if self._depth == 0 and self._end < 0:
            begin = self._skip_to_bracket(data)
        partings, end = self._partings(data, chunk[begin:])
        starts = self._elements(data, partings, end)
        newlines = np.flatnonzero(data == _NEWLINE)
        lines = self.line + np.searchsorted(newlines, starts)
        if end is not None:
            self._end = position + end
            rest = chunk[end + 1 :].strip(b" \t\r\n")
            if rest:
                self.line += int(np.searchsorted(newlines, end))
                raise ValueError("more stands behind its end")
        self.line += len(newlines)
        self._num_elements += len(starts)
        return starts + position, lines

    def finish(self) -> int:
        """The closing bracket's position in the file.

        Raises:
            ValueError: there was none.
        """
        if self._end >= 0:
            return self._end
        if self._depth == 0:
            return 0  # nothing but white space
        state = "within a string" if self._in_string else f"at depth {self._depth}"
        raise ValueError(
            f"the file ends {state}, before the array does (record {self._num_elements} began)"
        )

    def _skip_to_bracket(self, data: np.ndarray) -> int:
        seen = np.flatnonzero(~_BLANK[data])
        if not len(seen):
            return len(data)
        if data[seen[0]] != _OPEN:
            self.line += int((data[: seen[0]] == _NEWLINE).sum())
            raise ValueError(f"this begins with {chr(data[seen[0]])!r}")
        return int(seen[0])

    def _partings(self, data: np.ndarray, text: bytes) -> tuple[np.ndarray, int | None]:
        """Opening bracket and commas between elements in ``text``, the rest of ``data``; and the
        closing bracket if it is there."""
        if self._end >= 0:
            if not _BLANK[data].all():
                raise ValueError("more stands behind its end")
            return np.zeros(0, dtype=np.int64), None
        places = np.flatnonzero(np.frombuffer(text.translate(_TELLING), dtype=bool))
        places += len(data) - len(text)
        kinds = data[places]
        quotes = kinds == _QUOTE
        backslashes = places[kinds == _BACKSLASH]
        if len(backslashes):
            quotes &= ~_marked(_escaped(backslashes), len(data))[places]
        inside = (np.cumsum(quotes) + self._in_string) & 1
        self._in_string = bool(inside[-1]) if len(inside) else self._in_string
        outside = (inside == 0) & ~quotes
        places, kinds = places[outside], kinds[outside]
        depths = np.cumsum(_STEPS[kinds], dtype=np.int64) + self._depth
        closing = np.flatnonzero(depths == 0)
        end = None
        if len(closing):
            end = int(places[closing[0]])
            if data[end] != _CLOSE:
                self.line += int((data[:end] == _NEWLINE).sum())
                raise ValueError("a brace too many closes it")
            places, kinds, depths = (part[: closing[0]] for part in (places, kinds, depths))
        at_top = (depths == 1) & (kinds == _COMMA)
        if self._depth == 0 and len(at_top):
            at_top[0] = True  # the opening bracket
        self._depth = 0 if end is not None else int(depths[-1]) if len(depths) else self._depth
        return places[at_top], end

    def _elements(self, data: np.ndarray, partings: np.ndarray, end: int | None) -> np.ndarray:
        """The first byte behind each parting that is not blank."""
        starts = partings + 1
        if self._awaiting:
            starts = np.insert(starts, 0, 0)
        moving = np.arange(len(starts))
        while True:
            moving = moving[starts[moving] < len(data)]
            moving = moving[_BLANK[data[starts[moving]]]]
            if not len(moving):
                break
            starts[moving] += 1
        self._awaiting = bool(len(starts)) and bool(starts[-1] >= len(data))
        if self._awaiting:
            starts = starts[:-1]
        elif end is not None and len(starts) and starts[-1] == end:
            starts = starts[:-1]
            if self._num_elements + len(starts):
                self.line += int((data[:end] == _NEWLINE).sum())
                raise ValueError("a comma stands before its end")
        return starts


def _escaped(backslashes: np.ndarray) -> np.ndarray:
    """Places right behind runs of backslashes of odd length."""
    breaks = np.flatnonzero(np.diff(backslashes) != 1)
    firsts = backslashes[np.insert(breaks + 1, 0, 0)]
    lasts = backslashes[np.append(breaks, len(backslashes) - 1)]
    return lasts[(lasts - firsts) % 2 == 0] + 1


def _marked(places: np.ndarray, size: int) -> np.ndarray:
    marks = np.zeros(size + 1, dtype=bool)
    marks[places] = True
    return marks
