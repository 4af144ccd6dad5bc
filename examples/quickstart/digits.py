"""The custom dataset: scikit-learn's 1,797 scans of handwritten digits, as images and questions.

The scans are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
1998, UCI Machine Learning Repository, CC BY 4.0), 8x8 pixels with 17 shades, shipped inside
scikit-learn. 1,400 of them are trained on, the other 397 are only ever asked about.

This file is also the example of how to author a dataset: :func:`write_digits` writes images and
one JSON line for each question, and returns what the meta JSON needs to know.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.annotations import DatasetEntry, Record, image_record, write_jsonl
from examples.tiny_model.common import SIDE

NUM_TRAIN = 1400
DATASET = "digits"
QUESTIONS = (
    "Which digit is this?",
    "What digit is written?",
    "Read the digit.",
    "What is the digit?",
    "Which number from 0 to 9 is this?",
)
"""The same question in several words, so that the model learns the task and not the sentence."""
_MAX_SHADE = 16
_CELL = 11
"""Pixels of the image for one pixel of the scan."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One handwritten digit."""

    index: int
    """Position in scikit-learn's dataset: names the image files."""
    shades: NDArray[np.float64]
    """(8, 8), ink from 0 (none) to 16."""
    digit: int


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a scan is turned into an image; the default is how held-out scans are shown."""

    ink: int = 30
    """Grey level (0-255) of full ink."""
    paper: int = 235
    shift: tuple[float, float] = (0.0, 0.0)
    """To the right and down, in pixels of the written image."""
    zoom: float = 1.0
    degrees: float = 0.0
    """Turned counter-clockwise about the middle."""


def split_scans(seed: int, num_train: int = NUM_TRAIN) -> tuple[list[Scan], list[Scan]]:
    """All scans in a seeded order, cut into (train, held out). No scan is in both."""
    from sklearn.datasets import load_digits  # two seconds, and only needed to write the data

    digits = load_digits()
    order = list(range(len(digits.target)))
    random.Random(f"{seed}/digits/split").shuffle(order)
    scans = [Scan(index=i, shades=digits.images[i], digit=int(digits.target[i])) for i in order]
    return scans[:num_train], scans[num_train:]


def sample_look(rng: random.Random) -> Look:
    """A small change of place, size, slant and shade, light or dark ink.

    1,400 scans are few: every scan is written several times, each time looking a little different.
    """
    ink, paper = rng.randint(0, 70), rng.randint(190, 255)
    return Look(
        ink=ink,
        paper=paper,
        shift=(rng.uniform(-4, 4), rng.uniform(-4, 4)),
        zoom=rng.uniform(0.92, 1.08),
        degrees=rng.uniform(-6, 6),
    )


def draw_scan(scan: Scan, look: Look) -> Image.Image:
    """RGB image of SIDE x SIDE pixels: the enlarged scan on a sheet, with a margin around it."""
    shades = np.rint(scan.shades * (255 / _MAX_SHADE)).astype(np.uint8)
    framed = Image.fromarray(np.pad(shades, 1))  # strokes that touch the border fade out there
    side = _CELL * framed.width
    sheet = Image.new("L", (SIDE, SIDE), 0)
    margin = (SIDE - side) // 2
    sheet.paste(framed.resize((side, side), Image.Resampling.BICUBIC), (margin, margin))
    placed = sheet.transform(
        sheet.size, Image.Transform.AFFINE, _affine(look), resample=Image.Resampling.BILINEAR
    )
    ink = np.asarray(placed, dtype=np.float32) / 255
    grey = look.paper + (look.ink - look.paper) * ink
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _affine(look: Look) -> tuple[float, float, float, float, float, float]:
    """Pillow's coefficients: from a pixel of the result back to one of the sheet.

    With M the middle, the result's point M + shift + zoom * turn(v) shows the sheet's M + v.
    """
    angle, middle = math.radians(look.degrees), SIDE / 2
    cos, sin = math.cos(angle) / look.zoom, math.sin(angle) / look.zoom
    x, y = middle + look.shift[0], middle + look.shift[1]
    return cos, -sin, middle - cos * x + sin * y, sin, cos, middle - sin * x - cos * y


def record_of(scan: Scan, image: str, question: str) -> Record:
    """One line of the annotation file; ``image`` is relative to the dataset's root."""
    identity = f"{DATASET}-{Path(image).stem}"
    return image_record(identity, [image], SIDE, [(question, str(scan.digit))])


def write_digits(
    root: Path, annotations: Path, *, seed: int, looks: int, num_train: int, num_held_out: int
) -> tuple[DatasetEntry, DatasetEntry]:
    """Write the images under ``root`` and one annotation file for each of the two splits.

    Args:
        root: folder that the records' ``image`` paths are relative to.
        annotations: folder of the ``.jsonl`` files.
        seed: of the split, the looks and the wordings.
        looks: images written of every training scan; the first is plain.
        num_train: training scans, at most 1,400.
        num_held_out: held-out scans, at most 397.

    Returns:
        The meta JSON's entries of the training and the held-out file.
    """
    train, held_out = split_scans(seed)
    rng = random.Random(f"{seed}/digits/looks")
    lines: dict[str, list[Record]] = {"train": [], "heldout": []}
    (root / DATASET).mkdir(parents=True, exist_ok=True)
    for scan in train[:num_train]:
        for look in range(looks):
            image = f"{DATASET}/{scan.index:04d}_{look}.png"
            drawn = draw_scan(scan, sample_look(rng) if look else Look())
            drawn.save(root / image, compress_level=1)
            lines["train"].append(record_of(scan, image, rng.choice(QUESTIONS)))
    for scan in held_out[:num_held_out]:
        image = f"{DATASET}/{scan.index:04d}_heldout.png"
        draw_scan(scan, Look()).save(root / image, compress_level=1)
        lines["heldout"].append(record_of(scan, image, rng.choice(QUESTIONS)))
    entries = []
    for split, records in lines.items():
        annotation = annotations / f"{DATASET}_{split}.jsonl"
        length = write_jsonl(annotation, records)
        entries.append(DatasetEntry(name=DATASET, root=root, annotation=annotation, length=length))
    return entries[0], entries[1]
