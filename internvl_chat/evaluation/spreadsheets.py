"""Tables of answers as VLMEvalKit writes and reads them: xlsx, tsv, json, jsonl.

Written: every text as text (the original makes formulas of those that begin with ``=``), control
characters as ``_x000D_`` and cut at 32,767 characters, as its writer does. Read: as
``pandas.read_excel`` does, texts like ``None`` or ``NA`` becoming ``nan``, a column of numbers
becoming numbers.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.sources import read_json, read_jsonl, read_tsv
from internvl_chat.evaluation.task import Question
from internvl_chat.evaluation.tsv import PANDAS_MISSING, Cell, pandas_column, read_indices

LONGEST_CELL = 32_767
NUMBERS_OF_JUDGES = frozenset(["hit", "score", "gpt4_score"])
"""Columns that hold numbers."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")
Columns = dict[str, list[Cell]]


def import_openpyxl() -> Any:
    """The module that reads and writes xlsx files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import openpyxl
    except ImportError as err:
        raise ConfigError(
            "xlsx files are read and written by openpyxl",
            where="eval",
            fix='pip install "internvl-chat[eval]"',
        ) from err
    return openpyxl


# -- judged answers ------------------------------------------------------------------------------


class JudgedAnswer(str):
    """An answer of a table that a judge has been over."""

    judged: dict[str, Any]
    """What the table says of it."""


def with_judgement(answer: str, judged: Mapping[str, Any]) -> JudgedAnswer:
    """An answer of a table that a judge has been over, with what it says of it."""
    found = JudgedAnswer(answer)
    found.judged = dict(judged)
    return found


def split_judgement(answer: str) -> tuple[str, dict[str, Any]]:
    """The answer alone, and what a judge said of it where the table held it."""
    return str(answer), answer.judged if isinstance(answer, JudgedAnswer) else {}


# -- writing -------------------------------------------------------------------------------------


def write_xlsx(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A workbook with one sheet: the columns' names, then the rows; None is an empty cell."""
    book = import_openpyxl().Workbook()
    sheet = book.active
    sheet.title = "Sheet1"
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    for number, row in enumerate(lines, start=1):
        for place, name in enumerate(columns, start=1):
            value = row.get(name)
            if value is None:
                continue
            cell = sheet.cell(number, place)
            if isinstance(value, str):
                cell.value = escape_cell(value)
                cell.data_type = "s"  # not a formula, not an error code
            else:
                cell.value = value
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def write_tsv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Cells between tabs, all of them quoted, as pandas writes them; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(name) for name in columns)
        writer.writerow(["" if cell is None else cell for cell in cells])
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def write_json_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A list with an object per row; None stays null."""
    full = [{name: row.get(name) for name in columns} for row in rows]
    return json.dumps(full, indent=4, ensure_ascii=False).encode("utf-8", "backslashreplace")


def escape_cell(text: str) -> str:
    """A text as it is stored: control characters as ``_xHHHH_``, cut where Excel's cells end."""
    escaped = _CONTROL.sub(lambda match: f"_x{ord(match[0]):04X}_", text[:LONGEST_CELL])
    return escaped[:LONGEST_CELL]


# -- reading -------------------------------------------------------------------------------------


