"""Where the members of a zip or tar archive are: an index, built once, cached and memory-mapped."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import posixpath
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from internvl_chat.data.cache import build_once, cache_path, digest, path_key
from internvl_chat.model.suggestions import suggest

logger = logging.getLogger(__name__)

_FORMAT: Final = 1  # of the index; raise when its layout changes
STORED: Final = 0
DEFLATED: Final = 8
UNREADABLE: Final = 255  # a method that is not read, or an encrypted member
# What zipfile and tarfile raise about damaged files.
_DAMAGED: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    NotImplementedError,
    struct.error,
)
ZIP: Final = 0x100  # flag beside the method: the offset is that of a local header
_MOST_COMPARED: Final = 500  # names, for a hint
_ENTRY: Final = np.dtype(
    [
        ("key", "<u8"),  # hash of the name
        ("offset", "<u8"),  # of a zip member's local header, of a tar member's bytes
        ("packed", "<u8"),  # bytes in the archive
        ("size", "<u8"),  # bytes when unpacked
        ("crc", "<u4"),
        ("method", "<u4"),
        ("name", "<u8"),  # where its name begins in the table of names
    ]
)


class ArchiveError(Exception):
    """An archive or a member of it cannot be read; the message says why."""


class NoMemberError(ArchiveError):
    """There is no such member; ``hint`` says what there is."""

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


class _Member(NamedTuple):
    name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int


@dataclass(frozen=True)
class MemberIndex:
    """Members by name."""

    entries: np.ndarray
    """(n,) of _ENTRY, by ``key``."""
    starts: np.ndarray
    """(2^k + 1,) first entry whose key begins with each of the 2^k prefixes of k bits."""
    names: mmap.mmap
    """UTF-8, a zero byte before and after each name."""

    def name(self, place: int) -> bytes:
        """The name that begins at a place of the table."""
        return self.names[place : self.names.find(b"\0", place)]

    def find(self, name: str) -> np.void | None:
        """The entry of a name; as many steps however many there are."""
        raw = _bytes(name)
        key = _key(raw)
        bits = (len(self.starts) - 1).bit_length() - 1
        prefix = key >> (64 - bits)
        for place in range(int(self.starts[prefix]), int(self.starts[prefix + 1])):
            entry: np.void = self.entries[place]
            if int(entry["key"]) == key and self.name(int(entry["name"])) == raw:
                return entry
        return None

    def has_folder(self, name: str) -> bool:
        """Whether a member lies below it."""
        return self.names.find(b"\0" + _bytes(name) + b"/") >= 0

    def hint(self, name: str) -> str:
        """What a name that is not there may have meant: the same file elsewhere, or a like one."""
        base = _bytes(posixpath.basename(name))
        for end in (b"/" + base + b"\0", b"\0" + base + b"\0"):
            found = self.names.find(end)
            if found >= 0:
                begin = self.names.rfind(b"\0", 0, found + 1) + 1
                return f"Did you mean {_text(self.name(begin))!r}?"
        folder = posixpath.dirname(name)
        first = self.names.find(b"\0" + _bytes(folder) + b"/") if folder else 0
        beside = list(self._names_from(max(first, 0) + 1))
        near = suggest(name, beside)
        return near or f"The archive has {len(self.entries)} files, such as {beside[:1]}."

    def _names_from(self, place: int) -> Iterator[str]:
        for _ in range(min(_MOST_COMPARED, len(self.entries))):
            raw = self.name(place)
            if not raw:
                return
            yield _text(raw)
            place += len(raw) + 1


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _key(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")


def load_index(path: str) -> MemberIndex:
    """The index of an archive, built by one of the processes that ask if there is none.

    Raises:
        ArchiveError: it is neither zip nor tar, or damaged.
        DatasetError: the cache cannot be written.
        OSError: the archive cannot be read.
    """
    status = os.stat(path)
    version = [path_key(os.path.realpath(path)), status.st_size, status.st_mtime_ns]
    target = cache_path(path, digest("archive", _FORMAT, version), ".members.npy")
    names = target.with_suffix(".names")

    def build(partial: Path) -> None:
        logger.info("looking up where the members of %s are, once", path)
        entries, blob = _table(_members(path))
        aside = names.with_name(f".{names.name}.{os.getpid()}.partial")
        aside.write_bytes(blob)
        aside.replace(names)  # before the table, whose presence means done
        with open(partial, "wb") as handle:
            np.save(handle, entries)

    build_once(target, build)
    entries = np.load(target, mmap_mode="r")
    with open(names, "rb") as file:
        blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    bits = max(1, min(20, len(entries).bit_length()))
    prefixes = entries["key"] >> np.uint64(64 - bits)
    starts = np.searchsorted(prefixes, np.arange(2**bits + 1, dtype=np.uint64))
    return MemberIndex(entries, starts, blob)


def _table(members: Iterator[_Member]) -> tuple[np.ndarray, bytes]:
    """Entries by key, and the table of names; of several members of one name the last counts."""
    last = {member.name: member for member in members}
    blob, rows = bytearray(b"\0"), []
    for member in last.values():
        raw = _bytes(member.name)
        rows.append((_key(raw), *member[1:], len(blob)))
        blob += raw + b"\0"
    entries = np.array(rows, dtype=_ENTRY) if rows else np.zeros(0, dtype=_ENTRY)
    return np.sort(entries, order="key"), bytes(blob)


def _members(path: str) -> Iterator[_Member]:
    """Regular files in an archive under clean names; those that lead out of it are left away.

    Raises:
        ArchiveError: it is no archive that is read here, or damaged.
    """
    with open(path, "rb") as handle:
        head = handle.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06") or zipfile.is_zipfile(path):
        found = _zip_members(path)
    elif head[257:262] == b"ustar" or tarfile.is_tarfile(path):
        if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0":
            raise ArchiveError(
                f"{path} is a compressed tar, which has no random access; unpack it to a .tar, or "
                "pack a .zip"
            )
        found = _tar_members(path)
    else:
        raise ArchiveError(f"{path} is a file, and no zip or tar archive")
    try:
        for member in found:
            if not all(0 <= number < 2**63 for number in member[1:]):
                raise ArchiveError(f"{path} is damaged: a member lies at no place")
            name = _clean(member.name)
            if name:
                yield member._replace(name=name)
    except _DAMAGED as err:
        raise ArchiveError(f"{path} is damaged: {err}") from err
    except OSError as err:
        if err.errno != errno.EINVAL:  # a place before the file's start
            raise
        raise ArchiveError(f"{path} is damaged: {err.strerror}") from err


def _clean(name: str) -> str:
    """The name as a path asks for it; empty for one that leads out of the archive."""
    clean = posixpath.normpath(name)
    return "" if clean in (".", "..") or clean.startswith(("/", "../")) or "\0" in clean else clean


def _zip_members(path: str) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            readable = info.compress_type in (STORED, DEFLATED) and not info.flag_bits & 1
            yield _Member(
                name=_zip_name(info),
                offset=info.header_offset,
                packed=info.compress_size,
                size=info.file_size,
                crc=info.CRC,
                method=(info.compress_type | ZIP) if readable else UNREADABLE,
            )


def _zip_name(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename.replace("\\", "/") if info.create_system == 0 else info.filename
    if info.flag_bits & 0x800:
        return name
    try:  # without the flag zipfile reads code page 437, yet most programs write UTF-8
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _tar_members(path: str) -> Iterator[_Member]:
    seen: dict[str, _Member] = {}
    links: list[tuple[str, str]] = []
    with tarfile.open(path, "r:", errorlevel=0) as archive:
        for info in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # else all are kept, 1 kB each
            if info.islnk():
                links.append((info.name, info.linkname))
            elif info.issym():
                folder = posixpath.dirname(info.name)
                links.append((info.name, posixpath.join(folder, info.linkname)))
            elif info.isreg() and not info.issparse():
                member = _Member(info.name, info.offset_data, info.size, info.size, 0, STORED)
                seen[_clean(info.name)] = member
                yield member
    for name, target in links:  # both kinds of links, as long as they stay in the archive
        member_of_link = seen.get(_clean(target))
        if member_of_link is not None:
            yield member_of_link._replace(name=name)
