"""The checks of a dataset's records, a chunk at a time: what a worker process does.

Reading, expanding and encoding are training's own functions, so that the check refuses what
training refuses; everything that is found about a record is told, not the first problem only.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import orjson

from internvl_chat.config import MediaConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.bad_record import bad_if_unreadable
from internvl_chat.data.check.box_text import box_problems, holds_boxes
from internvl_chat.data.check.codes import check_of
from internvl_chat.data.check.media import ImageFacts, MediaChecker
from internvl_chat.data.check.mending import MendContext, mend_record
from internvl_chat.data.check.repetition import is_repetitive
from internvl_chat.data.encode import Encoder, refuse_marks
from internvl_chat.data.expand import ExpandedRecord, expand_record, needs_sizes
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.record_json import MAX_RECORD_BYTES
from internvl_chat.data.remarks import split_remark
from internvl_chat.data.schema import BadRecordError, Reading, Record, Size, read_record
from internvl_chat.model.conversation import Rendered

_TELLING_KEYS: Final = (b'"image"', b'"images"', b'"video"', b'"conversations"', b'"messages"')
HASH_BYTES: Final = 16
NO_HASH: Final = bytes(HASH_BYTES)
OK, WARNED, BAD_RECORD = 0, 1, 2
"""States of a record."""

Found = tuple[str, str, str | None]
"""(code, message, mend); the mend of the code's row where it is None."""


@dataclass
class ChunkFindings:
    """What was found about the records from ``first`` on."""

    first: int
    findings: list[tuple[int, Found]] = field(default_factory=list)
    """(record, what); in the records' order."""
    states: bytearray = field(default_factory=bytearray)
    record_hashes: list[bytes] = field(default_factory=list)
    """Of media and conversation; NO_HASH for bad records."""
    id_hashes: list[bytes] = field(default_factory=list)
    num_tokens: int = 0
    media_count: int = 0
    mends: list[tuple[int, bytes | None, list[tuple[str, str]]]] = field(default_factory=list)
    """(record, line in its place or None to leave it out, (code, what was done) of each mend)."""


@dataclass
class _Waiting:
    """A good record until its tokens are counted."""

    number: int
    where: str
    rendered: Rendered
    tiles: Sequence[int]


