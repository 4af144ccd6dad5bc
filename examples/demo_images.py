"""Draw the example images of the demo page.

``python -m examples.demo_images internvl_chat/web/example_images`` writes them, the same every
time: small ones of the kinds that the tiny model knows, a digit as the quickstart teaches it, and
larger ones for a real model. Everything is drawn here; nothing is a photograph or comes from
elsewhere.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.quickstart.digits import Look, Scan, draw_scan
from examples.samples.draw import scene
from examples.tiny_model.charts import sample_chart
from examples.tiny_model.common import stream
from examples.tiny_model.records import draw
from examples.tiny_model.words import sample_sign

SIDE, SCALE = 448, 2
"""Pixels of a larger image's side; drawn twice as large, so that edges are smooth."""
SEED = 3
Rgb = tuple[int, int, int]
INK: Rgb = (38, 38, 46)


class Sheet:
    """An image in the making; places are in pixels of the finished one."""

    def __init__(self, ground: Rgb) -> None:
        self.image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), ground)
        self.pencil = ImageDraw.Draw(self.image)

    def box(self, place: tuple[float, ...], fill: Rgb, radius: float = 0) -> None:
        """A rectangle (x1, y1, x2, y2)."""
        self.pencil.rounded_rectangle([v * SCALE for v in place], radius * SCALE, fill)

    def shape(self, points: Sequence[tuple[float, float]], fill: Rgb) -> None:
        """A polygon."""
        self.pencil.polygon([(x * SCALE, y * SCALE) for x, y in points], fill)

    def disc(self, x: float, y: float, radius: float, fill: Rgb) -> None:
        """A circle."""
        self.pencil.ellipse(
            [v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)], fill
        )

    def text(self, x: float, y: float, text: str, size: float, anchor: str = "la") -> None:
        """One line, placed as Pillow's anchors say."""
        font = ImageFont.load_default(size * SCALE)
        self.pencil.text((x * SCALE, y * SCALE), text, INK, font, anchor=anchor)

    def finished(self) -> Image.Image:
        """RGB, SIDE x SIDE pixels."""
        return self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def street() -> Image.Image:
    """A yellow house, two trees, and a red car on the road before them."""
    sheet = Sheet((176, 214, 240))
    sheet.disc(376, 74, 34, (252, 214, 92))
    for x, y, radius in ((86, 82, 24), (116, 70, 30), (148, 84, 22)):
        sheet.disc(x, y, radius, (248, 250, 252))
    sheet.shape(
        [(0, 250), (130, 176), (250, 236), (360, 168), (448, 226), (448, 320), (0, 320)],
        (138, 184, 128),
    )
    sheet.box((0, 292, SIDE, SIDE), (112, 168, 92))
    sheet.box((150, 186, 296, 312), (240, 206, 118))
    sheet.shape([(136, 192), (223, 122), (310, 192)], (158, 76, 62))
    sheet.box((206, 244, 240, 312), (112, 74, 52), 2)
    for x in (166, 250):
        sheet.box((x, 212, x + 32, 242), (208, 232, 246), 2)
    for x, y in ((66, 300), (372, 304)):
        sheet.box((x - 7, y - 62, x + 7, y), (116, 82, 58))
        for dx, dy in ((-22, -76), (22, -76), (0, -104)):
            sheet.disc(x + dx, y + dy, 32, (62, 128, 72))
    sheet.box((0, 342, SIDE, 420), (98, 100, 108))
    for x in range(14, SIDE, 64):
        sheet.box((x, 379, x + 34, 384), (236, 232, 214))
    sheet.shape([(262, 352), (284, 318), (346, 318), (374, 352)], (196, 44, 44))
    sheet.shape([(274, 350), (290, 325), (314, 325), (314, 350)], (214, 234, 244))
    sheet.shape([(320, 350), (320, 325), (342, 325), (360, 350)], (214, 234, 244))
    sheet.box((238, 350, 396, 386), (208, 48, 46), 10)
    for x in (272, 362):
        sheet.disc(x, 387, 17, (36, 36, 40))
        sheet.disc(x, 387, 8, (196, 198, 202))
    return sheet.finished()


VISITORS = (("Jan", 120), ("Feb", 180), ("Mar", 260), ("Apr", 340), ("May", 310), ("Jun", 410))


def chart() -> Image.Image:
    """Visitors by month as bars with their numbers."""
    sheet = Sheet((252, 252, 250))
    sheet.text(224, 26, "Visitors of the museum", 24, "ma")
    for value in range(0, 500, 100):
        y = 388 - value * 0.68
        sheet.box((58, y, 430, y + 1), (222, 222, 220))
        sheet.text(50, y, str(value), 15, "rm")
    for place, (month, value) in enumerate(VISITORS):
        x, top = 72 + place * 60, 388 - value * 0.68
        sheet.box((x, top, x + 42, 388), (62, 110, 184))
        sheet.text(x + 21, top - 5, str(value), 15, "ms")
        sheet.text(x + 21, 398, month, 17, "ma")
    return sheet.finished()


BOUGHT = (
    ("2 Coffee", 6.40),
    ("1 Apple cake", 3.80),
    ("1 Orange juice", 3.20),
    ("3 Croissant", 7.50),
)


def receipt() -> Image.Image:
    """A cafe's receipt."""
    sheet = Sheet((150, 122, 96))
    sheet.box((66, 22, 382, 430), (250, 249, 244))
    sheet.text(224, 44, "CAFE LINDEN", 28, "ma")
    sheet.text(224, 82, "12 Market Street", 17, "ma")
    sheet.text(224, 106, "Table 7    4 May 2024", 17, "ma")
    y = 150
    for name, price in BOUGHT:
        sheet.text(88, y, name, 20)
        sheet.text(360, y, f"{price:.2f}", 20, "ra")
        y += 36
    sheet.box((88, y + 4, 360, y + 6), INK)
    sheet.text(88, y + 18, "TOTAL", 26)
    sheet.text(360, y + 18, f"{sum(price for _, price in BOUGHT):.2f}", 26, "ra")
    sheet.text(224, 390, "Thank you!", 18, "ma")
    return sheet.finished()


THREE = (
    *((2.2, 1.2), (3.6, 0.6), (5.2, 1.3), (5.1, 2.8), (3.6, 3.8)),
    *((5.3, 4.6), (5.6, 6.1), (4.2, 7.3), (2.2, 6.8)),
)
"""The way of a pen (x, y) over a scan of 8 x 8 pixels."""


def digit() -> Image.Image:
    """A three by hand, as coarse as the scans that the quickstart trains on."""
    scale, radius = 32, 14
    page = Image.new("L", (8 * scale, 8 * scale), 0)
    pencil = ImageDraw.Draw(page)
    points = [(x * scale, y * scale) for x, y in THREE]
    pencil.line(points, 255, 2 * radius, joint="curve")
    for x, y in points:
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    grey = np.asarray(page.resize((8, 8), Image.Resampling.BOX), dtype=float)
    shades = np.rint(np.minimum(grey / 255 * 18, 16))
    return draw_scan(Scan(index=0, shades=shades, digit=3), Look())


def write(folder: Path) -> None:
    """All images; palettes of 128 colours, in which drawings lose nothing that one sees."""
    images = {
        "street": street(),
        "chart": chart(),
        "receipt": receipt(),
        "small_shapes": scene(),
        "small_bars": draw(sample_chart(stream(SEED, "demo bars"))),
        "small_sign": draw(sample_sign(stream(SEED, "demo sign"))),
        "small_digit": digit(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        drawn = image if name.startswith("small") else image.quantize(128)
        drawn.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
