"""Releases of RefCOCO, RefCOCO+ and RefCOCOg: pickled references and COCO's instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.data.plain_pickle import read_plain_pickle
from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.releases.release import (
    Layout,
    Reader,
    Release,
    jsonl,
    linked,
    rows_of,
)
from internvl_chat.evaluation.sources import read_json, require

IMAGES = "data/coco/train2014"
_AUTHORS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Set -> whose split of it the evaluator takes; in the name of the file of references."""


def refcoco(*splits: str) -> Reader:
    """From ``{set}/refs({author}).p`` and ``{set}/instances.json``; a question per sentence.

    Args:
        splits: ``refcoco_val``, ``refcocog_test`` and so on.
    """

    def read(release: Release) -> Layout:
        by_set: dict[str, list[str]] = {}
        for one in splits:
            name, _, part = one.partition("_")
            by_set.setdefault(name, []).append(part)
        files: dict[str, str | bytes] = {}
        for name, parts in by_set.items():
            found = _rows(release, name, parts)
            for part, rows in found.items():
                files[f"data/refcoco/{name}_{part}.jsonl"] = jsonl(rows)
        return Layout(files, linked(release, {IMAGES: ["train2014"]}))

    return read


def _rows(release: Release, name: str, parts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    references = release.file(f"{name}/refs({_AUTHORS[name]}).p")
    instances = release.file(f"{name}/instances.json")
    content = read_json(instances)
    boxes = _by_id(content, "annotations", instances)
    images = _by_id(content, "images", instances)
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for record, where in rows_of(read_plain_pickle(references), None, references):
        split = require(record, "split", where)
        if split not in rows:
            continue
        box = _box(_of(boxes, record, "ann_id", where, instances), where)
        image = _of(images, record, "image_id", where, instances)
        for sentence in _sentences(record, where):
            rows[split].append(
                {
                    "image": f"{IMAGES}/{require(image, 'file_name', where)}",
                    "sent": sentence,
                    "bbox": box,
                    "height": require(image, "height", where),
                    "width": require(image, "width", where),
                }
            )
    empty = [part for part in parts if not rows[part]]
    if empty:
        raise DatasetError(f"holds no reference of the split {empty[0]}", where=str(references))
    return rows


def _by_id(content: Any, name: str, path: Path) -> dict[Any, dict[str, Any]]:
    return {require(one, "id", where): one for one, where in rows_of(content, name, path)}


def _of(
    table: dict[Any, dict[str, Any]], record: dict[str, Any], name: str, where: str, path: Path
) -> dict[str, Any]:
    identity = require(record, name, where)
    if not isinstance(identity, int | str) or identity not in table:
        raise DatasetError(f"{path} has no {name} {identity!r:.40}", where=where)
    return table[identity]


def _box(annotation: dict[str, Any], where: str) -> list[float]:
    """Corners of a box that COCO holds as corner and size."""
    box = require(annotation, "bbox", where)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(x) for x in box):
        raise DatasetError(f"its box is {box!r:.80}, want [x, y, width, height]", where=where)
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sentences(record: dict[str, Any], where: str) -> Iterator[str]:
    sentences = require(record, "sentences", where)
    if not isinstance(sentences, list | tuple):
        raise DatasetError('"sentences" is no list', where=where)
    for one in sentences:
        text = one.get("sent") if isinstance(one, dict) else None
        if not isinstance(text, str):
            raise DatasetError('a sentence has no text "sent"', where=where)
        yield text
