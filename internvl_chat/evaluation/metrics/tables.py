"""Tables as VLMEvalKit prints and writes them.

Source: https://github.com/open-compass/VLMEvalKit (run.py, smp/file.py).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.errors import ConfigError


@dataclass(frozen=True)
class ScoreTable:
    """Rows of cells; None is a mean of nothing."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> ScoreTable:
        """From rows by column, which all have the same."""
        columns = tuple(records[0]) if records else ()
        return cls(columns, tuple(tuple(one[name] for name in columns) for one in records))

    def values(self) -> dict[str, float | None]:
        """``row|column`` -> number; a row is named by its first cell."""
        return {
            f"{row[0]}|{name}": value
            for row in self.rows
            for name, value in zip(self.columns[1:], row[1:], strict=True)
        }


def print_table(table: ScoreTable) -> str:
    """What VLMEvalKit prints of a table.

    One with fewer rows than columns is transposed: names in front, and, as its columns mix texts
    and numbers, all digits. Another has its rows numbered and numbers cut to six digits.
    """
    rows = [[math.nan if cell is None else cell for cell in row] for row in table.rows]
    if len(rows) < len(table.columns):
        cells = [[name, *(row[n] for row in rows)] for n, name in enumerate(table.columns)]
    else:
        cells = [[number, *row] for number, row in enumerate(rows)]
    return tabulate_cells(cells)


def tabulate_cells(rows: Iterable[Sequence[Any]]) -> str:
    """Rows in tabulate's default style, without headers.

    Raises:
        ConfigError: tabulate is not installed.
    """
    try:
        from tabulate import tabulate
    except ImportError as err:
        raise ConfigError(
            "tables are printed by tabulate", where="eval", fix='pip install "internvl-chat[eval]"'
        ) from err
    return str(tabulate(list(rows)))


def csv_table(table: ScoreTable) -> str:
    """As pandas writes it with all cells quoted; a mean of nothing is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in table.rows)
    return buffer.getvalue()


def json_table(table: ScoreTable) -> str:
    """A list with an object per row; a mean of nothing is null."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return json.dumps(rows, indent=4, ensure_ascii=False)


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean, None of nothing."""
    return math.fsum(values) / len(values) if values else None
