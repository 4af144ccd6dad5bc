"""Printed words, numbers and codes to read.

Glyphs are at most 26 pixels high and come from Pillow's built-in font: nothing here looks like one
large handwritten digit, which the quickstart keeps for its own training.
"""

import functools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from playground.demo.common import BACKGROUNDS, COLORS, SIDE, Box, Rgb, jitter
from playground.demo.wordlist import HELD_OUT_WORDS, TRAIN_WORDS

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
MAX_LENGTH = 6
SIZES = (20, 22, 24, 26)
INKS = ("red", "green", "blue", "purple", "black", "white")
"""Colours that stand out on every background also as thin strokes."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of print. ``x``, ``y`` is the left end of its middle, in pixels."""

    kind: str
    """``word``, ``number`` or ``code``."""
    text: str
    color: str
    fill: Rgb
    size: int
    bold: bool
    x: float
    y: float

    @property
    def glyph_boxes(self) -> tuple[Box, ...]:
        """A box for each character: its advance wide, the size high (for vision labels)."""
        font = _font(self.size)
        ends = [self.x + font.getlength(self.text[: i + 1]) for i in range(len(self.text))]
        starts = [self.x, *ends[:-1]]
        half = 0.4 * self.size
        return tuple(
            (a, self.y - half, b, self.y + half) for a, b in zip(starts, ends, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A picture of one or two lines, the upper one first."""

    background: Rgb
    lines: tuple[Line, ...]


def is_held_out_number(number: int) -> bool:
    """Numbers of two and more digits that training never shows (about a seventh)."""
    return number >= 10 and number % 7 == 3


def sample_text(rng: random.Random, kind: str, *, held_out: bool) -> str:
    """A word, number or code; ``held_out`` words and numbers never occur in training."""
    if kind == "word":
        return rng.choice(HELD_OUT_WORDS if held_out else TRAIN_WORDS)
    if kind == "code":
        return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 4)))
    while True:
        digits = rng.randint(2, 4) if held_out else rng.randint(1, 4)
        number = rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
        if is_held_out_number(number) == held_out:
            return str(number)


def sample_sign(rng: random.Random, *, held_out: bool = False) -> Sign:
    """One line, or (three in ten) a word above a number."""
    two = rng.random() < 0.3
    kinds = (
        ["word", "number"] if two else [rng.choice(("word", "word", "number", "number", "code"))]
    )
    bands = [(18.0, 44.0), (68.0, 94.0)] if two else [(18.0, 94.0)]
    lines = []
    for kind, band in zip(kinds, bands, strict=True):
        text = sample_text(rng, kind, held_out=held_out)
        color = rng.choice(INKS)
        size, width = _fitting_size(rng, text)
        lines.append(
            Line(
                kind=kind,
                text=text,
                color=color,
                fill=jitter(rng, COLORS[color], 12),
                size=size,
                bold=rng.random() < 0.4,
                x=rng.uniform(4, SIDE - 4 - width),
                y=rng.uniform(*band),
            )
        )
    return Sign(background=jitter(rng, rng.choice(BACKGROUNDS), 8), lines=tuple(lines))


def _fitting_size(rng: random.Random, text: str) -> tuple[int, float]:
    """A size at which the text fits, and its width in pixels."""
    widths = {size: _font(size).getlength(text) for size in SIZES}
    fitting = [size for size in SIZES if widths[size] <= SIDE - 10]
    size = rng.choice(fitting)
    return size, widths[size]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow without FreeType cannot scale its built-in font")
    return font


def draw_sign(sign: Sign) -> Image.Image:
    """RGB picture of SIDE x SIDE pixels."""
    image = Image.new("RGB", (SIDE, SIDE), sign.background)
    draw = ImageDraw.Draw(image)
    for line in sign.lines:
        draw.text(
            (line.x, line.y),
            line.text,
            fill=line.fill,
            font=_font(line.size),
            anchor="lm",
            stroke_width=0.5 if line.bold else 0,
        )
    return image
