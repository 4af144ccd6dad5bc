"""Histograms laid out for SVG. Pure: numbers in, places out; colours and fonts are the page's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from internvl_chat.data.report.tallies import Tally

WIDE: Final = (1120, 250)
SMALL: Final = (460, 190)
"""(width, height) of a chart in SVG units, which are its pixels at full size."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 28, 40
_FEWEST_BINS: Final = 12
"""Less wide than the chart: three bars across all of it say less than three narrow ones."""
_LEAST_HEIGHT: Final = 1.5
"""Of a bar that stands for at least one record."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Records with values from ``first`` to ``last``."""

    x: float
    y: float
    width: float
    height: float
    first: int
    last: int
    num_records: int


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label of an axis."""

    place: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A chart; its plot's edges, bars and labels."""

    title: str
    x_label: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit: float | None
    """Where ``max_seq_length`` lies, if anything reaches near it."""
    summary: str


def histogram(
    tally: Tally,
    *,
    title: str,
    x_label: str,
    size: tuple[int, int],
    limit: int | None = None,
) -> Histogram | None:
    """Lay a histogram out; None where there is no record.

    Args:
        tally: what to count.
        title: whose.
        x_label: name and unit of the values.
        size: WIDE or SMALL.
        limit: a value to be marked.
    """
    if not tally.num_records:
        return None
    width, height = size
    left, right, top, bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM
    step = bin_width(tally.lowest, tally.largest, most=60 if size == WIDE else 30)
    high = (tally.largest // step + 1) * step
    low = max(min(tally.lowest // step * step, high - _FEWEST_BINS * step), 0)
    high = max(high, low + _FEWEST_BINS * step)
    counts = _binned(tally.counts, step)[low // step : high // step]
    x_scale = (right - left) / (high - low)
    y_ticks = nice_ticks(int(counts.max()))
    y_scale = (bottom - top) / y_ticks[-1]
    has_limit = limit is not None and low <= limit <= high
    return Histogram(
        title=title,
        x_label=x_label,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        bars=tuple(
            Bar(
                x=round(left + number * step * x_scale + 0.5, 2),
                y=round(bottom - max(count * y_scale, _LEAST_HEIGHT), 2),
                width=round(max(step * x_scale - 1, 1), 2),
                height=round(max(count * y_scale, _LEAST_HEIGHT), 2),
                first=low + number * step,
                last=low + (number + 1) * step - 1,
                num_records=count,
            )
            for number, count in enumerate(counts.tolist())
            if count
        ),
        x_ticks=_x_ticks(low, high, step, left, x_scale),
        y_ticks=tuple(Tick(place=bottom - v * y_scale, label=short_number(v)) for v in y_ticks),
        limit=round(left + (limit - low) * x_scale, 2) if limit is not None and has_limit else None,
        summary=f"median {tally.quantile(0.5):,}, 95 % up to {tally.quantile(0.95):,}, "
        f"largest {tally.largest:,}",
    )


def bin_width(lowest: int, largest: int, *, most: int) -> int:
    """The least of 1, 2, 5, 10, … by which at most ``most`` bins hold the values.

    >>> bin_width(0, 2047, most=60)
    50
    """
    power = 1
    while True:
        for factor in (1, 2, 5):
            step = factor * power
            if largest // step - lowest // step < most:
                return step
        power *= 10


def nice_ticks(largest: int) -> list[int]:
    """About four whole numbers from 0 on; the last reaches nearly or just over ``largest``.

    >>> nice_ticks(37)
    [0, 10, 20, 30, 40]
    """
    rough = max(largest / 4, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * number for number in range(math.ceil(largest / step) + 1)]


def short_number(value: int) -> str:
    """Of an axis.

    >>> [short_number(value) for value in (950, 1500, 20000, 3_000_000)]
    ['950', '1.5k', '20k', '3M']
    """
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return str(value)


def _binned(counts: np.ndarray, step: int) -> np.ndarray:
    padded = np.zeros(math.ceil(len(counts) / step) * step, dtype=np.int64)
    padded[: len(counts)] = counts
    return padded.reshape(-1, step).sum(axis=1)


def _x_ticks(low: int, high: int, step: int, left: float, scale: float) -> tuple[Tick, ...]:
    """Whole values stand below the middle of their bar, others at their place."""
    wanted = max((high - low) * scale / 70, 2)
    ticks_apart = step * _nice_factor((high - low) / step / wanted)
    shift = scale / 2 if step == 1 else 0
    first = math.ceil(low / ticks_apart) * ticks_apart
    last = high - 1 if step == 1 else high
    return tuple(
        Tick(place=round(left + (value - low) * scale + shift, 2), label=f"{value:,}")
        for value in range(first, last + 1, ticks_apart)
    )


def _nice_factor(rough: float) -> int:
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= rough:
                return factor * power
        power *= 10
