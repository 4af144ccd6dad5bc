"""Files of a dataset's root, wherever they lie: on disk, in zip and tar archives, in object stores.

A place is one string. Where a part of it is an archive, the rest is the name of a member:
``photos.zip/cats/7.jpg``. ``s3://bucket/photos/7.jpg`` and the like go through fsspec.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import posixpath
import re
import stat
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Final, TypeVar

from internvl_chat.data import archives
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import DatasetError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 2 * 2**30
"""Larger files are refused before they are read: the pixels of the largest image are less."""

CHECK_ROOT: Final = 'Check "root" in the meta JSON and the record\'s path.'
"""How a missing file of a dataset is mended."""

_NO_URLS: Final = "URLs are not fetched: save the file, and give its path."
_URL_IN_PATH: Final = re.compile(r"/(?:data:[\w.+-]+/|(?:https?|ftp|s3|gs|file):/)", re.IGNORECASE)
_TRANSIENT: Final = {
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENFILE,
    errno.EMFILE,
    errno.ENOMEM,
}
_RETRY_SECONDS: Final = (0.1, 0.4, 1.6)
# Without O_NONBLOCK, opening a named pipe waits for its writer for ever.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# What the file systems of fsspec raise for themselves beside OSError.
_STORE_ERRORS: Final = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError)

_URL: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)

T = TypeVar("T")


def is_url(place: str) -> bool:
    """Whether a root or place goes through fsspec: ``s3://…``, ``simplecache::s3://…``."""
    return _URL.match(place) is not None


def resolve_path(root: str, path: str, *, where: str, strict: bool = False) -> str:
    """Join a record's path to its dataset's root and refuse what leaves it.

    Args:
        root: a folder, a zip or tar archive or a folder in one, or a URL.
        path: of the record.
        where: ``file:line`` of the record.
        strict: refuse symbolic links out of ``root`` too.

    Raises:
        BadRecordError: ``..`` or an absolute path leads out of ``root``; with ``strict``, also a
            symbolic link that does.
    """
    if "\0" in path:
        raise BadRecordError("UNREADABLE_FILE", f"{path!r} holds a NUL character", where=where)
    if is_url(root):
        return _resolve_in_store(root, path, where)
    base = os.path.abspath(root or ".")
    joined = os.path.normpath(os.path.join(base, path))
    if not _inside(joined, base):
        raise _outside(root, path, where)
    if strict and not _inside(os.path.realpath(joined), os.path.realpath(base)):
        raise BadRecordError(
            "SYMLINK_ESCAPE",
            f'"{path}" is a link that leads out of {root or "."} (--strict_root)',
            where=where,
        )
    return joined


def _resolve_in_store(root: str, path: str, where: str) -> str:
    name = posixpath.normpath(path)
    if is_url(path) or name.startswith(("/", "../")) or name == ".." or "::" in path:
        raise _outside(root, path, where)
    parts = root.split("::")  # zip://folder::s3://bucket/photos.zip, simplecache::s3://bucket
    first = next(number for number, part in enumerate(parts) if "://" in part)
    ground = parts[first]
    parts[first] = ground + ("" if ground.endswith("/") else "/") + name
    return "::".join(parts)


def _outside(root: str, path: str, where: str) -> BadRecordError:
    return BadRecordError(
        "OUTSIDE_ROOT",
        f'"{path}" lies outside the dataset\'s root {root or "."}',
        where=where,
        fix="Make the path relative to root, or root the common folder.",
    )


def _inside(path: str, base: str) -> bool:
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)


def exists(place: str) -> bool:
    """Whether a file or folder is at a place; looked up in the archive or store it lies in."""
    if is_url(place):
        system, name = _store(place)
        return bool(system.exists(name))
    try:
        os.stat(place)
    except NotADirectoryError:
        return _is_in_archive(place)
    except (OSError, ValueError):
        return False
    return True


def is_folder(place: str) -> bool:
    """Whether files may lie below a place: a folder, an archive, a folder in one, or a URL."""
    if is_url(place):
        return True
    if os.path.isfile(place):
        return archives.is_archive(place)
    return exists(place)


def _is_in_archive(place: str) -> bool:
    found = archives.split(place.rstrip("/"))
    try:
        if found is None:  # "photos.zip/"
            return archives.is_archive(place.rstrip("/"))
        return archives.open_archive(found[0]).has(found[1])
    except (archives.ArchiveError, OSError):
        return False


def read_bytes(path: str, *, where: str, shown: str = "") -> bytes:
    """Read a file; transient I/O errors are retried three times, waiting longer each time.

    Args:
        path: on disk, in an archive, or a URL.
        where: ``file:line`` of the record.
        shown: what messages call it; the path by default.

    Raises:
        BadRecordError: it cannot be read, is no regular file or larger than MAX_FILE_BYTES.
        DatasetError: a URL whose kind needs a package that is not installed.
    """
    name = shown or path
    if is_url(path):
        return _retried(lambda: _read_from_store(path, name, where), name, where)
    try:
        return _retried(lambda: _read_from_disk(path, name, where), name, where)
    except _NotOnDiskError as err:
        found = archives.split(path)
        if found is None:
            raise _unreadable(name, err.cause, where) from err.cause
    return _retried(lambda: _read_member(*found, name, where), name, where)


