"""The order of an epoch, decided on lengths alone.

Pure numpy: a plan is a function of (lengths, seed, epoch, global batch size, mode). It knows no
rank; ranks take their micro batches out of the same plan, so the samples of a step do not depend on
how many ranks there are, and resuming at any step costs nothing but the plan itself.

Vocabulary: a *pack* is what fills one place of a batch: one sample, or, when packing, several. A
*step* is one optimizer step of ``global_batch_size`` packs over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from internvl_chat.config import OrderMode
from internvl_chat.data.packing import Limits, descending, pack_in_windows
from internvl_chat.data.per_sample import BLOCK, Values

_GROUP_WINDOW_SAMPLES = 16_384
_GROUP_WINDOW_STEPS = 64


@dataclass(frozen=True, slots=True)
class Pack:
    """Samples that share one place of a batch."""

    indices: tuple[int, ...]
    """Sample indices; one unless packed."""
    padding: bool = False
    """Repeats another pack to complete the last step; its labels do not enter the loss."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """Every pack of an epoch in order."""

    samples: np.ndarray
    """Sample indices of all packs, joined."""
    offsets: np.ndarray | None
    """(num_packs + 1,): pack u is ``samples[offsets[u]:offsets[u + 1]]``; None: one sample each."""
    global_batch_size: int
    """Packs per step."""
    num_steps: int
    padding_pack: int
    """The pack that completes the last step: the shortest of them."""

    @property
    def num_packs(self) -> int:
        """Packs, padding packs not counted."""
        return len(self.samples) if self.offsets is None else len(self.offsets) - 1

    def span(self, number: int) -> tuple[int, int]:
        """Where the samples of pack ``number`` begin and end in ``samples``."""
        if self.offsets is None:
            return number, number + 1
        return int(self.offsets[number]), int(self.offsets[number + 1])

    def pack(self, number: int) -> Pack:
        """Pack ``number`` of the epoch; beyond the last one, the padding."""
        padding = number >= self.num_packs
        number = self.padding_pack if padding else number
        first, last = self.span(number)
        return Pack(tuple(self.samples[first:last].tolist()), padding)

    def packs(self, step: int) -> list[Pack]:
        """The ``global_batch_size`` packs of a step."""
        first = step * self.global_batch_size
        return [self.pack(number) for number in range(first, first + self.global_batch_size)]

    def micro_batch(
        self, step: int, number: int, *, rank: int, world_size: int, micro_batch_size: int
    ) -> list[Pack]:
        """Packs of one rank's micro batch: neighbours in length over all ranks."""
        first = step * self.global_batch_size
        first += (number * world_size + rank) * micro_batch_size
        return [self.pack(first + place) for place in range(micro_batch_size)]

    def num_samples(self, first_step: int = 0, last_step: int | None = None) -> int:
        """Samples (padding packs not counted) in the steps ``first_step .. last_step - 1``."""
        last_step = self.num_steps if last_step is None else last_step
        borders = np.minimum(
            np.array([first_step, last_step]) * self.global_batch_size, self.num_packs
        )
        first, last = borders if self.offsets is None else self.offsets[borders]
        return int(last - first)


