"""Another format's file -> records, a meta JSON for them, and the images that stood in the file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from internvl_chat.data.convert import parquet, tables
from internvl_chat.data.convert.alpaca import from_alpaca
from internvl_chat.data.convert.coco import coco_drafts, read_coco
from internvl_chat.data.convert.conversations import Draft, Row
from internvl_chat.data.convert.files import (
    Progress,
    RecordFile,
    encode,
    no_progress,
    read_lines,
    read_records,
    record_file,
    refuse_existing,
    require_file,
)
from internvl_chat.data.convert.media import EmbeddedImage, ImageRoot, ImageStore
from internvl_chat.data.convert.meta_entry import add_to_meta, check_meta_target, meta_entry
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.convert.openai import from_openai
from internvl_chat.data.convert.refcoco import from_refcoco_line, release_drafts
from internvl_chat.data.convert.sharegpt import from_llava, from_sharegpt
from internvl_chat.data.schema import BadRecordError, parse_record
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.files import written_aside

Format = Literal["llava", "openai", "sharegpt", "alpaca", "csv", "parquet", "coco", "refcoco"]
FORMATS: tuple[Format, ...] = get_args(Format)

_Rows = Iterator[tuple[Any, str]]
_Convert = Callable[[Any], Draft]


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What is read, how, and where to."""

    source: Path
    target: Path
    """New ``.jsonl``; images in the source go to ``TARGET_images/`` beside it."""
    source_format: Format
    image_root: Path | None
    """Folder that image paths in the source are relative to; its own folder by default."""
    meta_path: Path | None
    """Meta JSON that gets the entry; a new one beside ``target`` by default."""
    dataset_name: str | None
    common_question: str | None
    """Of tables without questions, COCO and RefCOCO."""
    named_columns: Mapping[str, str]
    group_column: str | None
    """Of tables: rows that follow each other and agree in it are one conversation."""
    reference_split: str
    train_masked: bool
    state_sizes: bool
    """Read the headers of named images and state their sizes."""


@dataclass
class ImportReport:
    """What was written and what was not."""

    output: str
    meta: str
    root: str
    num_records: int
    num_read: int
    num_images_written: int
    notes: Notes
    left_file: str | None

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        values = dataclasses.asdict(self)
        del values["notes"]
        return values | self.notes.as_dict()

    def as_text(self) -> str:
        """For people."""
        lines = [
            f"{self.output}: {self.num_records} records of {self.num_read} read",
            f"{self.meta}: the dataset's entry, root {self.root}",
        ]
        if self.num_images_written:
            lines.append(f"{self.num_images_written} images written")
        if self.left_file:
            lines.append(f"{self.left_file}: what was left out, and why")
        return "\n".join(lines + self.notes.as_lines())


def import_records(plan: ImportPlan, progress: Progress = no_progress) -> ImportReport:
    """Convert a file a record at a time.

    A record that cannot be said here, or that training would refuse, goes to ``TARGET.left.jsonl``
    with its place and the reason.

    Raises:
        ConfigError: an output exists, the source does not, or options do not fit the source.
        DatasetError: the source is damaged as a whole, or not one record could be taken.
    """
    left_path = plan.target.with_suffix(".left.jsonl")
    meta_path = plan.meta_path or plan.target.with_suffix(".meta.json")
    name = plan.dataset_name or plan.target.stem
    store = ImageStore(plan.target.parent / f"{plan.target.stem}_images")
    if plan.target.suffix != ".jsonl":
        raise ConfigError("want a .jsonl", where=str(plan.target), fix="Name it so.")
    refuse_existing(plan.target, left_path, store.folder)
    check_meta_target(meta_path, name, may_exist=plan.meta_path is not None)
    root = plan.image_root or (plan.source if plan.source.is_dir() else plan.source.parent)
    notes = Notes()
    rows, convert = _reader(plan, notes, progress)
    run = _Import(notes, store, ImageRoot(root), plan.state_sizes)
    with ExitStack() as stack:
        run.out = stack.enter_context(record_file(plan.target))
        run.open_left = lambda: stack.enter_context(record_file(left_path))
        for row, where in rows:
            run.take(row, where, convert)
        if not run.out.num_records:
            told = "\n".join(notes.as_lines()) or "it holds none"
            raise DatasetError(f"no record could be taken\n{told}", where=str(plan.source))
    root = _settle_root(plan.target, root, run)
    add_to_meta(meta_path, name, meta_entry(root, plan.target, run.out.num_records))
    return ImportReport(
        output=str(plan.target),
        meta=str(meta_path),
        root=str(root),
        num_records=run.out.num_records,
        num_read=run.num_read,
        num_images_written=store.num_written,
        notes=notes,
        left_file=str(left_path) if notes.left_records and run.left is not None else None,
    )