class _NotOnDiskError(Exception):
    """A part of a path is a file: an archive, maybe."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause)
        self.cause = cause


def _retried(read: Callable[[], T], name: str, where: str) -> T:
    for wait_seconds in (*_RETRY_SECONDS, None):
        try:
            return read()
        except OSError as err:
            if err.errno not in _TRANSIENT or wait_seconds is None:
                raise _unreadable(name, err, where) from err
            logger.warning("%s: %s; trying again in %.1f s", name, err.strerror, wait_seconds)
            time.sleep(wait_seconds)
    raise AssertionError("the loop returns or raises")


def open_file(path: str, *, where: str) -> BinaryIO:
    """A file to read the beginning of; what lies in an archive or a store is read whole.

    Raises:
        BadRecordError, DatasetError: as :func:`read_bytes`.
    """
    if not is_url(path):
        with contextlib.suppress(_NotOnDiskError):
            return _retried(lambda: _open_on_disk(path, path, where), path, where)
    return io.BytesIO(read_bytes(path, where=where))


def _read_from_disk(path: str, name: str, where: str) -> bytes:
    with _open_on_disk(path, name, where) as file:
        return file.read()


def _open_on_disk(path: str, name: str, where: str) -> BinaryIO:
    try:
        handle = os.open(path, _OPEN_FLAGS)
    except NotADirectoryError as err:
        raise _NotOnDiskError(err) from err
    except ValueError as err:  # a NUL, or characters that the file system cannot spell
        raise _refused(f"{name!r}", err, where) from err
    status = os.fstat(handle)
    try:
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
            raise BadRecordError(
                "UNREADABLE_FILE", f"cannot read {name}: it is {kind}", where=where
            )
        require_size(status.st_size, name, where)
    except BadRecordError:
        os.close(handle)
        raise
    return open(handle, "rb")


def require_size(num_bytes: int, name: str, where: str) -> None:
    """Refuse a file before it is read.

    Raises:
        BadRecordError: it is larger than MAX_FILE_BYTES.
    """
    if num_bytes > MAX_FILE_BYTES:
        raise BadRecordError(
            "FILE_TOO_LARGE",
            f"{name} has {num_bytes} bytes, more than {MAX_FILE_BYTES}",
            where=where,
        )


def _read_member(archive: str, member: str, name: str, where: str) -> bytes:
    try:
        opened = archives.open_archive(archive)
        require_size(opened.size_of(member), name, where)
        return opened.read(member)
    except archives.NoMemberError as err:
        raise BadRecordError(
            "MISSING_FILE", f"no such file: {name}", where=where, fix=err.hint
        ) from err
    except archives.ArchiveError as err:
        raise _refused(name, err, where) from err


# ---- object stores ------------------------------------------------------------------------------


def _store(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL (kept by fsspec, anew in each process) and the name in it."""
    try:
        import fsspec
    except ImportError as err:
        raise DatasetError(
            f"{url.partition('://')[0]}:// roots are read through fsspec, which is not installed",
            where=url,
            fix='pip install "internvl-chat[storage]"',
        ) from err
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as err:  # s3fs, gcsfs, ...
        raise DatasetError(str(err), where=url, fix="Install it beside fsspec.") from err
    except ValueError as err:
        raise DatasetError(
            f"fsspec cannot open it: {err}", where=url, fix='Correct "root" in the meta JSON.'
        ) from err


def _read_from_store(url: str, name: str, where: str) -> bytes:
    system, inner = _store(url)
    try:
        require_size(int(system.size(inner) or 0), name, where)
        raw: bytes = system.cat_file(inner)
    except (BadRecordError, FileNotFoundError, IsADirectoryError):
        raise
    except OSError as err:
        if err.errno is None:  # a store's own: nothing says that it would pass
            raise BadRecordError(
                "UNREADABLE_FILE", f"cannot read {name}: {err}", where=where
            ) from err
        raise
    except _STORE_ERRORS as err:
        raise BadRecordError("UNREADABLE_FILE", f"cannot read {name}: {err}", where=where) from err
    return raw


def _refused(name: str, err: Exception, where: str) -> BadRecordError:
    return BadRecordError("UNREADABLE_FILE", f"cannot read {name}: {err}", where=where)


def _unreadable(path: str, err: OSError, where: str) -> BadRecordError:
    as_url = _NO_URLS if _URL_IN_PATH.search(path) else None
    if isinstance(err, FileNotFoundError):
        return BadRecordError(
            "MISSING_FILE", f"no such file: {path}", where=where, fix=as_url or CHECK_ROOT
        )
    return BadRecordError(
        "UNREADABLE_FILE", f"cannot read {path}: {err.strerror or err}", where=where, fix=as_url
    )