class RecordChecker:
    """Checks records of one dataset.

    Args:
        spec, file: the dataset.
        dataset: its number, which tells ids of different datasets apart.
        media: how files are read.
        marks: control tokens of the template, where there is no ``encoder``.
        encoder: counts tokens; None leaves that out.
        decode: open images and videos.
        mending: also mend what is found, or tell that a record is to be left out.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        file: AnnotationFile,
        *,
        dataset: int,
        media: MediaConfig,
        marks: dict[str, str],
        encoder: Encoder | None,
        decode: bool,
        mending: bool = False,
    ) -> None:
        self.spec, self.file, self.media, self.mending = spec, file, media, mending
        self.marks, self.encoder = marks, encoder
        self.files = MediaChecker(spec, media, decode=decode)
        self._salt = dataset.to_bytes(8, "little")
        self._root = os.path.abspath(spec.root or ".")

    def span(self, span: tuple[int, int]) -> ChunkFindings:
        """:meth:`chunk` of (first, last)."""
        return self.chunk(*span)

    def chunk(self, first: int, last: int) -> ChunkFindings:
        """Check records ``first`` to ``last`` (exclusive)."""
        chunk = ChunkFindings(first, states=bytearray(last - first))
        found: dict[int, list[Found]] = {}
        waiting: list[_Waiting] = []
        records = self.file.read_range(first, last, most=MAX_RECORD_BYTES + 1)
        for number, (raw, where) in enumerate(records, first):
            found[number] = self._record(raw, where, number, chunk, waiting)
        if self.encoder is not None and waiting:
            self._count(self.encoder, waiting, chunk, found)
        for number, ones in found.items():
            chunk.findings += [(number, one) for one in ones]
            chunk.states[number - first] = state_of(ones)
            if self.mending and ones:
                self._mend(number, ones, chunk)
        return chunk

    def _mend(self, number: int, found: list[Found], chunk: ChunkFindings) -> None:
        """Note the mended line of a record, or that it is to be left out."""
        raw, where = self.file.read(number, most=MAX_RECORD_BYTES + 1)
        reading = read_record(raw, where=where)
        mended = None
        if reading.data is not None:
            pixels = pixel_size(reading.record, self.spec)
            sizes = self._image_sizes(reading, where)
            context = MendContext(pixels=pixels, image_sizes=sizes)
            mended = mend_record(reading.data, {code for code, _, _ in found}, context)
        if mended is not None:
            found = self.examine(mended[0], where)
        if state_of(found) == BAD_RECORD:
            reasons = [(code, message) for code, message, _ in found if is_error(code)]
            chunk.mends.append((number, None, reasons))
        elif mended is not None:
            chunk.mends.append((number, *mended))

    def _image_sizes(self, reading: Reading, where: str) -> tuple[tuple[int, int], ...] | None:
        if not self.files.decode or reading.is_video:
            return None
        _, facts = self.files.images(reading.media, where)
        decode = self.media.images.decode
        return tuple(fact.shown_size(decode) for fact in facts if fact is not None)

    def examine(self, raw: bytes, where: str) -> list[Found]:
        """Everything that is wrong with one record."""
        chunk = ChunkFindings(0)
        waiting: list[_Waiting] = []
        found = {0: self._record(raw, where, 0, chunk, waiting)}
        if self.encoder is not None and waiting:
            self._count(self.encoder, waiting, chunk, found)
        return found[0]

    def _record(
        self,
        raw: bytes,
        where: str,
        number: int,
        chunk: ChunkFindings,
        waiting: list[_Waiting],
    ) -> list[Found]:
        """What is wrong, but for its tokens; a good record is appended to ``waiting``."""
        try:
            with bad_if_unreadable(where):
                return self._examined(raw, where, number, chunk, waiting)
        except BadRecordError as err:
            for hashes in (chunk.id_hashes, chunk.record_hashes):  # one a record, whatever happens
                hashes[number - chunk.first :] = [NO_HASH]
            waiting[:] = [one for one in waiting if one.number != number]
            return [_of(err)]

    def _examined(
        self,
        raw: bytes,
        where: str,
        number: int,
        chunk: ChunkFindings,
        waiting: list[_Waiting],
    ) -> list[Found]:
        """As :meth:`_record`; may raise what reading can raise."""
        reading = read_record(raw, where=where)
        found: list[Found] = [_of(err) for err in reading.problems]
        found += [(*split_remark(remark), None) for remark in reading.remarks]
        record = reading.record
        found += repeated_keys(raw)
        if reading.messages:
            found += text_findings(reading, self.spec)
        facts, num_frames = self._files(reading, where, found)
        chunk.media_count += len(reading.media)
        chunk.id_hashes.append(self._id_hash(reading.data))
        chunk.record_hashes.append(self._record_hash(record) if record else NO_HASH)
        if record is not None and state_of(found) != BAD_RECORD:
            try:
                expanded = self._render(record, facts, num_frames, where, number, waiting)
            except BadRecordError as err:
                found.append(_of(err))
            else:
                found += _conversion_findings(record, expanded, found)
        return found

    # -- files ----------------------------------------------------------------------------------

    def _files(
        self, reading: Reading, where: str, found: list[Found]
    ) -> tuple[Sequence[ImageFacts | None], int | None]:
        record = reading.record
        if not reading.media:
            return (), None
        if reading.is_video:
            try:
                return (), self.files.video(reading.media[0], record, where)
            except BadRecordError as err:
                found.append(_of(err))
                return (), None
        problems, facts = self.files.images(reading.media, where)
        found += [_of(err) for err in problems]
        if record is not None and self.files.decode:
            pixels = pixel_size(record, self.spec)
            has_boxes = any(holds_boxes(text, pixels=pixels) for _, text in reading.messages)
            found += self.files.image_findings(record, facts, has_boxes=has_boxes)
        return facts, None

    # -- template and tokens --------------------------------------------------------------------

    def _render(
        self,
        record: Record,
        facts: Sequence[ImageFacts | None],
        num_frames: int | None,
        where: str,
        number: int,
        waiting: list[_Waiting],
    ) -> ExpandedRecord | None:
        """The record as training expands it, where that is known without its files."""
        if self.encoder is None:
            refuse_marks(record.turns, record.system, self.marks, where=where)
            if self.spec.box_format != "keep" and record.images:
                sizes = self._known_sizes(record, facts)
                if sizes is not None or not needs_sizes(record, self.spec, self.media.images):
                    return self._expand(record, sizes, 0, where)
            return None
        if record.video is not None and num_frames is None:
            num_frames = self.files.num_frames(record, where)
        sizes = self._known_sizes(record, facts)
        if sizes is None and needs_sizes(record, self.spec, self.media.images):
            sizes = tuple(self.files.header_size(name, where) for name in record.images)
        expanded = self._expand(record, sizes, num_frames or 0, where)
        rendered = self.encoder.render(expanded.turns, system=record.system, where=where)
        waiting.append(_Waiting(number, where, rendered, expanded.num_tiles))
        return expanded

    def _known_sizes(
        self, record: Record, facts: Sequence[ImageFacts | None]
    ) -> tuple[Size, ...] | None:
        if record.sizes is not None:
            return record.sizes
        decode = self.media.images.decode
        sizes = tuple(fact.shown_size(decode) for fact in facts if fact is not None)
        return sizes if len(sizes) == len(record.images) else None

    def _expand(
        self, record: Record, sizes: Sequence[Size] | None, num_frames: int, where: str
    ) -> ExpandedRecord:
        images = self.media.images
        return expand_record(
            record, self.spec, images, sizes=sizes, num_frames=num_frames, where=where
        )

    def _count(
        self,
        encoder: Encoder,
        waiting: list[_Waiting],
        chunk: ChunkFindings,
        found: dict[int, list[Found]],
    ) -> None:
        counted = encoder.lengths(
            [one.rendered for one in waiting],
            [one.tiles for one in waiting],
            [one.where for one in waiting],
        )
        for one, outcome in zip(waiting, counted, strict=True):
            if isinstance(outcome, BadRecordError):
                found[one.number].append(_of(outcome))
                continue
            num_tokens, cut = outcome
            chunk.num_tokens += num_tokens
            if cut:
                limit = encoder.config.max_seq_length
                found[one.number].append(("TEXT_CUT", f"the text is cut at {limit} tokens", None))

    # -- duplicates -----------------------------------------------------------------------------

    def _record_hash(self, record: Record) -> bytes:
        names = (record.video,) if record.video is not None else record.images
        media = [os.path.normpath(os.path.join(self._root, name)) for name in names]
        clip = record.clip if record.video is not None else None
        kind = "video" if record.video is not None else "images"
        content = orjson.dumps([kind, clip, record.system, record.turns])
        content += b"\0".join(map(os.fsencode, media))  # a path need not be UTF-8
        return blake2b(content, digest_size=HASH_BYTES).digest()

    def _id_hash(self, data: dict[str, Any] | None) -> bytes:
        value = None if data is None else data.get("id")
        if not isinstance(value, str | int | float) or value == "":
            return NO_HASH
        return blake2b(orjson.dumps(value), digest_size=HASH_BYTES, salt=self._salt).digest()


def repeated_keys(raw: bytes) -> list[Found]:
    """Keys that a record has twice: JSON keeps the last in silence."""
    if not any(raw.count(key) > 1 for key in _TELLING_KEYS):
        return []
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        repeated[:] = [key for key, count in counts.items() if count > 1]  # the outermost is last
        return {}

    try:
        json.loads(raw, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return []  # told already
    return [("REPEATED_KEY", f'key "{key}" occurs twice', None) for key in repeated]


def text_findings(reading: Reading, spec: DatasetSpec) -> list[Found]:
    """Boxes and repetition in the text of the turns."""
    found: dict[Found, None] = {}
    pixels = pixel_size(reading.record, spec)
    answers = [text for role, text in reading.messages if role == "assistant"]
    for role, text in reading.messages:
        if "<" in text or "[" in text:
            for code, message in box_problems(text, has_image=bool(reading.media), pixels=pixels):
                found[code, message, None] = None
        if role == "user" and is_repetitive([text]):
            found["REPETITION", "a question repeats itself", None] = None
    if is_repetitive(answers):
        found["REPETITION", "the answer repeats itself", None] = None
    return list(found)


def _conversion_findings(
    record: Record, expanded: ExpandedRecord | None, found: Sequence[Found]
) -> list[Found]:
    """Boxes that lose their order or area when they are converted, if none was told before."""
    if expanded is None or any(code == "BOX_INVERTED" for code, _, _ in found):
        return []
    return [(*split_remark(one), None) for one in expanded.warnings[len(record.warnings) :]]


def pixel_size(record: Record | None, spec: DatasetSpec) -> Size | None:
    """(width, height) that pixel boxes of a dataset refer to, where it is one and known."""
    if spec.box_format != "pixel_to_1000" or record is None or record.sizes is None:
        return None
    return record.sizes[0] if len(set(record.sizes)) == 1 else None


def state_of(found: Sequence[Found]) -> int:
    """OK, WARNED or BAD_RECORD."""
    if not found:
        return OK
    return BAD_RECORD if any(is_error(code) for code, _, _ in found) else WARNED


def is_error(code: str) -> bool:
    """Whether training refuses it, or it costs the sample."""
    return check_of(code).severity == "error"


def _of(err: BadRecordError) -> Found:
    return err.code, err.problem, err.fix
