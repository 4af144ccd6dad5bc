"""The order's first rule, for runs that began under it: a resumed run must not see a sample twice.

It balanced tokens only, and cut a step as it stood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internvl_chat.data.balance import largest
from internvl_chat.data.epoch_plan import joined
from internvl_chat.data.packing import Limits, descending, pack_in_windows
from internvl_chat.data.per_sample import Values

_WINDOW_STEPS, _WINDOW_SAMPLES = 64, 16_384


@dataclass(frozen=True)
class FormerArrangement:
    """As :class:`Arrangement`, under the first rule."""

    lengths: Values
    tiles: Values
    rng: np.random.Generator
    global_batch_size: int
    window_steps: int | None

    def random(self, order: np.ndarray) -> np.ndarray:
        """As it is."""
        return order

    def grouped(self, order: np.ndarray) -> np.ndarray:
        """Steps of about one length each, whatever their tiles; the longest samples come first."""
        size = self.global_batch_size
        whole = len(order) // size * size
        body, rest = order[:whole], order[whole:]
        made = np.empty_like(order)
        heaviest = np.zeros(0, dtype=np.int64)
        if whole:
            heaviest = largest(self.lengths[body], size)
            made[:size] = body[heaviest]
            body = np.delete(body, heaviest)
        window = (self.window_steps or max(_WINDOW_STEPS, _WINDOW_SAMPLES // size)) * size
        for first in range(0, len(body), window):
            part = body[first : first + window]
            part[:] = part[descending(self.lengths[part])]
        steps = body.reshape(-1, size)
        shuffled = self.rng.permutation(len(steps))
        target = made[len(heaviest) : whole].reshape(-1, size)
        np.take(steps, shuffled, axis=0, out=target)
        made[whole:] = rest[descending(self.lengths[rest])] if len(rest) else rest
        return made

    def packed(self, order: np.ndarray, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """Best fit within windows of the random order; the packs are shuffled."""
        sizes = pack_in_windows(order, self.lengths, self.tiles, limits)
        begins = np.cumsum(sizes, dtype=np.int64) - sizes
        return joined(order, sizes, begins, self.rng.permutation(len(sizes)))
