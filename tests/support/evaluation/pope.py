"""A dozen POPE questions about drawn images, in the layout of the release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 230)}
CATEGORIES = ("random", "popular", "adversarial")
INSTRUCTION = "Answer the question using a single word or phrase."


def write_pope(root: Path, *, num_images: int = 4) -> None:
    """``data/pope`` with a question a category and image; every other one is to be answered yes.

    Questions differ in length, so that batches are padded.
    """
    folder = root / "data/pope"
    (folder / "val2014").mkdir(parents=True)
    (folder / "coco").mkdir()
    questions: list[dict[str, Any]] = []
    labels: dict[str, list[dict[str, Any]]] = {name: [] for name in CATEGORIES}
    for number in range(num_images):
        name, colour = f"COCO_val2014_{number:012d}.jpg", sorted(COLOURS)[number % 3]
        _draw(colour, 90 + 11 * number).save(folder / "val2014" / name, quality=95)
        for place, category in enumerate(CATEGORIES):
            asked = colour if (number + place) % 2 == 0 else sorted(COLOURS)[(number + 1) % 3]
            padding = " in the whole of this image" * ((number * 3 + place) % 4)
            questions.append(
                {
                    "question_id": len(questions),
                    "image": name,
                    "text": f"Is there a {asked} circle{padding}?\n{INSTRUCTION}",
                    "category": category,
                }
            )
            labels[category].append(
                {"question_id": number + 1, "label": "yes" if asked == colour else "no"}
            )
    _write_lines(folder / "llava_pope_test.jsonl", questions)
    for category, rows in labels.items():
        _write_lines(folder / f"coco/coco_pope_{category}.json", rows)


def _draw(colour: str, width: int) -> Image.Image:
    image = Image.new("RGB", (width, 80), (240, 240, 235))
    ImageDraw.Draw(image).ellipse((15, 10, 70, 65), fill=COLOURS[colour])
    return image


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
