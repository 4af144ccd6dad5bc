"""Files derived from annotation files: built once per machine, shared by ranks and jobs.

The directory is ``$INTERNVL_CHAT_CACHE``, by default ``~/.cache/internvl_chat``. A file's name is a
digest of everything it depends on, so nothing is ever stale; deleting the directory is always safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from internvl_chat.errors import DatasetError
from internvl_chat.files import written_aside

logger = logging.getLogger(__name__)

_NAME_BYTES = 64
"""Of the source's name in the name of what is derived from it. File systems allow 255 bytes in all,
and a source may already have as many."""


def cache_dir() -> Path:
    """Where derived files are written; created on first use, a temporary one if it cannot be."""
    path = _chosen_dir()
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


def cache_path(source: str | os.PathLike[str], key: str, ending: str) -> Path:
    """Where a file derived from ``source`` lies, or will lie once it is built.

    One that is there is found in a cache directory that cannot be written as well.

    Args:
        source: what it is derived from; only the start of its name is used, to tell files apart.
        key: a digest of everything that it depends on.
        ending: what it is, e.g. ``.lengths.npy``.
    """
    stem = os.fsencode(Path(source).stem)[:_NAME_BYTES].decode("utf-8", "replace")
    name = f"{stem.replace('�', '_')}-{key}{ending}"
    built = _chosen_dir() / name
    return built if built.exists() else cache_dir() / name


def _chosen_dir() -> Path:
    chosen = os.environ.get("INTERNVL_CHAT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "internvl_chat"


def digest(*parts: object) -> str:
    """16 hexadecimal digits over JSON-able values."""
    raw = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_DATACLASS)
    return hashlib.sha256(raw).hexdigest()[:16]


def path_key(path: str | os.PathLike[str]) -> str:
    """A path's bytes as text that every encoder takes, also where they are no UTF-8."""
    return os.fsencode(path).decode("latin-1")


def build_once(path: Path, build: Callable[[Path], None]) -> bool:
    """Make sure ``path`` exists, building it in exactly one of the processes that ask.

    The others wait on a lock file and find it done. ``build`` writes to the temporary path it is
    given, which is then renamed: a killed build leaves nothing that looks finished, and what it
    leaves is removed by the next.

    Returns:
        Whether this process built it.

    Raises:
        DatasetError: there is no room, the directory cannot be written, or a read fails.
    """
    if path.exists():
        return False
    with locked(path) as alone:
        if path.exists():
            return False
        if alone:
            for left in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{path.suffix}"):
                left.unlink(missing_ok=True)
        with told(path), written_aside(path) as partial:
            build(partial)
    return True


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk while ``path`` is made into an error for the user."""
    try:
        yield
    except OSError as err:
        raise DatasetError(
            f"cannot be made: {err.strerror or err}",
            where=str(path),
            fix="INTERNVL_CHAT_CACHE may name a directory on another disk.",
        ) from err


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a derived file, waiting for another process that holds it.

    Yields:
        Whether this process is alone; False where the file system has no locks.
    """
    lock = path.with_name(path.name + ".lock")
    with told(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = open(lock, "ab")  # noqa: SIM115 - closed below, which gives the lock back
    with handle:
        yield _lock(handle.fileno(), path)


def _lock(handle: int, path: Path) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either where another holds it
        logger.info("waiting for the process that makes %s", path)
    except OSError as err:
        logger.warning("no file lock for %s (%s): several ranks may do the same work", path, err)
        return False
    else:
        return True
    fcntl.lockf(handle, fcntl.LOCK_EX)
    return True
