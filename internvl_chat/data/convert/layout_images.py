"""Images of the guide's tree that have to be converted: SynthDoG-EN's Parquet, OCR-VQA's endings.

Both go on where they were interrupted, and leave the originals alone.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.data.convert.files import Progress, no_progress, read_records
from internvl_chat.data.convert.layout import synthdog_shards
from internvl_chat.data.convert.parquet import load_pyarrow, read_parquet
from internvl_chat.data.images import open_image, to_rgb
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.storage import read_bytes
from internvl_chat.errors import DatasetError
from internvl_chat.files import written_aside

NUM_SHARDS = 5  # the guide: "We only use 00000~00004 parquet files"
JPEG_QUALITY = 95
_SHARD = re.compile(r"train-(\d{5})-of-\d{5}.*\.parquet")
_PARTIAL = re.compile(r"\..+\.(\d+)\.partial\.jpg")
_SUSPICIOUS_SHARE, _COMPARED_FIRST = 0.05, 20


@dataclass
class LayoutConversion:
    """What was converted."""

    folder: str
    num_written: int = 0
    num_there: int = 0
    unreadable: list[str] = field(default_factory=list)
    asides: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return dataclasses.asdict(self)

    def as_text(self) -> str:
        """For people."""
        lines = [f"{self.folder}: {self.num_written} written, {self.num_there} were there"]
        lines += [f"  {remark}" for remark in self.asides]
        if self.unreadable:
            lines.append(f"  cannot be read: {len(self.unreadable)}")
            lines += [f"    {told}" for told in self.unreadable[:20]]
        return "\n".join(lines)


def convert_layout(root: Path, progress: Progress = no_progress) -> list[LayoutConversion]:
    """Convert what is there to be converted.

    Args:
        root: ``playground``.

    Raises:
        ConfigError: Parquet files without pyarrow.
        DatasetError: the shards are not the guide's.
    """
    done = []
    shards = list(synthdog_shards(root))
    if shards:
        done.append(convert_synthdog(root, shards, progress))
    ocr_vqa = root / "data" / "ocr_vqa" / "images"
    if ocr_vqa.is_dir():
        done.append(convert_ocr_vqa(ocr_vqa, progress))
    return done


def convert_ocr_vqa(folder: Path, progress: Progress = no_progress) -> LayoutConversion:
    """Write a ``.jpg`` beside every image of another ending; the first frame of a GIF."""
    report = LayoutConversion(str(folder))
    _remove_partials(folder)
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    there = set(names)
    others = [name for name in names if not name.endswith(".jpg") and "." in name]
    for number, name in enumerate(others, start=1):
        target = f"{name.rpartition('.')[0]}.jpg"
        if target in there:
            report.num_there += 1
        else:
            try:
                raw = read_bytes(os.path.abspath(folder / name), where="")
                write_jpeg(raw, folder / target, str(folder / name))
                there.add(target)
                report.num_written += 1
            except (BadRecordError, OSError) as err:
                report.unreadable.append(f"{folder / name}: {err}")
        progress(number, len(others))
    return report


def write_jpeg(raw: bytes, target: Path, name: str) -> None:
    """Write an image as JPEG; one that is JPEG already to the byte.

    Raises:
        BadRecordError: it is no image, or damaged.
    """
    with written_aside(target) as aside:
        if raw.startswith(b"\xff\xd8\xff"):
            aside.write_bytes(raw)
        else:
            aside.write_bytes(_as_jpeg(raw, name))


def _as_jpeg(raw: bytes, name: str) -> bytes:
    image = to_rgb(open_image(raw, where=name, path=name), where=name, path=name)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def convert_synthdog(
    root: Path, shards: Sequence[Path], progress: Progress = no_progress
) -> LayoutConversion:
    """Write row n of the first five shards, counted from 0 over all, as ``images/0000000n.jpg``.

    Where the annotation is there its names are used, and its texts are held against the rows'.

    Raises:
        DatasetError: a shard before the last is missing, or rows are not what the annotation says.
    """
    folder = root / "data" / "synthdog-en"
    report = LayoutConversion(str(folder / "images"))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _remove_partials(folder / "images")
    annotation = root / "opensource" / "synthdog_en.jsonl"
    wanted = _annotated(annotation) if annotation.is_file() else {}
    number = 0
    compared = _Comparison(annotation)
    chosen = _first_shards(shards, report)
    num_rows = [_num_rows(shard) for shard in chosen]
    for shard, count in zip(chosen, num_rows, strict=True):
        names = [
            wanted.get(n, (f"images/{n:08d}.jpg", None)) for n in range(number, number + count)
        ]
        if all((folder / name).is_file() for name, _ in names):
            report.num_there += count
        else:
            _write_shard(shard, folder, names, compared, report)
        number += count
        progress(number, sum(num_rows))
    if compared.num_different:
        report.asides.append(f"{compared.num_different} texts differ from the annotation's")
    return report


def _write_shard(
    shard: Path,
    folder: Path,
    names: Sequence[tuple[str, str | None]],
    compared: _Comparison,
    report: LayoutConversion,
) -> None:
    for (row, where), (name, text) in zip(read_parquet(shard), names, strict=True):
        if text is not None:
            compared.add(text, _text_of(row), where, name)
        target = folder / name
        if target.is_file():
            report.num_there += 1
            continue
        image = row.get("image")
        raw = image.get("bytes") if isinstance(image, Mapping) else image
        try:
            write_jpeg(raw if isinstance(raw, bytes) else b"", target, where)
            report.num_written += 1
        except BadRecordError as err:
            report.unreadable.append(str(err))


class _Comparison:
    """Texts of rows against the annotation's: other shards would give other images their names."""

    def __init__(self, annotation: Path) -> None:
        self._annotation = annotation
        self._num_compared = 0
        self.num_different = 0

    def add(self, ours: str, theirs: str | None, where: str, name: str) -> None:
        """Compare one.

        Raises:
            DatasetError: too many differ.
        """
        if theirs is None:
            return
        self._num_compared += 1
        self.num_different += ours.split() != theirs.split()
        enough = self._num_compared >= _COMPARED_FIRST
        if enough and self.num_different > _SUSPICIOUS_SHARE * self._num_compared:
            raise DatasetError(
                f"its text is not that of {name} in {self._annotation}",
                where=where,
                fix="Put the shards 00000-00004 of naver-clova-ix/synthdog-en there, no others.",
            )


