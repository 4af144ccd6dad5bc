"""Invented records in the format of training data, with images drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (30, 60, 220)}


def record(identity: object, question: str, answer: str, **others: Any) -> dict[str, Any]:
    """One round; ``image`` and what else there is by keyword."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": identity, **others, "conversations": turns}


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """One a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def write_own(root: Path) -> Path:
    """``root/colors.jsonl``: six questions about three images and one about none."""
    for name, color in COLORS.items():
        path = root / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 20), color).save(path)
    asked = "<image>\nWhich color is this?"
    names = ["red", "red", "green", "blue", "red", "blue"]
    records = [
        record(f"c{number}", asked, name, image=f"images/{name}.png", skill="color")
        for number, name in enumerate(names)
    ]
    records.append(record("t0", "What comes after nine?", "ten", skill="text"))
    return write_records(root / "colors.jsonl", records)


def write_own_meta(root: Path) -> Path:
    """``root/meta.json``: ``colors`` as :func:`write_own` has it, and ``boxes`` in pixels."""
    write_own(root)
    boxes = [
        record(
            "b0",
            "<image>\nWhere is it?",
            "<ref>it</ref>[14, 5, 28, 20]",
            image="images/red.png",
            width=28,
            height=20,
        ),
        record(
            "b1",
            "<image>\nWhere is it?",
            "[0, 0, 14, 10]",
            image="images/red.png",
            width=28,
            height=20,
        ),
    ]
    write_records(root / "boxes.jsonl", boxes)
    entry = {"root": str(root), "data_augment": False, "repeat_time": 1}
    meta = {
        "colors": {**entry, "annotation": str(root / "colors.jsonl"), "length": 7},
        "boxes": {
            **entry,
            "annotation": str(root / "boxes.jsonl"),
            "length": 2,
            "box_format": "pixel_to_1000",
        },
    }
    path = root / "meta.json"
    path.write_text(json.dumps(meta), encoding="utf-8")
    return path
