"""Files derived from annotation files: built once per machine, shared by ranks and jobs.

The directory is ``$INTERNVL_CHAT_CACHE``, by default ``~/.cache/internvl_chat``. A file's name is a
digest of everything it depends on, so nothing is ever stale; deleting the directory is always safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from internvl_chat.files import written_aside

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where derived files live; created on first use, a temporary directory if it cannot be."""
    chosen = os.environ.get("INTERNVL_CHAT_CACHE")
    path = Path(chosen) if chosen else Path.home() / ".cache" / "internvl_chat"
    try:
        path.mkdir(parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK)
    except OSError:
        usable = False
    if usable:
        return path
    fallback = Path(tempfile.gettempdir()) / f"internvl_chat-{os.getuid()}"
    fallback.mkdir(parents=True, exist_ok=True)
    logger.warning("cache directory %s is not writable; using %s", path, fallback)
    return fallback


def file_identity(path: str | os.PathLike[str]) -> list[object]:
    """What tells one version of a file from another: real path, size, modification time (ns)."""
    status = os.stat(path)
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def digest(*parts: object) -> str:
    """16 hexadecimal digits over JSON-able values."""
    raw = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_DATACLASS)
    return hashlib.sha256(raw).hexdigest()[:16]


def build_once(path: Path, build: Callable[[Path], None]) -> bool:
    """Make sure ``path`` exists, building it in exactly one of the processes that ask.

    The others wait on a lock file and find it done. ``build`` writes to the temporary path it is
    given, which is then renamed: a killed build leaves nothing that looks finished.

    Returns:
        Whether this process built it.
    """
    if path.exists():
        return False
    with _locked(path.with_name(path.name + ".lock")):
        if path.exists():
            return False
        with written_aside(path) as partial:
            build(partial)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive POSIX lock; without one where the file system has none."""
    with open(path, "ab") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as err:
            logger.warning("no file lock at %s (%s): several ranks may do the same work", path, err)
        yield