def _text_of(row: Mapping[str, Any]) -> str | None:
    try:
        text = json.loads(row["ground_truth"])["gt_parse"]["text_sequence"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def _annotated(annotation: Path) -> dict[int, tuple[str, str | None]]:
    """Number of an image -> its path and the answer about it."""
    found: dict[int, tuple[str, str | None]] = {}
    for record, _ in read_records(annotation):
        path = None if isinstance(record, DatasetError) else record.get("image")
        if not isinstance(path, str) or not Path(path).stem.isdecimal() or ".." in path:
            continue
        assert not isinstance(record, DatasetError)
        turns = record.get("conversations")
        answer = turns[1].get("value") if isinstance(turns, list) and len(turns) == 2 else None
        found[int(Path(path).stem)] = (path.lstrip("/"), answer)
    return found


def _first_shards(shards: Sequence[Path], report: LayoutConversion) -> list[Path]:
    """The guide's five, in order."""
    numbered: dict[int, Path] = {}
    for shard in shards:
        match = _SHARD.fullmatch(shard.name)
        if match is None:
            report.asides.append(f"left aside, not a shard by its name: {shard}")
        elif int(match[1]) >= NUM_SHARDS:
            report.asides.append(f"left aside, the guide uses 00000-00004: {shard}")
        else:
            numbered.setdefault(int(match[1]), shard)
    missing = [number for number in range(max(numbered, default=-1)) if number not in numbered]
    if missing:
        raise DatasetError(
            f"shard {missing[0]:05d} is missing; rows are numbered over all shards",
            where=str(shards[0].parent),
            fix="Download it first.",
        )
    if len(numbered) < NUM_SHARDS:
        report.asides.append(f"{len(numbered)} of {NUM_SHARDS} shards are there")
    return [numbered[number] for number in sorted(numbered)]


def _num_rows(shard: Path) -> int:
    parquet = load_pyarrow()
    import pyarrow

    try:
        return int(parquet.read_metadata(shard).num_rows)
    except (pyarrow.ArrowInvalid, OSError) as err:
        raise DatasetError(f"is no Parquet file ({err})", where=str(shard)) from err


def _remove_partials(folder: Path) -> None:
    """What a killed run was writing."""
    for path in _partials(folder):
        path.unlink(missing_ok=True)


def _partials(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _PARTIAL.fullmatch(entry.name)
            if match and not Path("/proc", match[1]).exists():
                yield Path(entry.path)
