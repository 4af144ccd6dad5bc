"""Printed words, numbers and codes to read.

Typewriter print: every glyph stands in a cell of 28 pixels, what one image token covers, up to two
pixels off its middle, in Pillow's built-in font. Nothing here looks like one large handwritten
digit, which the quickstart keeps for its own training.
"""

import functools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from examples.tiny_model.common import BACKGROUNDS, COLORS, SIDE, Box, Rgb, jitter
from examples.tiny_model.wordlist import HELD_OUT_WORDS, TRAIN_WORDS

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
MAX_LENGTH = 4
CELL = 28
"""Side of a glyph's cell in pixels; cells are laid out from the image's corner."""
SIZES = (22, 25)
INKS = ("red", "green", "blue", "purple", "black", "white")
"""Colours that stand out on every background also as thin strokes."""
KINDS_OF_LINE = ("word", "number", "code")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of print. ``x``, ``y`` is the left end of its middle, in pixels.

    ``offsets`` moves each glyph off the middle of its cell.
    """

    kind: str
    """``word``, ``number`` or ``code``."""
    text: str
    color: str
    fill: Rgb
    size: int
    bold: bool
    x: float
    y: float
    offsets: tuple[tuple[float, float], ...]

    @property
    def glyph_boxes(self) -> tuple[Box, ...]:
        """The cell of each character (for vision labels)."""
        starts = [self.x + CELL * i for i in range(len(self.text))]
        return tuple((x, self.y - CELL / 2, x + CELL, self.y + CELL / 2) for x in starts)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """An image of one or two lines, the upper one first."""

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
    """One line, or (half of them) a word above a number."""
    two = rng.random() < 0.5
    kinds = (
        ["word", "number"] if two else [rng.choice(("word", "word", "number", "number", "code"))]
    )
    cells = SIDE // CELL
    bands = [range(cells // 2), range(cells // 2, cells)] if two else [range(cells)]
    lines = []
    for kind, band in zip(kinds, bands, strict=True):
        text = sample_text(rng, kind, held_out=held_out)
        lines.append(
            _line(rng, kind, text, column=rng.randint(0, cells - len(text)), row=rng.choice(band))
        )
    return Sign(background=jitter(rng, rng.choice(BACKGROUNDS), 8), lines=tuple(lines))


def sample_glyphs(rng: random.Random) -> Sign:
    """A sheet full of glyphs, each of its own colour: for a vision tower to tell them apart."""
    cells = SIDE // CELL
    lines = [
        _line(rng, "code", rng.choice(LETTERS + DIGITS), column=column, row=row)
        for row in range(cells)
        for column in range(cells)
    ]
    return Sign(background=jitter(rng, rng.choice(BACKGROUNDS), 8), lines=tuple(lines))


def _line(rng: random.Random, kind: str, text: str, *, column: int, row: int) -> Line:
    color = rng.choice(INKS)
    return Line(
        kind=kind,
        text=text,
        color=color,
        fill=jitter(rng, COLORS[color], 12),
        size=rng.choice(SIZES),
        bold=rng.random() < 0.4,
        x=CELL * column,
        y=CELL * (row + 0.5),
        offsets=tuple((rng.uniform(-2, 2), rng.uniform(-2, 2)) for _ in text),
    )


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow without FreeType cannot scale its built-in font")
    return font


def draw_sign(sign: Sign) -> Image.Image:
    """RGB image of SIDE x SIDE pixels."""
    image = Image.new("RGB", (SIDE, SIDE), sign.background)
    draw = ImageDraw.Draw(image)
    for line in sign.lines:
        for i, (glyph, (dx, dy)) in enumerate(zip(line.text, line.offsets, strict=True)):
            draw.text(
                (line.x + CELL * (i + 0.5) + dx, line.y + dy),
                glyph,
                fill=line.fill,
                font=_font(line.size),
                anchor="mm",
                stroke_width=0.6 if line.bold else 0,
            )
    return image
