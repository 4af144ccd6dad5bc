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
from torch.utils.data import Sampler

from internvl_chat.config import OrderMode

_GROUP_WINDOW_SAMPLES = 16_384
_GROUP_WINDOW_STEPS = 64
_PACK_WINDOW_SAMPLES = 16_384
_LEVELS = 32  # steps in which the room for tiles is told apart


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
    offsets: np.ndarray
    """(num_packs + 1,): pack u is ``samples[offsets[u]:offsets[u + 1]]``."""
    global_batch_size: int
    """Packs per step."""
    num_steps: int
    padding_pack: int
    """The pack that completes the last step: the shortest of them."""

    @property
    def num_packs(self) -> int:
        """Packs, padding packs not counted."""
        return len(self.offsets) - 1

    def pack(self, number: int) -> Pack:
        """Pack ``number`` of the epoch; beyond the last one, the padding."""
        padding = number >= self.num_packs
        number = self.padding_pack if padding else number
        indices = self.samples[self.offsets[number] : self.offsets[number + 1]]
        return Pack(tuple(indices.tolist()), padding)

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
        first, last = self.offsets[borders]
        return int(last - first)


def plan_epoch(
    lengths: np.ndarray,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    mode: OrderMode = "random",
    max_packed_tokens: int | None = None,
    tiles: np.ndarray | None = None,
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
    lengths = np.asarray(lengths)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = _shuffled(lengths, indices, rng)
    if mode == "packed":
        samples, offsets = _pack(order, lengths, rng, max_packed_tokens, tiles, max_packed_tiles)
    else:
        if mode == "grouped":
            order = _group(order, lengths, rng, global_batch_size, window_steps)
        elif mode != "random":
            raise ValueError(f"mode is {mode!r}, want random, grouped or packed")
        samples, offsets = order, np.arange(len(order) + 1)
    num_packs = len(offsets) - 1
    num_steps, rest = divmod(num_packs, global_batch_size)
    if drop_last and num_steps == 0:
        raise ValueError(f"{num_packs} packs do not fill one step of {global_batch_size}")
    first_of_last = num_packs - rest if rest else max(num_packs - global_batch_size, 0)
    return EpochPlan(
        samples=samples,
        offsets=offsets,
        global_batch_size=global_batch_size,
        num_steps=num_steps + (rest > 0 and not drop_last),
        padding_pack=_shortest(samples, offsets, lengths, first_of_last),
    )


def _shuffled(
    lengths: np.ndarray, indices: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """The samples of an epoch in random order."""
    good = np.flatnonzero(lengths >= 0) if indices is None else np.asarray(indices)
    if len(good) == 0:
        raise ValueError("no sample to plan: all records are bad, or there are none")
    order = good[rng.permutation(len(good))]
    return order.astype(np.int32 if len(lengths) < 2**31 else np.int64, copy=False)


def _shortest(samples: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, first: int) -> int:
    sums = np.add.reduceat(lengths[samples[offsets[first] :]], offsets[first:-1] - offsets[first])
    return first + int(np.argmin(sums))


def _group(
    order: np.ndarray,
    lengths: np.ndarray,
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
    if whole:
        longest = np.argsort(-lengths[body], kind="stable")[:global_batch_size]
        others = np.ones(whole, dtype=bool)
        others[longest] = False
        heaviest, body = body[longest], body[others]
    else:
        heaviest = body
    window = window_steps * global_batch_size
    for first in range(0, len(body), window):
        part = body[first : first + window]
        body[first : first + window] = part[np.argsort(-lengths[part], kind="stable")]
    steps = body.reshape(-1, global_batch_size)
    steps = steps[rng.permutation(len(steps))]
    rest = rest[np.argsort(-lengths[rest], kind="stable")]
    return np.concatenate([heaviest, steps.reshape(-1), rest])


def _pack(
    order: np.ndarray,
    lengths: np.ndarray,
    rng: np.random.Generator,
    max_packed_tokens: int | None,
    tiles: np.ndarray | None,
    max_packed_tiles: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Best fit, longest first, within windows of the shuffled order; the packs are shuffled."""
    longest = int(lengths[order].max())
    if max_packed_tokens is None or max_packed_tokens < longest:
        raise ValueError(
            f"max_packed_tokens is {max_packed_tokens}, but the longest sample has {longest}"
        )
    if max_packed_tiles is not None and tiles is None:
        raise ValueError("max_packed_tiles needs the tiles of every sample")
    packs: list[list[int]] = []
    for first in range(0, len(order), _PACK_WINDOW_SAMPLES):
        part = order[first : first + _PACK_WINDOW_SAMPLES]
        if max_packed_tiles is None or tiles is None:
            packs += _best_fit(part, lengths[part], max_packed_tokens)
            continue
        tokens, images = (lengths[part], max_packed_tokens), (tiles[part], max_packed_tiles)
        scarce, other = tokens, images
        if images[0].sum() / images[1] > tokens[0].sum() / tokens[1]:
            scarce, other = images, tokens
        packs += _best_fit(part, *scarce, *other)
    packs = [packs[number] for number in rng.permutation(len(packs)).tolist()]
    sizes = np.fromiter((len(pack) for pack in packs), dtype=np.int64, count=len(packs))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    samples = np.fromiter(
        (index for pack in packs for index in pack), dtype=order.dtype, count=len(order)
    )
    return samples, offsets


def _best_fit(
    samples: np.ndarray,
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
    """
    largest = np.argsort(-sizes, kind="stable")
    items = samples[largest].tolist()
    needs = np.minimum(sizes[largest], capacity).tolist()
    grain = max(1, -(-other_capacity // _LEVELS))
    top = other_capacity // grain
    if other_sizes is None:
        others = [0] * len(items)
    else:
        others = np.minimum(-(-other_sizes[largest] // grain), top).tolist()
    packs: list[list[int]] = []
    occupied = [0] * (top + 1)
    buckets: dict[tuple[int, int], list[int]] = {}
    for item, need, other in zip(items, needs, others, strict=True):
        free, level = capacity + 1, -1
        for candidate in range(other, top + 1):
            fitting = occupied[candidate] >> need
            if fitting:
                found = need + (fitting & -fitting).bit_length() - 1
                if found < free:
                    free, level = found, candidate
        if level < 0:
            free, level, number = capacity, top, len(packs)
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


class StepBatchSampler(Sampler[list[Pack]]):
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
