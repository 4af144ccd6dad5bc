"""Members of zip and tar archives: found in O(1) through an index, read without unpacking.

The index (where each member's bytes are) is built once per archive, cached beside the other derived
files and memory-mapped: a million members cost a process nothing. Members are read by ``pread``,
which has no position to share, so that forked workers and threads never disturb each other.
"""

from __future__ import annotations

import functools
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from typing import Final

import numpy as np

from internvl_chat.data.archive_index import (
    DEFLATED,
    UNREADABLE,
    ZIP,
    ArchiveError,
    NoMemberError,
    load_index,
)

__all__ = ["Archive", "ArchiveError", "NoMemberError", "is_archive", "open_archive", "split"]

_MAX_OPEN: Final = 64
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_METHOD: Final = 0xFF


def split(path: str) -> tuple[str, str] | None:
    """(archive, member) of a path whose front part is a regular file; None for any other."""
    front, member = path, ""
    while True:
        front, _, last = front.rpartition("/")
        if not front:
            return None
        member = f"{last}/{member}" if member else last
        try:
            mode = os.stat(front).st_mode
        except NotADirectoryError:
            continue
        except (OSError, ValueError):
            return None
        return (front, member) if stat.S_ISREG(mode) else None


def is_archive(path: str) -> bool:
    """Whether a file is a zip or tar archive, by its content.

    Raises:
        OSError: it cannot be read.
    """
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def open_archive(path: str) -> Archive:
    """An archive ready to be read; those used last are kept open, anew in each process.

    Raises:
        ArchiveError: it is neither zip nor tar, or damaged.
        OSError: it cannot be read.
    """
    return _opened(path, os.getpid())


@functools.lru_cache(maxsize=_MAX_OPEN)
def _opened(path: str, process: int) -> Archive:
    return Archive(path)


class Archive:
    """One open archive.

    Args:
        path: of a zip or an uncompressed tar file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._index = load_index(path)
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def has(self, member: str) -> bool:
        """Whether there is a member, or a folder with members, of that name."""
        return self._index.find(member) is not None or self._index.has_folder(member)

    def size_of(self, member: str) -> int:
        """Bytes of a member when unpacked."""
        return int(self._entry(member)["size"])

    def read(self, member: str) -> bytes:
        """A member's bytes.

        Raises:
            NoMemberError: there is none of that name.
            ArchiveError: it is encrypted, damaged, or compressed by something else than deflate.
        """
        entry = self._entry(member)
        offset, packed = int(entry["offset"]), int(entry["packed"])
        size, method = int(entry["size"]), int(entry["method"])
        if method == UNREADABLE:
            raise ArchiveError(
                "it is encrypted, or compressed by another method than deflate; pack it anew"
            )
        if method & ZIP:
            offset += self._local_header(offset)
        raw = self._pread(packed, offset)
        if method & _METHOD == DEFLATED:
            raw = _inflate(raw, size)
        if len(raw) != size:
            raise ArchiveError(f"the archive holds {len(raw)} of its {size} bytes: it is cut off")
        if int(entry["crc"]) and zlib.crc32(raw) != int(entry["crc"]):
            raise ArchiveError("its checksum is wrong: the archive is damaged")
        return raw

    def _local_header(self, offset: int) -> int:
        """Bytes between the start of a zip member's local header and its content."""
        raw = self._pread(_LOCAL_HEADER.size, offset)
        if len(raw) < _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
            raise ArchiveError("its header is not where the archive says: it is damaged")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
        return _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)

    def _pread(self, num_bytes: int, offset: int) -> bytes:
        pieces = []
        while num_bytes > 0:
            piece = os.pread(self._handle, num_bytes, offset)
            if not piece:
                break
            pieces.append(piece)
            num_bytes, offset = num_bytes - len(piece), offset + len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _entry(self, member: str) -> np.void:
        entry = self._index.find(member)
        if entry is None:
            raise NoMemberError(self._index.hint(member))
        return entry


def _inflate(raw: bytes, size: int) -> bytes:
    """Unpack at most ``size`` + 1 bytes: a bomb says too little, and is told by the excess."""
    inflater = zlib.decompressobj(-15)
    try:
        return inflater.decompress(raw, size + 1)
    except zlib.error as err:
        raise ArchiveError(f"it cannot be unpacked ({err}): the archive is damaged") from err
