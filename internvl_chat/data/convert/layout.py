"""``playground/`` held against the guide's tree: what is there, is missing, or lies wrong."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.data.convert.files import Progress, no_progress, read_records
from internvl_chat.data.convert.playground import (
    ANNOTATIONS,
    DATASETS,
    DOWNLOADS,
    FOLDERS,
    UNPACKED_NAMES,
    GuideDataset,
    ImageFolders,
)
from internvl_chat.errors import DatasetError

_ENDINGS = (".png", ".gif", ".jpeg", ".webp", ".bmp", ".JPG", ".PNG")
_SEARCH_DEPTH = 4


@dataclass
class GuideState:
    """One dataset as it is on disk."""

    name: str
    annotation: str
    is_present: bool
    promised_records: int
    records: int
    num_images: int
    """Different ones that the annotation names."""
    num_images_found: int
    first_missing: str | None


@dataclass
class FolderState:
    """One folder of images as it is on disk."""

    folder: str
    source: str
    is_present: bool
    is_needed: bool
    """False where all annotations are there and none names it."""
    num_images: int
    num_images_found: int
    num_other_ending: int
    """Missing as ``.jpg`` but there under another ending."""


@dataclass
class LayoutReport:
    """What :func:`check_layout` found."""

    root: str
    datasets: list[GuideState]
    folders: list[FolderState]
    moves: list[tuple[str, str]]
    """(what, whereto) for folders that lie elsewhere."""
    conversions: list[str]
    downloads: dict[str, list[str]] = field(default_factory=dict)
    """Source of what is missing -> commands and what to do then."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return all(
            one.is_present and one.num_images_found == one.num_images for one in self.datasets
        ) and all(one.is_present or not one.is_needed for one in self.folders)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"complete": self.is_complete, **dataclasses.asdict(self)}

    def as_text(self) -> str:
        """For people."""
        return "\n".join(_text(self))


def check_layout(root: Path, progress: Progress = no_progress) -> LayoutReport:
    """Look at annotations, folders and every image that an annotation names.

    Args:
        root: ``playground``.
    """
    folders = {
        folder: FolderState(folder, one.source, (root / "data" / folder).is_dir(), True, 0, 0, 0)
        for one in FOLDERS
        for folder in one.folders
    }
    disk = _Disk()
    datasets = [_check_dataset(root, one, folders, disk, progress) for one in DATASETS]
    if all(one.is_present for one in datasets):
        for state in folders.values():
            state.is_needed = state.num_images > 0
    report = LayoutReport(
        str(root), datasets, list(folders.values()), list(_moves(root)), _conversions(root, folders)
    )
    report.downloads = _missing_downloads(report)
    return report


