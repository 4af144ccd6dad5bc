"""Draw the images of docs/custom_dataset.md and the table of questions about them.

``python -m examples.own_data.draw examples/own_data`` writes ``photos/*.png`` and
``questions.csv``, the same every time. The shipped tiny model knows colours and shapes, but not the
names of the bins.
"""

import argparse
import csv
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 112
BINS = {"red": "metal", "blue": "paper", "green": "glass", "yellow": "plastic"}
COLOURS = {
    "red": (220, 40, 40),
    "blue": (40, 80, 220),
    "green": (40, 160, 60),
    "yellow": (240, 210, 40),
}
SHAPES = ("circle", "square", "triangle")
QUESTIONS = ("Which bin does this go to?", "Where do I throw this away?", "Name the right bin.")
NUM_EACH = 5
"""Images of each colour and shape."""


def draw(colour: str, shape: str, generator: random.Random) -> Image.Image:
    """One shape, moved and scaled at random, on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    half = generator.randint(18, 36)
    x, y = (generator.randint(half + 4, SIDE - half - 4) for _ in range(2))
    box = (x - half, y - half, x + half, y + half)
    pencil = ImageDraw.Draw(image)
    if shape == "circle":
        pencil.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pencil.rectangle(box, fill=COLOURS[colour])
    else:
        pencil.polygon(((x, y - half), (x + half, y + half), (x - half, y + half)), COLOURS[colour])
    return image


def main(argv: Sequence[str] | None = None) -> None:
    """Write the images and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    generator, rows = random.Random(7), []
    for colour, answer in BINS.items():
        for number in range(NUM_EACH * len(SHAPES)):
            name = f"{colour}_{number:02d}.png"
            image = draw(colour, SHAPES[number % len(SHAPES)], generator)
            image.save(folder / "photos" / name, optimize=True)
            rows.append((name, QUESTIONS[number % len(QUESTIONS)], answer))
    with open(folder / "questions.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "question", "answer"))
        table.writerows(rows)


if __name__ == "__main__":
    main()
