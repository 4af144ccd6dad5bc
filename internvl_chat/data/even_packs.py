"""Packs of even work: as many tokens in each, and as many tiles as the mean, within windows.

Best fit (``data/packing.py``) puts the longest samples together and the shortest together, so that
a pack holds five tiles or twelve, and every rank waits for the one with twelve. Here the number of
packs is fixed first; the samples are dealt to them, longest first, and pairs of packs then exchange
samples until all hold about the same. All windows of a group at once, in whole arrays.

Legend: g windows of a group, n samples of a window, M packs of the fullest window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from internvl_chat.data.packing import (
    PACK_WINDOW_SAMPLES,
    Limits,
    best_fit,
    descending,
    fit_windows,
    window_of,
)
from internvl_chat.data.per_sample import Values

LEAST_SAMPLES_A_PACK = 4.5
"""Below this on average the samples are too coarse to be exchanged, and best fit leaves less."""
LEAST_PACKS = 16
"""Of a window."""
MOST_CAPACITY = 1 << 19
"""Tokens of a pack, so that an exchange is judged in 32 bits."""

_SLACKS = (1 / 340, 1 / 150)  # of a pack: what stays free, if that will do, and if it will not
_DEALS_A_ROUND = 4  # parts of the packs that take a sample at a time
_EXCHANGES = 6
_ENOUGH = 1 / 200  # of the packs are overfull at most: no further exchange
_EXCHANGED = 7  # samples of a pack, the shortest, that may be exchanged
_PAIRS_AT_ONCE = 8192  # their numbers stay in the processor's cache
_TILE_WEIGHT = 1 / 16  # of the tokens that come with a tile, in judging an exchange
_TILES_FREELY = 0.8  # of the limit; with more a tile on average it would bind
_OVERFULL = 1 / 50  # of a window's packs; with more of them the window is packed by best fit
_WINDOWS_AT_ONCE = 64  # a million samples
_BARRED = 1 << 20  # tokens of what is not there: no exchange takes it


def pack_evenly(order: np.ndarray, lengths: Values, tiles: Values, limits: Limits) -> np.ndarray:
    """Put the samples of each window of ``order`` into packs that are like each other.

    A window that cannot be dealt so (too few samples a pack, too many packs that would be over
    a limit) is packed by best fit.

    Args:
        order: (n,) samples; rearranged in place so that those of a pack stand together.
        lengths: tokens by sample.
        tiles: image tiles by sample.
        limits: what a pack may hold. It always takes its first sample, however large.

    Returns:
        (packs,) int32 samples of each pack, in the order that ``order`` now has.
    """
    windows = range(-(-len(order) // PACK_WINDOW_SAMPLES))
    sizes: dict[int, np.ndarray] = {}
    for slack in _SLACKS:
        wanted: dict[int, int] = {}
        for number in windows:
            part = window_of(number, order)
            if number not in sizes:
                num_packs = _num_packs(lengths[part], tiles[part], limits, slack)
                wanted |= {} if num_packs is None else {number: num_packs}
        for group in _groups(list(wanted), len(order)):
            counts = np.array([wanted[number] for number in group])
            sizes |= _deal_group(order, group, lengths, tiles, limits, counts)
    left = [number for number in windows if number not in sizes]
    sizes |= fit_windows(order, left, lengths, tiles, limits)
    return np.concatenate([sizes[number] for number in windows])


def _num_packs(lengths: np.ndarray, tiles: np.ndarray, limits: Limits, slack: float) -> int | None:
    """How many packs a window is dealt into; None where best fit serves it better."""
    capacity, tokens = limits.tokens, int(lengths.sum(dtype=np.int64))
    wanted = -(-tokens // max(1, capacity - max(1, round(capacity * slack))))
    most = len(lengths) / LEAST_SAMPLES_A_PACK
    if not LEAST_PACKS <= wanted <= most or capacity >= MOST_CAPACITY:
        return None
    shown = int(tiles.sum(dtype=np.int64))
    if limits.tiles is not None and shown > limits.tiles * wanted * _TILES_FREELY:
        return None  # tiles are the scarcer kind: the packs would be over that limit
    return wanted


def _groups(numbers: list[int], num_samples: int) -> list[list[int]]:
    """Windows that are dealt together; the last of all, if it is short, alone."""
    last = num_samples // PACK_WINDOW_SAMPLES
    whole = [number for number in numbers if number != last]
    firsts = range(0, len(whole), _WINDOWS_AT_ONCE)
    groups = [whole[first : first + _WINDOWS_AT_ONCE] for first in firsts]
    return [*groups, [last]] if last in numbers else groups


def _deal_group(
    order: np.ndarray,
    group: list[int],
    lengths: Values,
    tiles: Values,
    limits: Limits,
    num_packs: np.ndarray,
) -> dict[int, np.ndarray]:
    """Deal the windows of a group; those that come out well, with the sizes of their packs."""
    samples = np.stack([window_of(number, order) for number in group])
    for row in samples:
        row[:] = row[descending(lengths[row])]
    held = lengths[samples.ravel()].reshape(samples.shape)
    shown = tiles[samples.ravel()].reshape(samples.shape)
    pack_of = deal_evenly(held, shown, num_packs, limits.tokens)
    found = {}
    for row, number in enumerate(group):
        settled = _within_limits(pack_of[row], held[row], shown[row], limits, int(num_packs[row]))
        if settled is not None:
            window_of(number, order)[:] = samples[row][np.argsort(settled, kind="stable")]
            sizes = np.bincount(settled).astype(np.int32)
            found[number] = sizes[sizes > 0]
    return found


def _within_limits(
    pack_of: np.ndarray, lengths: np.ndarray, tiles: np.ndarray, limits: Limits, num_packs: int
) -> np.ndarray | None:
    """Take out what overfills a pack, its shortest samples, and pack it by best fit; None where
    many packs are overfull."""
    tokens_in = np.bincount(pack_of, weights=lengths, minlength=num_packs)
    tiles_in = np.bincount(pack_of, weights=tiles, minlength=num_packs)
    most_tiles = np.inf if limits.tiles is None else limits.tiles
    overfull = np.flatnonzero((tokens_in > limits.tokens) | (tiles_in > most_tiles))
    if len(overfull) > num_packs * _OVERFULL:
        return None
    loose: list[int] = []
    for pack in overfull.tolist():
        for place in np.flatnonzero(pack_of == pack)[:0:-1].tolist():  # all but the longest
            if tokens_in[pack] <= limits.tokens and tiles_in[pack] <= most_tiles:
                break
            tokens_in[pack] -= lengths[place]
            tiles_in[pack] -= tiles[place]
            loose.append(place)
    if loose:
        others = (None, 0) if limits.tiles is None else (tiles[loose], limits.tiles)
        for extra, places in enumerate(best_fit(lengths[loose], limits.tokens, *others)):
            pack_of[np.array(loose)[places]] = num_packs + extra
    return pack_of


def deal_evenly(
    lengths: np.ndarray, tiles: np.ndarray, num_packs: np.ndarray, capacity: int
) -> np.ndarray:
    """Put the samples of each window into a given number of packs of about the same content.

    Args:
        lengths: (g, n) tokens, longest first in each window.
        tiles: (g, n) image tiles.
        num_packs: (g,) packs of each window, at least two.
        capacity: tokens that a pack should hold at most.

    Returns:
        (g, n) int32 number of each sample's pack in its window. A few may hold too much.
    """
    packs = _Packs.of(lengths, tiles, num_packs)
    packs.deal()
    for _ in range(_EXCHANGES):
        packs.exchange()
        if ((packs.tokens_in > capacity).sum(axis=1) <= num_packs * _ENOUGH).all():
            break
    return packs.pack_of


@dataclass
class _Packs:
    """The packs of a group of windows, and what they hold so far."""

    lengths: np.ndarray
    """(g, n) int32."""
    tiles: np.ndarray
    """(g, n) int32."""
    num_packs: np.ndarray
    """(g,)."""
    pack_of: np.ndarray
    """(g, n) int32 pack of each sample."""
    tokens_in: np.ndarray
    """(g, M) int32."""
    tiles_in: np.ndarray
    """(g, M) int32."""

    @classmethod
    def of(cls, lengths: np.ndarray, tiles: np.ndarray, num_packs: np.ndarray) -> _Packs:
        most = int(num_packs.max())
        shape = len(num_packs), most
        return cls(
            lengths=lengths.astype(np.int32),
            tiles=tiles.astype(np.int32),
            num_packs=num_packs,
            pack_of=np.zeros(lengths.shape, dtype=np.int32),
            tokens_in=np.zeros(shape, dtype=np.int32),
            tiles_in=np.zeros(shape, dtype=np.int32),
        )

    def deal(self) -> None:
        """Longest first, the next samples to the emptiest packs, those with most tiles to the packs
        with fewest."""
        at_once = max(1, int(self.num_packs.min()) // _DEALS_A_ROUND)
        for first in range(0, self.lengths.shape[1], at_once):
            part = slice(first, first + at_once)
            lengths, tiles = self.lengths[:, part], self.tiles[:, part]
            packs = self._emptiest()[:, : lengths.shape[1]]
            fewest = _ascending(np.take_along_axis(self.tiles_in, packs, axis=1))
            packs = np.take_along_axis(packs, fewest, axis=1)
            most = _ascending(tiles.max() - tiles)
            np.put_along_axis(self.pack_of[:, part], most, packs.astype(np.int32), axis=1)
            for held, values in ((self.tokens_in, lengths), (self.tiles_in, tiles)):
                added = np.take_along_axis(held, packs, 1) + np.take_along_axis(values, most, 1)
                np.put_along_axis(held, packs, added, axis=1)

    def _emptiest(self) -> np.ndarray:
        """(g, M) the packs of each window, the emptiest first; those it does not have come last."""
        absent = np.arange(self.tokens_in.shape[1]) >= self.num_packs[:, None]
        return _ascending(np.where(absent, self.tokens_in.max() + 1, self.tokens_in))

    def exchange(self) -> None:
        """The fullest pack and the emptiest, the next and the next, each swap the two samples (or
        hand over the one) that leave them most alike."""
        width = self.tokens_in.shape[1]
        full, empty = self._pairs()
        in_packs = _ascending(self.pack_of)
        in_packs += np.arange(len(in_packs))[:, None] * in_packs.shape[1]
        packs = self.pack_of + np.arange(len(self.pack_of), dtype=np.int32)[:, None] * width
        sizes = np.bincount(packs.ravel(), minlength=self.tokens_in.size)
        ends = np.cumsum(sizes)
        where = _Where(in_packs.ravel(), ends - sizes, ends)
        for first in range(0, len(full), _PAIRS_AT_ONCE):
            block = slice(first, first + _PAIRS_AT_ONCE)
            self._exchange(full[block], empty[block], where)

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(pairs,) packs with much and (pairs,) packs with little, counted over all windows."""
        width = self.tokens_in.shape[1]
        emptiest = self._emptiest()
        emptiest += np.arange(len(emptiest))[:, None] * width
        place = np.arange(width // 2)
        taken = place < self.num_packs[:, None] // 2
        fullest = np.take_along_axis(
            emptiest, np.maximum(self.num_packs[:, None] - 1 - place, 0), axis=1
        )
        return fullest[taken], emptiest[:, : width // 2][taken]

    def _exchange(self, full: np.ndarray, empty: np.ndarray, where: _Where) -> None:
        """Each full pack gives a sample, or nothing, and takes one, or nothing."""
        tokens_in, tiles_in = self.tokens_in.reshape(-1), self.tiles_in.reshape(-1)
        given = self._choices(full, where, absent=_BARRED)
        taken = self._choices(empty, where, absent=-_BARRED)
        gives, takes = self._best_exchange(
            given, taken, tokens_in[full] - tokens_in[empty], tiles_in[full] - tiles_in[empty]
        )
        pair, width = np.arange(len(full)), self.tokens_in.shape[1]
        for held, there, here in (
            (tokens_in, given.tokens, taken.tokens),
            (tiles_in, given.tiles, taken.tiles),
        ):
            moved = there[gives, pair] - here[takes, pair]
            held[full] -= moved
            held[empty] += moved
        pack_of = self.pack_of.reshape(-1)
        for samples, target in (
            (given.samples[gives, pair], empty),
            (taken.samples[takes, pair], full),
        ):
            real = samples >= 0
            pack_of[samples[real]] = target[real] % width

    def _best_exchange(
        self, given: _Choices, taken: _Choices, more_tokens: np.ndarray, more_tiles: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each pair, which choices leave its packs least apart.

        The cost of a choice and its number are one integer, so that the least is a minimum.
        """
        weight, count = self._tile_weight(), len(given.samples)
        twice_tokens, twice_tiles = 2 * taken.tokens, 2 * weight * taken.tiles
        best = np.full(len(more_tokens), np.iinfo(np.int32).max, dtype=np.int32)
        for gives in range(count):
            tokens_left = more_tokens - 2 * given.tokens[gives]
            tiles_left = weight * (more_tiles - 2 * given.tiles[gives])
            for takes in range(count):
                apart = np.abs(tokens_left + twice_tokens[takes])
                apart += np.abs(tiles_left + twice_tiles[takes])
                apart <<= 6  # count * count numbers
                apart += gives * count + takes
                np.minimum(best, apart, out=best)
        chosen = np.divmod(best & 63, count)
        return chosen[0], chosen[1]

    def _tile_weight(self) -> int:
        """Tokens that a tile more or less counts for."""
        per_tile = int(self.lengths.sum(dtype=np.int64)) / max(1, int(self.tiles.sum()))
        most = max(1, int(self.tiles_in.max()))
        return int(min(per_tile * _TILE_WEIGHT, MOST_CAPACITY / most))

    def _choices(self, packs: np.ndarray, where: _Where, *, absent: int) -> _Choices:
        """The shortest samples of these packs; the last choice is none."""
        places = where.ends[packs] - 1 - np.arange(_EXCHANGED)[:, None]
        there = places >= where.begins[packs]
        samples = where.samples[np.where(there, places, 0)]
        none = np.zeros((1, len(packs)), dtype=np.int32)
        tokens = np.where(there, self.lengths.reshape(-1)[samples], absent).astype(np.int32)
        tiles = np.where(there, self.tiles.reshape(-1)[samples], 0).astype(np.int32)
        return _Choices(
            np.concatenate([samples, none - 1]),
            np.concatenate([tokens, none]),
            np.concatenate([tiles, none]),
        )


class _Choices(NamedTuple):
    """What the packs of some pairs may give away; (choices, pairs) each."""

    samples: np.ndarray
    """-1: none."""
    tokens: np.ndarray
    tiles: np.ndarray


@dataclass(frozen=True)
class _Where:
    """Which samples are in which pack, over all windows of a group."""

    samples: np.ndarray
    """Pack by pack."""
    begins: np.ndarray
    ends: np.ndarray


def _ascending(values: np.ndarray) -> np.ndarray:
    """``argsort`` of each row, stable; by radix where 16 bits hold the values, none negative."""
    if int(values.max()) < 1 << 16:
        values = values.astype(np.uint16)
    return np.argsort(values, axis=1, kind="stable")
