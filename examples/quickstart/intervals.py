"""How sure a change is: the same questions asked twice, so the answers come in pairs. Pure.

An interval for two independent samples would be the wrong one: a question that is hard before is
hard after, and only questions that became right or wrong tell anything of the change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from examples.quickstart.scoring import Reply

LEVEL = 0.95
_Z = 1.959963984540054
"""Quantile of the normal distribution at (1 + LEVEL) / 2."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A difference of shares (-1 to 1), after less before, with its interval of :data:`LEVEL`."""

    difference: float
    low: float
    high: float

    @property
    def tone(self) -> str:
        """``gain`` or ``loss``; ``same`` where the interval holds 0: chance alone can do that."""
        if self.low <= 0 <= self.high:
            return "same"
        return "gain" if self.difference > 0 else "loss"


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """Bounds of a share's score interval.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), 209-212.
    """
    middle = num_right + _Z**2 / 2
    reach = _Z * sqrt(num_right * (num - num_right) / num + _Z**2 / 4)
    return (middle - reach) / (num + _Z**2), (middle + reach) / (num + _Z**2)


def paired_change(*, both: int, gained: int, lost: int, neither: int) -> Change:
    """The change of a share when every question was asked before and after.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17 (1998), 2635-2650, method 10: Wilson's intervals of
    the two shares, put together with the answers' correlation. It holds for shares near 0 and 1
    and for few questions, where the textbook's interval is too short.

    Args:
        both: questions answered right before and after.
        gained: right after only.
        lost: right before only.
        neither: right neither time.

    Raises:
        ValueError: there is no question.
    """
    num = both + gained + lost + neither
    if not num:
        raise ValueError("no question: want at least one")
    num_after, num_before = both + gained, both + lost
    after, before = num_after / num, num_before / num
    (after_low, after_high), (before_low, before_high) = (
        wilson(num_after, num),
        wilson(num_before, num),
    )
    phi = _correlation(both, gained, lost, neither)
    down = _distance(after - after_low, before_high - before, phi)
    up = _distance(after_high - after, before - before_low, phi)
    return Change(difference=after - before, low=after - before - down, high=after - before + up)


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Of right before with right after; a positive one with Newcombe's continuity correction."""
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if not product:
        return 0.0
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(excess - (both + gained + lost + neither) / 2, 0.0)
    return excess / sqrt(product)


def _distance(first: float, second: float, phi: float) -> float:
    # max: the root's argument is a square where phi is 1, and rounding may take it below 0
    return sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))


def mean_change(changes: Sequence[Change]) -> Change:
    """The change of the mean over datasets, each of them counting the same.

    The distances from the differences to their bounds are added as squares: Zou and Donner,
    "Construction of confidence limits about effect measures: a general approach", Statistics in
    Medicine 27 (2008), 1693-1702.
    """
    num = len(changes)
    middle = sum(one.difference for one in changes) / num
    down = sqrt(sum((one.difference - one.low) ** 2 for one in changes)) / num
    up = sqrt(sum((one.high - one.difference) ** 2 for one in changes)) / num
    return Change(difference=middle, low=middle - down, high=middle + up)


def changes_by_dataset(before: Sequence[Reply], after: Sequence[Reply]) -> dict[str, Change]:
    """The change of each dataset's share of right replies, in order of first appearance.

    Args:
        before: one reply a question.
        after: of the same questions, in any order.
    """
    right_after = {(reply.dataset, reply.identity): reply.is_right for reply in after}
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for reply in before:
        pair = (reply.is_right, right_after[(reply.dataset, reply.identity)])
        pairs.setdefault(reply.dataset, []).append(pair)
    return {
        name: paired_change(
            both=rows.count((True, True)),
            gained=rows.count((False, True)),
            lost=rows.count((True, False)),
            neither=rows.count((False, False)),
        )
        for name, rows in pairs.items()
    }


def in_points(change: Change) -> str:
    """``+86.4 (82.9 to 89.5)``, in percentage points.

    >>> in_points(Change(difference=-0.003, low=-0.021, high=0.014))
    '−0.3 (−2.1 to +1.4)'
    """
    return f"{points(change.difference)} ({points(change.low)} to {points(change.high)})"


def points(share: float) -> str:
    """A signed number of percentage points, with a minus sign as wide as the plus.

    >>> points(-0.0004), points(0.125)
    ('0.0', '+12.5')
    """
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"
