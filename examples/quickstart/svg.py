"""Charts as inline SVG. Pure: numbers in, markup out; colours are CSS variables of the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 560, 300
PHONE_WIDTH, PHONE_HEIGHT = 330, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 20, 40  # margins in SVG units


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    points: tuple[Point, ...]
    color: str
    """A CSS colour."""
    width: float = 2.0
    opacity: float = 1.0


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About ``wanted`` round numbers (1, 2 or 5 times a power of ten) from low to high.

    >>> nice_ticks(0, 2.3)
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(f for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def smoothed(points: Sequence[Point], half_width: int) -> tuple[Point, ...]:
    """Mean over up to ``half_width`` neighbours on either side, as many on one as on the other."""
    values = [value for _, value in points]
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half_width, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        result.append((x, sum(window) / len(window)))
    return tuple(result)


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, on_phone: bool = False
) -> str:
    """An ``<svg>`` of lines over common axes, the y axis starting at zero.

    Points are also given as hover text. Without any point a sentence says so.

    Args:
        series: the lines.
        title, x_label, y_label: words beside them.
        on_phone: for a screen of about 390 pixels; the page's style shows one of the two.
    """
    width, height = (PHONE_WIDTH, PHONE_HEIGHT) if on_phone else (WIDTH, HEIGHT)
    kind = "on-phone" if on_phone else "on-wide"
    points = [point for one in series for point in one.points]
    if not points:
        return f'<p class="chart {kind}">{escape(title)}: nothing was logged.</p>'
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = max(y for _, y in points) * 1.04 or 1.0

    def place(point: Point) -> Point:
        share = (point[0] - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        x = _LEFT + share * (width - _LEFT - _RIGHT)
        return x, height - _BOTTOM - point[1] / y_high * (height - _TOP - _BOTTOM)

    right, base = width - _RIGHT, height - _BOTTOM
    parts = [
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">'
    ]
    for tick in nice_ticks(0, y_high):
        y = place((x_low, tick))[1]
        line = f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        parts += [line, _text(_LEFT - 7, y + 4, f"{tick:g}", "end")]
    for tick in nice_ticks(x_low, x_high, 4 if on_phone else 6):
        parts.append(_text(place((tick, 0))[0], base + 17, f"{tick:g}", "middle"))
    parts += [_text(right, height - 3, x_label, "end"), _text(_LEFT, _TOP - 2, y_label, "start")]
    parts += [_line(one, [place(point) for point in one.points]) for one in series]
    parts.append("</svg>")
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _line(series: Series, placed: Sequence[Point]) -> str:
    if not placed:
        return ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    line = (
        f'<polyline points="{path}" style="stroke:{series.color};'
        f'stroke-width:{series.width};opacity:{series.opacity}"/>'
    )
    if len(placed) > 60:
        return line
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" style="fill:{series.color}">'
        f"<title>{escape(series.name)}, step {x:g}: {y:.3f}</title></circle>"
        for (px, py), (x, y) in zip(placed, series.points, strict=True)
    )
    return line + dots


def legend(series: Sequence[Series]) -> str:
    """Names beside their colours."""
    items = "".join(
        f'<li><i style="background:{one.color};opacity:{one.opacity}"></i>{escape(one.name)}</li>'
        for one in series
    )
    return f'<ul class="legend">{items}</ul>'


def before_after_bar(before: float, after: float, tone: str) -> str:
    """A row of the table as an image: a hollow mark before, a full one after.

    Args:
        before, after: shares (0-1).
        tone: class of the image, which gives its colour.
    """
    x1, x2 = 6 + 188 * before, 6 + 188 * after
    return (
        f'<svg class="shift {tone}" viewBox="0 0 200 16" aria-hidden="true">'
        '<line class="grid" x1="6" y1="8" x2="194" y2="8"/>'
        f'<line class="move" x1="{x1:.1f}" y1="8" x2="{x2:.1f}" y2="8"/>'
        f'<circle class="was" cx="{x1:.1f}" cy="8" r="4"/>'
        f'<circle class="is" cx="{x2:.1f}" cy="8" r="5"/></svg>'
    )


def loss_series(log: Sequence[Mapping[str, float]], key: str, *, name: str, color: str) -> Series:
    """The values that ``key`` had in a ``log_history``, by step."""
    points = tuple((entry["step"], entry[key]) for entry in log if key in entry)
    return Series(name=name, points=points, color=color)
