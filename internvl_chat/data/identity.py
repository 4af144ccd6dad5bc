"""What the files behind a meta JSON hold, in short texts by which two runs can be compared.

Places do not count: the same records and images in another folder are the same data.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.cache import build_once, cache_path
from internvl_chat.data.meta import DatasetSpec, read_meta
from internvl_chat.data.record_json import MAX_RECORD_BYTES
from internvl_chat.data.schema import BadRecordError, parse_record
from internvl_chat.data.storage import is_url, resolve_path
from internvl_chat.errors import DatasetError

_LOOKED_AT = 256  # records per dataset whose files are compared
_BLOCK_BYTES = 2**20
_HEAD_BYTES = 16 * 2**10  # of such a file


def data_identity(meta_path: str | os.PathLike[str]) -> list[dict[str, Any]] | None:
    """What each dataset of a meta JSON is: settings, records, and files of a few of them.

    Args:
        meta_path: the meta JSON.

    Returns:
        A JSON object per entry, in the file's order: its settings (``length``, a promise, left
        out), ``records``, ``records_sha256`` of the whole annotation file, and ``files``, a digest
        of name, size and first bytes of the images of 256 records (None where they are not on
        disk).
        None for a meta that cannot be trained on: reading it says why.

    Raises:
        DatasetError: an annotation file cannot be read.
    """
    reading = read_meta(meta_path)
    if reading.problems:
        return None
    return [_entry(spec) for spec in reading.specs]


def _entry(spec: DatasetSpec) -> dict[str, Any]:
    file = AnnotationFile(spec.annotation)
    return {
        "name": spec.name,
        "root": spec.root,
        "annotation": spec.annotation,
        "records": len(file),
        "records_sha256": _content_digest(file),
        "files": None if is_url(spec.root) else _files_digest(spec.root, file),
        "data_augment": spec.data_augment,
        "repeat_time": spec.repeat_time,
        "max_samples": spec.max_samples,
        "max_dynamic_patch": spec.max_dynamic_patch,
        "box_format": spec.box_format,
        "weight": spec.weight,
    }


def _content_digest(file: AnnotationFile) -> str:
    """Of every byte: one record that was edited is other data. Worked out once, then cached."""

    def build(partial: Path) -> None:
        found = hashlib.sha256()
        try:
            with open(file.path, "rb") as content:
                while block := content.read(_BLOCK_BYTES):
                    found.update(block)
        except OSError as err:
            raise DatasetError(f"cannot be read: {err.strerror}", where=file.path) from err
        partial.write_text(found.hexdigest())

    path = cache_path(file.path, file.identity, ".sha256")
    build_once(path, build)
    return path.read_text()


def _files_digest(root: str, file: AnnotationFile) -> str | None:
    """Of the images and videos of records spread over the dataset."""
    digest = hashlib.sha256()
    looked = 0
    for number in np.linspace(0, len(file) - 1, min(_LOOKED_AT, len(file)), dtype=np.int64):
        raw, where = file.read(int(number), most=MAX_RECORD_BYTES + 1)
        try:
            record = parse_record(raw, where=where)
            names = [record.video] if record.video else record.images
            for name in names:
                head = _head(resolve_path(root, str(name), where=where))
                if head is not None:
                    digest.update(f"{name}\n".encode("utf-8", "surrogatepass") + head)
                    looked += 1
        except BadRecordError:
            continue
    return digest.hexdigest() if looked else None


def _head(path: str) -> bytes | None:
    """Size and first bytes of a regular file; None for what is none, or lies in an archive."""
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            return f"{os.path.getsize(path)}\n".encode() + file.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return None
