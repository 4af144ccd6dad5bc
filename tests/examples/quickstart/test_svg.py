"""Numbers behind the drawings."""

import re
from xml.etree import ElementTree

import pytest

from examples.quickstart.svg import (
    Series,
    before_after_bar,
    line_chart,
    loss_series,
    nice_ticks,
    smoothed,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2.3, [0, 0.5, 1, 1.5, 2]),
        (1, 400, [100, 200, 300, 400]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(
    low: float, high: float, ticks: list[float]
) -> None:
    assert nice_ticks(low, high) == ticks


def test_smoothing_is_even_to_both_sides() -> None:
    points = [(0, 4.0), (1, 1.0), (2, 7.0), (3, 1.0)]
    assert smoothed(points, 2) == ((0, 4.0), (1, 4.0), (2, 3.0), (3, 1.0))


def test_a_series_takes_the_entries_that_have_its_key() -> None:
    log = [{"step": 1, "loss": 2.0}, {"step": 1, "loss/digits": 3.0}, {"step": 2, "loss": 1.0}]
    series = loss_series(log, "loss", name="total", color="red")
    assert series.points == ((1, 2.0), (2, 1.0))


def test_a_line_goes_from_corner_to_corner() -> None:
    series = Series(name="a & b", points=((10, 1.0), (20, 0.0)), color="red")
    svg = line_chart([series], title="t", x_label="step", y_label="loss")
    ElementTree.fromstring(svg)  # well formed, the ampersand included
    points = re.search(r'points="([^"]*)"', svg)
    assert points is not None
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert (x1, x2) == (44.0, 546.0)  # the margins
    assert (round(y2), round(y1)) == (260, 29)  # zero on the base line; the top has 4 % air


def test_no_points_is_said_in_words() -> None:
    assert "nothing was logged" in line_chart([], title="Loss", x_label="", y_label="")


def test_the_bar_says_which_way_it_went() -> None:
    assert 'class="shift same"' in before_after_bar(0.1, 0.9, "same")


def test_a_phones_chart_is_as_wide_as_a_phone() -> None:
    series = Series(name="a", points=((10, 1.0), (20, 0.0)), color="red")
    labels = {"title": "t", "x_label": "step", "y_label": "loss"}
    wide, narrow = (line_chart([series], **labels, on_phone=phone) for phone in (False, True))
    assert 'class="chart on-wide" viewBox="0 0 560 300"' in wide
    assert 'class="chart on-phone" viewBox="0 0 330 230"' in narrow
