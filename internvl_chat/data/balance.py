"""Which samples make up a step, and how a step is cut, so that no rank waits for another.

Ranks meet in every layer of every micro batch, so in each micro step the vision tower's work
(tiles) and the language model's (tokens) must be even over the ranks, each for itself. Two rules:

- :func:`even_steps` puts samples (or packs) of about one length, and among those the ones of about
  as many tiles, into a step: a function of what is known of the data, whatever the ranks are;
- :func:`deal` cuts a step into micro batches: ranks, micro batches and the model's
  :class:`WorkRates` decide, and the step's gradient does not depend on it.

Legend: A micro batches of a rank and step, W ranks, M places of a micro batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from internvl_chat.costs.work import WorkRates
from internvl_chat.data.packing import descending

TILE_IN_TOKENS = 256
"""What a tile adds to a micro batch's memory beside its tokens, in tokens of text.
InternVL-Chat-V1-2 keeps 45 x 1025 x 3200 numbers of a tile and 60 x 7168 of a token when both
towers train with recomputation (343), and nothing of a tile when the vision tower is frozen."""

V1_2_RATES = WorkRates(per_token=2.705e11, per_pair=6.88e6, per_tile=4.81e13)
"""Of InternVL-Chat-V1-2, all trained with recomputation; ``tests/unit/costs`` works them out by
hand. How a step is cut where the model's own are not known."""

_ALIKE = 0.02  # lengths that differ by no more are taken for one
_ALIKE_IN_MICRO_STEP = 0.01
_SHARE_OF_MEAN = 0.1  # of what all ranks compute beside what the slowest does: padding is no gain


