"""What each image token shows, asked token by token: the first thing a projector has to learn.

An answer holds one piece for each of the 16 image tokens, in their order, so the token that is
being described stands at a fixed distance before the piece that describes it. That is the easiest
thing for attention to find; looking things up by colour or kind comes after.
"""

import random
from dataclasses import dataclass

from PIL import Image

from playground.demo.charts import MAX_VALUE, Chart, draw_chart, sample_chart
from playground.demo.common import SIDE
from playground.demo.scene import CELLS, MANY, Scene, draw_scene, sample_scene
from playground.demo.words import CELL, Sign, draw_sign, sample_sign

NOTHING = "."
_CELL_SIDE = SIDE / CELLS
_QUARTERS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class CellQuestion:
    """A question whose answer is one word (or character) for each image token."""

    text: str
    answer: tuple[str, ...]


def token_at(x: float, y: float) -> int:
    """Which image token covers a pixel. Pixel shuffle v1 orders them column by column."""
    column, row = (min(CELLS - 1, int(v // _CELL_SIDE)) for v in (x, y))
    return column * CELLS + row


def scene_cells(scene: Scene) -> list[CellQuestion]:
    """Colour and kind of the shape in each cell."""
    colors, kinds = [NOTHING] * CELLS**2, [NOTHING] * CELLS**2
    for shape in scene.shapes:
        token = token_at(shape.x, shape.y)
        colors[token], kinds[token] = shape.color, shape.kind
    return [
        CellQuestion("Color of each cell?", tuple(colors)),
        CellQuestion("Shape in each cell?", tuple(kinds)),
    ]


def chart_cells(chart: Chart) -> list[CellQuestion]:
    """Colour and value of the bar in each cell's column; a value of ten is written X."""
    colors, values = [NOTHING] * CELLS**2, [NOTHING] * CELLS**2
    for bar in chart.bars:
        for row in range(CELLS):
            token = token_at((bar.box[0] + bar.box[2]) / 2, (row + 0.5) * _CELL_SIDE)
            colors[token] = bar.color
            values[token] = "X" if bar.value == MAX_VALUE else str(bar.value)
    return [
        CellQuestion("Color of each bar by cell?", tuple(colors)),
        CellQuestion("Value of each cell?", tuple(values)),
    ]


def sign_cells(sign: Sign) -> list[CellQuestion]:
    """The glyph in each quarter of each cell."""
    glyphs = [[NOTHING] * CELLS**2 for _ in _QUARTERS]
    for line in sign.lines:
        for glyph, box in zip(line.text, line.glyph_boxes, strict=True):
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            quarter = int(y // CELL) % 2 * 2 + int(x // CELL) % 2
            glyphs[quarter][token_at(x, y)] = glyph
    return [
        CellQuestion(f"{name} letter of each cell?", tuple(glyphs[i]))
        for i, name in enumerate(_QUARTERS)
    ]


def cell_sample(rng: random.Random) -> tuple[Image.Image, list[CellQuestion]]:
    """A picture and all its cell questions, in random order."""
    family = rng.random()
    if family < 0.45:
        scene = sample_scene(rng, counts=MANY)
        image, questions = draw_scene(scene), scene_cells(scene)
    elif family < 0.65:
        chart = sample_chart(rng)
        image, questions = draw_chart(chart), chart_cells(chart)
    else:
        sign = sample_sign(rng)
        image, questions = draw_sign(sign), sign_cells(sign)
    rng.shuffle(questions)
    return image, questions