def plan_epoch(
    lengths: Values,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    mode: OrderMode = "random",
    max_packed_tokens: int | None = None,
    tiles: Values | None = None,
    max_packed_tiles: int | None = None,
    indices: np.ndarray | None = None,
    window_steps: int | None = None,
    drop_last: bool = False,
) -> EpochPlan:
    """Decide the order of an epoch.

    Args:
        lengths: (n,) ids per sample; negative ones are bad and never planned.
        seed, epoch: the order's source of randomness.
        global_batch_size: packs per optimizer step, over all ranks and accumulation.
        mode: ``random`` as shuffled; ``grouped`` by length; ``packed`` into packs of at most
            ``max_packed_tokens`` ids.
        max_packed_tokens: limit of a pack; at least the longest sample.
        tiles: (n,) image tiles per sample, with ``max_packed_tiles``.
        max_packed_tiles: limit of a pack; a single sample may exceed it.
        indices: the samples of this epoch, repetitions allowed (resampling); all good ones if
            None.
        window_steps: global batches among which ``grouped`` sorts; by default 64 or as many as
            hold 16,384 samples.
        drop_last: leave out what does not fill a step, instead of completing it with padding packs.

    Raises:
        ValueError: no good sample, or a limit that cannot be kept.
    """
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size is {global_batch_size}, want a number > 0")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = _shuffled(lengths, indices, rng)
    offsets = None
    if mode == "packed":
        limits = _limits(order, lengths, max_packed_tokens, tiles, max_packed_tiles)
        order, offsets = _pack(order, lengths, rng, tiles, limits)
    elif mode == "grouped":
        order = _group(order, lengths, rng, global_batch_size, window_steps)
    elif mode != "random":
        raise ValueError(f"mode is {mode!r}, want random, grouped or packed")
    num_packs = len(order) if offsets is None else len(offsets) - 1
    num_steps, rest = divmod(num_packs, global_batch_size)
    if drop_last and num_steps == 0:
        raise ValueError(f"{num_packs} packs do not fill one step of {global_batch_size}")
    first_of_last = num_packs - rest if rest else max(num_packs - global_batch_size, 0)
    return EpochPlan(
        samples=order,
        offsets=offsets,
        global_batch_size=global_batch_size,
        num_steps=num_steps + (rest > 0 and not drop_last),
        padding_pack=_shortest(order, offsets, lengths, first_of_last),
    )


