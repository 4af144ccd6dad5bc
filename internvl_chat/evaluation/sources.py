"""Reading the data of benchmarks: JSON, JSON lines, TSV, and images that are opened later."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.data_urls import (
    DataUrlError,
    forgiving_base64,
    is_data_url,
    read_data_url,
)
from internvl_chat.data.images import decode_image, load_image, open_raster
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.storage import CHECK_ROOT
from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.task import AS_STORED

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class ImageFile:
    """An image on disk."""

    path: str
    """As it is opened."""
    shown: str = ""
    """As people are shown it; the path by default."""

    @property
    def label(self) -> str:
        """See :class:`ImageSource`."""
        return self.shown or self.path

    def open(self, decode: DecodeConfig = AS_STORED) -> Image.Image:
        """See :class:`ImageSource`."""
        try:
            return load_image(self.path, where=self.label, decode=decode)
        except BadRecordError as err:
            if err.fix == CHECK_ROOT:  # which speaks of a meta JSON, and most data here have none
                err.fix = "Look where the data lie (docs/eval_data.md); own records: --root."
            raise


@dataclass(frozen=True)
class EncodedImage:
    """An image in a cell of a TSV, base64 or a ``data:`` URL."""

    text: str
    label: str
    jpeg_quality: int | None = None
    """Re-encode as JPEG first, as VLMEvalKit did in 2024 (75)."""

    def open(self, decode: DecodeConfig = AS_STORED) -> Image.Image:
        """See :class:`ImageSource`."""
        try:
            raw = self._raw()
        except ValueError as err:
            raise BadRecordError("NOT_AN_IMAGE", f"no base64: {err}", where=self.label) from err
        image = decode_image(raw, where=self.label, path=self.label, decode=decode).rgb
        if self.jpeg_quality is None:
            return image
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=self.jpeg_quality)
        return open_raster(buffer).convert("RGB")

    def _raw(self) -> bytes:
        if is_data_url(self.text):
            return read_data_url(self.text).raw
        try:
            return forgiving_base64(self.text)
        except DataUrlError:
            return base64.b64decode(self.text)  # VLMEvalKit's: other characters are passed over


def read_text(path: Path) -> str:
    """A text file, UTF-8 with or without a byte order mark.

    Raises:
        DatasetError: missing, or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise DatasetError(f"cannot be read ({err.strerror})", where=str(path)) from err
    except UnicodeDecodeError as err:
        raise DatasetError(
            f"is no UTF-8 ({err.reason} at byte {err.start})",
            where=str(path),
            fix="Re-encode the file.",
        ) from err


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        DatasetError: missing, or no JSON.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """JSON from a file; half a surrogate pair, which no output can hold, becomes U+FFFD.

    Raises:
        DatasetError: it is none, or nested beyond reason.
    """
    try:
        content = json.loads(text)
        return _without_surrogates(content) if _ESCAPED_SURROGATE.search(text) else content
    except ValueError as err:
        raise DatasetError(
            f"is no JSON ({err})", where=where, fix="Mend it, or take the file anew."
        ) from err
    except RecursionError as err:
        raise DatasetError("is no JSON (nested too deeply)", where=where) from err


def _without_surrogates(content: Any) -> Any:
    if isinstance(content, str):
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(content, list):
        return [_without_surrogates(one) for one in content]
    if isinstance(content, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in content.items()}
    return content


def read_jsonl(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Objects of a JSON lines file with their place, ``file:line``; blank lines are passed over.

    Raises:
        DatasetError: missing, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise DatasetError("is no JSON object", where=where)
        yield record, where


def require(record: Mapping[str, Any], name: str, where: str) -> Any:
    """A field that a record must have.

    Raises:
        DatasetError: it is not there, or the record is no object.
    """
    if not isinstance(record, Mapping):
        raise DatasetError(f"is {record!r:.80}, want an object", where=where)
    if name not in record:
        raise DatasetError(
            f'has no "{name}"', where=where, fix=f"It has {', '.join(sorted(record)) or 'nothing'}."
        )
    return record[name]


def require_list(record: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A field that must be a list.

    Raises:
        DatasetError: it is not.
    """
    value = require(record, name, where)
    if not isinstance(value, list):
        raise DatasetError(f'"{name}" is {value!r:.80}, want a list', where=where)
    return value


def require_plain(
    record: Mapping[str, Any], name: str, where: str, *, fix: str | None = None
) -> str | int | float:
    """A field that must be a text or a number: an id, a class, an answer.

    Raises:
        DatasetError: it is not.
    """
    value = require(record, name, where)
    if not isinstance(value, str | int | float):
        raise DatasetError(
            f'"{name}" is {value!r:.80}, want a text or a number', where=where, fix=fix
        )
    return value


def require_answer(record: Mapping[str, Any], name: str, where: str) -> str:
    """The answer of a record in an answer file; a number is taken as its text.

    Raises:
        DatasetError: it is neither.
    """
    return str(require_plain(record, name, where, fix='An empty answer is "".'))


def read_tsv(path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Rows of a TSV with a header, all cells as text, with their place; quoting as pandas reads it.

    Raises:
        DatasetError: missing, empty, or a row with more cells than the header.
    """
    csv.field_size_limit(sys.maxsize)  # base64 images
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # gigabytes: never in one text
            yield from _tsv_rows(csv.DictReader(file, delimiter="\t"), path)
    except OSError as err:
        raise DatasetError(f"cannot be read ({err.strerror})", where=str(path)) from err
    except UnicodeDecodeError as err:
        raise DatasetError(
            f"is no UTF-8 ({err.reason})", where=str(path), fix="Re-encode the file."
        ) from err


def _tsv_rows(reader: csv.DictReader[str], path: Path) -> Iterator[tuple[dict[str, str], str]]:
    if reader.fieldnames is None:
        raise DatasetError("is empty", where=str(path))
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if None in row:
            raise DatasetError("has more cells than the header", where=where)
        yield {name: value or "" for name, value in row.items()}, where
