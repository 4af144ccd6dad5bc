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
from internvl_chat.data.meta import DatasetSpec, read_meta
from internvl_chat.data.schema import BadRecordError, parse_record
from internvl_chat.data.storage import is_url, resolve_path
from internvl_chat.files import sampled_content

_LOOKED_AT = 8  # records per dataset whose files are compared
_HEAD_BYTES = 16 * 2**10  # of such a file


def data_identity(meta_path: str | os.PathLike[str]) -> list[dict[str, Any]] | None:
    """What each dataset of a meta JSON is: settings, records, and files of a few of them.

    Args:
        meta_path: the meta JSON.

    Returns:
        A JSON object per entry, in the file's order: its settings (``length``, a promise, left
        out), ``records``, ``records_sha256`` of the annotation file, and ``files``, a digest of
        name, size and first bytes of the images of 8 records (None where they are not on disk).
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
    digest = hashlib.sha256()
    for chunk in sampled_content(Path(spec.annotation)):
        digest.update(chunk)
    digest.update(str(os.path.getsize(spec.annotation)).encode())
    return {
        "name": spec.name,
        "root": spec.root,
        "annotation": spec.annotation,
        "records": len(file),
        "records_sha256": digest.hexdigest(),
        "files": None if is_url(spec.root) else _files_digest(spec.root, file),
        "data_augment": spec.data_augment,
        "repeat_time": spec.repeat_time,
        "max_dynamic_patch": spec.max_dynamic_patch,
        "box_format": spec.box_format,
        "weight": spec.weight,
    }


def _files_digest(root: str, file: AnnotationFile) -> str | None:
    """Of the images and videos of records spread over the dataset."""
    digest = hashlib.sha256()
    looked = 0
    for number in np.linspace(0, len(file) - 1, min(_LOOKED_AT, len(file)), dtype=np.int64):
        raw, where = file.read(int(number))
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
