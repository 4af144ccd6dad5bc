"""Records -> another format's file."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.data.convert.alpaca import to_alpaca
from internvl_chat.data.convert.coco import CocoExport
from internvl_chat.data.convert.conversations import Row, read_own
from internvl_chat.data.convert.files import (
    Progress,
    no_progress,
    read_records,
    record_file,
    refuse_existing,
    require_file,
)
from internvl_chat.data.convert.importing import Format
from internvl_chat.data.convert.media import ImageRoot, data_url
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.convert.openai import to_openai
from internvl_chat.data.convert.parquet import ParquetRows, embedded, to_parquet_row
from internvl_chat.data.convert.refcoco import to_refcoco_lines
from internvl_chat.data.convert.sharegpt import to_llava, to_sharegpt
from internvl_chat.data.convert.tables import to_rows
from internvl_chat.errors import DatasetError
from internvl_chat.files import write_json, written_aside

_Take = Callable[[Row], None]


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What is written, how, and where to."""

    records: Path
    written: Path
    target_format: Format
    images_below: Path | None
    """Folder that the records' image paths are relative to; their own by default."""
    embed: bool
    """Put the images' bytes into the file (openai, parquet)."""


@dataclass
class RecordsExport:
    """What was written and what was not."""

    output: str
    num_records: int
    num_read: int
    notes: Notes

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        values = dataclasses.asdict(self)
        del values["notes"]
        return values | self.notes.as_dict()

    def as_text(self) -> str:
        """For people."""
        first = f"{self.output}: {self.num_records} records of {self.num_read} read"
        return "\n".join([first, *self.notes.as_lines()])


def export_records(plan: ExportPlan, progress: Progress = no_progress) -> RecordsExport:
    """Write records in another format, a record at a time; COCO alone is held as a whole.

    Raises:
        ConfigError: the output exists, the records do not.
        DatasetError: not one record could be written, or the records are damaged as a whole.
    """
    require_file(plan.records)
    refuse_existing(plan.written)
    plan.written.parent.mkdir(parents=True, exist_ok=True)
    notes = Notes()
    num_read = num_records = 0
    with _WRITERS[plan.target_format](plan, notes) as take:
        for record, where in read_records(plan.records, progress):
            num_read += 1
            try:
                if isinstance(record, DatasetError):
                    raise UnfitRecordError(record.problem)
                take(record)
                num_records += 1
            except UnfitRecordError as err:
                notes.leave_record(where, err.reason)
        if not num_records:
            told = "\n".join(notes.as_lines()) or "it holds none"
            raise DatasetError(f"no record could be written\n{told}", where=str(plan.records))
    return RecordsExport(str(plan.written), num_records, num_read, notes)


_Writer = Callable[[ExportPlan, Notes], Any]


def _line_writer(convert: Callable[[Mapping[str, Any], Notes], Row]) -> _Writer:
    @contextmanager
    def open_file(plan: ExportPlan, notes: Notes) -> Iterator[_Take]:
        with record_file(plan.written) as out:
            yield lambda record: out.write(convert(record, notes))

    return open_file


@contextmanager
def _openai_file(plan: ExportPlan, notes: Notes) -> Iterator[_Take]:
    images = _images_of(plan)
    with record_file(plan.written) as out:

        def take(record: Row) -> None:
            paths = read_own(record).images if plan.embed else ()
            urls = {path: data_url(images.read(path), path) for path in paths}
            out.write(to_openai(record, notes, urls))

        yield take


@contextmanager
def _parquet_file(plan: ExportPlan, notes: Notes) -> Iterator[_Take]:
    images = _images_of(plan)
    with written_aside(plan.written) as aside:
        rows = ParquetRows(aside)

        def take(record: Row) -> None:
            paths = read_own(record).images
            cells = [embedded(path, images.read(path) if plan.embed else None) for path in paths]
            rows.write(to_parquet_row(record, notes, cells))

        try:
            yield take
        finally:
            rows.close()


@contextmanager
def _csv_file(plan: ExportPlan, notes: Notes) -> Iterator[_Take]:
    """Two passes: the header is the keys of all records."""
    header: dict[str, None] = {}
    for record, _ in read_records(plan.records):
        if isinstance(record, DatasetError):
            continue
        try:
            header |= dict.fromkeys(key for row in to_rows(record, Notes()) for key in row)
        except UnfitRecordError:
            continue  # told when its turn comes
    delimiter = "\t" if plan.written.suffix == ".tsv" else ","
    with (
        written_aside(plan.written) as aside,
        open(aside, "w", encoding="utf-8", newline="") as file,
    ):
        table = csv.DictWriter(file, list(header), restval="", delimiter=delimiter)
        table.writeheader()
        yield lambda record: table.writerows(to_rows(record, notes))


@contextmanager
def _refcoco_file(plan: ExportPlan, notes: Notes) -> Iterator[_Take]:
    with record_file(plan.written) as out:

        def take(record: Row) -> None:
            for line in to_refcoco_lines(record, notes):
                out.write(line)

        yield take


@contextmanager
def _coco_file(plan: ExportPlan, notes: Notes) -> Iterator[_Take]:
    export = CocoExport()
    yield lambda record: export.add(record, notes)
    write_json(plan.written, export.content())


def _images_of(plan: ExportPlan) -> ImageRoot:
    return ImageRoot(plan.images_below or plan.records.parent)


_WRITERS: dict[Format, _Writer] = {
    "llava": _line_writer(to_llava),
    "openai": _openai_file,
    "sharegpt": _line_writer(to_sharegpt),
    "alpaca": _line_writer(to_alpaca),
    "csv": _csv_file,
    "parquet": _parquet_file,
    "coco": _coco_file,
    "refcoco": _refcoco_file,
}
