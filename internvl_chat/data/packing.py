"""Samples into packs of limited size: best fit, largest first, within windows.

Two implementations of one rule: :func:`best_fit` for a window, written to be read, and
:func:`_fit_windows` for hundreds of windows at once, a vector instruction per step for all of them.
Their packs are the same to the last sample; a resumed run relies on that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from internvl_chat.data.per_sample import Values

PACK_WINDOW_SAMPLES = 16_384  # fewer than int16 has numbers for the packs of a window
_LEVELS = 32  # steps in which the room for tiles is told apart
_MANY_WINDOWS = 24  # from which on the vectors pay
_WINDOWS_AT_ONCE = 768  # 12.6 million samples; about 8 bytes a sample
_HEADS_AT_ONCE = 1 << 25  # 64 MB
_ALL_BITS = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Limits:
    """What a pack may hold."""

    tokens: int
    tiles: int | None = None


@dataclass(frozen=True)
class _Dimensions:
    """A window's sizes, the scarcer kind first."""

    capacity: int
    other_capacity: int
    tiles_first: bool

    @property
    def grain(self) -> int:
        """Units of the other kind that are not told apart."""
        return max(1, -(-self.other_capacity // _LEVELS))

    @property
    def top(self) -> int:
        """Level of an empty pack."""
        return self.other_capacity // self.grain


def pack_in_windows(
    order: np.ndarray, lengths: Values, tiles: Values | None, limits: Limits
) -> np.ndarray:
    """Put the samples of each window of ``order`` into packs.

    Args:
        order: (n,) samples; rearranged in place so that those of a pack stand together.
        lengths: tokens by sample.
        tiles: image tiles by sample; needed where they are limited.
        limits: what a pack may hold. It always takes its first sample, however large.

    Returns:
        (packs,) int32 samples of each pack, in the order that ``order`` now has.
    """
    windows = range(-(-len(order) // PACK_WINDOW_SAMPLES))
    sizes = fit_windows(order, windows, lengths, tiles, limits)
    return np.concatenate([sizes[number] for number in windows])


def fit_windows(
    order: np.ndarray,
    windows: Iterable[int],
    lengths: Values,
    tiles: Values | None,
    limits: Limits,
) -> dict[int, np.ndarray]:
    """:func:`pack_in_windows` for some of the windows: the sizes of the packs of each."""
    kinds: dict[_Dimensions, list[int]] = {}
    for number in windows:
        part = window_of(number, order)
        kinds.setdefault(_dimensions(part, lengths, tiles, limits), []).append(number)
    sizes: dict[int, np.ndarray] = {}
    for dimensions, numbers in kinds.items():
        at_once = min(
            _WINDOWS_AT_ONCE,
            max(1, _HEADS_AT_ONCE // ((dimensions.top + 1) * (dimensions.capacity + 1))),
        )
        for begin in range(0, len(numbers), at_once):
            group = numbers[begin : begin + at_once]
            if len(group) < _MANY_WINDOWS:
                sizes |= _pack_each(order, group, lengths, tiles, dimensions)
            else:
                sizes |= _pack_together(order, group, lengths, tiles, dimensions)
    return sizes


def _dimensions(
    part: np.ndarray, lengths: Values, tiles: Values | None, limits: Limits
) -> _Dimensions:
    if limits.tiles is None or tiles is None:
        return _Dimensions(limits.tokens, 0, tiles_first=False)
    share_of_tiles = int(tiles[part].sum()) / limits.tiles
    if share_of_tiles > int(lengths[part].sum(dtype=np.int64)) / limits.tokens:
        return _Dimensions(limits.tiles, limits.tokens, tiles_first=True)
    return _Dimensions(limits.tokens, limits.tiles, tiles_first=False)


def _sizes_of(
    part: np.ndarray, lengths: Values, tiles: Values | None, dimensions: _Dimensions
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sizes of the scarcer kind and of the other, if that is limited."""
    if not dimensions.other_capacity or tiles is None:
        return lengths[part], None
    if dimensions.tiles_first:
        return tiles[part], lengths[part]
    return lengths[part], tiles[part]


def window_of(number: int, order: np.ndarray) -> np.ndarray:
    """The samples of window ``number``, to be rearranged in place."""
    return order[number * PACK_WINDOW_SAMPLES : (number + 1) * PACK_WINDOW_SAMPLES]


# -- one window ---------------------------------------------------------------------------------


def _pack_each(
    order: np.ndarray,
    group: list[int],
    lengths: Values,
    tiles: Values | None,
    dimensions: _Dimensions,
) -> dict[int, np.ndarray]:
    found = {}
    for number in group:
        part = window_of(number, order)
        sizes, others = _sizes_of(part, lengths, tiles, dimensions)
        packs = best_fit(sizes, dimensions.capacity, others, dimensions.other_capacity)
        part[:] = part[[place for pack in packs for place in pack]]
        found[number] = np.array([len(pack) for pack in packs], dtype=np.int32)
    return found


def best_fit(
    sizes: np.ndarray,
    capacity: int,
    other_sizes: np.ndarray | None = None,
    other_capacity: int = 0,
) -> list[list[int]]:
    """Put each sample, largest first, into the open pack that it leaves the least room in.

    Open packs lie in buckets by free room; bit f of ``occupied`` says that bucket f holds one,
    so the best bucket is the lowest set bit from the sample's size upwards. With a second kind of
    size there is such a set of buckets for each amount of room left in it (rounded down to one of
    ``_LEVELS``). A pack always takes its first sample, however large.

    Returns:
        Places in ``sizes``, pack by pack.
    """
    dimensions = _Dimensions(capacity, other_capacity, tiles_first=False)
    largest = np.argsort(-sizes, kind="stable")
    needs = np.minimum(sizes[largest], capacity).tolist()
    others = _levels(other_sizes, largest, dimensions).tolist()
    packs: list[list[int]] = []
    occupied = [0] * (dimensions.top + 1)
    buckets: dict[tuple[int, int], list[int]] = {}
    for item, need, other in zip(largest.tolist(), needs, others, strict=True):
        free, level = capacity + 1, -1
        for candidate in range(other, dimensions.top + 1):
            fitting = occupied[candidate] >> need
            if fitting:
                found = need + (fitting & -fitting).bit_length() - 1
                if found < free:
                    free, level = found, candidate
        if level < 0:
            free, level, number = capacity, dimensions.top, len(packs)
            packs.append([item])
        else:
            bucket = buckets[level, free]
            number = bucket.pop()
            if not bucket:
                occupied[level] ^= 1 << free
            packs[number].append(item)
        level, free = level - other, free - need
        bucket = buckets.setdefault((level, free), [])
        if not bucket:
            occupied[level] |= 1 << free
        bucket.append(number)
    return packs


def _levels(
    other_sizes: np.ndarray | None, largest: np.ndarray, dimensions: _Dimensions
) -> np.ndarray:
    """Levels that each sample takes, largest first."""
    if other_sizes is None:
        return np.zeros(len(largest), dtype=np.int32)
    return np.minimum(-(-other_sizes[largest] // dimensions.grain), dimensions.top)


# -- many windows -------------------------------------------------------------------------------


def _pack_together(
    order: np.ndarray,
    group: list[int],
    lengths: Values,
    tiles: Values | None,
    dimensions: _Dimensions,
) -> dict[int, np.ndarray]:
    """As :func:`_pack_each`; only the last window of a group may be short."""
    counts = [len(window_of(number, order)) for number in group]
    narrow = dimensions.capacity < 1 << 16
    needs = np.zeros((counts[0], len(group)), dtype=np.uint16 if narrow else np.int32)
    levels = np.zeros_like(needs, dtype=np.int8) if dimensions.top else None
    for row, number in enumerate(group):
        part = window_of(number, order)
        sizes, others = _sizes_of(part, lengths, tiles, dimensions)
        largest = descending(sizes)
        needs[: counts[row], row] = np.minimum(sizes[largest], dimensions.capacity)
        if levels is not None:
            levels[: counts[row], row] = _levels(others, largest, dimensions)
        part[:] = part[largest]
    packs = _fit_windows(needs, levels, counts[-1], dimensions)
    found = {}
    for row, number in enumerate(group):
        part, pack_of = window_of(number, order), packs[: counts[row], row]
        part[:] = part[np.argsort(pack_of, kind="stable")]
        found[number] = np.bincount(pack_of).astype(np.int32)
    return found


def descending(sizes: np.ndarray) -> np.ndarray:
    """``argsort(-sizes, kind="stable")``, by radix where 16 bits tell the sizes apart."""
    largest = sizes.max()
    if int(largest) - int(sizes.min()) < 1 << 16:
        return np.argsort((largest - sizes).astype(np.uint16), kind="stable")
    return np.argsort(-sizes, kind="stable")


def _fit_windows(
    needs: np.ndarray, levels: np.ndarray | None, short_count: int, dimensions: _Dimensions
) -> np.ndarray:
    """:func:`best_fit` in all windows at once.

    A bucket is a linked list: ``heads`` holds its last pack, ``nexts`` the pack below each.

    Args:
        needs: (samples of a window, windows) sizes, largest first.
        levels: the same of the other kind; None where that is not limited.
        short_count: samples of the last window.
        dimensions: capacities.

    Returns:
        (samples of a window, windows) int16 number of each sample's pack in its window.
    """
    num_samples, num_windows = needs.shape
    num_levels, width = dimensions.top + 1, dimensions.capacity + 1
    buckets = _BucketSets(num_windows * num_levels, width)
    heads = np.full(num_windows * num_levels * width, -1, dtype=np.int16)
    nexts = np.empty(num_windows * num_samples, dtype=np.int16)
    num_packs = np.zeros(num_windows, dtype=np.int64)
    packs = np.empty(needs.shape, dtype=np.int16)
    for step in range(num_samples):
        windows = np.arange(num_windows if step < short_count else num_windows - 1)
        need = needs[step, : len(windows)].astype(np.int64)
        used = 0 if levels is None else levels[step, : len(windows)].astype(np.int64)
        free, level = _best(buckets, need, used, num_levels, width)
        fits = free < width
        sets = windows * num_levels + level
        old = np.flatnonzero(fits)
        number = num_packs[: len(windows)].copy()
        if len(old):
            place = sets[old] * width + free[old]
            number[old] = heads[place]
            below = nexts[old * num_samples + number[old]]
            heads[place] = below
            emptied = np.flatnonzero(below < 0)
            if len(emptied):
                buckets.clear(sets[old[emptied]], free[old[emptied]])
        num_packs[: len(windows)] += ~fits
        packs[step, : len(windows)] = number
        left = np.where(fits, free, dimensions.capacity) - need
        sets -= used
        place = sets * width + left
        nexts[windows * num_samples + number] = heads[place]
        heads[place] = number
        buckets.set(sets, left)
    return packs


def _best(
    buckets: _BucketSets, need: np.ndarray, used: np.ndarray | int, num_levels: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(free room, level) of the best pack of each window; ``width`` and the top where none fits."""
    if num_levels == 1:
        return buckets.lowest(np.arange(len(need)), need), np.zeros_like(need)
    sets = np.arange(len(need) * num_levels)
    free = buckets.lowest(sets, np.repeat(need, num_levels)).reshape(-1, num_levels)
    free[np.arange(num_levels) < np.reshape(used, (-1, 1))] = width
    level = free.argmin(axis=1)  # the lowest of equals, as in best_fit
    best = free[np.arange(len(need)), level]
    level[best >= width] = num_levels - 1
    return best, level


class _BucketSets:
    """Many sets of numbers below ``width``: trees of 64-bit words, a bit for each word below."""

    def __init__(self, num_sets: int, width: int) -> None:
        self.width = width
        self._tiers: list[tuple[np.ndarray, int]] = []
        """(words of all sets, words of a set), from the numbers upwards."""
        size = width
        while True:
            size = -(-size // 64)
            self._tiers.append((np.zeros(num_sets * size, dtype=np.uint64), size))
            if size == 1:
                break

    def set(self, sets: np.ndarray, numbers: np.ndarray) -> None:
        """Put a number into each of these sets."""
        for words, size in self._tiers:
            words[sets * size + (numbers >> 6)] |= _bit(numbers)
            numbers = numbers >> 6

    def clear(self, sets: np.ndarray, numbers: np.ndarray) -> None:
        """Take a number out of each of these sets."""
        for words, size in self._tiers:
            place = sets * size + (numbers >> 6)
            left = words[place] & ~_bit(numbers)
            words[place] = left
            empty = left == 0
            if not empty.any():
                return
            sets, numbers = sets[empty], numbers[empty] >> 6

    def lowest(self, sets: np.ndarray, least: np.ndarray) -> np.ndarray:
        """The lowest number from ``least`` on in each set; ``width`` where there is none."""
        found = np.full(len(sets), self.width)
        rows, from_number = np.arange(len(sets)), least
        for tier, (words, size) in enumerate(self._tiers):
            inside = (from_number >> 6) < size
            if not inside.all():
                rows, from_number = rows[inside], from_number[inside]
            word = words[sets[rows] * size + (from_number >> 6)]
            word &= _ALL_BITS << (from_number & 63).astype(np.uint64)
            hit = word != 0
            if hit.any():
                number = (from_number[hit] >> 6 << 6) + _lowest_bit(word[hit])
                found[rows[hit]] = self._down(sets[rows[hit]], number, tier)
                rows, from_number = rows[~hit], from_number[~hit]
            if not len(rows):
                break
            from_number = (from_number >> 6) + 1
        return found

    def _down(self, sets: np.ndarray, number: np.ndarray, tier: int) -> np.ndarray:
        for words, size in reversed(self._tiers[:tier]):
            number = (number << 6) + _lowest_bit(words[sets * size + number])
        return number


def _bit(numbers: np.ndarray) -> np.ndarray:
    return np.uint64(1) << (numbers & 63).astype(np.uint64)


def _lowest_bit(words: np.ndarray) -> np.ndarray:
    """Place of the lowest set bit of each word, none of which is zero."""
    lowest = words & (~words + np.uint64(1))
    return np.frexp(lowest.astype(np.float64))[1].astype(np.int64) - 1
