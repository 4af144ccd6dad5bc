"""What ``data check`` prints: the table of datasets and the first examples of each problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import orjson

from internvl_chat.data.check.codes import check_of
from internvl_chat.data.check.findings import CheckedCounts, Finding

_EXAMPLES: Final = 3
_HEADER: Final = ("dataset", "records", "ok", "warnings", "errors", "tokens", "images")


class Examples:
    """Counts of each code, and its first findings; memory does not grow with their number."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, one: Finding) -> None:
        """Take a finding into account."""
        self._counts[one.code] = self._counts.get(one.code, 0) + 1
        kept = self._examples.setdefault(one.code, [])
        if len(kept) < _EXAMPLES:
            kept.append(one.as_text())

    def as_text(self) -> str:
        """Errors before warnings, frequent codes first."""
        lines = []
        for code in sorted(self._counts, key=self._rank):
            count, row = self._counts[code], check_of(code)
            lines.append(f"{code} ({row.severity}, {count}): {row.what}".rstrip(": "))
            lines += [f"  {text}" for text in self._examples[code]]
            if count > _EXAMPLES:
                lines.append(f"  … {count - _EXAMPLES} more (--json lists all)")
        return "\n".join(lines)

    def _rank(self, code: str) -> tuple[bool, int, str]:
        return check_of(code).severity != "error", -self._counts[code], code


def counts_table(rows: Sequence[CheckedCounts]) -> str:
    """The table dataset × counts, with a sum where there are several."""
    lines = [_HEADER, *(_cells(row) for row in rows)]
    if len(rows) > 1:
        lines.append(_cells(_sum(rows)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    shown = []
    for name, *numbers in lines:
        cells = [name.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def as_json(one: Finding) -> str:
    """One line: code, severity, dataset, file, line, message, mend."""
    return orjson.dumps(asdict(one)).decode()


def _cells(row: CheckedCounts) -> tuple[str, ...]:
    tokens = "-" if row.num_tokens is None else str(row.num_tokens)
    numbers = (row.num_records, row.num_ok, row.num_warned, row.num_bad)
    return (row.dataset, *map(str, numbers), tokens, str(row.num_images))


def _sum(rows: Sequence[CheckedCounts]) -> CheckedCounts:
    counted = [row.num_tokens for row in rows if row.num_tokens is not None]
    return CheckedCounts(
        dataset="all",
        num_records=sum(row.num_records for row in rows),
        num_ok=sum(row.num_ok for row in rows),
        num_warned=sum(row.num_warned for row in rows),
        num_bad=sum(row.num_bad for row in rows),
        num_tokens=sum(counted) if counted else None,
        num_images=sum(row.num_images for row in rows),
    )