def memory_weight(lengths: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """By what the first step is chosen: a sample's (or pack's) share of a rank's memory, in tokens.

    Logits are left out: the loss makes them chunk by chunk.
    """
    return lengths.astype(np.int64) + TILE_IN_TOKENS * tiles.astype(np.int64)


# -- which samples make up a step -----------------------------------------------------------------


def even_steps(
    lengths: np.ndarray,
    tiles: np.ndarray,
    rng: np.random.Generator,
    *,
    global_batch_size: int,
    window_steps: int,
) -> np.ndarray:
    """Put samples, or packs, into steps that are easily cut evenly.

    Windows of the given (random) order are sorted by length; where the lengths of several steps
    differ by less than 2 %, by tiles among those; the steps are shuffled. No step is text only
    while another one of its window could share its images with it. The step of the samples that
    take most memory comes first: what does not fit fails at once. What does not fill a step stays
    at the end.

    Args:
        lengths: (n,) tokens.
        tiles: (n,) image tiles.
        rng: shuffles the steps.
        global_batch_size: samples of a step.
        window_steps: steps of a window.

    Returns:
        (n,) the places of the samples in the new order.
    """
    size, count = global_batch_size, len(lengths)
    dtype = np.int32 if count < 2**31 else np.int64
    whole = count // size * size
    made = np.empty(count, dtype=dtype)
    made[whole:] = whole + descending(lengths[whole:]) if whole < count else 0
    if not whole:
        return made
    first = _heaviest(memory_weight(lengths[:whole], tiles[:whole]), tiles[:whole], size)
    body = np.delete(np.arange(whole, dtype=dtype), first)
    made[:size] = first
    for begin in range(0, len(body), window_steps * size):
        window = body[begin : begin + window_steps * size]
        _sort_window(window, lengths, tiles, size)
    steps = body.reshape(-1, size)
    target = made[size:whole].reshape(-1, size)
    np.take(steps, rng.permutation(len(steps)), axis=0, out=target)
    return made


def _heaviest(weights: np.ndarray, tiles: np.ndarray, size: int) -> np.ndarray:
    """The places of a step that takes most memory, half of it with images if there are any."""
    first = largest(weights, size)
    shown = np.flatnonzero(tiles)
    if size > 1 and len(shown) and not tiles[first].any():
        shown = shown[largest(weights[shown], min(size // 2, len(shown)))]
        first[1::2][: len(shown)] = shown
    return first


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """``argsort(-values, kind="stable")[:count]`` without sorting all."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    above = above[np.argsort(-values[above], kind="stable")]
    return np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])


def _sort_window(window: np.ndarray, lengths: np.ndarray, tiles: np.ndarray, size: int) -> None:
    """Sort the whole steps of a window, in place."""
    window[:] = window[descending(lengths[window])]
    sorted_lengths = lengths[window]
    longest = sorted_lengths[::size].tolist()
    shortest = sorted_lengths[size - 1 :: size].tolist()
    for first, last in _bands(longest, shortest, _ALIKE):
        if last > first + 1:
            band = window[first * size : last * size]
            band[:] = band[descending(tiles[band])]
    _share_images(window.reshape(-1, size), tiles)


def _bands(longest: Sequence[int], shortest: Sequence[int], alike: float) -> list[tuple[int, int]]:
    """Runs (first, last + 1) of groups, longest first, that are alike in length."""
    bands, first = [], 0
    for number in range(1, len(longest) + 1):
        if number == len(longest) or shortest[number] < (1 - alike) * longest[first]:
            bands.append((first, number))
            first = number
    return bands


def _share_images(steps: np.ndarray, tiles: np.ndarray) -> None:
    """Let each step with images exchange equal parts, half of it if that will do, with the steps of
    text that are next to it in length."""
    shown = (tiles[steps.ravel()] > 0).reshape(steps.shape).sum(axis=1)
    texts, others = np.flatnonzero(shown == 0).tolist(), np.flatnonzero(shown > 1).tolist()
    if not texts or not others:
        return
    parts = min(-(-len(texts) // len(others)) + 1, steps.shape[1])
    left = np.minimum(shown, parts) - 1  # parts with an image, which each step may give
    for text in texts:
        if not others:
            return
        place = bisect_left(others, text)  # of the next longer and the next shorter, the nearer
        near = others[max(place - 1, 0) : place + 1]
        other = min(near, key=lambda number: abs(number - text))
        if left[other] == min(shown[other], parts) - 1:  # the first: images in every part
            steps[other] = steps[other][descending(tiles[steps[other]])]
        part = slice(left[other], None, parts)
        kept = steps[text, part].copy()
        steps[text, part] = steps[other, part]
        steps[other, part] = kept
        left[other] -= 1
        if not left[other]:
            others.remove(other)


# -- how a step is cut -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepCut:
    """The micro batches that a step has."""

    accumulation: int
    """A."""
    world_size: int
    """W."""
    micro_batch_size: int
    """M."""
    packed: bool
    """The samples of a micro batch stand one behind the other; else each in a padded row."""
    rates: WorkRates = V1_2_RATES
    width_multiple: int = 1
    """What the lengths of padded rows are rounded up to."""

    def widths(self, lengths: np.ndarray) -> np.ndarray:
        """(A, W) positions of each row of the micro batches; ``lengths`` (A, W, M)."""
        return -(-lengths.max(axis=2) // self.width_multiple) * self.width_multiple


class MicroWork(NamedTuple):
    """What the ranks execute, padding and dummy tiles included; (A, W) each."""

    text: np.ndarray
    """FLOPs of the language model."""
    vision: np.ndarray
    """FLOPs of the vision tower and projector."""


def deal(
    lengths: np.ndarray, tiles: np.ndarray, cut: StepCut, text_work: np.ndarray | None = None
) -> np.ndarray:
    """Cut a step into micro batches of which those that run at a time take about as long.

    The step is sorted (by length, by tiles, or by time: whichever the slowest ranks are fastest
    with), cut into micro steps, and in each of these tiles are dealt evenly among what is of about
    one length.

    Args:
        lengths: (A * W * M,) tokens of each sample or pack of the step.
        tiles: the same of image tiles.
        cut: what to cut it into.
        text_work: FLOPs in the language model of each pack; by its length if None.

    Returns:
        (A, W, M) places in ``lengths``.
    """
    text = cut.rates.text(lengths) if text_work is None else text_work
    orders = [np.lexsort((-tiles, -lengths))]
    if cut.accumulation > 1:
        time = text + cut.rates.vision(tiles)
        orders += [np.lexsort((-lengths, -tiles)), np.argsort(-time, kind="stable")]
    best, least = None, np.inf
    for order in orders:
        for dealt in _dealt(order, lengths, tiles, text, cut):
            work = micro_work(dealt, lengths, tiles, text, cut)
            cost = work.text.max(axis=1).sum() + work.vision.max(axis=1).sum()
            cost += _SHARE_OF_MEAN * work.text.mean(axis=1).sum()
            if cost < least:
                best, least = dealt, cost
    assert best is not None
    return best


def micro_work(
    dealt: np.ndarray, lengths: np.ndarray, tiles: np.ndarray, text: np.ndarray, cut: StepCut
) -> MicroWork:
    """What a step costs the ranks, cut in this way; arguments as of :func:`deal`."""
    if cut.packed:
        of_text = text[dealt].sum(axis=2)
    else:
        of_text = cut.micro_batch_size * cut.rates.text(cut.widths(lengths[dealt]))
    shown = np.maximum(tiles[dealt].sum(axis=2), 1)  # without any, a dummy tile
    return MicroWork(of_text, cut.rates.vision(shown))


def _dealt(
    order: np.ndarray, lengths: np.ndarray, tiles: np.ndarray, text: np.ndarray, cut: StepCut
) -> list[np.ndarray]:
    """Ways, (A, W, M) each, to cut sorted places into micro steps and those into micro batches."""
    ranks, size = cut.world_size, cut.micro_batch_size
    micro_steps = order.reshape(cut.accumulation, ranks * size)
    if size == 1 or ranks == 1:
        return [micro_steps.reshape(cut.accumulation, ranks, size)]
    evenly = np.stack([_deal_evenly(places, tiles, text, size) for places in micro_steps])
    if cut.packed:
        return [evenly]
    return [np.stack([_deal_rows(places, lengths, tiles, size) for places in micro_steps]), evenly]


def _deal_rows(places: np.ndarray, lengths: np.ndarray, tiles: np.ndarray, size: int) -> np.ndarray:
    """(W, M) rows of about one length together, tiles even as far as that allows."""
    places = places[np.argsort(-lengths[places], kind="stable")]
    in_order = places.reshape(-1, size)
    made = in_order.copy()
    sorted_lengths = lengths[in_order]
    bands = _bands(
        sorted_lengths[:, 0].tolist(), sorted_lengths[:, -1].tolist(), _ALIKE_IN_MICRO_STEP
    )
    for first, last in bands:
        band = in_order[first:last]
        if last > first + 1:
            dealt = _deal_evenly(band.ravel(), tiles, lengths, size)
            if tiles[dealt].sum(axis=1).max() < tiles[band].sum(axis=1).max():
                made[first:last] = dealt
    return made


def _deal_evenly(places: np.ndarray, tiles: np.ndarray, work: np.ndarray, size: int) -> np.ndarray:
    """(batches, size): the next places with most tiles to the batches with fewest, in turns."""
    places = places[np.lexsort((-work[places], -tiles[places]))]
    turns = places.reshape(size, -1)  # (M, batches)
    made = turns.T.copy()
    tiles_in, work_in = tiles[made[:, 0]].astype(np.int64), work[made[:, 0]].astype(np.float64)
    for number in range(1, size):
        emptiest = np.lexsort((work_in, tiles_in))
        made[emptiest, number] = turns[number]
        tiles_in[emptiest] += tiles[turns[number]]
        work_in[emptiest] += work[turns[number]]
    return made
