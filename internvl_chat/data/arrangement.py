"""From a random order of samples to steps: the rule that new runs follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internvl_chat.data.balance import even_steps, memory_weight
from internvl_chat.data.epoch_plan import joined
from internvl_chat.data.even_packs import pack_evenly
from internvl_chat.data.packing import Limits
from internvl_chat.data.per_sample import BLOCK, Values

_WINDOW_STEPS, _WINDOW_SAMPLES = 128, 16_384
_WINDOW_STEPS_OF_PACKS, _WINDOW_PACKS = 64, 2_048


@dataclass(frozen=True)
class Arrangement:
    """What steps are made by; every method takes the samples of an epoch in random order."""

    lengths: Values
    """Tokens by sample."""
    tiles: Values
    """Image tiles by sample."""
    rng: np.random.Generator
    global_batch_size: int
    window_steps: int | None
    """Steps among which is sorted; by default as many as the constants above say."""

    def random(self, order: np.ndarray) -> np.ndarray:
        """As it is, but for the step of the sample that takes most memory, which comes first: what
        does not fit fails at once."""
        size = self.global_batch_size
        whole = len(order) // size * size
        most, heaviest = -1, 0
        for first in range(0, whole, BLOCK):
            part = order[first : min(first + BLOCK, whole)]
            weights = memory_weight(self.lengths[part], self.tiles[part])
            place = int(weights.argmax())
            if weights[place] > most:
                most, heaviest = int(weights[place]), (first + place) // size
        moved = order.copy()
        moved[:size] = order[heaviest * size : (heaviest + 1) * size] if whole else order[:size]
        if heaviest:
            moved[heaviest * size : (heaviest + 1) * size] = order[:size]
        return moved

    def grouped(self, order: np.ndarray) -> np.ndarray:
        """Steps of about one length each, and of about as many tiles."""
        window = max(_WINDOW_STEPS, _WINDOW_SAMPLES // self.global_batch_size)
        return order[self._places(self.lengths[order], self.tiles[order], window)]

    def packed(self, order: np.ndarray, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """Packs that are like each other, in steps of about as many tiles a pack.

        Returns:
            Samples pack by pack, and (packs + 1,) where each pack begins among them.
        """
        sizes = pack_evenly(order, self.lengths, self.tiles, limits)
        begins = np.cumsum(sizes, dtype=np.int64) - sizes
        tokens_in = _sums(self.lengths, order, begins)
        tiles_in = _sums(self.tiles, order, begins)
        shuffled = self.rng.permutation(len(sizes))
        window = max(_WINDOW_STEPS_OF_PACKS, _WINDOW_PACKS // self.global_batch_size)
        places = self._places(tokens_in[shuffled], tiles_in[shuffled], window)
        return joined(order, sizes, begins, shuffled[places])

    def _places(self, lengths: np.ndarray, tiles: np.ndarray, window_steps: int) -> np.ndarray:
        return even_steps(
            lengths,
            tiles,
            self.rng,
            global_batch_size=self.global_batch_size,
            window_steps=self.window_steps or window_steps,
        )


def _sums(values: Values, order: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Sum of the values of each pack's samples."""
    sums = np.empty(len(begins), dtype=np.int32)
    for first in range(0, len(begins), BLOCK // 8):
        last = min(first + BLOCK // 8, len(begins))
        stop = begins[last] if last < len(begins) else len(order)
        held = values[order[begins[first] : stop]]
        sums[first:last] = np.add.reduceat(held, begins[first:last] - begins[first])
    return sums
