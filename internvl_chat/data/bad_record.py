"""The error of a record that cannot be trained on."""

from __future__ import annotations

from internvl_chat.errors import DatasetError


class BadRecordError(DatasetError):
    """A record that cannot be trained on; the bad-record policy decides what happens.

    Args:
        code: short upper-case kind, by which reasons are counted.
    """

    def __init__(
        self, code: str, problem: str, *, where: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(problem, where=where, fix=fix)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.code, self.problem, self.where, self.fix))


def _rebuild(code: str, problem: str, where: str | None, fix: str | None) -> BadRecordError:
    return BadRecordError(code, problem, where=where, fix=fix)
