"""Files that are complete or absent: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPLACED = ".replaced"
"""Ending of a directory that is being replaced, until its successor has the name."""

_WHOLE_FILE_BYTES = 16 * 2**20
_CHUNK_BYTES = 64 * 2**10
_NUM_CHUNKS = 64


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name to write a file under, which becomes ``path`` when the block ends well.

    A crash in between leaves ``path`` as it was: absent, or with its former content. Processes that
    write the same file at once write aside each for itself; the last one to finish counts.

    Args:
        path: the file, in a directory that exists.

    Yields:
        A hidden name beside ``path`` with the same suffix; removed if the block fails.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield aside
        sync_file(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_json(path: Path, content: object) -> None:
    """Write a small JSON file whole or not at all: indented, UTF-8, a newline at its end.

    Args:
        path: the file; its directory is made.
        content: what JSON has no type for (a path, a dtype) is written as its text; bytes of a
            path that are no UTF-8 as Python holds them, escaped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def replace_directory(staging: Path, target: Path) -> None:
    """Give a finished directory its name; one that has the name is kept until then.

    A crash in between leaves the former directory under its name plus :data:`REPLACED`.
    """
    replaced = target.with_name(target.name + REPLACED)
    if replaced.exists():
        shutil.rmtree(replaced)
    if target.exists():
        target.rename(replaced)
    staging.rename(target)
    sync_directory(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def open_to_readers_of_folder(path: Path) -> None:
    """Let whoever may read the folder read the file, for writers that make theirs private."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def sampled_content(path: Path) -> Iterator[bytes]:
    """A file's bytes, to tell one content from another; of a large file those of 64 places.

    So 75 GB of weights take no minutes: training changes all of them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE_BYTES:
            yield file.read()
            return
        for number in range(_NUM_CHUNKS):
            file.seek((size - _CHUNK_BYTES) * number // (_NUM_CHUNKS - 1))
            yield file.read(_CHUNK_BYTES)


def sync_file(path: Path) -> None:
    """Flush a file's content to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's entries (a rename, say) to disk, where its file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        # Some network and user-space file systems have no such call for directories.
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
