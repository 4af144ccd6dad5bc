"""Bar charts: two to four coloured bars over a labelled axis from 0 to 10."""

import functools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from examples.tiny_model.common import BACKGROUNDS, COLOR_NAMES, COLORS, SIDE, Box, Rgb, jitter

MAX_VALUE = 10
MAX_BARS = 4
_TICKS = (0, 2, 4, 6, 8, 10)
_PITCH = SIDE / MAX_BARS


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its colour, its whole-number value, and where it stands (pixels)."""

    color: str
    value: int
    fill: Rgb
    box: Box


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars from left to right; ``bottom`` and ``unit`` place the axis (pixels)."""

    background: Rgb
    bars: tuple[Bar, ...]
    left: int
    bottom: int
    unit: float
    """Height of one unit in pixels."""


def sample_chart(rng: random.Random) -> Chart:
    """Draw a chart; colours within one chart are different, values may repeat."""
    count = rng.randint(2, MAX_BARS)
    left, bottom, unit = 13, 105, 9.6
    colors = rng.sample(COLOR_NAMES, count)
    slots = sorted(rng.sample(range(MAX_BARS), count))
    width = rng.uniform(9.0, 13.0)
    bars = []
    for slot, color in zip(slots, colors, strict=True):
        value = rng.randint(1, MAX_VALUE)
        x = _PITCH * (slot + 0.75)  # every second column of patches
        box = (x - width / 2, bottom - unit * value, x + width / 2, float(bottom))
        bars.append(Bar(color=color, value=value, fill=jitter(rng, COLORS[color], 14), box=box))
    background = jitter(rng, rng.choice(BACKGROUNDS), 8)
    return Chart(background=background, bars=tuple(bars), left=left, bottom=bottom, unit=unit)


@functools.cache
def _label_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(9)


def draw_chart(chart: Chart) -> Image.Image:
    """RGB image of SIDE x SIDE pixels, a grid line and a number at every second unit."""
    image = Image.new("RGB", (SIDE, SIDE), chart.background)
    draw = ImageDraw.Draw(image)
    ink = (40, 40, 44)
    line = (104, 104, 108)
    for tick in _TICKS:
        y = chart.bottom - round(chart.unit * tick)
        draw.line([(chart.left, y), (SIDE - 2, y)], fill=line)
        draw.text((chart.left - 2, y), str(tick), fill=ink, font=_label_font(), anchor="rm")
    for bar in chart.bars:
        draw.rectangle([round(v) for v in bar.box], fill=bar.fill)
    draw.line([(chart.left, 4), (chart.left, chart.bottom)], fill=ink)
    draw.line([(chart.left, chart.bottom), (SIDE - 2, chart.bottom)], fill=ink)
    return image
