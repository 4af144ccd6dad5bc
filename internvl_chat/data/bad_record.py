"""The error of a record that cannot be trained on, and what becomes one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from internvl_chat.errors import DatasetError

READING_ERRORS: Final = (
    OSError,  # of a file that changed or went while it was looked at, of a full disk
    EOFError,
    MemoryError,
    RecursionError,
    ArithmeticError,  # numbers beyond every limit: OverflowError, ZeroDivisionError
    UnicodeError,
    subprocess.SubprocessError,
)
"""What a record, its images or its video can raise that no rule has foreseen.

Not what our own mistakes raise (TypeError, LookupError, ValueError, AttributeError): decoders,
whose damaged files raise these too, have a list of their own (``images.DECODE_ERRORS``).
"""


_MOST_CHARACTERS: Final = 1000
_KEPT_CHARACTERS: Final = 800  # what is shortened is not shortened again


class BadRecordError(DatasetError):
    """A record that cannot be trained on; the bad-record policy decides what happens.

    Args:
        code: short upper-case kind, by which reasons are counted.
        problem: as of any error; a long one loses its middle, for a record may name a path (a data
            URL, say) of megabytes.
    """

    def __init__(
        self, code: str, problem: str, *, where: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(_shortened(problem), where=where, fix=fix)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.code, self.problem, self.where, self.fix))


def _shortened(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _KEPT_CHARACTERS // 2
    return f"{text[:half]}… ({len(text) - 2 * half} characters left out) …{text[-half:]}"


def _rebuild(code: str, problem: str, where: str | None, fix: str | None) -> BadRecordError:
    return BadRecordError(code, problem, where=where, fix=fix)


@contextmanager
def bad_if_unreadable(where: str) -> Iterator[None]:
    """Around the work on one record: one record never ends a run.

    Args:
        where: ``file:line`` of the record.

    Raises:
        BadRecordError: in place of one of :data:`READING_ERRORS`.
    """
    try:
        yield
    except READING_ERRORS as err:
        told = " ".join(str(err).split())[:200] or "no more is known"
        raise BadRecordError(
            "UNREADABLE_RECORD",
            f"reading it failed: {type(err).__name__} ({told})",
            where=where,
            fix="Look at its values and files, or leave it out.",
        ) from err