def _shuffled(lengths: Values, indices: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """The samples of an epoch in random order."""
    dtype = np.int32 if len(lengths) < 2**31 else np.int64
    if indices is None:
        order = np.empty(len(lengths), dtype=dtype)
        count = 0
        for first in range(0, len(lengths), BLOCK):
            good = np.flatnonzero(lengths[first : first + BLOCK] >= 0) + first
            order[count : count + len(good)] = good
            count += len(good)
        order = order[:count]
    else:
        order = np.array(indices, dtype=dtype)
    if len(order) == 0:
        raise ValueError("no sample to plan: all records are bad, or there are none")
    rng.shuffle(order)  # in place; the same as order[rng.permutation(len(order))]
    return order


def _shortest(samples: np.ndarray, offsets: np.ndarray | None, lengths: Values, first: int) -> int:
    if offsets is None:
        return first + int(np.argmin(lengths[samples[first:]]))
    sums = np.add.reduceat(lengths[samples[offsets[first] :]], offsets[first:-1] - offsets[first])
    return first + int(np.argmin(sums))


def _group(
    order: np.ndarray,
    lengths: Values,
    rng: np.random.Generator,
    global_batch_size: int,
    window_steps: int | None,
) -> np.ndarray:
    """Cut into steps of about one length each; the longest samples of all come first.

    What does not fill a step stays at the end. The first step is the run's peak of memory, so a
    configuration that does not fit fails at once.
    """
    if window_steps is None:
        window_steps = max(_GROUP_WINDOW_STEPS, _GROUP_WINDOW_SAMPLES // global_batch_size)
    whole = len(order) // global_batch_size * global_batch_size
    body, rest = order[:whole], order[whole:]
    made = np.empty_like(order)
    heaviest = np.zeros(0, dtype=np.int64)
    if whole:
        heaviest = _longest(lengths[body], global_batch_size)
        made[:global_batch_size] = body[heaviest]
        body = np.delete(body, heaviest)
    window = window_steps * global_batch_size
    for first in range(0, len(body), window):
        part = body[first : first + window]
        part[:] = part[descending(lengths[part])]
    steps = body.reshape(-1, global_batch_size)
    shuffled = rng.permutation(len(steps))
    target = made[len(heaviest) : whole].reshape(-1, global_batch_size)
    np.take(steps, shuffled, axis=0, out=target)
    made[whole:] = rest[descending(lengths[rest])] if len(rest) else rest
    return made


def _longest(lengths: np.ndarray, count: int) -> np.ndarray:
    """``argsort(-lengths, kind="stable")[:count]`` without sorting all."""
    least = np.partition(lengths, len(lengths) - count)[len(lengths) - count]
    above = np.flatnonzero(lengths > least)
    above = above[np.argsort(-lengths[above], kind="stable")]
    return np.concatenate([above, np.flatnonzero(lengths == least)[: count - len(above)]])


def _limits(
    order: np.ndarray,
    lengths: Values,
    max_packed_tokens: int | None,
    tiles: Values | None,
    max_packed_tiles: int | None,
) -> Limits:
    """Check the limits of packs."""
    longest = max(
        int(lengths[order[first : first + BLOCK]].max()) for first in range(0, len(order), BLOCK)
    )
    if max_packed_tokens is None or max_packed_tokens < longest:
        raise ValueError(
            f"max_packed_tokens is {max_packed_tokens}, but the longest sample has {longest}"
        )
    if max_packed_tiles is not None and tiles is None:
        raise ValueError("max_packed_tiles needs the tiles of every sample")
    return Limits(max_packed_tokens, max_packed_tiles)


def _pack(
    order: np.ndarray,
    lengths: Values,
    rng: np.random.Generator,
    tiles: Values | None,
    limits: Limits,
) -> tuple[np.ndarray, np.ndarray]:
    """Best fit within windows of the shuffled order; the packs are shuffled.

    Returns:
        Samples pack by pack, and (packs + 1,) where each pack begins among them.
    """
    sizes = pack_in_windows(order, lengths, tiles, limits)
    begins = np.cumsum(sizes, dtype=np.int64) - sizes
    shuffled = rng.permutation(len(sizes))
    sizes, begins = sizes[shuffled], begins[shuffled]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    samples = np.empty_like(order)
    for first in range(0, len(sizes), BLOCK):
        last = min(first + BLOCK, len(sizes))
        start, stop = offsets[first], offsets[last]
        moves = np.repeat(begins[first:last] - offsets[first:last], sizes[first:last])
        samples[start:stop] = order[moves + np.arange(start, stop)]
    return samples, offsets


class StepBatchSampler:
    """One rank's micro batches of an epoch, as a DataLoader's ``batch_sampler``.

    Args:
        plan: the plan of an epoch, e.g. ``lambda epoch: dataset.plan(epoch, …)``.
        rank, world_size: this rank among all.
        micro_batch_size: packs per rank in one forward pass.
        accumulation: micro batches per step; with the two above it makes the plan's global batch.
        epoch, start_step: where to begin; the whole state of the data order.
    """

    def __init__(
        self,
        plan: Callable[[int], EpochPlan],
        *,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        accumulation: int,
        epoch: int = 0,
        start_step: int = 0,
    ) -> None:
        self._plan_epoch = plan
        self._planned: tuple[int, EpochPlan] | None = None
        self.rank, self.world_size = rank, world_size
        self.micro_batch_size, self.accumulation = micro_batch_size, accumulation
        self.epoch, self.start_step = epoch, start_step

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch."""
        if self._planned is None or self._planned[0] != self.epoch:
            plan = self._plan_epoch(self.epoch)
            expected = self.micro_batch_size * self.world_size * self.accumulation
            if plan.global_batch_size != expected:
                raise ValueError(
                    f"the plan's global batch is {plan.global_batch_size} packs, but micro batch "
                    f"x ranks x accumulation = {self.micro_batch_size} x {self.world_size} x "
                    f"{self.accumulation} = {expected}"
                )
            self._planned = (self.epoch, plan)
        return self._planned[1]

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Move to step ``start_step`` of an epoch; takes effect at the next iteration."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return (self.plan.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Pack]]:
        plan = self.plan
        for step in range(self.start_step, plan.num_steps):
            for number in range(self.accumulation):
                yield plan.micro_batch(
                    step,
                    number,
                    rank=self.rank,
                    world_size=self.world_size,
                    micro_batch_size=self.micro_batch_size,
                )
