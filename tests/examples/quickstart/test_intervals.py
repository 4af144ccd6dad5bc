"""Intervals against published values, and what the page calls a change."""

import pytest

from examples.quickstart.intervals import (
    Change,
    changes_by_dataset,
    in_points,
    mean_change,
    paired_change,
    points,
    wilson,
)
from examples.quickstart.scoring import Reply


@pytest.mark.parametrize(
    ("cells", "low", "high", "tolerance"),
    [
        # Newcombe (1998), method 10; his e, f, g, h are both, gained, lost, neither.
        ((36, 12, 2, 0), 0.0569, 0.3404, 5e-5),
        ((18, 12, 2, 18), 0.0562, 0.3290, 5e-5),
        ((53, 0, 0, 1), -0.0729, 0.0729, 5e-5),
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8.
        ((1, 1, 7, 12), -0.507, -0.026, 5e-4),
    ],
)
def test_published_intervals(
    cells: tuple[int, int, int, int], low: float, high: float, tolerance: float
) -> None:
    both, gained, lost, neither = cells
    change = paired_change(both=both, gained=gained, lost=lost, neither=neither)
    assert change.difference == pytest.approx((gained - lost) / sum(cells))
    assert (change.low, change.high) == (
        pytest.approx(low, abs=tolerance),
        pytest.approx(high, abs=tolerance),
    )


@pytest.mark.parametrize(
    ("num_right", "num", "low", "high"),
    [
        # scipy.stats.binomtest(k, n).proportion_ci(method="wilson"), scipy 1.17.1
        (0, 10, 0.0, 0.27753279986288926),
        (267, 300, 0.8495437677561146, 0.9205947146887394),
        (300, 300, 0.9873570287754541, 1.0),
    ],
)
def test_wilsons_interval_is_scipys(num_right: int, num: int, low: float, high: float) -> None:
    assert wilson(num_right, num) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_one_of_300_is_no_difference_and_86_points_are_a_gain() -> None:
    assert paired_change(both=265, gained=2, lost=3, neither=30).tone == "same"
    assert paired_change(both=300, gained=0, lost=0, neither=0).tone == "same"
    assert paired_change(both=29, gained=343, lost=0, neither=25).tone == "gain"
    assert paired_change(both=250, gained=0, lost=20, neither=30).tone == "loss"
    with pytest.raises(ValueError, match="no question"):
        paired_change(both=0, gained=0, lost=0, neither=0)


def test_the_order_of_before_and_after_only_turns_the_sign() -> None:
    there = paired_change(both=20, gained=9, lost=4, neither=7)
    back = paired_change(both=20, gained=4, lost=9, neither=7)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))


def test_a_mean_is_surer_than_its_parts() -> None:
    one = Change(difference=0.02, low=-0.01, high=0.06)
    mean = mean_change([one] * 4)
    assert (mean.difference, mean.low, mean.high) == (
        pytest.approx(0.02),
        pytest.approx(0.02 - 0.03 / 2),
        pytest.approx(0.02 + 0.04 / 2),
    )
    assert (one.tone, mean.tone) == ("same", "gain")


def _replies(answers: str) -> list[Reply]:
    return [
        Reply(dataset="d", identity=str(i), images=(), question="?", truth="7", answer=answer)
        for i, answer in enumerate(answers)
    ]


def test_questions_are_paired_by_what_they_are_not_by_place() -> None:
    before, after = _replies("7711"), _replies("7171")
    expected = paired_change(both=1, gained=1, lost=1, neither=1)
    assert changes_by_dataset(before, after[::-1]) == {"d": expected}


def test_points_are_signed_and_nothing_has_no_sign() -> None:
    assert in_points(Change(difference=0.864, low=0.829, high=0.895)) == "+86.4 (+82.9 to +89.5)"
    assert (points(-0.0004), points(-0.027)) == ("0.0", "\N{MINUS SIGN}2.7")
