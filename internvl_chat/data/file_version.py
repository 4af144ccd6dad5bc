"""Which version of a file this is, and whether it still is that one while a job reads it."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import Final

_SPOTS: Final = 16
_SPOT_BYTES: Final = 4096


@dataclass(frozen=True)
class FileVersion:
    """What tells one version of a file from another. Small files are compared whole."""

    size: int
    modified_ns: int
    spots: str
    """Digest of bytes from 16 places over the file."""

    @classmethod
    def of(cls, handle: int) -> FileVersion:
        """The version of an open file.

        Raises:
            OSError: it cannot be read.
        """
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "no regular file")
        spots = spots_digest(handle, status.st_size)
        return cls(status.st_size, status.st_mtime_ns, spots)

    def is_of(self, handle: int) -> bool:
        """Whether the file looks untouched: a system call, cheap enough for every record."""
        status = os.fstat(handle)
        return status.st_size == self.size and status.st_mtime_ns == self.modified_ns

    def begins(self, handle: int) -> bool:
        """Whether a file that was touched still begins with the same bytes, as far as spots show.

        So after ``touch``, or when lines were appended.
        """
        size = os.fstat(handle).st_size
        return size >= self.size and spots_digest(handle, self.size) == self.spots


def spots_digest(handle: int, size: int) -> str:
    """Digest of bytes from places spread over the first ``size`` ones; of all, if they are few."""
    last = max(size - _SPOT_BYTES, 0)
    places = sorted({last * number // (_SPOTS - 1) for number in range(_SPOTS)})
    found = hashlib.sha256()
    for place in places:
        found.update(os.pread(handle, min(_SPOT_BYTES, size - place), place))
    return found.hexdigest()[:16]
