"""Members of zip and tar archives: found in O(1) through an index, read without unpacking.

The index (where each member's bytes are) is built once per archive, cached beside the other derived
files and memory-mapped: a million members cost a process nothing. Members are read by ``pread``,
which has no position to share, so that forked workers and threads never disturb each other.
"""

from __future__ import annotations

import functools
import mmap
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from internvl_chat.data.cache import build_once, cache_path, digest, path_key
from internvl_chat.model.suggestions import suggest

_FORMAT: Final = 1  # of the index; raise when its layout changes
_MAX_OPEN: Final = 64
_STORED: Final = 0
_DEFLATED: Final = 8
_UNREADABLE: Final = 255  # a method that is not read, or an encrypted member
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
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_ZIP: Final = 0x100  # flag beside the method: the offset is that of a local header
_METHOD: Final = 0xFF
_MOST_COMPARED: Final = 2000  # names, for a hint
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


@dataclass(frozen=True)
class _Index:
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


class Archive:
    """One open archive.

    Args:
        path: of a zip or an uncompressed tar file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._index = _load_index(path)
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
        if method == _UNREADABLE:
            raise ArchiveError(
                "it is encrypted, or compressed by another method than deflate; pack it anew"
            )
        if method & _ZIP:
            offset += self._local_header(offset)
        raw = self._pread(packed, offset)
        if method & _METHOD == _DEFLATED:
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


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _key(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")


# ---- the index ----------------------------------------------------------------------------------


def _load_index(path: str) -> _Index:
    status = os.stat(path)
    version = [path_key(os.path.realpath(path)), status.st_size, status.st_mtime_ns]
    target = cache_path(path, digest("archive", _FORMAT, version), ".members.npy")
    names = target.with_suffix(".names")

    def build(partial: Path) -> None:
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
    return _Index(entries, starts, blob)


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
            name = _clean(member.name)
            if name:
                yield member._replace(name=name)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        struct.error,
        NotImplementedError,
    ) as err:
        raise ArchiveError(f"{path} is damaged: {err}") from err


def _clean(name: str) -> str:
    """The name as a path asks for it; empty for one that leads out of the archive."""
    clean = posixpath.normpath(name)
    return "" if clean in (".", "..") or clean.startswith(("/", "../")) or "\0" in clean else clean


def _zip_members(path: str) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            readable = info.compress_type in (_STORED, _DEFLATED) and not info.flag_bits & 1
            yield _Member(
                name=_zip_name(info),
                offset=info.header_offset,
                packed=info.compress_size,
                size=info.file_size,
                crc=info.CRC,
                method=(info.compress_type | _ZIP) if readable else _UNREADABLE,
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
                member = _Member(info.name, info.offset_data, info.size, info.size, 0, _STORED)
                seen[_clean(info.name)] = member
                yield member
    for name, target in links:  # both kinds of links, as long as they stay in the archive
        member_of_link = seen.get(_clean(target))
        if member_of_link is not None:
            yield member_of_link._replace(name=name)
