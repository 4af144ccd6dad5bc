"""Histograms laid out."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from internvl_chat.data.report import charts, page
from internvl_chat.data.report.charts import SMALL, WIDE, bin_width, histogram, nice_ticks
from internvl_chat.data.report.tallies import tally


def chart(values: list[int], **options: object) -> charts.Histogram:
    numbers = np.array(values)
    given = {"title": "t", "x_label": "tokens", "size": WIDE, **options}
    found = histogram(tally(numbers, numbers), **given)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_examples() -> None:
    assert doctest.testmod(charts).failed == 0
    assert doctest.testmod(page).failed == 0


def test_every_record_is_in_a_bar() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(40, 2048, 5000).tolist()
    found = chart(values, limit=2048)
    assert sum(bar.num_records for bar in found.bars) == 5000
    for bar in found.bars:
        assert bar.num_records == sum(bar.first <= value <= bar.last for value in values)
    assert len(found.bars) <= 60
    assert found.limit is not None
    assert found.left < found.limit <= found.right


def test_bars_lie_within_and_their_heights_are_in_proportion() -> None:
    found = chart([3] * 10 + [4] * 5 + [20] * 40, size=SMALL)
    heights = {bar.first: bar.height for bar in found.bars}
    assert heights[20] == pytest.approx(4 * heights[3], rel=0.01)
    assert heights[20] == pytest.approx(8 * heights[4], rel=0.01)
    for bar in found.bars:
        assert found.left <= bar.x
        assert bar.x + bar.width <= found.right
        assert bar.y >= found.top - 0.01
        assert bar.y + bar.height == pytest.approx(found.bottom, abs=0.02)
    assert found.summary == "median 20, 95 % up to 20, largest 20"


def test_few_values_are_narrow_bars_at_their_labels() -> None:
    found = chart([1] * 9 + [2], x_label="tiles")
    assert [(bar.first, bar.last) for bar in found.bars] == [(1, 1), (2, 2)]
    assert found.bars[0].width < (found.right - found.left) / 10
    places = {tick.label: tick.place for tick in found.x_ticks}
    for bar in found.bars:
        assert places[str(bar.first)] == pytest.approx(bar.x + bar.width / 2, abs=1)


def test_one_record_among_many_is_still_seen() -> None:
    found = chart([5] * 1_000_000 + [9])
    assert min(bar.height for bar in found.bars) >= 1.5


def test_a_limit_far_away_is_not_drawn() -> None:
    assert chart([10, 20], limit=2048).limit is None


def test_nothing_to_draw() -> None:
    empty = tally(np.array([-1]), np.array([-1]))
    assert histogram(empty, title="t", x_label="tokens", size=WIDE) is None


def test_bins_and_ticks() -> None:
    assert [bin_width(0, largest, most=30) for largest in (29, 30, 200, 4000, 200_000)] == [
        *(1, 2, 10, 200, 10_000),
    ]
    assert [nice_ticks(largest)[-1] for largest in (1, 4, 7, 95, 1000)] == [1, 4, 8, 100, 1000]
