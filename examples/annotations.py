"""Annotation files, for every example: LLaVA-style records, one a line, and the meta JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One entry of a meta JSON, as far as the examples use them."""

    name: str
    root: Path
    """Joined to every record's ``image``; relative to the working directory."""
    annotation: Path
    """Relative to the working directory, or to the folder of the meta JSON."""
    length: int
    repeat_time: float = 1

    def as_json(self) -> dict[str, Any]:
        """The value that stands behind ``name`` in the meta JSON."""
        return {
            "root": f"{self.root.as_posix()}/",
            "annotation": self.annotation.as_posix(),
            "data_augment": False,
            "repeat_time": self.repeat_time,
            "length": self.length,
        }


def conversation(*rounds: tuple[str, str]) -> list[dict[str, str]]:
    """Alternating human and gpt turns.

    >>> conversation(("<image>\\nWhich digit is this?", "7"))[1]
    {'from': 'gpt', 'value': '7'}
    """
    turns = []
    for question, answer in rounds:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return turns


def image_record(
    identity: str, images: Sequence[str], side: int, rounds: Sequence[tuple[str, str]]
) -> Record:
    """LLaVA-style record: ``<image>`` tags in the first question, human and gpt in turn.

    Args:
        identity: the record's ``id``.
        images: paths relative to the dataset's root; none for text only.
        side: width and height of every image, in pixels.
        rounds: (question, answer), at least one; the questions without tags.
    """
    record: Record = {"id": identity}
    if images:
        record["image"] = images[0] if len(images) == 1 else list(images)
        record["width"] = record["height"] = side
    (question, answer), *others = rounds
    tags = "<image>\n" * len(images)
    record["conversations"] = conversation((tags + question, answer), *others)
    return record


def image_paths(record: Mapping[str, Any]) -> list[str]:
    """The record's images in order, whether it holds one path, a list of them, or none."""
    images = record.get("image", [])
    return [images] if isinstance(images, str) else list(images)


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write one record a line, UTF-8; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> list[Record]:
    """Every record of a file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_json(path: Path, value: object) -> None:
    """Write indented JSON aside and rename it: a half-written file is never read.

    ``internvl_chat.files`` has the same; importing the package takes torch and seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def write_meta(path: Path, entries: Sequence[DatasetEntry]) -> None:
    """Write the meta JSON that ``--meta_path`` takes."""
    write_json(path, {entry.name: entry.as_json() for entry in entries})


def read_meta(path: Path) -> list[DatasetEntry]:
    """Read a meta JSON back, in its order."""
    return [
        DatasetEntry(
            name=name,
            root=Path(value["root"]),
            annotation=Path(value["annotation"]),
            length=int(value["length"]),
            repeat_time=value["repeat_time"],
        )
        for name, value in json.loads(path.read_text(encoding="utf-8")).items()
    ]
