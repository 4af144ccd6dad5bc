"""MMMU's splits as they lie on disk: parquet, arrow or JSON lines, a folder for each subject."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.images import decode_image
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.sources import ImageFile, read_jsonl
from internvl_chat.evaluation.task import AS_STORED, ImageSource

IMAGES = tuple(f"image_{number}" for number in range(1, 8))
TEXTS = ("id", "question", "options", "answer", "question_type")
_ENDINGS = (".parquet", ".arrow", ".jsonl")
"""In the order in which they are preferred."""

Row = tuple[dict[str, Any], tuple[ImageSource, ...], str]
"""Fields without images, images in order, place."""


@dataclass(frozen=True)
class TableImage:
    """An image in a cell of a parquet or arrow file, as the datasets library writes it."""

    path: str
    row: int
    column: str
    label: str

    def open(self, decode: DecodeConfig = AS_STORED) -> Image.Image:
        """See :class:`~internvl_chat.evaluation.task.ImageSource`."""
        cell = _read_cell(Path(self.path), self.row, self.column)
        raw = cell.get("bytes") if isinstance(cell, dict) else None
        if not raw:
            raise BadRecordError("NOT_AN_IMAGE", "the cell has no bytes", where=self.label)
        return decode_image(raw, where=self.label, path=self.label, decode=decode).rgb


def read_split(folder: Path, subjects: Sequence[str], split: str) -> Iterator[Row]:
    """Rows of a split, subject by subject, in the order of its files; none where there is no file.

    Args:
        folder: ``data/MMMU``.
        subjects: names of folders anywhere below.
        split: ``dev``, ``validation`` or ``test``, in the name of a file or folder below those.

    Raises:
        DatasetError: a file is damaged.
    """
    tables = [path for path in sorted(folder.rglob("*")) if path.suffix in _ENDINGS]
    for subject in subjects:
        for path in _files_of(folder, tables, subject, split):
            yield from _read_json_lines(path) if path.suffix == ".jsonl" else _read_table(path)


def _files_of(folder: Path, tables: Sequence[Path], subject: str, split: str) -> list[Path]:
    """Those of one format and one folder that hold a split of a subject."""
    named = re.compile(rf"(?:^|[-_.]){split}(?:[-_.]|$)")
    found: dict[tuple[int, Path], list[Path]] = {}
    for path in tables:
        inside = path.relative_to(folder).parts
        if subject not in inside[:-1]:
            continue
        below = inside[len(inside) - inside[::-1].index(subject) :]
        if any(named.search(part) for part in below):
            found.setdefault((_ENDINGS.index(path.suffix), path.parent), []).append(path)
    return found[min(found)] if found else []


def _read_json_lines(path: Path) -> Iterator[Row]:
    for record, where in read_jsonl(path):
        images = []
        for name in IMAGES:
            file = record.pop(name, None)
            if file is None:
                continue
            if not isinstance(file, str):
                raise DatasetError(
                    f'"{name}" is {file!r}', where=where, fix="Name an image file, or say null."
                )
            images.append(ImageFile(str(path.parent / file)))
        yield record, tuple(images), where


def _read_table(path: Path) -> Iterator[Row]:
    table = _read_columns(path)
    present = {
        name: table[name].is_valid().to_pylist() for name in IMAGES if name in table.column_names
    }
    texts = table.select([name for name in TEXTS if name in table.column_names])
    for number, record in enumerate(texts.to_pylist()):
        where = f"{path}, row {number}"
        images = tuple(
            TableImage(str(path), number, name, f"{path}, row {number}, {name}")
            for name, valid in present.items()
            if valid[number]
        )
        yield record, images, where


def _read_columns(path: Path) -> Any:
    """The table, of a parquet file without the bytes of images."""
    pyarrow = _pyarrow()
    try:
        if path.suffix == ".arrow":
            return _open_arrow(path)
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = []
            for column in file.schema_arrow:
                if column.name in TEXTS:
                    columns.append(column.name)
                elif column.name in IMAGES:
                    is_struct = pyarrow.types.is_struct(column.type)
                    columns.append(f"{column.name}.path" if is_struct else column.name)
            return file.read(columns=columns)
    except (OSError, pyarrow.ArrowException) as err:
        raise DatasetError(f"cannot be read ({err})", where=str(path)) from err


def _read_cell(path: Path, row: int, column: str) -> Any:
    pyarrow = _pyarrow()
    try:
        if path.suffix == ".arrow":
            return _open_arrow(path)[column][row].as_py()
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if row < size:
                    return file.read_row_group(group, columns=[column])[column][row].as_py()
                row -= size
    except (OSError, pyarrow.ArrowException) as err:
        raise BadRecordError("NOT_AN_IMAGE", f"cannot be read ({err})", where=str(path)) from err
    return None


def _open_arrow(path: Path) -> Any:
    """A file of the datasets library's cache; mapped, not read."""
    pyarrow = _pyarrow()
    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source).read_all()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as err:
        raise ConfigError(
            "parquet files need pyarrow",
            where="data/MMMU",
            fix='pip install "internvl-chat[eval]", or write the subjects as JSON lines.',
        ) from err
    return pyarrow


def parse_options(record: Mapping[str, Any], where: str) -> list[str]:
    """The options of a question, which are a Python literal in text (or a list).

    Raises:
        DatasetError: they are something else.
    """
    value = record.get("options")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip() or "[]")
        except (ValueError, SyntaxError, MemoryError, RecursionError) as err:
            raise DatasetError(
                f'"options" is {record["options"]!r}',
                where=where,
                fix="Want a Python list in text, ['one', 'two'].",
            ) from err
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise DatasetError(f'"options" is {value!r}', where=where, fix="Want a list of texts.")
    return [str(one).strip() for one in value]


def parse_reference(answer: Any) -> str | list[str]:
    """The reference of an open question: a text, or several that are a Python list in text."""
    if isinstance(answer, list | tuple):
        return [str(one) for one in answer]
    text = "" if answer is None else str(answer)
    if text.strip().startswith("["):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if isinstance(value, list) and value:
            return [str(one) for one in value]
    return text
