"""Scenes of coloured shapes of three sizes on a plain ground."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from examples.tiny_model.common import BACKGROUNDS, COLOR_NAMES, COLORS, SIDE, Box, Rgb, jitter

KINDS = ("circle", "square", "triangle", "star", "cross", "diamond")
MANY = (0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1)
FEW = (6, 5, 4, 3, 2, 1)
"""How often a scene has one, two, ... shapes. What looks at patches learns most from many; what
answers questions first has to learn to look things up, and does so among few."""
CELLS = 4
"""Cells along a side, at most one shape in each. A cell is what one image token covers (28 pixels):
coarse enough for a tower of three million weights to learn in minutes."""
RADII = (8.0, 10.5, 13.0)
SIZES = ("small", "medium", "large")
_OVERSAMPLE = 2  # drawn larger and averaged down: Pillow's polygons have hard edges


def _polygon(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Scale points so that the longer side of their bounding box runs from -1 to 1."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    mid_x, mid_y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2
    return tuple(((x - mid_x) / half, (y - mid_y) / half) for x, y in points)


def _star(points: int = 5, inner: float = 0.42) -> list[tuple[float, float]]:
    spokes = [(i * math.pi / points, 1.0 if i % 2 == 0 else inner) for i in range(2 * points)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle, radius in spokes]


_ARM = 0.34
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": _polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _polygon([(0, -1), (1.1, 0.9), (-1.1, 0.9)]),
    "star": _polygon(_star()),
    "cross": _polygon(
        [
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        ]
    ),
    "diamond": _polygon([(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A filled shape; x, y is the middle of its box, in pixels."""

    kind: str
    color: str
    x: float
    y: float
    radius: float
    """Half the longer side of the box, in pixels."""
    fill: Rgb

    @property
    def name(self) -> str:
        """Colour and kind, as questions call it."""
        return f"{self.color} {self.kind}"

    @property
    def box(self) -> Box:
        """Tight box in pixels."""
        half_w = half_h = self.radius
        if self.kind != "circle":
            half_w *= max(x for x, _ in OUTLINES[self.kind])
            half_h *= max(y for _, y in OUTLINES[self.kind])
        return self.x - half_w, self.y - half_h, self.x + half_w, self.y + half_h


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image of shapes that do not touch."""

    background: Rgb
    shapes: tuple[Shape, ...]


def sample_scene(rng: random.Random, *, counts: Sequence[int] = FEW) -> Scene:
    """Draw a scene: shapes of three sizes in different cells of a 4 x 4 grid, off their middles.

    Args:
        rng: random stream.
        counts: weights of one, two, ... shapes.
    """
    wished = rng.choices(range(1, len(counts) + 1), weights=counts)[0]
    # Small pools make repeats, so that counts by colour and kind run over 0-6 and not only 0-1.
    colors = rng.sample(COLOR_NAMES, rng.choice((1, 2, 2, 3, 4, 8)))
    kinds = rng.sample(KINDS, rng.choice((1, 2, 2, 3, 4, 6)))
    shapes = [
        _place(rng, cell, rng.choice(kinds), rng.choice(colors))
        for cell in rng.sample(range(CELLS * CELLS), wished)
    ]
    return Scene(background=jitter(rng, rng.choice(BACKGROUNDS), 8), shapes=tuple(shapes))


def _place(rng: random.Random, cell: int, kind: str, color: str) -> Shape:
    """A shape that stays within its cell."""
    radius = rng.choice(RADII)
    row, column = divmod(cell, CELLS)
    slack = SIDE / CELLS / 2 - 0.5 - radius
    x, y = ((at + 0.5) * SIDE / CELLS + rng.uniform(-slack, slack) for at in (column, row))
    fill = jitter(rng, COLORS[color], 14)
    return Shape(kind=kind, color=color, x=x, y=y, radius=radius, fill=fill)


def draw_scene(scene: Scene) -> Image.Image:
    """RGB image of SIDE x SIDE pixels."""
    k = _OVERSAMPLE
    image = Image.new("RGB", (SIDE * k, SIDE * k), scene.background)
    draw = ImageDraw.Draw(image)
    for shape in scene.shapes:
        if shape.kind == "circle":
            draw.ellipse([v * k for v in shape.box], fill=shape.fill)
            continue
        points = [
            ((shape.x + shape.radius * px) * k, (shape.y + shape.radius * py) * k)
            for px, py in OUTLINES[shape.kind]
        ]
        draw.polygon(points, fill=shape.fill)
    return image.reduce(k)
