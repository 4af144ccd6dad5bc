"""Tables with a question a row: CSV files and the columns of Parquet files.

Columns are found by their usual names or named by the user; the others are carried on in the
record, where ``eval run --by COLUMN`` finds them.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.data.convert.conversations import (
    ChatTurn,
    Draft,
    Row,
    leave_keys,
    read_own,
    without_leading_tags,
)
from internvl_chat.data.convert.files import Progress, no_progress
from internvl_chat.data.convert.media import image_reference
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.convert.sharegpt import as_list
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.model.constants import IMAGE_TAG
from internvl_chat.model.suggestions import suggest

_USUAL_NAMES = {
    "image": (
        *("image", "images", "image_path", "image_file", "img", "img_path", "file_name"),
        *("filename", "file", "path", "photo"),
    ),
    "question": ("question", "query", "prompt", "instruction", "input", "problem"),
    "answer": ("answer", "response", "output", "label", "caption", "text", "target", "answers"),
    "system": ("system",),
    "id": ("id", "question_id", "index", "qid"),
}
_LARGEST_CELL = 1 << 28  # csv's own limit of 128 KiB is less than an image in base64


@dataclass(frozen=True)
class TableColumns:
    """Which column is what; None where there is none."""

    answer: str
    image: str | None
    question: str | None
    system: str | None
    identity: str | None


def find_columns(header: Sequence[str], named: Mapping[str, str], where: str) -> TableColumns:
    """Sort the columns of a table.

    Args:
        header: their names.
        named: ``image``, ``question``, ``answer``, ``system`` or ``id`` -> the user's name for it.
        where: file, for messages.

    Raises:
        ConfigError: a named column is not there, or no column holds answers.
    """
    found: dict[str, str] = {}
    for role, name in named.items():
        if role not in _USUAL_NAMES:
            raise ConfigError(
                f"{role!r} is no role of a column",
                where="--column",
                fix=f"One of {', '.join(_USUAL_NAMES)}.",
            )
        if name not in header:
            raise ConfigError(
                f"has no column {name!r} but {', '.join(header)}",
                where=where,
                fix=suggest(name, list(header)) or None,
            )
        found[role] = name
    lowered = {name.lower().strip(): name for name in reversed(header)}
    for role, names in _USUAL_NAMES.items():
        free = (n for n in names if n in lowered and lowered[n] not in found.values())
        first = next(free, None)
        if role not in found and first is not None:
            found[role] = lowered[first]
    if "answer" not in found:
        raise ConfigError(
            f"no column looks like answers: {', '.join(header)}",
            where=where,
            fix="Name it: --column answer=NAME.",
        )
    return TableColumns(
        answer=found["answer"],
        image=found.get("image"),
        question=found.get("question"),
        system=found.get("system"),
        identity=found.get("id"),
    )


def read_csv(path: Path, progress: Progress = no_progress) -> Iterator[tuple[Row, str]]:
    """The rows of a table with a header, and ``file:line`` of each; tabs in a ``.tsv``.

    Raises:
        ConfigError: no header, or two columns of one name.
        DatasetError: the table is damaged.
    """
    total = path.stat().st_size
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        with (
            open(path, "rb") as raw,
            io.TextIOWrapper(raw, encoding=_encoding(path), newline="") as file,
        ):
            rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            header = next(rows, [])
            _check_header(header, path)
            line = rows.line_num + 1
            for number, cells in enumerate(rows):
                where = f"{path}:{line}"
                line = rows.line_num + 1
                if number % 256 == 0:
                    progress(min(raw.tell(), total), total)
                if not any(cells):
                    continue
                if len(cells) > len(header):
                    raise DatasetError(
                        f"{len(cells)} cells, {len(header)} columns",
                        where=where,
                        fix='Put "quotes" around a cell with commas.',
                    )
                yield dict(itertools.zip_longest(header, cells, fillvalue="")), where
    except UnicodeError as err:
        raise DatasetError(
            "is not UTF-8", where=str(path), fix="Save it as 'CSV UTF-8' or 'Unicode text'."
        ) from err
    except csv.Error as err:
        raise DatasetError(f"is no CSV ({err})", where=f"{path}:{line}") from err
    finally:
        csv.field_size_limit(before)
    progress(total, total)


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(2)
    return "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _check_header(header: list[str], path: Path) -> None:
    if not any(header):
        raise ConfigError("has no header", where=f"{path}:1", fix="Begin with column names.")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise ConfigError(f"two columns are called {min(twice)!r}", where=f"{path}:1")
    if len(header) == 1 and path.suffix != ".tsv" and (";" in header[0] or "\t" in header[0]):
        raise ConfigError(
            f"one column {header[0]!r}: its cells are not divided by commas",
            where=f"{path}:1",
            fix="Save it with commas, or name a file with tabs .tsv.",
        )


def group_rows(
    rows: Iterable[tuple[Row, str]], column: str | None
) -> Iterator[tuple[list[Row], str]]:
    """Rows that follow each other and say the same in a column, together; alone without one."""
    waiting: list[Row] = []
    place = ""
    for row, where in rows:
        if waiting and (column is None or not row[column] or row[column] != waiting[0][column]):
            yield waiting, place
            waiting = []
        if not waiting:
            place = where
        waiting.append(row)
    if waiting:
        yield waiting, place


def from_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: TableColumns,
    notes: Notes,
    *,
    question: str | None = None,
) -> Draft:
    """One record of one row or of several about the same images.

    Args:
        rows: cells by column.
        question: asked where the table has no questions.

    Raises:
        UnfitRecordError: a row has no question or no answer.
    """
    images = [image_reference(one) for one in _images(rows[0], columns)]
    turns: list[ChatTurn] = []
    for row in rows:
        asked = row.get(columns.question) if columns.question else None
        asked = str(asked) if asked not in (None, "") else question
        answer, references = _answer(row.get(columns.answer), notes)
        if asked is None:
            raise UnfitRecordError("no question (--question asks one of all)")
        if answer is None:
            raise UnfitRecordError("no answer")
        if not turns and IMAGE_TAG not in asked:
            asked = f"{IMAGE_TAG}\n" * len(images) + asked
        turns += [ChatTurn("human", asked), ChatTurn("gpt", answer)]
    system = rows[0].get(columns.system) if columns.system else None
    draft = Draft(turns, list(images), None, str(system) if system else None)
    _carry_cells(rows, columns, draft, notes)
    if references and len(rows) == 1:
        draft.rest["references"] = references
    return draft


def _answer(cell: Any, notes: Notes) -> tuple[str | None, list[str]]:
    """The answer of a cell, and all right ones where it holds a list of them."""
    several = [str(one) for one in cell if one] if isinstance(cell, list | tuple) else []
    if len(several) > 1:
        notes.changes["several answers: the most frequent is learned, all are references"] += 1
        return max(several, key=several.count), list(dict.fromkeys(several))
    value = several[0] if several else cell
    if value is None or isinstance(value, list | tuple | dict) or not str(value).strip():
        return None, []
    return str(value), []


def _images(row: Mapping[str, Any], columns: TableColumns) -> list[Any]:
    cell = row.get(columns.image) if columns.image else None
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]  # a file may be called like that
    return as_list(cell)


def _carry_cells(
    rows: Sequence[Mapping[str, Any]], columns: TableColumns, draft: Draft, notes: Notes
) -> None:
    used = (columns.answer, columns.image, columns.question, columns.system)
    for name, value in rows[0].items():
        if name in used or value in (None, ""):
            continue
        if isinstance(value, bytes) or _holds_bytes(value):
            notes.left[f"{name} (bytes)"] += 1
        elif name == columns.identity:
            draft.rest["id"] = value
        elif name in ("width", "height") and str(value).isdecimal():
            draft.rest[name] = int(value)
        elif name in ("conversations", "messages", "images", "image", "video", "system"):
            notes.left[name] += 1
        elif all(row.get(name) == value for row in rows):
            draft.rest[name] = value
            notes.kept[name] += 1
        else:
            notes.left[f"{name} (differs between the rows of a conversation)"] += 1


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_bytes(one) for one in value.values())
    return isinstance(value, bytes) or (
        isinstance(value, list | tuple) and any(_holds_bytes(one) for one in value)
    )


def to_rows(record: Mapping[str, Any], notes: Notes) -> list[dict[str, str]]:
    """A row for each round: id, image, question, answer and what else the record carries.

    Raises:
        UnfitRecordError: a video, or turns that do not alternate.
    """
    own = read_own(record)
    leave_keys(own, record, ("width", "height"), notes)
    if len(own.images) > 1 or (own.images and own.images[0].startswith("[")):
        shown = json.dumps(list(own.images), ensure_ascii=False)
    else:
        shown = "".join(own.images)
    common: dict[str, str] = {} if own.identity is None else {"id": str(own.identity)}
    common["image"] = shown
    rest = {key: record[key] for key in ("width", "height") if key in record} | own.rest
    if own.system is not None:
        rest["system"] = own.system
    rows = []
    for number, (question, answer) in enumerate(own.rounds()):
        if number == 0:
            question = without_leading_tags(question, len(own.images))
        row = common | {"question": question, "answer": answer}
        for key, value in rest.items():
            if key not in row:
                row[key] = _cell(value)
            elif number == 0:
                notes.left[key] += 1
        rows.append(row)
    return rows


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
