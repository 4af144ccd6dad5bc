"""A folder of images -> records and a meta JSON: filled in from a table, or to be filled in."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from internvl_chat.data.convert.conversations import Row
from internvl_chat.data.convert.files import (
    Progress,
    encode,
    no_progress,
    read_lines,
    record_file,
    refuse_existing,
)
from internvl_chat.data.convert.importing import ImportPlan, import_records
from internvl_chat.data.convert.media import shown_size
from internvl_chat.data.convert.meta_entry import add_to_meta, meta_entry
from internvl_chat.data.convert.notes import Notes
from internvl_chat.errors import ConfigError
from internvl_chat.files import written_aside

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ANNOTATION, META, TABLE = "annotation.jsonl", "meta.json", "questions.csv"


@dataclass
class SkeletonReport:
    """What was found and written."""

    folder: str
    written: list[str]
    num_images: int
    num_records: int
    unanswered: list[str]
    """Images without a row in the table, the first twenty."""
    num_unanswered: int
    unreadable: list[str]
    is_filled: bool
    notes: Notes

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        values = dataclasses.asdict(self)
        del values["notes"]
        return values | self.notes.as_dict()

    def as_text(self) -> str:
        """For people."""
        lines = [
            f"{self.folder}: {self.num_images} images, {self.num_records} records",
            *(f"written: {path}" for path in self.written),
            *(
                f"no image that Pillow opens, or a name that is not UTF-8: {path}"
                for path in self.unreadable
            ),
        ]
        if self.num_unanswered:
            shown = ", ".join(self.unanswered)
            more = ", ..." if self.num_unanswered > len(self.unanswered) else ""
            lines.append(f"images without a question: {self.num_unanswered} ({shown}{more})")
        if not self.is_filled:
            lines.append(
                f"The answers are empty, and training refuses them: fill in {TABLE}, then run this "
                f"again with --csv; or fill in {ANNOTATION}."
            )
        return "\n".join(lines + self.notes.as_lines())


def make_skeleton(
    folder: Path,
    *,
    table: Path | None,
    question: str,
    name: str | None = None,
    progress: Progress = no_progress,
) -> SkeletonReport:
    """Write ``annotation.jsonl`` and ``meta.json`` into a folder of images.

    Without a table the records ask ``question`` and hold empty answers, and ``questions.csv`` is
    written to be filled in. With one the records are its rows; a skeleton that nobody touched makes
    way for them.

    Args:
        folder: searched with its subfolders, hidden files left aside.
        table: CSV with the columns image (relative to ``folder``), question, answer.
        name: of the dataset; the folder's by default.

    Raises:
        ConfigError: no image in the folder, or a file of these names that is the user's own.
        DatasetError: the table is damaged, or none of its rows can be taken.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), fix="Name a folder of images.")
    found = sorted(_images(folder))
    images = [path for path in found if _is_text(path)]
    odd = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in found]
    odd = [shown for shown, path in zip(odd, found, strict=True) if not _is_text(path)]
    if not images:
        raise ConfigError(
            "holds no image", where=str(folder), fix=f"Images end in {', '.join(ENDINGS)}."
        )
    dataset = name or folder.resolve().name
    if table is None:
        report = _empty(folder, images, dataset, question, progress)
    else:
        report = _filled(folder, images, table, dataset, question, progress)
    report.unreadable += odd
    return report


def _filled(
    folder: Path, images: list[str], table: Path, dataset: str, question: str, progress: Progress
) -> SkeletonReport:
    annotation, meta = folder / ANNOTATION, folder / META
    plan = ImportPlan(
        source=table,
        target=annotation,
        source_format="csv",
        image_root=folder,
        meta_path=meta,
        dataset_name=dataset,
        common_question=question,
        named_columns={},
        group_column=None,
        reference_split="train",
        train_masked=False,
        state_sizes=True,
    )
    with _set_aside(_untouched(annotation, meta, dataset, folder)):
        report = import_records(plan, progress)
    asked = {path for line, _ in read_lines(annotation) for path in _paths(orjson.loads(line))}
    without = [path for path in images if path not in asked]
    return SkeletonReport(
        folder=str(folder),
        written=[str(annotation), str(meta)],
        num_images=len(images),
        num_records=report.num_records,
        unanswered=without[:20],
        num_unanswered=len(without),
        unreadable=[],
        is_filled=True,
        notes=report.notes,
    )


def _paths(record: Mapping[str, Any]) -> list[str]:
    image = record.get("image", [])
    return [image] if isinstance(image, str) else image


def _images(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Path(parent, name).relative_to(folder).as_posix()


def _is_text(name: str) -> bool:
    """Whether JSON can say a file's name: what is not UTF-8 on disk has no letters for it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _empty(
    folder: Path, images: list[str], dataset: str, question: str, progress: Progress
) -> SkeletonReport:
    annotation, meta, table = folder / ANNOTATION, folder / META, folder / TABLE
    refuse_existing(annotation, meta, table)
    unreadable = []
    with (
        record_file(annotation) as records,
        written_aside(table) as aside,
        open(
            aside, "w", encoding="utf-8-sig", newline=""
        ) as file,  # spreadsheets look for the mark
    ):
        rows = csv.writer(file)
        rows.writerow(["image", "question", "answer"])
        for number, path in enumerate(images, start=1):
            size = shown_size(folder / path)
            if size is None:
                unreadable.append(path)
                continue
            records.write(_empty_record(path, size, question))
            rows.writerow([path, question, ""])
            progress(number, len(images))
        num_records = records.num_records
    add_to_meta(meta, dataset, meta_entry(folder, annotation, num_records))
    return SkeletonReport(
        folder=str(folder),
        written=[str(annotation), str(meta), str(table)],
        num_images=len(images),
        num_records=num_records,
        unanswered=[],
        num_unanswered=0,
        unreadable=unreadable,
        is_filled=False,
        notes=Notes(),
    )


def _empty_record(path: str, size: tuple[int, int], question: str) -> Row:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": ""}]
    width, height = size
    return {"id": path, "image": path, "width": width, "height": height, "conversations": turns}


def _untouched(annotation: Path, meta: Path, dataset: str, folder: Path) -> list[Path]:
    """The files of a skeleton that holds nothing but what was written into it.

    Raises:
        ConfigError: one of the files holds something else.
    """
    count = 0
    if annotation.exists():
        for line, _ in read_lines(annotation):
            count += 1
            if not _is_untouched(line):
                refuse_existing(annotation)
    entry = {dataset: meta_entry(folder, annotation, count)}
    if meta.exists() and _read_json(meta) != entry:
        refuse_existing(meta)
    return [path for path in (annotation, meta) if path.exists()]


def _read_json(path: Path) -> object:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return None


@contextmanager
def _set_aside(paths: Sequence[Path]) -> Iterator[None]:
    """Take files out of the way; they come back if the block fails."""
    aside = {path: path.with_name(f".{path.name}.former") for path in paths}
    for path, former in aside.items():
        path.replace(former)
    try:
        yield
    except BaseException:
        for path, former in aside.items():
            former.replace(path)
        raise
    for former in aside.values():
        former.unlink()


def _is_untouched(line: bytes) -> bool:
    try:
        record = orjson.loads(line)
        size = (record["width"], record["height"])
        question = record["conversations"][0]["value"].removeprefix("<image>\n")
        return line == encode(_empty_record(record["image"], size, question))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return False