class _Import:
    """The records of one import on their way into the file."""

    out: RecordFile
    open_left: Callable[[], RecordFile]

    def __init__(
        self, notes: Notes, store: ImageStore, named: ImageRoot, states_sizes: bool
    ) -> None:
        self.states_sizes = states_sizes
        self.notes = notes
        self.store = store
        self.named = named
        self.left: RecordFile | None = None
        self.num_read = 0

    def take(self, row: Any, where: str, convert: _Convert) -> None:
        """Convert and write one record, or leave it out."""
        self.num_read += 1
        try:
            if isinstance(row, DatasetError):
                raise UnfitRecordError(row.problem)
            line = encode(self._finish(convert(row)))
            parse_record(line, where=where)  # what training would refuse
        except UnfitRecordError as err:
            self._leave(row, where, err.reason, None)
        except BadRecordError as err:
            self._leave(row, where, f"training would refuse it ({err.code})", err.problem)
        else:
            self.out.write_raw(line)

    def _finish(self, draft: Draft) -> Row:
        """Write embedded images, look for named ones."""
        paths: list[str] = []
        sizes: list[tuple[int, int]] = []
        for image in draft.images:
            if isinstance(image, EmbeddedImage):
                path, size = self.store.write(image)
                sizes.append(size)
            else:
                path = self.named.check(image, self.notes)
                found = self.named.size(path) if self.states_sizes else None
                sizes += [] if found is None else [found]
            paths.append(path)
        draft.images = paths
        if draft.video is not None:
            if not isinstance(draft.video, str):
                raise UnfitRecordError("a video that is no path")
            draft.video = self.named.check(draft.video, self.notes)
        if sizes and len(sizes) == len(paths) and not {"width", "height"} & set(draft.rest):
            widths, heights = [size[0] for size in sizes], [size[1] for size in sizes]
            one = len(sizes) == 1
            draft.rest["width"] = widths[0] if one else widths
            draft.rest["height"] = heights[0] if one else heights
        return draft.as_record()

    def _leave(self, row: Any, where: str, reason: str, told: str | None) -> None:
        self.notes.leave_record(where, reason, told)
        if self.left is None:
            self.left = self.open_left()
        shown = None if isinstance(row, DatasetError) else row
        if isinstance(shown, Draft):
            shown = shown.as_record()
        entry = {"where": where, "reason": told or reason, "record": shown}
        self.left.write(json.loads(json.dumps(entry, default=_summary)))


def _summary(value: Any) -> str:
    if isinstance(value, EmbeddedImage):
        value = value.raw
    return f"({len(value)} bytes)" if isinstance(value, bytes) else str(value)


def _reader(plan: ImportPlan, notes: Notes, progress: Progress) -> tuple[_Rows, _Convert]:
    """The source's records and what turns one into a draft."""
    masked = plan.train_masked
    if plan.source_format == "parquet":
        return _parquet_reader(plan, notes, progress)
    if plan.source_format == "refcoco" and plan.source.is_dir():
        drafts = release_drafts(
            plan.source,
            notes,
            split=plan.reference_split,
            question=plan.common_question,
            progress=progress,
        )
        return drafts, _as_it_is
    require_file(plan.source)
    if plan.source_format == "csv":
        rows = tables.read_csv(plan.source, progress)
        first = next(rows, None)
        if first is None:
            raise DatasetError("holds no row", where=str(plan.source))
        return _table_reader(plan, notes, _before(first, rows), list(first[0]))
    if plan.source_format == "coco":
        coco = read_coco(plan.source, notes, progress)
        return coco_drafts(coco, notes, question=plan.common_question), _as_it_is
    records = read_records(plan.source, progress)
    if plan.source_format == "refcoco":
        question = plan.common_question
        return records, lambda row: from_refcoco_line(row, notes, question=question)
    converters = {
        "llava": from_llava,
        "openai": from_openai,
        "sharegpt": from_sharegpt,
        "alpaca": from_alpaca,
    }
    from_row = converters[plan.source_format]
    return records, lambda row: from_row(row, notes, train_masked=masked)


def _as_it_is(draft: Draft) -> Draft:
    return draft


def _before(first: tuple[Row, str], rest: _Rows) -> _Rows:
    yield first
    yield from rest


def _parquet_reader(plan: ImportPlan, notes: Notes, progress: Progress) -> tuple[_Rows, _Convert]:
    names = parquet.column_names(plan.source)
    rows = parquet.read_parquet(plan.source, progress)
    if not parquet.holds_conversations(names):
        return _table_reader(plan, notes, rows, names)
    masked = plan.train_masked
    return rows, lambda row: parquet.from_conversation_row(row, notes, train_masked=masked)


def _table_reader(
    plan: ImportPlan, notes: Notes, rows: _Rows, header: list[str]
) -> tuple[_Rows, _Convert]:
    columns = tables.find_columns(header, plan.named_columns, str(plan.source))
    group = plan.group_column
    if group is not None and group not in header:
        raise ConfigError(f"no column {group!r}", where="--group", fix=f"Of: {', '.join(header)}.")
    question = plan.common_question

    def convert(some: list[Row]) -> Draft:
        return tables.from_rows(some, columns, notes, question=question)

    return tables.group_rows(rows, group), convert


def _settle_root(target: Path, root: Path, run: _Import) -> Path:
    """The dataset's root, where images were written and named: their common folder then."""
    written = run.store.num_written + run.store.num_shared > 0
    if not written:
        return root
    if not run.named.num_named:
        return target.parent
    ours, theirs = os.path.abspath(target.parent), os.path.abspath(root)
    common = os.path.commonpath([ours, theirs])
    if ours == theirs:
        return root
    prefix = f"{run.store.folder.name}/"
    to_ours, to_theirs = os.path.relpath(ours, common), os.path.relpath(theirs, common)

    def move(path: str) -> str:
        return os.path.normpath(
            os.path.join(to_ours if path.startswith(prefix) else to_theirs, path)
        )

    with written_aside(target) as aside, open(aside, "wb") as file:
        for line, _ in read_lines(target):
            file.write(encode(_moved(orjson.loads(line), move)) + b"\n")
    run.notes.changes["images in two folders: the root is their common folder"] += 1
    return Path(common)


def _moved(record: Row, move: Callable[[str], str]) -> Row:
    image = record.get("image")
    if isinstance(image, str):
        record["image"] = move(image)
    elif image:
        record["image"] = [move(path) for path in image]
    if record.get("video"):
        record["video"] = move(record["video"])
    return record
