"""What the image generators share: the side, colours, random streams, box text, questions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

SIDE = 112
"""Width and height of every image, in pixels."""

Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

COLORS: dict[str, Rgb] = {
    "red": (216, 32, 32),
    "green": (34, 150, 48),
    "blue": (32, 72, 214),
    "yellow": (240, 214, 32),
    "orange": (244, 132, 18),
    "purple": (138, 48, 168),
    "black": (18, 18, 22),
    "white": (250, 250, 250),
}
COLOR_NAMES = tuple(COLORS)
# Neither near black nor near white nor saturated: every colour above stands out on each of them.
BACKGROUNDS: tuple[Rgb, ...] = (
    (172, 172, 172),
    (150, 158, 168),
    (190, 184, 172),
    (164, 178, 164),
    (186, 170, 170),
    (136, 138, 144),
    (196, 200, 204),
)
BOX_GRID = 10
"""Boxes are given to one hundredth of the side: multiples of 10 on the 0-1000 scale."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about an image, its answer and what a scorer needs to know."""

    text: str
    answer: str
    skill: str
    """Name of the skill; held-out accuracy is reported by it."""
    fact: str = ""
    """What the answer tells. Within a record no two questions share a fact, because the second
    could be answered by copying instead of looking. Empty: the text itself."""


def stream(seed: int, *key: object) -> random.Random:
    """Random stream of one record, independent of every other key and of the process.

    Strings are hashed with SHA-512 by :class:`random.Random`, so this is stable between runs.
    """
    return random.Random("/".join(str(part) for part in (seed, *key)))


def jitter(rng: random.Random, color: Rgb, amount: int) -> Rgb:
    """Move each channel by up to ``amount``, staying within 0-255."""
    red, green, blue = (min(255, max(0, c + rng.randint(-amount, amount))) for c in color)
    return red, green, blue


def unit_box(box: Box, side: int = SIDE) -> tuple[int, int, int, int]:
    """Pixels to the 0-1000 scale, to the nearest multiple of ``BOX_GRID``."""
    scale = 1000 / side / BOX_GRID
    x1, y1, x2, y2 = (min(1000, max(0, BOX_GRID * round(v * scale))) for v in box)
    return x1, y1, x2, y2


def box_text(boxes: Sequence[Box]) -> str:
    """``<box>[[x1, y1, x2, y2]]</box>``, several boxes in one list.

    >>> box_text([(0.0, 11.2, 56.0, 112.0)])
    '<box>[[0, 100, 500, 1000]]</box>'
    """
    inner = ", ".join("[{}, {}, {}, {}]".format(*unit_box(box)) for box in boxes)
    return f"<box>[{inner}]</box>"


def with_article(name: str) -> str:
    """``a red star``, ``an orange star``."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def pick(rng: random.Random, *choices: str) -> str:
    """One of several wordings."""
    return choices[rng.randrange(len(choices))]
