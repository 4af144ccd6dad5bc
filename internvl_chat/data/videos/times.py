"""When the frames of a video are shown, and which of them are taken. Pure."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# decord gives times as 32-bit floats: after an hour they are off by 0.2 ms. No frame is as short.
_SLACK_SECONDS: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class FrameTimes:
    """Times of a video's frames in seconds, the first at 0."""

    starts: Sequence[float]
    """When each frame appears, ascending."""
    end: float
    """When the last frame disappears."""
    rate: float | None
    """Frames per second as the container states it, an average."""

    @property
    def is_even(self) -> bool:
        """Whether number / rate is the time of every frame to within half a frame."""
        rate = self.rate
        if not rate:
            return False
        return all(abs(start * rate - i) <= 0.5 for i, start in enumerate(self.starts))

    def shown_at(self, seconds: float) -> int:
        """The frame on the screen at this time."""
        return max(0, bisect_right(self.starts, seconds + _SLACK_SECONDS) - 1)


def evenly_spread(first: int, last: int, count: int, rng: random.Random | None) -> list[int]:
    """``count`` numbers from ``first`` to ``last``, ascending; repeated where there are fewer.

    Args:
        first, last: the range, both ends included.
        count: intervals that it is cut into.
        rng: draws a number of each interval; without one the middle is taken.
    """
    available = last - first + 1
    chosen = []
    for number in range(count):
        low = first + number * available // count
        high = max(low, first + (number + 1) * available // count - 1)
        chosen.append((low + high) // 2 if rng is None else rng.randint(low, high))
    return chosen


def spread_in_time(
    times: FrameTimes, start: float, end: float, count: int, rng: random.Random | None
) -> list[int]:
    """What is on the screen in ``count`` equal intervals from ``start`` to ``end``.

    Args:
        times: of all frames.
        start, end: in seconds.
        count: intervals.
        rng: draws a moment of each interval; without one the middle is taken.
    """
    step = (end - start) / count
    moments = (
        start + (number + (0.5 if rng is None else rng.random())) * step for number in range(count)
    )
    return [times.shown_at(moment) for moment in moments]