class _Disk:
    """Which files exist, each folder listed once."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def exists(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder))
            except OSError:
                self._names[folder] = set()
        return name in self._names[folder]


def _check_dataset(
    root: Path,
    dataset: GuideDataset,
    folders: dict[str, FolderState],
    disk: _Disk,
    progress: Progress,
) -> GuideState:
    annotation = root / "opensource" / f"{dataset.name}.jsonl"
    is_present = annotation.is_file()
    state = GuideState(dataset.name, str(annotation), is_present, dataset.length, 0, 0, 0, None)
    if not state.is_present:
        return state
    data = os.path.join(root, "data")
    seen: set[int] = set()
    for record, _ in read_records(annotation, progress):
        state.records += 1
        if isinstance(record, DatasetError):
            continue
        for path in _images(record):
            relative = os.path.normpath(os.path.join(dataset.root, path))
            if hash(relative) in seen:
                continue
            seen.add(hash(relative))
            state.num_images += 1
            found = disk.exists(os.path.join(data, relative))
            state.num_images_found += found
            if not found and state.first_missing is None:
                state.first_missing = os.path.join(data, relative)
            _count_in_folder(relative, found, folders, data, disk)
    return state


def _images(record: dict[str, Any]) -> list[str]:
    value = record.get("image", record.get("images")) or []
    paths = [value] if isinstance(value, str) else value
    return [path for path in paths if isinstance(path, str)]


def _count_in_folder(
    relative: str, found: bool, folders: dict[str, FolderState], data: str, disk: _Disk
) -> None:
    parts = relative.split(os.sep)
    state = next(
        (folders[name] for name in ("/".join(parts[:n]) for n in (2, 3)) if name in folders), None
    )
    if state is None:
        return
    state.num_images += 1
    state.num_images_found += found
    if not found:
        stem = os.path.join(data, os.path.splitext(relative)[0])
        state.num_other_ending += any(disk.exists(stem + ending) for ending in _ENDINGS)


def _moves(root: Path) -> Iterator[tuple[str, str]]:
    """Known folders that were unpacked in the wrong place, and annotations beside their folder."""
    data = root / "data"
    for dataset in DATASETS:
        target = root / "opensource" / f"{dataset.name}.jsonl"
        places = (root, data, root / "playground", root / "opensource" / "opensource")
        for place in (*places, root / DOWNLOADS, root / "playground" / "opensource"):
            found = place / target.name
            if found.is_file() and not target.exists():
                yield str(found), str(target)
    known = {os.path.join(data, place) for place in UNPACKED_NAMES.values()}
    for path in _folders(root, _SEARCH_DEPTH):
        for name, relative in UNPACKED_NAMES.items():
            whereto = data / relative
            if path.endswith(os.sep + name) and path not in known and not whereto.exists():
                yield path, str(whereto)
    for one in FOLDERS:
        for folder in one.folders:
            inner = data / folder / Path(folder).name
            if inner.is_dir():
                yield f"{inner}/*", str(data / folder)
    pretrain = data / "llava" / "llava_pretrain"
    if (pretrain / "00000").is_dir() and not (pretrain / "images").exists():
        yield f"{pretrain}/0*", str(pretrain / "images")


def _folders(root: Path, depth: int) -> Iterator[str]:
    """Folders down to a depth, those of images not entered twice."""
    try:
        with os.scandir(root) as entries:
            inner = sorted(entry.path for entry in entries if entry.is_dir())
    except OSError:
        return
    for path in inner:
        yield path
        if depth > 1 and os.path.basename(path) not in ("images", "train2017", "documents"):
            yield from _folders(Path(path), depth - 1)


def _conversions(root: Path, folders: dict[str, FolderState]) -> list[str]:
    found = []
    if folders["ocr_vqa/images"].num_other_ending:
        count = folders["ocr_vqa/images"].num_other_ending
        found.append(f"OCR-VQA: {count} images are not .jpg yet")
    synthdog = folders["synthdog-en/images"]
    is_short = not synthdog.is_present or synthdog.num_images_found < synthdog.num_images
    if is_short and next(synthdog_shards(root), None) is not None:
        found.append("SynthDoG-EN: Parquet files are there, images are missing")
    return found


def synthdog_shards(root: Path) -> Iterator[Path]:
    """Parquet files of SynthDoG-EN below the root, by name."""
    for folder in (root / "data" / "synthdog-en", root / DOWNLOADS):
        yield from sorted(
            path
            for path in folder.rglob("*.parquet")
            if folder.name == "synthdog-en" or path.match("train-*-of-00084*.parquet")
        )


def _missing_downloads(report: LayoutReport) -> dict[str, list[str]]:
    commands: dict[str, list[str]] = {}
    if not all(one.is_present for one in report.datasets):
        then = f"unpack, so that the nine .jsonl lie in {report.root}/opensource"
        commands["annotations"] = [
            *ANNOTATIONS.commands(f"{report.root}/{DOWNLOADS}"),
            f"then: {then}",
        ]
    states = defaultdict(list)
    for state in report.folders:
        states[state.source].append(state)
    for one in FOLDERS:
        short = [
            state
            for state in states[one.source]
            if (state.is_needed and not state.is_present)
            or state.num_images_found + state.num_other_ending < state.num_images
        ]
        if short:
            commands[one.source] = _commands(one, report.root)
    return commands


def _commands(one: ImageFolders, root: str) -> list[str]:
    folder = one.downloaded_to(root)
    then = one.unpack.format(down=folder, data=f"{root}/data")
    return [*(line for what in one.downloads for line in what.commands(folder)), f"then: {then}"]


def _text(report: LayoutReport) -> Iterator[str]:
    yield f"annotations in {report.root}/opensource"
    for one in report.datasets:
        yield f"  {one.name}: {_dataset_text(one)}"
        if one.first_missing:
            yield f"    first missing: {one.first_missing}"
    yield f"images in {report.root}/data"
    for state in report.folders:
        yield f"  {state.folder}: {_folder_text(state)}"
    if report.conversions:
        yield "to be converted (data layout --convert)"
        yield from (f"  {text}" for text in report.conversions)
    if report.moves:
        yield "to be moved"
        yield from (f"  mv {_quoted(what)} {_quoted(whereto)}" for what, whereto in report.moves)
    if report.downloads:
        yield "to be downloaded"
        for source, commands in report.downloads.items():
            yield f"  {source}"
            yield from (f"    {command}" for command in commands)
    yield "complete" if report.is_complete else "something is missing"


def _quoted(path: str) -> str:
    return f"'{path}'" if " " in path else path


def _dataset_text(one: GuideState) -> str:
    if not one.is_present:
        return "missing"
    text = f"present, {one.records} records"
    if one.records != one.promised_records:
        text += f" (the guide's has {one.promised_records})"
    return f"{text}, {one.num_images_found} of {one.num_images} images"


def _folder_text(state: FolderState) -> str:
    if not state.is_present:
        return "missing" if state.is_needed else "missing, but no annotation names it"
    if not state.num_images:
        return "present"
    text = f"present, {state.num_images_found} of {state.num_images} images"
    if state.num_other_ending:
        text += f" ({state.num_other_ending} more under another ending)"
    return text
