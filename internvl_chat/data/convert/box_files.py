"""The boxes of whole annotation files, rewritten into a new file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.data.boxes import BoxForm, convert_boxes
from internvl_chat.data.convert.files import (
    Progress,
    Row,
    decode_exactly,
    encode,
    is_array,
    no_progress,
    read_lines,
    record_file,
    refuse_existing,
    require_file,
)
from internvl_chat.data.convert.media import shown_size
from internvl_chat.data.convert.meta_entry import add_to_meta, meta_entry
from internvl_chat.data.convert.sources import annotation_sources
from internvl_chat.data.json2jsonl import iterate_array
from internvl_chat.errors import ConfigError, DatasetError

MAX_LISTED = 1000
_SHOWN = 20


@dataclass
class BoxReport:
    """What became of a file's boxes."""

    output: str
    num_records: int = 0
    num_changed: int = 0
    """Records with at least one box converted."""
    num_converted: int = 0
    num_suspicious: int = 0
    """Boxes whose corners are out of order, written all the same."""
    num_left: int = 0
    """What looks like boxes and was left, and lines that are no records."""
    suspicious: list[str] = field(default_factory=list)
    """``file:line: ...`` of the first thousand."""
    left_places: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return dataclasses.asdict(self)

    def as_text(self) -> str:
        """For people."""
        lines = [
            f"{self.output}: {self.num_records} records, {self.num_changed} changed, "
            f"{self.num_converted} boxes converted"
        ]
        for count, what, places in (
            (self.num_suspicious, "boxes with corners out of order", self.suspicious),
            (self.num_left, "left as they are", self.left_places),
        ):
            if count:
                lines += [f"{what}: {count}", *(f"  {place}" for place in places[:_SHOWN])]
                if count > _SHOWN:
                    lines.append(f"  ... and {count - _SHOWN} more (--json lists {MAX_LISTED})")
        return "\n".join(lines)

    def leave(self, where: str, told: str) -> None:
        """Count and list what is left."""
        self.num_left += 1
        if len(self.left_places) < MAX_LISTED:
            self.left_places.append(f"{where}: {told}")

    def suspect(self, where: str, told: str) -> None:
        """Count and list a box with corners out of order."""
        self.num_suspicious += 1
        if len(self.suspicious) < MAX_LISTED:
            self.suspicious.append(f"{where}: {told}")


def convert_file(
    source: Path,
    target: Path,
    forms: tuple[BoxForm, BoxForm],
    *,
    root: Path | None = None,
    progress: Progress = no_progress,
) -> BoxReport:
    """Rewrite the boxes of a JSONL file or JSON array; all else stays, unchanged lines to the byte.

    Args:
        source: records.
        target: a new file; an array where it is called ``.json``.
        forms: from and to.
        root: folder of images: for pixels, where records do not state ``width`` and ``height``.

    Raises:
        ConfigError: ``source`` is missing, ``target`` exists, or both forms are the same.
        DatasetError: an array is damaged.
    """
    if forms[0] == forms[1]:
        raise ConfigError(f"both are {forms[0]}", where="--from and --to", fix="Give two.")
    require_file(source)
    refuse_existing(target)
    report = BoxReport(str(target))
    with record_file(target) as out:
        if is_array(source):
            for number, record in enumerate(iterate_array(source), start=1):
                where = f"{source}, element {number}"
                out.write_raw(_convert_record(record, None, forms, root, report, where))
        else:
            for line, where in read_lines(source, progress):
                out.write_raw(_convert_line(line, forms, root, report, where))
        report.num_records = out.num_records
    return report


def convert_meta(
    source: Path, folder: Path, forms: tuple[BoxForm, BoxForm], progress: Progress = no_progress
) -> list[BoxReport]:
    """Rewrite the boxes of every dataset of a meta JSON into a new folder, with its meta JSON.

    Args:
        source: meta JSON; entries keep their options, but for ``box_format``.
        folder: gets ``NAME.jsonl`` for each dataset and a meta JSON called as ``source``.

    Raises:
        ConfigError: a file to be written exists.
        DatasetError: the meta JSON or an array is damaged.
    """
    sources = annotation_sources(source)
    targets = [folder / f"{one.file_name}.jsonl" for one in sources]
    refuse_existing(folder / source.name, *targets)
    reports = []
    for one, target in zip(sources, targets, strict=True):
        root = Path(one.root)
        reports.append(convert_file(one.annotation, target, forms, root=root, progress=progress))
        options = {key: value for key, value in one.options.items() if key != "box_format"}
        entry = meta_entry(root, target, reports[-1].num_records, **options)
        add_to_meta(folder / source.name, one.name, entry)
    return reports


def _convert_line(
    line: bytes,
    forms: tuple[BoxForm, BoxForm],
    root: Path | None,
    report: BoxReport,
    where: str,
) -> bytes:
    try:
        record = decode_exactly(line, where)
    except DatasetError as err:
        report.leave(where, err.problem)
        return line
    if not isinstance(record, dict):
        report.leave(where, f"is no object but {type(record).__name__}")
        return line
    return _convert_record(record, line, forms, root, report, where)


def _convert_record(
    record: Row,
    line: bytes | None,
    forms: tuple[BoxForm, BoxForm],
    root: Path | None,
    report: BoxReport,
    where: str,
) -> bytes:
    """The record's line after conversion: ``line`` itself where nothing changed."""
    turns = record.get("conversations", record.get("messages"))
    size, num_boxes = None, 0
    for turn in turns if isinstance(turns, list) else ():
        key = "value" if isinstance(turn, dict) and "value" in turn else "content"
        text = turn.get(key) if isinstance(turn, dict) else None
        if not isinstance(text, str) or "[" not in text:
            continue
        if "pixel" in forms and size is None:
            size = _size(record, root, report, where)
            if size is None:
                break
        converted = convert_boxes(text, *forms, size=size)
        for told in converted.unconverted:
            report.leave(where, told)
        for told in converted.problems:
            report.suspect(where, told)
        turn[key] = converted.text
        num_boxes += converted.num_boxes
    if not num_boxes:
        return encode(record) if line is None else line
    report.num_converted += num_boxes
    report.num_changed += 1
    return encode(record)


def _size(
    record: Mapping[str, Any], root: Path | None, report: BoxReport, where: str
) -> tuple[float, float] | None:
    """(width, height) of the record's image: as it states, else of the file's header."""
    images = record.get("image", record.get("images")) or []
    images = [images] if isinstance(images, str) else images
    sizes = _stated_sizes(record)
    if not sizes and root is not None and all(isinstance(path, str) for path in images):
        sizes = {shown_size(root / path) for path in images}
    if None in sizes or not sizes:
        fix = "its image cannot be opened" if root is not None else "give --root"
        report.leave(where, f"pixels need width and height, which it does not state; {fix}")
        return None
    if len(sizes) > 1:
        report.leave(where, f"{len(images)} images of different sizes: which one is a box in?")
        return None
    return sizes.pop()


def _stated_sizes(record: Mapping[str, Any]) -> set[tuple[float, float] | None]:
    width, height = record.get("width"), record.get("height")
    widths: list[Any] = width if isinstance(width, list) else [width]
    heights: list[Any] = height if isinstance(height, list) else [height]
    numbers = [*widths, *heights]
    if len(widths) != len(heights) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in numbers
    ):
        return set()
    return set(zip(widths, heights, strict=True))
