"""Parquet as the datasets library writes it: images as ``{bytes, path}``, conversations as lists.

Needs pyarrow (``pip install "internvl-chat[parquet]"``). Rows are read and written a few at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.data.convert.conversations import Draft, Row, leave_keys, read_own, with_tags
from internvl_chat.data.convert.files import Progress, no_progress
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.convert.openai import from_openai
from internvl_chat.data.convert.sharegpt import as_list, from_sharegpt
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.model.constants import IMAGE_TAG

_ROWS_AT_A_TIME = 32  # a row may hold megabytes of images
_EXTRA = "extra"
"""Column of what has none of its own, as JSON."""


def load_pyarrow() -> Any:
    """``pyarrow.parquet``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as err:
        raise ConfigError(
            "Parquet files need pyarrow", fix='pip install "internvl-chat[parquet]".'
        ) from err
    return pyarrow.parquet


def parquet_files(path: Path) -> list[Path]:
    """The file, or all of a folder in the order of their names.

    Raises:
        ConfigError: there is none.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError("no such file, or no .parquet in it", where=str(path))
    return files


def read_parquet(path: Path, progress: Progress = no_progress) -> Iterator[tuple[Row, str]]:
    """Rows of a file or of all files of a folder, and ``file, row n`` (from 0) of each.

    Raises:
        ConfigError: no pyarrow, no file.
        DatasetError: a file is no Parquet.
    """
    parquet = load_pyarrow()
    import pyarrow

    files = parquet_files(path)
    done, total = 0, sum(file.stat().st_size for file in files)
    for file in files:
        try:
            with parquet.ParquetFile(file) as table:
                num_rows = max(table.metadata.num_rows, 1)
                number = 0
                for batch in table.iter_batches(batch_size=_ROWS_AT_A_TIME):
                    for row in batch.to_pylist():
                        yield row, f"{file}, row {number}"
                        number += 1
                    progress(done + file.stat().st_size * number // num_rows, total)
        except (pyarrow.ArrowInvalid, OSError) as err:
            raise DatasetError(f"is no Parquet file ({err})", where=str(file)) from err
        done += file.stat().st_size


def column_names(path: Path) -> list[str]:
    """Columns of the (first) file."""
    parquet = load_pyarrow()
    import pyarrow

    try:
        with parquet.ParquetFile(parquet_files(path)[0]) as table:
            return list(table.schema_arrow.names)
    except (pyarrow.ArrowInvalid, OSError) as err:
        raise DatasetError(f"is no Parquet file ({err})", where=str(path)) from err


def holds_conversations(names: Sequence[str]) -> bool:
    """Whether a table has a column of turns, not of questions."""
    return bool({"conversations", "messages", "texts"} & set(names))


def from_conversation_row(
    source: Mapping[str, Any], notes: Notes, *, train_masked: bool = False
) -> Draft:
    """A row with ``messages``, ``conversations``, or the Cauldron's ``texts`` of (user, assistant).

    Raises:
        UnfitRecordError: as :func:`from_openai` and :func:`from_sharegpt`.
    """
    row = {key: value for key, value in source.items() if value is not None}
    extra = row.pop(_EXTRA, None)
    if isinstance(extra, str):
        row |= json.loads(extra) if extra.startswith("{") else {_EXTRA: extra}
    for key in [key for key in row if isinstance(row[key], bytes) and key not in ("image",)]:
        notes.left[f"{key} (bytes)"] += 1
        del row[key]
    if "texts" in row:
        row["messages"] = _of_pairs(row.pop("texts"), notes)
        _tag_first(row, as_list(row.get("images", row.get("image"))))
    turns = row.get("messages", row.get("conversations"))
    for key in ("messages", "conversations"):
        if isinstance(turns, list) and key in row:
            # A struct column gives every key to every turn, null where the source had none.
            row[key] = [_without_nulls(turn) for turn in turns]
    if isinstance(turns, list) and any(isinstance(_content(turn), list) for turn in turns):
        return from_openai(row, notes, train_masked=train_masked)
    return from_sharegpt(row, notes, train_masked=train_masked)


def _content(turn: Any) -> Any:
    return turn.get("content") if isinstance(turn, Mapping) else None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _of_pairs(pairs: Any, notes: Notes) -> list[Row]:
    messages = []
    for pair in as_list(pairs):
        if not isinstance(pair, Mapping) or not {"user", "assistant"} <= set(pair):
            raise UnfitRecordError('"texts" is no list of user and assistant')
        for key in set(pair) - {"user", "assistant"}:
            notes.left[f"{key} of a text"] += 1
        messages += [{"role": role, "content": pair[role]} for role in ("user", "assistant")]
    return messages


def _tag_first(row: Row, images: Sequence[Any]) -> None:
    messages = row["messages"]
    if messages and images and not any(IMAGE_TAG in str(one["content"]) for one in messages):
        messages[0]["content"] = "<image>\n" * len(images) + messages[0]["content"]


def to_parquet_row(record: Mapping[str, Any], notes: Notes, images: Sequence[Row]) -> Row:
    """A row of ``id``, ``images``, ``messages``, ``system`` and ``extra``.

    Args:
        images: ``{bytes, path}`` of each image.

    Raises:
        UnfitRecordError: a video; no record; placeholders that do not fit.
    """
    own = read_own(record)
    leave_keys(own, record, ("width", "height", "length"), notes)
    roles = {"human": "user", "gpt": "assistant"}
    messages = [
        {"role": turn.kind or roles[turn.speaker], "content": turn.text}
        for turn in with_tags(own, notes)
    ]
    rest = {key: record[key] for key in ("width", "height", "length") if key in record} | own.rest
    if own.identity is not None and not isinstance(own.identity, str):
        rest = {"id": own.identity} | rest
    return {
        "id": own.identity if isinstance(own.identity, str) else None,
        "images": list(images),
        "messages": messages,
        "system": own.system,
        _EXTRA: json.dumps(rest, ensure_ascii=False) if rest else None,
    }


class ParquetRows:
    """Writes rows of :func:`to_parquet_row`, a group at a time.

    Args:
        path: new file.
    """

    def __init__(self, path: Path) -> None:
        parquet = load_pyarrow()
        import pyarrow as pa

        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        self._schema = pa.schema(
            [
                ("id", pa.string()),
                ("images", pa.list_(image)),
                ("messages", pa.list_(message)),
                ("system", pa.string()),
                (_EXTRA, pa.string()),
            ]
        )
        self._table = pa.Table
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._waiting: list[Row] = []

    def write(self, row: Row) -> None:
        """Add a row."""
        self._waiting.append(row)
        if len(self._waiting) >= _ROWS_AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(self._table.from_pylist(self._waiting, schema=self._schema))
            self._waiting = []

    def close(self) -> None:
        """Write the rest and the file's end."""
        self._flush()
        self._writer.close()


def embedded(path: str, raw: bytes | None) -> Row:
    """The struct that the datasets library decodes as an image."""
    return {"bytes": raw, "path": path}
