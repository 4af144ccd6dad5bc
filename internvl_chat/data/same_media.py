"""Which records of an annotation file show the same image or video: worked out once, and cached.

A record's media are compared by the path that it names, not by their content. Records without any
are the same where their conversations are.
"""

from __future__ import annotations

import hashlib
import io
import logging
import posixpath
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.cache import build_once, cache_path, digest
from internvl_chat.data.processes import forked_map, usable_cores
from internvl_chat.data.record_json import MAX_RECORD_BYTES, load_record
from internvl_chat.data.schema import read_media
from internvl_chat.data.storage import is_url

logger = logging.getLogger(__name__)

_FORMAT: Final = 1  # of the cache; raise when names or its layout change
_CHUNK_RECORDS: Final = 4096
_TELL_FROM_RECORDS: Final = 200_000  # fewer are looked at before one could read that they are


@dataclass(frozen=True)
class MediaOfRecords:
    """What the records of a dataset show, as numbers that are equal for equal media."""

    firsts: np.ndarray
    """(n,) uint64 of the first image or the video; of the conversation where there is none."""
    links: np.ndarray
    """(m, 2) uint64: these two are shown by one record."""


class Groups:
    """Union of the media that one record shows; only those of records with several are held."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def join(self, digests: Sequence[int]) -> int:
        """Put these together; returns one of them."""
        first = digests[0]
        for other in digests[1:]:
            one, two = self._find(first), self._find(other)
            self._parent[max(one, two)] = self._parent[min(one, two)] = min(one, two)
        return first

    def _find(self, digest: int) -> int:
        while (above := self._parent.get(digest, digest)) != digest:
            self._parent[digest] = self._parent.get(above, above)
            digest = above
        return digest

    def settle(self, keys: np.ndarray) -> np.ndarray:
        """The group of each key: the least of its numbers."""
        if not self._parent:
            return keys
        known = np.array(sorted(self._parent), dtype=np.uint64)
        heads = np.array([self._find(one) for one in known.tolist()], dtype=np.uint64)
        places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[places] == keys, heads[places], keys)


def media_of_records(file: AnnotationFile) -> MediaOfRecords:
    """What each record shows; every rank may ask, one of a machine reads the file.

    Args:
        file: an opened annotation file; of one that counts in part, that part is read.

    Raises:
        DatasetError: the file changed meanwhile, or the cache has no room.
    """

    def build(partial: Path) -> None:
        total = len(file)
        if total >= _TELL_FROM_RECORDS:
            logger.info("looking what the %d records of %s show", total, file.path)
        processes = usable_cores() if total > _CHUNK_RECORDS else 1
        starts = range(0, total, _CHUNK_RECORDS)
        parts = list(forked_map(lambda first: _read(file, first), starts, num_processes=processes))
        found = io.BytesIO()
        firsts = np.frombuffer(b"".join(one for one, _ in parts), dtype=np.uint64)
        links = np.frombuffer(b"".join(one for _, one in parts), dtype=np.uint64)
        np.savez(found, firsts=firsts, links=links.reshape(-1, 2))
        partial.write_bytes(found.getbuffer())

    path = cache_path(file.path, digest(_FORMAT, file.identity, len(file)), ".media.npz")
    build_once(path, build)
    with np.load(path) as table:
        return MediaOfRecords(table["firsts"], table["links"])


def _read(file: AnnotationFile, first: int) -> tuple[bytes, bytes]:
    """(firsts, links) of a chunk, as bytes."""
    last = min(first + _CHUNK_RECORDS, len(file))
    firsts, links = array("Q"), array("Q")
    for raw, where in file.read_range(first, last, most=MAX_RECORD_BYTES + 1):
        names = names_of_media(raw, where)
        firsts.append(names[0])
        for name in names[1:]:
            links.extend((names[0], name))
    return firsts.tobytes(), links.tobytes()


def names_of_media(raw: bytes, where: str) -> list[int]:
    """What a record shows, a number each; of its conversation where it shows nothing.

    Args:
        raw: the record's JSON; one that cannot be read is the same as its copies.
        where: ``file:line``.
    """
    try:
        data, _ = load_record(raw, where=where)
        if not isinstance(data, dict):
            return [_number(raw)]
        images, video = read_media(data, where=where)
    except BadRecordError:
        return [_number(raw)]
    paths = [video] if video else list(images)
    if not paths:
        return [_number(_conversation(data, raw))]
    return [_number(_plain(path).encode("utf-8", "surrogatepass")) for path in paths]


def _conversation(data: dict[str, Any], raw: bytes) -> bytes:
    turns = data.get("conversations") or data.get("messages")
    try:
        return orjson.dumps({"turns": turns})
    except orjson.JSONEncodeError:  # halves of surrogate pairs, numbers beyond 64 bits
        return raw


def _plain(path: str) -> str:
    """The same for ``./a.jpg`` and ``a.jpg``."""
    return path if is_url(path) else posixpath.normpath(path)


def _number(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
