"""Releases of benchmarks whose answers are judged."""

from __future__ import annotations

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.releases.release import (
    Layout,
    Release,
    jsonl,
    linked,
)
from internvl_chat.evaluation.sources import read_json, require


def mmvet(release: Release) -> Layout:
    """From ``mm-vet.json``: ``v1_{number}`` -> imagename, question, answer, capability."""
    path = release.file("mm-vet.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError("is no JSON object", where=str(path))
    rows = []
    for name, record in content.items():
        where = f"{path}, {name}"
        prefix, _, number = name.partition("_")
        if prefix != "v1" or not number.isdecimal():
            raise DatasetError("want v1_0, v1_1, ...", where=where)
        image, text = require(record, "imagename", where), require(record, "question", where)
        rows.append({"question_id": int(number), "image": image, "text": text})
    images = linked(release, {"data/mm-vet/images": ["images"]})
    return Layout(
        {"data/mm-vet/llava-mm-vet.jsonl": jsonl(rows)},
        {"data/mm-vet/mm-vet.json": path, **images},
    )