def read_columns(path: Path) -> Columns:
    """A table of any of the formats, by column.

    Raises:
        DatasetError: missing, malformed, or of another format.
    """
    readers = {".xlsx": _read_xlsx, ".tsv": _read_tsv, ".json": _read_json, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(readers)
        raise DatasetError("no table of answers", where=str(path), fix=f"Want {known}.")
    return reader(path)


def read_sheet(path: Path) -> list[list[Any]]:
    """Cells of a workbook's first sheet, row by row.

    Raises:
        DatasetError: missing, or no workbook.
    """
    openpyxl = import_openpyxl()
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise DatasetError(f"cannot be read ({err.strerror or err})", where=str(path)) from err
    try:
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
        return [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
    except (
        zipfile.BadZipFile,
        zlib.error,
        openpyxl.utils.exceptions.InvalidFileException,
        OSError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        SyntaxError,  # an XML error of either parser
        RuntimeError,  # encrypted, or of an unknown compression
    ) as err:  # all that damage makes of zip, XML and openpyxl
        raise DatasetError(
            f"is no xlsx ({err})", where=str(path), fix="Save it again, or take it anew."
        ) from err


def _read_xlsx(path: Path) -> Columns:
    rows = read_sheet(path)
    if not rows:
        raise DatasetError("is empty", where=str(path))
    names = ["" if cell is None else str(cell) for cell in rows[0]]
    body = [row for row in rows[1:] if any(cell is not None for cell in row)]
    width = len(names)
    padded = [(row + [None] * width)[:width] for row in body]
    return {name: excel_column([row[n] for row in padded]) for n, name in enumerate(names)}


def excel_column(cells: Sequence[Any]) -> list[Cell]:
    """Cells of a sheet's column as pandas infers them: numbers if all are or read as numbers."""
    plain = [_plain(cell) for cell in cells]
    texts = ["" if cell is None else str(cell) for cell in plain]
    read = pandas_column(texts)
    if any(isinstance(cell, str) for cell in read):
        return plain
    return read


def _plain(cell: Any) -> Cell:
    if cell is None or (isinstance(cell, str) and cell in PANDAS_MISSING):
        return None
    if isinstance(cell, bool | str | int):
        return cell
    if isinstance(cell, float):
        return int(cell) if cell == cell and cell in (cell // 1,) else cell
    return str(cell)


def _read_tsv(path: Path) -> Columns:
    rows = [row for row, _ in read_tsv(path)]
    names = list(rows[0]) if rows else []
    return {name: pandas_column([row[name] for row in rows]) for name in names}


def _read_json(path: Path) -> Columns:
    found = read_json(path)
    if isinstance(found, list):
        return _by_column(found, str(path))
    if isinstance(found, dict) and isinstance(found.get("prediction"), dict | list):
        return {
            str(name): list(cells.values() if isinstance(cells, dict) else cells)
            for name, cells in found.items()
            if isinstance(cells, dict | list)
        }
    if isinstance(found, dict):
        return {"index": list(found), "prediction": list(found.values())}
    raise DatasetError("is no table of answers", where=str(path), fix="Want a list of objects.")


def _read_jsonl(path: Path) -> Columns:
    return _by_column([record for record, _ in read_jsonl(path)], str(path))


def _by_column(records: Sequence[Any], where: str) -> Columns:
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise DatasetError("is no object", where=f"{where}, record {number}")
    names = dict.fromkeys(name for record in records for name in record)
    return {str(name): [record.get(name) for record in records] for name in names}


def read_predictions(
    files: Sequence[Path],
    questions: Sequence[Question],
    *,
    whole_numbers: bool = False,
    judged: Sequence[str] = (),
) -> dict[str, str]:
    """Answers by question id, from tables with ``index`` and ``prediction``.

    Args:
        files: a later one goes before an earlier one.
        questions: that the answers must belong to; not all need be answered.
        whole_numbers: write ``14.0`` as ``14`` where the column came back as numbers (MathVista
            then takes it as an integer).

    Raises:
        DatasetError: a column is missing, or an index belongs to no question.
    """
    known = {one.id for one in questions}
    answers: dict[str, str] = {}
    for path in files:
        columns = {name.lower(): cells for name, cells in read_columns(path).items()}
        for name in ("index", "prediction"):
            if name not in columns:
                has = ", ".join(columns) or "nothing"
                raise DatasetError(f'has no column "{name}"', where=str(path), fix=f"It has {has}.")
        ids = read_indices([_text(cell, False) for cell in columns["index"]], str(path))
        unknown = [str(one) for one in ids if str(one) not in known]
        if unknown:
            raise DatasetError(
                f"{len(unknown)} rows belong to no question, the first has index {unknown[0]}",
                where=str(path),
                fix="Take the answers of this data.",
            )
        texts = [_text(cell, whole_numbers) for cell in columns["prediction"]]
        if judged and all(name in columns for name in judged):
            rows = [{name: columns[name][n] for name in judged} for n in range(len(texts))]
            _refuse_texts(rows, ids, path)
            texts = [with_judgement(text, row) for text, row in zip(texts, rows, strict=True)]
        answers |= {str(one): text for one, text in zip(ids, texts, strict=True)}
    return answers


def _refuse_texts(rows: Sequence[Mapping[str, Any]], ids: Sequence[object], path: Path) -> None:
    for row, index in zip(rows, ids, strict=True):
        for name in NUMBERS_OF_JUDGES & set(row):
            if not isinstance(row[name], int | float | None):
                raise DatasetError(
                    f'"{name}" of index {index} is {row[name]!r:.80}, want a number',
                    where=str(path),
                    fix="Mend the cell, or remove the column: then a judge is asked.",
                )


def _text(cell: Any, whole_numbers: bool) -> str:
    if cell is None:
        return "nan"
    if whole_numbers and isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return cell if isinstance(cell, str) else json.dumps(cell) if _nested(cell) else str(cell)


def _nested(cell: Any) -> bool:
    return isinstance(cell, dict | list)
