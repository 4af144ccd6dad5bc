"""Reading the data of benchmarks: JSON, JSON lines, TSV, and images that are opened later."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl_chat.data.images import load_image, open_image, to_rgb
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import DatasetError


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

    def open(self) -> Image.Image:
        """See :class:`ImageSource`."""
        return load_image(self.path, where=self.label)


@dataclass(frozen=True)
class EncodedImage:
    """An image in a cell of a TSV, base64."""

    text: str
    label: str
    jpeg_quality: int | None = None
    """Re-encode as JPEG first, as VLMEvalKit did in 2024 (75)."""

    def open(self) -> Image.Image:
        """See :class:`ImageSource`."""
        try:
            raw = base64.b64decode(self.text, validate=False)
        except (binascii.Error, ValueError) as err:
            raise BadRecordError("NOT_AN_IMAGE", f"no base64: {err}", where=self.label) from err
        image = to_rgb(open_image(raw, where=self.label, path=self.label), where=self.label)
        if self.jpeg_quality is None:
            return image
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=self.jpeg_quality)
        return Image.open(buffer).convert("RGB")


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
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as err:
        raise DatasetError(f"is no JSON ({err})", where=str(path)) from err


def read_jsonl(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Objects of a JSON lines file with their place, ``file:line``; blank lines are passed over.

    Raises:
        DatasetError: missing, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as err:
            raise DatasetError(f"is no JSON ({err})", where=where) from err
        if not isinstance(record, dict):
            raise DatasetError("is no JSON object", where=where)
        yield record, where


def require(record: dict[str, Any], name: str, where: str) -> Any:
    """A field that a record must have.

    Raises:
        DatasetError: it is not there.
    """
    if name not in record:
        raise DatasetError(
            f'has no "{name}"', where=where, fix=f"It has {', '.join(sorted(record)) or 'nothing'}."
        )
    return record[name]


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
