"""What a dataset consists of, counted in one pass without opening an image."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.data.boxes import tagged_boxes
from internvl_chat.data.convert.conversations import read_own
from internvl_chat.data.convert.files import Progress, no_progress, read_records
from internvl_chat.data.convert.notes import UnfitRecordError
from internvl_chat.data.convert.sources import annotation_sources
from internvl_chat.errors import DatasetError
from internvl_chat.model.constants import IMAGE_TAG

_UNIT_BOX = re.compile(r"\[\s*\d?\.\d+(?:\s*,\s*[\d.]+){3}\s*\]")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass
class Distribution:
    """How often each whole number occurred; memory grows with different numbers only."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        """Count one."""
        self.counts[value] += 1

    def as_dict(self) -> dict[str, float]:
        """Sum, mean, least, median, 95th percentile and largest."""
        total = self.counts.total()
        if not total:
            return {"sum": 0}
        values = sorted(self.counts)
        summed = sum(value * count for value, count in self.counts.items())
        return {
            "sum": summed,
            "mean": round(summed / total, 2),
            "min": values[0],
            "p50": self._at(values, 0.5 * total),
            "p95": self._at(values, 0.95 * total),
            "max": values[-1],
        }

    def _at(self, values: Sequence[int], rank: float) -> int:
        seen = 0
        for value in values:
            seen += self.counts[value]
            if seen >= rank:
                return value
        return values[-1]


class DatasetCounts:
    """Counts of one dataset."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_records = self.num_unreadable = self.num_text_only = self.num_videos = 0
        self.num_images = self.num_boxes = self.num_unit_boxes = self.num_with_system = 0
        self.rounds = Distribution()
        self.images_a_record = Distribution()
        self.words = {"question": Distribution(), "answer": Distribution()}
        self.characters = {"question": Distribution(), "answer": Distribution()}
        self.widths, self.heights = Distribution(), Distribution()
        self.num_unsized = 0
        self._images = array("Q")

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record.

        Raises:
            UnfitRecordError: it is none.
        """
        own = read_own(record)
        self.num_records += 1
        self.num_images += len(own.images)
        self.num_videos += own.video is not None
        self.num_text_only += not own.images and own.video is None
        self.num_with_system += own.system is not None
        self.images_a_record.add(len(own.images))
        self.rounds.add(sum(turn.speaker == "gpt" for turn in own.turns))
        for turn in own.turns:
            kind = "answer" if turn.speaker == "gpt" else "question"
            text = turn.text.replace(IMAGE_TAG, "").strip()
            self.words[kind].add(count_words(text))
            self.characters[kind].add(len(text))
            self.num_boxes += sum(map(len, tagged_boxes(text))) if "<box>" in text else 0
            self.num_unit_boxes += len(_UNIT_BOX.findall(text)) if "[" in text else 0
        for path in own.images:
            digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._images.append(int.from_bytes(digest, "little"))
        self._add_sizes(record, len(own.images))

    def _add_sizes(self, record: Mapping[str, Any], num_images: int) -> None:
        width, height = record.get("width"), record.get("height")
        widths = width if isinstance(width, list) else [width]
        heights = height if isinstance(height, list) else [height]
        if not len(widths) == len(heights) == num_images or not all(
            isinstance(v, int | float) for v in [*widths, *heights]
        ):
            self.num_unsized += num_images
            return
        for one, other in zip(widths, heights, strict=True):
            self.widths.add(int(one))
            self.heights.add(int(other))

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "records": self.num_records,
            "unreadable": self.num_unreadable,
            "text_only": self.num_text_only,
            "images": self.num_images,
            "different_images": len(np.unique(np.frombuffer(self._images, dtype=np.uint64))),
            "videos": self.num_videos,
            "with_system": self.num_with_system,
            "boxes": self.num_boxes,
            "boxes_0_to_1": self.num_unit_boxes,
            "rounds": self.rounds.as_dict(),
            "images_a_record": self.images_a_record.as_dict(),
            "words": {kind: words.as_dict() for kind, words in self.words.items()},
            "characters": {kind: some.as_dict() for kind, some in self.characters.items()},
            "width": self.widths.as_dict(),
            "height": self.heights.as_dict(),
            "images_without_stated_size": self.num_unsized,
        }


def count_words(text: str) -> int:
    """Words between blanks; a Chinese, Japanese or Korean character counts as one."""
    if text.isascii():
        return len(text.split())
    return len(_CJK.findall(text)) + len(_CJK.sub(" ", text).split())


def count_datasets(path: Path, progress: Progress = no_progress) -> list[DatasetCounts]:
    """Count the datasets of a meta JSON, or a file of records.

    Raises:
        ConfigError, DatasetError: the file cannot be read, or is damaged as a whole.
    """
    found = []
    for source in annotation_sources(path):
        counts = DatasetCounts(source.name)
        for record, _ in read_records(source.annotation, progress):
            try:
                if isinstance(record, DatasetError):
                    raise UnfitRecordError(record.problem)
                counts.add(record)
            except UnfitRecordError:
                counts.num_unreadable += 1
        found.append(counts)
    return found


def as_table(found: Sequence[DatasetCounts]) -> str:
    """A block of lines for each dataset, for people."""
    return "\n".join(_block(counts.name, counts.as_dict()) for counts in found)


def _block(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"{name}: {values['records']} records"]
    if values["unreadable"]:
        lines[0] += f", {values['unreadable']} unreadable lines (data check says why)"
    lines.append(
        f"  images {values['images']} ({values['different_images']} different), videos "
        f"{values['videos']}, text only {values['text_only']}, with system {values['with_system']}"
    )
    rows = {
        "rounds a record": values["rounds"],
        "images a record": values["images_a_record"],
        "words a question": values["words"]["question"],
        "words an answer": values["words"]["answer"],
        "characters an answer": values["characters"]["answer"],
        "width": values["width"],
        "height": values["height"],
    }
    columns = ("mean", "min", "p50", "p95", "max")
    lines.append(" " * 22 + "".join(f"{column:>9}" for column in columns))
    lines += [
        f"  {label:<20}" + "".join(f"{one[column]:>9}" for column in columns)
        for label, one in rows.items()
        if len(one) > 1
    ]
    if values["images_without_stated_size"]:
        lines.append(f"  images without stated size {values['images_without_stated_size']}")
    if values["boxes"] or values["boxes_0_to_1"]:
        lines.append(f"  boxes {values['boxes']}, in 0-1 floats {values['boxes_0_to_1']}")
    return "\n".join(lines)
